"""The command line: each sub-command is one thin module with `add_arguments(parser)` and `run(arguments) -> int`."""

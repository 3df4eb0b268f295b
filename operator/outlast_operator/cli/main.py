"""`outlast`: finds the sub-command's module, lets it read its arguments, and turns its result into an exit code.

Exit codes: 0 success, 1 the job failed, 2 bad input, 130 interrupted. A sub-command is added by naming its module in
`COMMANDS`; modules are imported only when they are asked for. Those of `outlast_bench` come with a checkout of the
repository alone: without them --help says so, and so does the sub-command.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import outlast
from outlast.process.exit_codes import EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_OK


@dataclass(frozen=True)
class Command:
    """One sub-command. `module` has `add_arguments(parser)`, `run(arguments) -> int`, and a docstring for --help."""

    name: str
    module: str
    help: str


COMMANDS = (
    Command("run", "outlast_operator.cli.run", "train a TrainingJob on this machine, with failures on request"),
    Command("validate", "outlast_operator.cli.validate", "check a TrainingJob: fields, then rules between them"),
    Command("operator", "outlast_operator.cli.operator", "run the Kubernetes operator"),
    Command("report", "outlast_operator.cli.report", "draw report.png and report.html again from a report.json"),
    Command("study", "outlast_bench.cli_study", "run the paper's experiments and this project's, to a report"),
    Command("bench", "outlast_bench.cli_bench", "measure throughput and recovery"),
    Command("crd", "outlast_operator.cli.crd", "print the CustomResourceDefinition"),
)


def is_installed(command: Command) -> bool:
    try:
        return importlib.util.find_spec(command.module) is not None
    except ModuleNotFoundError:  # its package
        return False


def make_parser(chosen: str | None) -> argparse.ArgumentParser:
    """The parser; only the chosen sub-command's module is imported for its arguments."""
    parser = argparse.ArgumentParser(
        prog="outlast",
        description="PyTorch training that outlasts its parameter servers.",
        epilog="exit codes: 0 success, 1 the job failed, 2 bad input, 130 interrupted",
    )
    parser.add_argument("--version", action="version", version=f"outlast {outlast.__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="log details to standard error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        installed = is_installed(command)
        module = importlib.import_module(command.module) if command.name == chosen and installed else None
        sub = commands.add_parser(
            command.name,
            help=command.help if installed else "only in a checkout of the repository: git clone, make venv",
            description=(module.__doc__ if module is not None else None) or command.help,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if module is not None:
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point of the console script; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    chosen = next((word for word in words if not word.startswith("-")), None)
    if any(command.name == chosen and not is_installed(command) for command in COMMANDS):
        print(
            f"outlast {chosen}: only in a checkout of the repository, not in the installed package; "
            f"git clone the repository, run `make venv` in it, then `.venv/bin/outlast {chosen}`",
            file=sys.stderr,
        )
        return EXIT_BAD_INPUT
    arguments = make_parser(chosen).parse_args(words)
    logging.basicConfig(
        level=logging.INFO if arguments.verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    try:
        return int(arguments.run(arguments))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # `outlast ... | head`: the reader has gone, which is no error
        return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())

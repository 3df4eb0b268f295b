"""Exit codes, by which one process tells another how it ended."""

EXIT_OK = 0
EXIT_FAILED = 1  # also of a process that crashed: a restart may help
EXIT_BAD_INPUT = 2  # a command's arguments or files
EXIT_CONFIGURATION = 3  # no restart would help: the job fails with the process's message
EXIT_INTERRUPTED = 130

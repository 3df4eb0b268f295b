"""How training ends before its loop does."""

from __future__ import annotations


class TrainingFinished(SystemExit):
    """Raised by `step()` when the job has reached its goal. Uncaught, the process ends with exit code 0."""

    def __init__(self, message: str) -> None:
        super().__init__(0)
        self.message = message


class TrainingError(RuntimeError):
    """Training cannot go on, and no restart would mend it: a loss that is not finite, say."""


class Superseded(SystemExit):
    """Another process has taken over this worker's slot, or will: this one was told to end (`code` says so)."""

    def __init__(self, code: int = 0) -> None:
        super().__init__(code)

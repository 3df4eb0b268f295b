"""How a study shows where it is: a line a finished run, and on a terminal one that says what is going on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.status import Status


def rough(seconds: float) -> str:
    """`45 s`, `12 min` or `3 h 05 min`: no more than an estimate is worth."""
    if seconds < 90:
        return f"{max(0.0, seconds):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


class Progress:
    """Counts down what is left: each run's training and what it was thought to take besides, corrected by how long runs
    have taken so far."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status: Status | None = console.status("") if console.is_terminal else None
        self._left: list[tuple[float, float]] = []  # of what is still to come: seconds of training, and besides
        self._other_s = 0.0  # estimate of what comes after the runs
        self._total = 0
        self._besides, self._thought = 0.0, 0.0  # seconds that runs took besides training, and were thought to take
        self._began = 0.0
        self._what = ""

    def __enter__(self) -> Progress:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._status is not None:
            self._status.stop()

    def plan(self, runs: Sequence[tuple[float, float]], other_s: float) -> None:
        """What is still to come: (seconds of training, besides) of each run, and everything else together."""
        self._left, self._total, self._other_s = list(runs), len(runs), other_s

    def left_s(self) -> float:
        correction = self._besides / self._thought if self._thought else 1.0
        return sum(training + correction * besides for training, besides in self._left) + self._other_s

    def begin(self, what: str) -> None:
        self._what, self._began = what, time.monotonic()
        self.tick()

    def tick(self) -> None:
        if self._status is not None:
            spent = time.monotonic() - self._began if self._left else 0.0
            left = rough(self.left_s() - spent)
            self._status.update(f"{self._what}  [dim]{spent:.0f} s · about {left} left[/dim]")

    def retry(self, why: str) -> None:
        """The run that began last failed and counts for nothing: another takes its place."""
        self._console.print(f"{self._what}: {why}", style="yellow", highlight=False, markup=False)

    def done(self, result: str, failed: bool = False) -> None:
        """The run that began last is over."""
        if self._left:
            training, besides = self._left.pop(0)
            self._thought += besides
            self._besides += max(0.0, time.monotonic() - self._began - training)
        count = self._total - len(self._left)
        style = "red" if failed else None
        line = f"{count}/{self._total}  {self._what}: {result}  ({rough(self.left_s())} left)"
        self._console.print(line, style=style, highlight=False, markup=False)

"""What the benches share: settings, outcomes, jobs, and one way to run a job (the runner's own) under a deadline.

Rules. (1) A job is run by the local run's own `Runner`, with a display that shows one line of progress and ends a run
that takes too long. (2) A run that fails, hangs or misses one of its kills raises `BenchError`, names its directory and
leaves it in place; all others are removed. (3) Progress goes to the terminal, figures to the bench's console.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.status import Status
from rich.table import Table

from outlast.api.job import TrainingJob
from outlast_operator.local.display import Scene, summary
from outlast_operator.local.kills import Kill, Trigger, parse_kill
from outlast_operator.local.runner import Result, RunFailed, Runner
from outlast_operator.local.setup import Options, check
from outlast_operator.reporting.data import build_report

FASHION_MNIST = "outlast.tasks.fashion_mnist"
SYNTHETIC = "outlast.tasks.synthetic"


class BenchError(RuntimeError):
    """Something could not be measured. The message says what, and where the run's directory lies."""


@dataclass(frozen=True)
class Settings:
    """How much is measured, and where it is shown. `runs`: None for the bench's own number."""

    console: Console
    runs: int | None = None
    seed: int = 0
    short: bool = False  # smaller jobs and shorter outages: to see that a bench works, not to measure

    def count(self, default: int) -> int:
        return default if self.runs is None else max(1, self.runs)


@dataclass(frozen=True)
class Outcome:
    """What a bench found. `problems`: why it does not hold, in words."""

    figures: dict[str, Any]
    problems: Sequence[str] = ()

    @property
    def holds(self) -> bool:
        return not self.problems


class Progress:
    """One line that says what is going on; in a pipe a line a step."""

    def __init__(self, console: Console, total: int, what: str) -> None:
        self._console, self._total, self._what = console, total, what
        self._done = 0
        self._label = ""
        self._status: Status | None = console.status(what) if console.is_terminal else None

    def __enter__(self) -> Progress:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._status is not None:
            self._status.stop()

    def step(self, label: str) -> None:
        self._done += 1
        self._label = f"{self._what} {self._done}/{self._total}: {label}"
        if self._status is None:
            self._console.print(self._label, highlight=False)
        else:
            self._status.update(self._label)

    def detail(self, text: str) -> None:
        if self._status is not None:
            self._status.update(f"{self._label}  [dim]{text}[/dim]")


class Watch:
    """The display of a bench's run: it remembers the newest scene, and ends the run at its deadline."""

    def __init__(self, progress: Progress, deadline_s: float, on_scene: Callable[[Scene], None] | None = None) -> None:
        self._progress, self._deadline_s = progress, deadline_s
        self._end = time.monotonic() + deadline_s
        self._on_scene = on_scene

    def update(self, scene: Scene) -> None:
        self._progress.detail(summary(scene))
        if self._on_scene is not None:
            self._on_scene(scene)
        if time.monotonic() > self._end:
            raise RunFailed(f"it was not over after {self._deadline_s:g} s ({summary(scene)})")

    def say(self, text: str, style: str = "") -> None:
        pass

    def close(self) -> None:
        pass


@dataclass
class Ran:
    """A finished run: its report, and what the report was made of."""

    report: dict[str, Any]
    result: Result
    label: str

    @property
    def directory(self) -> Path:
        return self.result.directory.root

    @property
    def gradients(self) -> dict[str, int]:
        return dict(self.report["gradients"])

    @property
    def digest(self) -> str:
        return str(self.report["final"]["digest"])

    def drilled(self) -> list[dict[str, Any]]:
        """The failures of the report that the drill caused, in order."""
        times = {self.result.run.seconds(loss.t_killed) for loss in self.result.run.losses}
        return [f for f in self.report["failures"] if f["t_killed_s"] in times]

    def keep(self) -> str:
        """Words for a finding that name the run's directory, which stays."""
        return f"{self.label} (kept in {self.directory})"

    def discard(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)


def make_job(
    name: str,
    strategy: str,
    *,
    consistency: str = "Async",
    task: str = SYNTHETIC,
    args: dict[str, Any] | None = None,
    seed: int = 0,
    updates: int | None = None,
    seconds: float | None = None,
    shards: int = 1,
    workers: int = 2,
    optimizer: dict[str, Any] | None = None,
    recovery: dict[str, Any] | None = None,
) -> TrainingJob:
    """A job without evaluation, whose workers buffer gradients in an outage: benches count and time those.

    `recovery` is merged with that and the strategy. Raises `SpecError` as any job file does.
    """
    recovery = {"strategy": strategy, **(recovery or {})}
    recovery["staleness"] = {"outage": {"mode": "StaleGradients"}, **recovery.get("staleness", {})}
    return TrainingJob.load(
        {
            "apiVersion": "outlast.dev/v1alpha1",
            "kind": "TrainingJob",
            "metadata": {"name": name},
            "spec": {
                "training": {
                    "task": task,
                    "args": args or {},
                    "seed": seed,
                    "consistency": consistency,
                    "optimizer": {"name": "SGD", "lr": 0.01, **(optimizer or {})},
                    "stopAfter": {"updates": updates, "seconds": seconds},
                    "evaluate": {"everySeconds": None, "everyUpdates": None},
                },
                "servers": {"shards": shards},
                "workers": {"replicas": workers},
                "recovery": recovery,
            },
        }
    )


def run_job(
    job: TrainingJob,
    kills: Iterable[str | Kill],
    progress: Progress,
    *,
    label: str,
    deadline_s: float,
    transport: str = "unix",
    on_scene: Callable[[Scene], None] | None = None,
    all_kills: bool = True,
) -> Ran:
    """Run a job to its end. Raises `BenchError` when it does not succeed, or when a kill found nobody in time."""
    orders = [parse_kill(kill) if isinstance(kill, str) else kill for kill in kills]
    check(job, orders)
    options = Options(orders, transport)
    result = Runner(job, Path.cwd(), options, Watch(progress, deadline_s, on_scene)).execute()
    if result.outcome == "Interrupted":
        shutil.rmtree(result.directory.root, ignore_errors=True)
        raise KeyboardInterrupt
    ran = Ran(build_report(result.run), result, label)
    if result.outcome != "Succeeded":
        raise BenchError(f"{ran.keep()}: {result.outcome.lower()}: {result.message}")
    carried_out = len(ran.drilled())
    if all_kills and carried_out < len(orders):
        raise BenchError(f"{ran.keep()}: only {carried_out} of {len(orders)} kills were carried out before its end")
    return ran


# --- kills that wait for a chain to be whole again ---


@dataclass
class Pacer:
    """Says when the next of several kills is due: `pause_s` after the chain has all its members (again).

    Fed with scenes; asked by the triggers that `kills` makes. No kill comes before `begin_s` or after `end_s`, in
    seconds since the first update.
    """

    replicas: int
    end_s: float
    random: random.Random
    pause_s: tuple[float, float] = (0.8, 1.6)
    begin_s: float = 1.0
    fired: int = 0
    _epoch: int = 0  # of the newest view seen
    _fired_at_epoch: int = -1
    _whole_since: float | None = None
    _pause: float = field(default=1.0)

    def see(self, scene: Scene) -> None:
        view = scene.status.views.get(0)
        if view is None:
            return
        self._epoch = view.epoch
        alive = all((p := scene.moment.probes.get(m.name)) is not None and p.boot == m.boot for m in view.members)
        if len(view.members) == self.replicas and not view.joining and alive:
            self._whole_since = self._whole_since or time.monotonic()
        else:
            self._whole_since = None

    def due(self, index: int, t_s: float | None) -> bool:
        if index < self.fired:
            return True  # it has not found its victim yet
        if index > self.fired or t_s is None or not self.begin_s <= t_s <= self.end_s or self._whole_since is None:
            return False
        if self._epoch <= self._fired_at_epoch or time.monotonic() < self._whole_since + self._pause:
            return False
        self.fired += 1
        self._fired_at_epoch = self._epoch
        self._whole_since = None
        self._pause = self.random.uniform(*self.pause_s)
        return True

    def kills(self, count: int, text: str) -> list[Kill]:
        """`count` kills; `text` gives target and signal (its own time is not used), such as `head@0s:TERM`."""
        model = parse_kill(text)
        return [replace(model, text=f"{text}#{i}", trigger=_Paced("time", 0.0, self, i)) for i in range(count)]


@dataclass(frozen=True)
class _Paced(Trigger):
    """Holds when the pacer says so."""

    pacer: Pacer
    index: int

    def holds(self, t_s: float | None, version: int, accuracy: float | None, since_kill_s: float | None = None) -> bool:
        return self.pacer.due(self.index, t_s)


# --- tables ---


def table(title: str, *columns: str) -> Table:
    made = Table(title=title, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if i == 0 else "right")
    return made


def ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.0f} ms"


def rounded(value: float | None, digits: int = 3) -> float | None:
    return None if value is None else round(value, digits)


def discard_all(runs: Iterable[Ran]) -> None:
    for ran in runs:
        with suppress(OSError):
            ran.discard()

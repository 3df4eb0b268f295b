"""What a local run leaves for its report: everything heard, the recorded status, and the losses."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from outlast.api.spec import JobSpec
from outlast_operator.local.forkserver_client import ProcessRecord
from outlast_operator.local.monitor import Heard
from outlast_operator.planner.status import JobStatus


@dataclass(frozen=True)
class Loss:
    """One failure as the runner saw it: a kill of the drill, or a process that ended by itself."""

    names: tuple[str, ...]
    signal: str
    t_killed: float
    t_detected: float | None = None  # known here only for the operator, which nobody else watches
    t_promoted: float | None = None


@dataclass(frozen=True)
class Run:
    """Everything a report is made of. Times are monotonic seconds; `t_start` is the report's zero."""

    job: str
    spec: JobSpec
    t_start: float
    t_end: float
    heard: Heard
    status: JobStatus = field(default_factory=JobStatus)
    losses: Sequence[Loss] = ()
    tables: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)  # shard -> ServerControl.table() at the end

    def seconds(self, t: float | None) -> float | None:
        return None if t is None else round(t - self.t_start, 4)


def unplanned(status: JobStatus, drilled: Sequence[Loss], records: Sequence[ProcessRecord]) -> list[Loss]:
    """Losses that the operator recorded and no drill caused: crashes, or kills from outside."""
    found = []
    for line in status.failovers:
        known = any(line.target in loss.names and loss.t_killed <= line.t_detected + 0.1 for loss in drilled)
        if known:
            continue
        mine = [r for r in records if r.name == line.target]
        ended = [r for r in mine if r.t_exited is not None and r.t_exited <= line.t_detected]
        last = max(ended, key=lambda r: r.t_exited or 0.0, default=None)
        number = (last.signal if last is not None else None) or line.signal
        name = signal.Signals(number).name.removeprefix("SIG") if number else line.cause
        t = last.t_exited if last is not None and last.t_exited is not None else line.t_detected
        found.append(Loss((line.target,), name, t))
    return found

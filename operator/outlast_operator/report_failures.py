"""The failures of a run: when each was caused, detected and answered, and what workers did meanwhile. Pure.

Rules. (1) A kill's time is the killer's; detection, decision and promotion are the recorded status's; the first update
is the time at which the server that applied it did so. (2) Only what was observed counts: a time that never came is
null. (3) Rates are gradients computed, from the workers' ledgers, in windows that end where the next failure begins.
"""

from __future__ import annotations

import signal
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from outlast.api.spec import JobSpec
from outlast.ledger import Fact
from outlast_operator.forkserver_client import ProcessRecord
from outlast_operator.monitor import ACTING, Heard, ServerSample
from outlast_operator.state import Failover, JobStatus

RATE_WINDOW_S = 10.0  # before and after a failure


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


def versions(samples: Iterable[ServerSample], shards: int) -> list[tuple[float, int]]:
    """(t, version that all shards had reached), at every sample of a server that acted as head."""
    newest: dict[int, int] = {}
    points: list[tuple[float, int]] = []
    for sample in sorted(samples, key=lambda s: s.t):
        if sample.role in ACTING and sample.serving:
            newest[sample.shard] = sample.version
            if len(newest) == shards:
                points.append((sample.t, min(newest.values())))
    return points


def failures(run: Run, points: Sequence[tuple[float, int]]) -> list[dict[str, Any]]:
    ordered = sorted(run.losses, key=lambda loss: loss.t_killed)
    lines = sorted(run.status.failovers, key=lambda f: f.t_detected)
    t_trained = max((r.t for r in run.heard.ledger if r.fact is Fact.COMPUTED), default=run.t_end)
    described: list[dict[str, Any]] = []
    for i, loss in enumerate(ordered):
        line = _line_for(loss, lines)
        if line is not None:
            lines.remove(line)
        until = ordered[i + 1].t_killed if i + 1 < len(ordered) else t_trained
        since = _quiet_since(run, ordered[:i], points)
        described.append(_describe(run, loss, line, points, since, until))
    return described


def _quiet_since(run: Run, earlier: Sequence[Loss], points: Sequence[tuple[float, int]]) -> float:
    """Where the window before a failure may begin: after the first update, and after the last failure."""
    begin = min(run.heard.first_updates.values(), default=run.t_start)
    return max([begin, *(_next_update(points, loss.t_killed) or loss.t_killed for loss in earlier)])


def _line_for(loss: Loss, lines: Sequence[Failover]) -> Failover | None:
    """The status's line for this loss; of several processes killed at once, the one that took longest."""
    mine = [f for f in lines if f.target in loss.names and f.t_detected >= loss.t_killed - 0.1]
    first = {name: next((f for f in mine if f.target == name), None) for name in loss.names}
    found = [f for f in first.values() if f is not None]
    return max(found, key=lambda f: (f.epoch or 0, f.t_first_update or float("inf")), default=None)


def _next_update(points: Sequence[tuple[float, int]], t: float) -> float | None:
    """When the version was first seen to grow after `t` (a rollback falls first, then grows)."""
    i = bisect_right(points, t, key=lambda p: p[0])
    previous = points[i - 1][1] if i > 0 else 0
    for at, version in points[i:]:
        if version > previous:
            return at
        previous = version
    return None


def _describe(
    run: Run,
    loss: Loss,
    line: Failover | None,
    points: Sequence[tuple[float, int]],
    since: float,
    until: float,
) -> dict[str, Any]:
    first = _next_update(points, loss.t_killed)
    epoch = line.epoch if line is not None else None
    if line is not None and line.kind == "server" and epoch is not None:
        exact = run.heard.first_updates.get((line.shard, epoch), line.t_first_update)
        first = exact if exact is not None and exact >= loss.t_killed else first
    computed = [record.t for record in run.heard.ledger if record.fact is Fact.COMPUTED]
    back = first if first is not None else until
    return {
        "target": ", ".join(loss.names),
        "signal": loss.signal,
        "t_killed_s": run.seconds(loss.t_killed),
        "t_detected_s": run.seconds(line.t_detected if line is not None else loss.t_detected),
        "t_promoted_s": run.seconds(line.t_promoted if line is not None else loss.t_promoted),
        "t_first_update_s": run.seconds(first),
        "epoch": epoch if epoch is not None else _epoch_at(run.heard.samples, back),
        "gradients_per_s": {
            "before": _rate(computed, max(since, loss.t_killed - RATE_WINDOW_S), loss.t_killed),
            "during": _rate(computed, loss.t_killed, back),
            "after": None if first is None else _rate(computed, first, min(first + RATE_WINDOW_S, until)),
        },
        **_backlog(run, loss.t_killed, until),
    }


def _rate(times: Sequence[float], begin: float, end: float) -> float | None:
    """Gradients computed a second in [begin, end); null for no time at all."""
    if end - begin <= 0.0:
        return None
    return round((bisect_left(times, end) - bisect_left(times, begin)) / (end - begin), 3)


def _epoch_at(samples: Sequence[ServerSample], t: float) -> int | None:
    return max((s.epoch for s in samples if s.t <= t and s.role in ACTING), default=None)


def _backlog(run: Run, t_killed: float, until: float) -> dict[str, Any]:
    """When the log that grew in the outage was first seen empty again, and the most it was seen to hold till then.

    The time is null both where it never grew and where the next failure or the end came before it was empty: the most
    it held tells the two apart.
    """
    held: dict[int, int] = {}
    most = 0
    applied = None
    for sample in sorted(run.heard.samples, key=lambda s: s.t):
        if not t_killed < sample.t <= until or sample.role not in ACTING:
            continue
        held[sample.shard] = sample.backlog
        most = max(most, sum(held.values()))
        if most > 0 and not any(held.values()):
            applied = sample.t
            break
    return {"t_backlog_applied_s": run.seconds(applied), "backlog_peak": most}


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

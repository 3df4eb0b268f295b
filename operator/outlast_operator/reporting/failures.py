"""The failures of a run: when each was caused, detected and answered, and what workers did meanwhile. Pure.

Rules. (1) A kill's time is the killer's; detection, decision and promotion are the recorded status's; the first update
is the time at which the server that applied it did so. (2) Only what was observed counts: a time that never came is
null. (3) Rates are gradients computed, from the workers' ledgers, in windows that end where the next failure begins.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from typing import Any

from outlast.api.server_status import HEADS
from outlast.process.ledger import Fact
from outlast_operator.local.monitor import ServerSample
from outlast_operator.local.run import Loss, Run
from outlast_operator.planner.status import Failover

RATE_WINDOW_S = 10.0  # before and after a failure


def versions(samples: Iterable[ServerSample], shards: int) -> list[tuple[float, int]]:
    """(t, version that all shards had reached), at every sample of a server that acted as head."""
    newest: dict[int, int] = {}
    points: list[tuple[float, int]] = []
    for sample in sorted(samples, key=lambda s: s.t):
        if sample.role in HEADS and sample.serving:
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
    return max((s.epoch for s in samples if s.t <= t and s.role in HEADS), default=None)


def _backlog(run: Run, t_killed: float, until: float) -> dict[str, Any]:
    """When the log that grew in the outage was first seen empty again, and the most it was seen to hold till then.

    The time is null both where it never grew and where the next failure or the end came before it was empty: the most
    it held tells the two apart.
    """
    held: dict[int, int] = {}
    most = 0
    applied = None
    for sample in sorted(run.heard.samples, key=lambda s: s.t):
        if not t_killed < sample.t <= until or sample.role not in HEADS:
            continue
        held[sample.shard] = sample.backlog
        most = max(most, sum(held.values()))
        if most > 0 and not any(held.values()):
            applied = sample.t
            break
    return {"t_backlog_applied_s": run.seconds(applied), "backlog_peak": most}

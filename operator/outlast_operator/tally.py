"""What the lines of the failover ledger add up to, those that it no longer holds included. Pure arithmetic.

Rules. (1) A total never shrinks: what a dropped line had added is carried over before it goes (`Dropped`). (2) Lines
overlap, and nothing counts twice: a rollback of two shards is told by two lines and took their updates once, and
workers that wait for two heads at a time wait once.
"""

from __future__ import annotations

from collections.abc import Sequence

from outlast_operator.state import Dropped, Failover, JobStatus

HEADS = ("head", "single")  # whose loss is an outage, and whose version a rollback is measured from


def total_lost(status: JobStatus) -> int:
    """Updates that rollbacks took since the job began."""
    return status.dropped.lost + updates_lost(status.failovers)


def total_outage_s(status: JobStatus, now: float) -> float:
    """Seconds without a head since the job began."""
    return status.dropped.outage_s + outage_s(status.failovers, now, status.dropped.until)


def updates_lost(lines: Sequence[Failover]) -> int:
    """Each rollback once, by the shard that lost most: it takes all of them to one checkpoint in one turn."""
    rollbacks: dict[float, int] = {}
    for f in lines:
        if f.role in HEADS and f.t_decided is not None:
            rollbacks[f.t_decided] = max(rollbacks.get(f.t_decided, 0), f.gradients.get("lost", 0))
    return sum(rollbacks.values())


def outage_s(lines: Sequence[Failover], now: float, after: float = 0.0) -> float:
    """Seconds later than `after` in which at least one shard had no head."""
    total_s, reached = 0.0, after
    for start, end in _outages(lines, now):
        total_s += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total_s


def keep_newest(
    lines: Sequence[Failover], kept: int, dropped: Dropped, now: float
) -> tuple[tuple[Failover, ...], Dropped]:
    """The newest `kept` lines, and what is carried over of the others."""
    newest, gone = tuple(lines[-kept:]), lines[:-kept]
    if not gone:
        return newest, dropped
    lost = updates_lost(lines) - updates_lost(newest)  # the difference: a rollback's other line may stay
    until = max([dropped.until, *(end for _, end in _outages(gone, now))])
    return newest, Dropped(dropped.lost + lost, dropped.outage_s + outage_s(gone, now, dropped.until), until)


def _outages(lines: Sequence[Failover], now: float) -> list[tuple[float, float]]:
    """(start, end) of each, the earliest first; one that goes on is counted up to `now`."""
    heads = [f for f in lines if f.kind == "server" and f.role in HEADS]
    return sorted((f.t_detected, now if f.t_first_update is None else f.t_first_update) for f in heads)

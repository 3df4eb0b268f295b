"""What the lines of the failover ledger add up to, those that it no longer holds included. Pure arithmetic.

Rules. (1) A total never shrinks: what a dropped line had added is carried over before it goes. (2) Lines overlap, and
nothing counts twice: a rollback of two shards is told by two lines and took their updates once, and workers that wait
for two heads at a time wait once.
"""

from __future__ import annotations

from collections.abc import Sequence

from outlast.api.server_status import HEADS
from outlast_operator.planner.status import Failover, JobStatus


def total_lost(status: JobStatus) -> int:
    """Updates that rollbacks took since the job began."""
    return status.lost_before + updates_lost(status.failovers)


def updates_lost(lines: Sequence[Failover]) -> int:
    """Each rollback once, by the shard that lost most: it takes all of them to one checkpoint in one turn."""
    rollbacks: dict[float, int] = {}
    for f in lines:
        if f.role in HEADS and f.t_decided is not None:
            rollbacks[f.t_decided] = max(rollbacks.get(f.t_decided, 0), f.gradients.get("lost", 0))
    return sum(rollbacks.values())


def outage_s(lines: Sequence[Failover], now: float, after: float = 0.0) -> float:
    """Seconds later than `after` in which at least one shard had no head; what goes on is counted up to `now`."""
    heads = [f for f in lines if f.kind == "server" and f.role in HEADS]
    outages = sorted((f.t_detected, now if f.t_first_update is None else f.t_first_update) for f in heads)
    total_s, reached = 0.0, after
    for start, end in outages:
        total_s += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total_s


def keep_newest(lines: Sequence[Failover], kept: int, lost_before: int) -> tuple[tuple[Failover, ...], int]:
    """The newest `kept` lines, and the updates that all others lost."""
    newest = tuple(lines[-kept:])
    # The difference: a rollback's other line may stay.
    return newest, lost_before + updates_lost(lines) - updates_lost(newest)

"""The job's own Redis is told to leave (its node is drained): nothing that it has acknowledged is lost.

Rules:
 1. Its pod is deleted, and ends only when it is told to, or when its grace period is over.
    First it takes no gradient any more: workers keep theirs, as while Redis is away.
 2. It is ended when every head has applied what its log held then, and when that is as safe as the strategy promises:
    in a chain's members; in Stateless, whose only server holds it alone, in a checkpoint of all shards.
 3. The next Redis begins empty. A server that sees another run claims it and writes a snapshot first.
"""

from __future__ import annotations

from outlast_operator.planner.actions import EndRedis, PauseAppends
from outlast_operator.planner.finish import is_drained, request_checkpoints
from outlast_operator.planner.suspend import holds_nothing_yet
from outlast_operator.planner.turn import Turn
from outlast_operator.planner.views import Shard


def hand_over_redis(turn: Turn, shards: list[Shard]) -> None:
    process = turn.process("redis")
    if process is None or not process.alive or not process.leaving:
        return
    paused = turn.since(f"paused:{process.instance}", turn.observed.redis.paused)
    if paused is None:
        turn.do(PauseAppends())
        turn.explain("redis leaves: it takes no more gradients")
        return
    unread = [s.shard for s in shards if not holds_nothing_yet(s) and not is_drained(turn, s, paused)]
    if unread:
        turn.explain(f"redis leaves: waiting until its log is applied, shards {unread}")
    elif turn.spec.traits.through_buffer and not request_checkpoints(turn, shards):
        turn.explain("redis leaves: waiting for a checkpoint of its applied log")
    else:
        turn.do(EndRedis(process.instance))
        turn.explain("redis leaves: its log is applied")

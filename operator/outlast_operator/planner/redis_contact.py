"""Which processes reach Redis: the operator, by its own requests, and the heads, by their reports.

Rules. (1) Redis answers if it answers any of them. (2) The operator ends a Redis only if a head does not reach it
either: otherwise a working Redis would end with the operator's connection, and lose gradients that are acknowledged
and not applied yet. While no head asks, Redis stays. (3) An answer to a head counts for `FRESH_S`, and never for a
Redis that has ended since, or was started (in place, too) afterwards. (4) Workers do not report whether they reach
Redis. (5) Nor does a head of an older trainer image: with such a head, the operator's own requests decide. (6) A
refusal (Redis loads its file, or cannot write to it) is no answer, and no silence: Redis is not ended for it.
"""

from __future__ import annotations

from collections.abc import Sequence

from outlast_operator.planner.turn import Turn
from outlast_operator.planner.views import Shard

FRESH_S = 8.0  # longer than a head waits for one answer


def answers(turn: Turn) -> bool:
    """Whether Redis answers any process, as far as known."""
    return turn.observed.redis.up or answers_a_server(turn)


def answers_a_server(turn: Turn) -> bool:
    process, probes = turn.process("redis"), turn.observed.probes.values()
    if process is not None and not process.alive:
        return False
    answered = [p.redis_answered_t + p.clock_offset_s for p in probes if p.redis_answered_t is not None]
    newest = max(answered, default=None)
    started = 0.0 if process is None else process.t_started
    return newest is not None and newest > started and not turn.due(newest + FRESH_S)


def heads_without(turn: Turn, shards: Sequence[Shard], duration_s: float) -> list[str]:
    """Names of the heads that have not reached Redis for so long."""
    heads = [s.head for s in shards if s.head is not None]
    silent = [(h.name, h.redis_silent_t + h.clock_offset_s) for h in heads if h.redis_silent_t is not None]
    return [name for name, since in silent if turn.due(since + duration_s)]


def any_does_not_tell(shards: Sequence[Shard]) -> bool:
    """Whether some head is of a trainer image that does not say whether it reaches Redis."""
    return any(s.head is not None and not s.head.tells_silence for s in shards)

"""How a job pauses.

Suspended: workers stop first; then the heads apply what Redis still holds, to the end of its log; then, when a
checkpoint holds exactly what the heads hold, everything else stops. There is no limit to these waits, because what is
stopped is lost otherwise (the job's own Redis goes with its pod).
"""

from __future__ import annotations

from outlast_operator.planner.backoff import count_exit, is_counted
from outlast_operator.planner.finish import end, is_drained, request_checkpoints
from outlast_operator.planner.redis_contact import answers
from outlast_operator.planner.status import Attempt
from outlast_operator.planner.turn import Turn
from outlast_operator.planner.views import Shard


def end_computing(turn: Turn) -> bool:
    """Suspending: end workers and evaluator. Returns whether they have ended."""
    processes = turn.observed.processes.values()
    for p in processes:
        if not p.alive and not is_counted(turn, p):
            count_exit(turn, p, progressed=True)  # we ended it: neither a failure, nor a worker that is done
    computing = [p for p in processes if p.alive and p.role in ("worker", "evaluator")]
    end(turn, computing, "the job is suspended")
    return not computing


def what_is_unsaved(turn: Turn, shards: list[Shard]) -> str:
    """Suspending, and nobody computes any more: what the servers must still do; "" when they may be ended."""
    if not turn.status.views or all(holds_nothing_yet(s) for s in shards):
        return ""
    buffered = turn.spec.traits.buffered
    if not buffered and not any(p.alive for p in turn.observed.processes.values()):
        return ""  # what the newest checkpoint holds is all that there is
    since = turn.since("computing ended")
    assert since is not None
    if any(s.head is None or s.head.restoring is not None for s in shards):
        return "waiting for a server that holds the state of each shard"
    # A shard that no worker has brought its first weights to reads no log; none of its gradients was ever applied.
    undrained = [s for s in shards if buffered and not holds_nothing_yet(s) and not is_drained(turn, s, since)]
    if undrained and not answers(turn):
        return "waiting for Redis to answer: it may hold acknowledged gradients"
    if undrained:
        return "waiting until Redis's log is applied"
    return "" if request_checkpoints(turn, shards) else "waiting for a checkpoint"


def holds_nothing_yet(s: Shard) -> bool:
    return s.head is not None and not s.head.initialised and s.head.restoring is None


def end_rest(turn: Turn) -> str:
    """Suspending, and all is saved: end everything. Returns what is waited for, or ""."""
    rest = [p for p in turn.observed.processes.values() if p.alive]
    turn.record(stopping=True)
    end(turn, rest, "the job is suspended")
    return "waiting for all processes to end" if rest else ""


def note_resumption(turn: Turn) -> None:
    """First turn after a suspension: time starts anew, and what ended has not failed."""
    if turn.status.stopping:
        ended = {name: Attempt(instance=attempt.instance) for name, attempt in turn.status.attempts.items()}
        turn.record(t_start=turn.now, waited_s=0.0, attempts=ended, done=(), stopping=False)
        turn.tell("Resumed", "the job resumes")


def note_pause(turn: Turn) -> None:
    """Keep the training time up to now; it goes on counting when all shards serve again."""
    if turn.status.t_running is not None:
        trained_s = turn.status.trained_s + turn.now - turn.status.t_running
        turn.record(trained_s=trained_s, t_running=None)

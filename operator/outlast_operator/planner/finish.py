"""How a job ends: goals, finishing, failure, deadline.

Rules:
 1. A goal, once reached, is recorded (phase Finishing); then every head is told to take no more, until it says
    `finished`. A rollback meanwhile takes the goal back, unless it was a time. Servers stop by themselves at the
    `stopAfter.updates` that they were started with; where it was lowered since, it is we who tell them.
 2. Succeeded: all heads are finished, all workers and the evaluator are done, and a checkpoint holds the result (it is
    waited for at most `CHECKPOINT_PATIENCE_S`, and the end says if it is missing).
 3. What ends a job is ended with SIGTERM, and with SIGKILL after `TERM_PATIENCE_S`.
"""

from __future__ import annotations

from collections.abc import Collection

from outlast_operator.planner.actions import FinishJob, KillProcess, RequestCheckpoint, TermProcess
from outlast_operator.planner.backoff import fail
from outlast_operator.planner.observed import Probe, Process
from outlast_operator.planner.turn import Turn
from outlast_operator.planner.views import Shard
from outlast_operator.planner.waits import active_until
from outlast_operator.planner.workers import all_done, evaluated

CHECKPOINT_PATIENCE_S = 60.0
DRAIN_PATIENCE_S = 60.0  # at the end of a job, for a Redis that does not come back
TERM_PATIENCE_S = 2.0


def check_fatal(turn: Turn, shards: list[Shard]) -> None:
    """Fail the job for what no restart can mend, or when its time is up."""
    for probe in turn.observed.probes.values():
        if probe.config_error:
            fail(turn, "ConfigurationError", f"{probe.name}: {probe.config_error}")
    start_from = turn.spec.recovery.checkpoint.restore_from
    for s in shards if start_from else ():
        if s.failed_restore and s.view is not None and s.view.history == 0 and start_from == s.view.restore:
            why = next((st.message for st in s.standings.values() if st.cause == "RestoreFailed"), "")
            fail(turn, "RestoreFailed", f"recovery.checkpoint.restoreFrom {start_from} cannot be restored: {why}")
    until, limit_s = active_until(turn), turn.spec.run_policy.active_deadline_seconds
    if until is not None and not turn.spec.suspend and turn.due(until):
        message = f"the job is not complete {limit_s} s after its start (runPolicy.activeDeadlineSeconds)"
        waited = f", {turn.status.waited_s:.0f} s of waiting not counted" if turn.status.waited_s >= 1.0 else ""
        fail(turn, "DeadlineExceeded", message + waited)


# --- finishing --------------------------------------------------------------------------------------------------------


def plan_finish(turn: Turn, shards: list[Shard]) -> None:
    """Record a goal that is reached; then finish the heads, wait for all processes, and record the success."""
    if turn.status.goal is None:
        goal = _goal_reached(turn, shards)
        if goal is None:
            return
        turn.record(goal=goal)
        turn.tell("Finishing", f"stopAfter.{goal} is reached" if goal != "workers" else "all workers are done")
    ready = True
    for s in shards:
        if s.view is None or s.head is None or s.view.head is None:
            ready = False
        elif not s.head.finished:
            ready = False
            if _may_finish(turn, s):
                turn.do(FinishJob(s.view.head))
    if turn.lasted("heads finished", ready, turn.spec.workers.grace_seconds):
        for p in turn.observed.processes.values():
            if p.role == "worker" and p.alive:
                turn.do(KillProcess(p.name, p.instance, "it is still running although the job has finished"))
    if ready and all_done(turn) and evaluated(turn):
        _complete(turn, shards)


def _may_finish(turn: Turn, s: Shard) -> bool:
    """Whether a head is told to admit nothing more. A goal of time or accuracy ends at once; else what is acknowledged
    and not applied yet (the buffer's log, another shard's last updates) still is: until the version stands still."""
    goal = turn.status.goal
    applied = goal in ("epochs", "workers") and not turn.spec.traits.buffered  # workers leave when all is
    if s.head is None or applied or goal in ("seconds", "accuracy") or _has_all_updates(turn, s):
        return True
    since = turn.since(f"still:{s.shard}:{s.head.epoch}")
    assert since is not None
    drained = not turn.spec.traits.buffered or is_drained(turn, s, since)
    if not drained and not turn.lasted(f"undrained:{s.shard}", True, DRAIN_PATIENCE_S):
        return False
    # A time of the server's own, not a timer that a new version starts anew: each of those would be a write.
    applied_t = 0.0 if s.head.applied_t is None else s.head.applied_t + s.head.clock_offset_s
    return turn.due(max(since, applied_t) + turn.spec.recovery.failover.timeout_seconds)


def is_drained(turn: Turn, s: Shard, since: float) -> bool:
    """Whether the head has applied all that stood in the buffer's log at the time `since`, or will admit no more."""
    if s.head is None:
        return False
    margin_s = turn.spec.recovery.failover.heartbeat_seconds  # times of another host are known to a few milliseconds
    end_t = s.head.log_end_t
    return s.head.finished or (end_t is not None and end_t + s.head.clock_offset_s >= since + margin_s)


def _has_all_updates(turn: Turn, s: Shard) -> bool:
    updates = turn.spec.training.stop_after.updates
    return updates is not None and s.head is not None and s.head.initialised and s.head.version >= updates


def _goal_reached(turn: Turn, shards: list[Shard]) -> str | None:
    stop, status = turn.spec.training.stop_after, turn.status
    heads = [s.head for s in shards]
    finished = [head is not None and head.finished for head in heads]
    if all(finished) or all(_has_all_updates(turn, s) for s in shards):
        return "updates"  # one shard alone may be ahead by an update: the others' must still be applied
    if all_done(turn):
        return "epochs" if stop.epochs is not None else "updates" if any(finished) else "workers"
    timed = stop.seconds is not None and status.t_running is not None
    if timed and turn.due((status.t_running or 0.0) + (stop.seconds or 0.0) - status.trained_s):
        return "seconds"
    found = [p.evaluation.accuracy for p in heads if p is not None and p.evaluation is not None]
    best = max((accuracy for accuracy in found if accuracy is not None), default=None)
    return "accuracy" if stop.accuracy is not None and best is not None and best >= stop.accuracy else None


def _complete(turn: Turn, shards: list[Shard]) -> None:
    patient = not turn.lasted("final checkpoint", True, CHECKPOINT_PATIENCE_S)
    saved = request_checkpoints(turn, shards)
    if not saved and patient:
        turn.explain("waiting for the final checkpoint")
        return
    note = "" if saved else f"; no checkpoint of it was written within {CHECKPOINT_PATIENCE_S:g} s"
    message = f"trained until {turn.status.goal}{note}"
    turn.record(outcome="Succeeded", reason="Completed", message=message, t_completed=turn.now)
    turn.tell("Completed", message, warning=not saved)


def request_checkpoints(turn: Turn, shards: list[Shard]) -> bool:
    """Whether a checkpoint holds what every head holds; asks those for one that have none."""
    saved = True
    # Asynchronous shards differ by some updates: one number names the set, whatever each of them holds.
    label = max((s.head.version for s in shards if s.head is not None), default=0)
    for s in shards:
        head = s.head
        if head is None or s.view is None or s.view.head is None:
            saved = False
        elif head.initialised and not _holds(head, head.history, label):
            saved = False
            turn.do(RequestCheckpoint(s.view.head, label))
        elif turn.own_directories and head.initialised:
            saved = _copies_requested(turn, s, head, label) and saved
    return saved


def _copies_requested(turn: Turn, s: Shard, head: Probe, label: int) -> bool:
    """Whether every member that is not lost holds what its head does, in a directory of its own, by its own word; asks
    those that do not, once they have applied what the head has."""
    assert s.view is not None
    saved = True
    for m in s.view.members:
        st = s.standings[m.boot]
        if not st.well or (st.probe is not None and _holds(st.probe, head.history, label)):
            continue
        saved = False
        if st.probe is not None and st.probe.version == head.version:
            turn.do(RequestCheckpoint(m, label))
    return saved


def _holds(probe: Probe, history: int, label: int) -> bool:
    return any(c.history == history and c.version >= label for c in probe.checkpoints)


# --- ending processes -------------------------------------------------------------------------------------------------


def end_all(turn: Turn, why: str) -> None:
    """End whatever still runs: the job has its outcome."""
    end(turn, [p for p in turn.observed.processes.values() if p.alive], why)


def end(turn: Turn, processes: Collection[Process], why: str) -> None:
    for p in processes:
        if turn.lasted(f"term:{p.instance}", True, TERM_PATIENCE_S):
            turn.do(KillProcess(p.name, p.instance, why))
        else:
            turn.do(TermProcess(p.name, p.instance, why))

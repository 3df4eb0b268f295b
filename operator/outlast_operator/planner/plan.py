"""The planner: one pure function from what is wanted, seen and remembered to what is recorded and done.

Rules:
 1. Level-based: the plan follows from the observation alone. Planned again before anything was done, it says the same;
    after it was done, it says nothing more.
 2. Status first, actions after: the operator may die between any two lines. So a view is recorded in one turn and
    installed in a later one, and an incarnation is recorded before its process is started.
 3. Installs repeat until each member's probe confirms the epoch.
 4. A status that differs in its progress alone is written at most every few seconds; fewer workers are news.

The order of work is that of recovery: views, then processes, then what follows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from outlast_operator.planner import conditions, finish, suspend
from outlast_operator.planner.actions import Action, Emit, InstallView, Plan, ServerCall, SetSlots, in_order
from outlast_operator.planner.buffer_runs import note_buffer_runs
from outlast_operator.planner.checkpoint_sets import newest_set
from outlast_operator.planner.claims import note_storage, plan_claims
from outlast_operator.planner.failovers import write_ledger
from outlast_operator.planner.health import remember_the_dead
from outlast_operator.planner.observed import ObservedJob
from outlast_operator.planner.progress import INTERVAL_S, measure, number_ready
from outlast_operator.planner.reach import look_out
from outlast_operator.planner.redis_handover import hand_over_redis
from outlast_operator.planner.servers import plan_redis, plan_servers
from outlast_operator.planner.status import JobStatus
from outlast_operator.planner.turn import Turn
from outlast_operator.planner.views import Shard, plan_views, survey
from outlast_operator.planner.waits import note_waits
from outlast_operator.planner.workers import plan_evaluator, plan_workers

if TYPE_CHECKING:
    from outlast.api.spec import JobSpec


def plan(spec: JobSpec, observed: ObservedJob, now: float) -> Plan:
    """What to record and what to do. `now` is on the runtime's clock (see observed.py)."""
    turn = Turn.begin(spec, observed, now)
    if turn.status.t_start is None:
        turn.record(t_start=now)
    note_storage(turn)
    if observed.generation is not None:
        turn.record(observed_generation=observed.generation)
    remember_the_dead(turn)
    shards = survey(turn)
    look_out(turn, shards)
    suspending: str | None = None
    if turn.status.outcome is None and not spec.suspend:
        suspend.note_resumption(turn)
    if turn.status.outcome is None:
        finish.check_fatal(turn, shards)
    if turn.status.outcome is None and spec.suspend:
        suspending = _suspend(turn, shards)
    elif turn.status.outcome is None:
        _train(turn, shards)
    note_waits(turn, shards)
    if turn.status.outcome is not None:
        turn.actions = [a for a in turn.actions if isinstance(a, Emit)]
        finish.end_all(turn, f"the job has {turn.status.outcome}")
    conditions.show(turn, shards, suspending)
    return _conclude(turn, shards)


def _train(turn: Turn, shards: list[Shard]) -> None:
    _keep_servers(turn, shards)
    plan_workers(turn, shards)
    plan_evaluator(turn, shards)
    if turn.status.t_running is None and all(s.head is not None and s.head.serving for s in shards):
        turn.record(t_running=turn.now)
    finish.plan_finish(turn, shards)
    _set_slots(turn, shards)
    write_ledger(turn, shards)


def _suspend(turn: Turn, shards: list[Shard]) -> str:
    """What the suspension waits for; "" when all processes have ended. Until the state is saved, losses are handled as
    usual: a lost server is started again, because a server must apply what Redis holds."""
    if not turn.status.stopping and turn.status.views:
        _keep_servers(turn, shards)
        write_ledger(turn, shards)
    waits = "" if suspend.end_computing(turn) else "waiting for workers and evaluator to end"
    if turn.status.stopping:
        waits = suspend.end_rest(turn)
    elif not waits:
        waits = suspend.what_is_unsaved(turn, shards) or suspend.end_rest(turn)
    if waits:
        turn.explain(f"suspending: {waits}")
    else:
        suspend.note_pause(turn)
    return waits


def _keep_servers(turn: Turn, shards: list[Shard]) -> None:
    note_buffer_runs(turn, shards)
    plan_views(turn, shards)
    plan_redis(turn, shards)
    hand_over_redis(turn, shards)
    plan_claims(turn, shards)
    plan_servers(turn, shards)
    _install(turn, shards)


def _install(turn: Turn, shards: list[Shard]) -> None:
    """Hand recorded views to members that have not confirmed them. Recorded before installing: two views of one epoch
    would fork the chain."""
    for s in shards:
        view = s.view
        if view is None or turn.status.views[s.shard] != turn.recorded.views.get(s.shard):
            continue
        for m in (*view.members, *view.joining):
            standing = s.standings[m.boot]
            if standing.well and not standing.confirms(view.epoch):
                turn.do(InstallView(m, view))
                turn.explain(f"shard {s.shard}: epoch {view.epoch} goes to {m.name}")


def _set_slots(turn: Turn, shards: list[Shard]) -> None:
    wanted = turn.spec.workers.replicas
    for s in shards:
        head = s.view.head if s.view is not None else None
        if head is None or s.head is None or turn.status.goal is not None:
            continue
        if s.head.initialised and s.head.slots != wanted:
            turn.do(SetSlots(head, wanted))


def _conclude(turn: Turn, shards: list[Shard]) -> Plan:
    turn.record(since=turn.timers)
    if turn.status != turn.recorded or _progress_is_due(turn):
        turn.record(progress=measure(turn, shards))
        if turn.own_directories:
            turn.record(newest_set=newest_set(turn))
    if any(isinstance(a, ServerCall) for a in turn.actions):
        turn.wake(turn.now + turn.spec.recovery.failover.heartbeat_seconds)
    actions = in_order(turn.actions)
    _assert_recorded_first(turn.recorded, actions)
    return Plan(turn.status, actions, "; ".join(turn.reasons) or "nothing to do", turn.wake_at)


def _progress_is_due(turn: Turn) -> bool:
    training = turn.status.t_running is not None and turn.status.outcome is None
    fewer = number_ready(turn, "worker") < turn.recorded.progress.workers_ready
    return training and (fewer or turn.due(turn.recorded.progress.t + INTERVAL_S))


def _assert_recorded_first(recorded: JobStatus, actions: tuple[Action, ...]) -> None:
    for action in actions:
        if isinstance(action, InstallView):
            assert recorded.views.get(action.view.shard) == action.view, "only a recorded view is installed"

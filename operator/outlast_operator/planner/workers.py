"""Slots and who fills them, and the evaluator.

Rules:
 1. A slot's incarnation is recorded before its process is started, and fences the older ones. A start that was
    recorded and never seen is repeated as it is; one that was ever seen is used up, though nobody sees it any more.
 2. A worker that exits with 0 is done, if it was started since the last rollback (an older one may have been told of an
    end that was rolled back); with 3 the job fails; else it is restarted (backoff.py).
 3. In Sync and BoundedStaleness the others wait for every slot: one that has had no running worker for
    `workers.graceSeconds` is given to a living worker too, as another incarnation of it. A worker that is no longer
    connected by a head's word is none; one that is given up (reach.py) counts as ended. A start that is refused fills
    no slot, nor does a pod that its node rejects; once the slot is lent a refused start is requested less often, for
    each request takes the slot from its borrower.
 4. An evaluator that fails never ends the training: it is started again, ever more slowly, and the condition
    EvaluationHealthy says why it failed, until it has evaluated again.
 5. Once the goal is reached nobody is started again but the evaluator, which still owes the final evaluation.
"""

from __future__ import annotations

from outlast.process.exit_codes import EXIT_CONFIGURATION
from outlast_operator.planner.actions import AssignSlot, KillProcess, StartProcess, TermProcess
from outlast_operator.planner.backoff import count_exit, ending, fails_for_good, is_counted, is_own_error, may_start
from outlast_operator.planner.observed import Process
from outlast_operator.planner.reach import cut_off_slots, slot_of
from outlast_operator.planner.status import POD_REJECTED
from outlast_operator.planner.turn import Turn
from outlast_operator.planner.views import Shard

EVALUATOR = "evaluator"
FINAL_EVALUATION_PATIENCE_S = 600.0
REFUSED_AGAIN_S = 30.0  # after which a refused start of a lent slot is requested again


def worker_name(slot: int) -> str:
    return f"worker-{slot}"


def plan_workers(turn: Turn, shards: list[Shard]) -> None:
    clocks = slot_clocks(shards)
    cut_off = cut_off_slots(turn, shards)
    for slot in range(turn.spec.workers.replicas):
        _plan_slot(turn, slot, None if clocks is None else clocks.get(slot, 0), cut_off)
        if turn.status.outcome is not None:
            return
    for process in turn.observed.processes.values():
        if process.role == "worker" and process.alive and slot_of(process) >= turn.spec.workers.replicas:
            turn.do(TermProcess(process.name, process.instance, "workers.replicas was lowered"))


def slot_clocks(shards: list[Shard]) -> dict[int, int] | None:
    """Each slot's highest applied step, by the first head's word; None while it has no head that would know."""
    head = shards[0].head
    return head.clocks if head is not None and head.initialised else None


def all_done(turn: Turn) -> bool:
    return all(worker_name(slot) in turn.status.done for slot in range(turn.spec.workers.replicas))


def _plan_slot(turn: Turn, slot: int, clock: int | None, cut_off: frozenset[int]) -> None:
    name = worker_name(slot)
    process = turn.process(name)
    recorded = turn.status.incarnations.get(slot, 0)
    if process is not None and process.incarnation >= recorded and turn.status.seen.get(slot) != process.instance:
        turn.record(seen={**turn.status.seen, slot: process.instance})
        wait = turn.recorded.waits.get(name)
        if wait is not None and wait.reason != POD_REJECTED:  # refused until now, it gets its own time to start
            turn.timers[f"slot:{slot}"] = turn.now
    if process is not None and not process.alive and not is_counted(turn, process):
        _count_worker(turn, process, clock)
    if name in turn.status.done or turn.status.outcome is not None:
        return
    if process is not None and process.alive:
        _keep(turn, slot, process, recorded)
    elif turn.status.goal is not None:
        turn.record(done=(*turn.status.done, name))  # nothing is left for a restarted worker to do
        return
    elif _may_start(turn, slot):
        _start(turn, slot, process)
        turn.since(f"slot:{slot}", _is_missed(turn))  # a request alone does not end the wait for a worker
        return
    _lend(turn, slot, process is not None and process.phase == "running" and slot not in cut_off, cut_off)


def _may_start(turn: Turn, slot: int) -> bool:
    name = worker_name(slot)
    lent = slot in turn.status.adopted and name in turn.observed.waits
    asks_again = turn.lasted(f"lent:{slot}", lent, REFUSED_AGAIN_S)
    return (not lent or asks_again) and may_start(turn, name)


def _start(turn: Turn, slot: int, process: Process | None) -> None:
    status, name = turn.status, worker_name(slot)
    newest = max(status.incarnations.get(slot, 0), 0 if process is None else process.incarnation)
    # Not there any more is not dead: its pod may have been removed by force while its process runs on.
    used = slot in status.seen or slot in status.adopted
    incarnation = max(1, newest + 1 if used else newest)
    turn.record(
        incarnations={**status.incarnations, slot: incarnation},
        adopted={k: v for k, v in status.adopted.items() if k != slot},
        seen={k: v for k, v in status.seen.items() if k != slot},
    )
    replaces = None if process is None else process.instance
    turn.do(StartProcess(name, "worker", slot=slot, incarnation=incarnation, replaces=replaces))
    turn.explain(f"starting {name}, incarnation {incarnation}")


def _keep(turn: Turn, slot: int, process: Process, recorded: int) -> None:
    if process.incarnation < recorded and process.phase == "running":
        # Another process got the slot meanwhile: this one is fenced, and the next start gets a newer incarnation.
        turn.do(KillProcess(process.name, process.instance, f"incarnation {process.incarnation} is fenced"))
    elif process.incarnation > recorded:  # a record was lost: never fall behind what exists
        turn.record(incarnations={**turn.status.incarnations, slot: process.incarnation})


def _count_worker(turn: Turn, process: Process, clock: int | None) -> None:
    attempt = count_exit(turn, process, clock)
    over = turn.status.goal is not None and process.exit_code != EXIT_CONFIGURATION
    rolled_back = turn.status.t_rolled_back
    if process.exit_code == 0 and not over and rolled_back is not None and process.t_started < rolled_back:
        turn.explain(f"{process.name} may have exited because of a goal that was rolled back; restarting it")
    elif process.exit_code == 0 or over:
        turn.record(done=(*turn.status.done, process.name))
        turn.explain(f"{process.name} is done")
    elif not fails_for_good(turn, process, attempt.failures) and not process.never_ran:
        turn.tell("WorkerLost", f"{process.name} ended with {ending(process)}; restarting it", warning=True)


def _lend(turn: Turn, slot: int, filled: bool, cut_off: frozenset[int]) -> None:
    adopter = turn.status.adopted.get(slot)
    running = [k for k in _running_slots(turn) if k not in cut_off]
    if adopter is not None and adopter not in running:
        turn.record(
            adopted={k: v for k, v in turn.status.adopted.items() if k != slot},
            incarnations={**turn.status.incarnations, slot: turn.status.incarnations[slot] + 1},  # the lender's is used
        )
        adopter = None
    if not turn.lasted(f"slot:{slot}", not filled and _is_missed(turn), turn.spec.workers.grace_seconds):
        return
    if adopter is None:
        free = [k for k in running if k not in turn.status.adopted.values()] or running
        if not free:
            return
        adopter = free[0]
        incarnation = turn.status.incarnations.get(slot, 0) + 1
        turn.record(
            adopted={**turn.status.adopted, slot: adopter},
            incarnations={**turn.status.incarnations, slot: incarnation},
        )
        turn.tell(
            "SlotLent", f"slot {slot} has had no worker for workers.graceSeconds; {worker_name(adopter)} also fills it"
        )
    turn.do(AssignSlot(slot, turn.status.incarnations[slot], worker_name(adopter)))


def _is_missed(turn: Turn) -> bool:
    """Whether the others wait for a slot without a worker."""
    return turn.spec.traits.waits_for_slots and turn.status.t_running is not None and turn.status.goal is None


def _running_slots(turn: Turn) -> list[int]:
    return sorted(
        slot_of(p)
        for p in turn.observed.processes.values()
        if p.role == "worker" and p.phase == "running" and slot_of(p) < turn.spec.workers.replicas
    )


# --- the evaluator ----------------------------------------------------------------------------------------------------


def plan_evaluator(turn: Turn, shards: list[Shard]) -> None:
    if not turn.spec.training.evaluated or EVALUATOR in turn.status.done:
        return
    _note_evaluation(turn, shards)
    process = turn.process(EVALUATOR)
    finishing = turn.status.goal is not None
    too_long = turn.lasted("final evaluation", finishing, FINAL_EVALUATION_PATIENCE_S)
    if process is not None and process.alive:
        if too_long:
            turn.do(KillProcess(EVALUATOR, process.instance, "the final evaluation does not end"))
            _give_up_evaluating(turn, f"it did not end within {FINAL_EVALUATION_PATIENCE_S:g} s")
        return
    if process is not None and not is_counted(turn, process):
        attempt = count_exit(turn, process)
        if process.exit_code == 0 and finishing:
            turn.record(done=(*turn.status.done, EVALUATOR))
            return
        too_often = attempt.failures > turn.spec.run_policy.backoff_limit
        if finishing and (too_often or process.exit_code == EXIT_CONFIGURATION):
            _give_up_evaluating(turn, process.reason or ending(process))
            return
        if is_own_error(process):
            turn.record(evaluation_error=process.reason or ending(process))
    if too_long:
        _give_up_evaluating(turn, f"it did not start within {FINAL_EVALUATION_PATIENCE_S:g} s")
    elif may_start(turn, EVALUATOR):
        turn.do(StartProcess(EVALUATOR, "evaluator", replaces=None if process is None else process.instance))


def _note_evaluation(turn: Turn, shards: list[Shard]) -> None:
    failed = turn.status.attempts.get(EVALUATOR)
    times = [s.head.evaluation.t + s.head.clock_offset_s for s in shards if s.head and s.head.evaluation]
    if turn.status.evaluation_error and failed is not None and max(times, default=0.0) > failed.t_exited:
        turn.record(evaluation_error="")


def _give_up_evaluating(turn: Turn, why: str) -> None:
    turn.record(done=(*turn.status.done, EVALUATOR))
    turn.tell("NoFinalEvaluation", f"the final evaluation failed: {why}", warning=True)


def evaluated(turn: Turn) -> bool:
    return not turn.spec.training.evaluated or EVALUATOR in turn.status.done

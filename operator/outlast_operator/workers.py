"""Slots and who fills them, and the evaluator.

Rules:
 1. A slot's incarnation is recorded before its process is started, and fences the older ones. A start that was
    recorded and never seen is repeated as it is; one that was ever seen is used up, though nobody sees it any more.
 2. A worker that exits with 0 is done, if it was started since the last rollback (an older one may have been told of an
    end that was rolled back); with 3 the job fails; else it is restarted (backoff.py).
 3. In Sync and BoundedStaleness the others wait for every slot: one that has had no running worker for
    `workers.graceSeconds` is given to a living worker too, as another incarnation of it. A worker that is no longer
    connected by a head's word (its node is lost, which a cluster takes minutes to tell) is none.
 4. Once the goal is reached nobody is started again but the evaluator, which still owes the final evaluation.
"""

from __future__ import annotations

from outlast_operator.backoff import count_exit, ending, fails_for_good, is_counted, may_start
from outlast_operator.state import CONFIG_ERROR_EXIT, AssignSlot, KillProcess, Process, StartProcess, TermProcess
from outlast_operator.turn import Turn
from outlast_operator.views import Shard

EVALUATOR = "evaluator"
FINAL_EVALUATION_PATIENCE_S = 600.0


def worker_name(slot: int) -> str:
    return f"worker-{slot}"


def plan_workers(turn: Turn, shards: list[Shard]) -> None:
    clocks = slot_clocks(shards)
    cut_off = _cut_off(turn, shards)
    for slot in range(turn.spec.workers.replicas):
        _plan_slot(turn, slot, None if clocks is None else clocks.get(slot, 0), cut_off)
        if turn.status.outcome is not None:
            return
    for process in turn.observed.processes.values():
        if process.role == "worker" and process.alive and _slot(process) >= turn.spec.workers.replicas:
            turn.do(TermProcess(process.name, process.instance, "workers.replicas was lowered"))


def slot_clocks(shards: list[Shard]) -> dict[int, int] | None:
    """Each slot's highest applied step, by the first head's word; None while it has no head that would know."""
    head = shards[0].head
    return head.clocks if head is not None and head.initialised else None


def _absent_since(shards: list[Shard], slot: int) -> float | None:
    """When the slot's last connection to a head ended, if no other was made since."""
    times = [
        s.head.absent[slot] + s.head.clock_offset_s for s in shards if s.head is not None and slot in s.head.absent
    ]
    return max(times, default=None)


def _cut_off(turn: Turn, shards: list[Shard]) -> frozenset[int]:
    """Slots whose process seems to run, and has been connected no more since some time after its start."""
    running = {_slot(p): p for p in turn.observed.processes.values() if p.role == "worker" and p.phase == "running"}
    absent = {slot: _absent_since(shards, slot) for slot in running}
    return frozenset(slot for slot, t in absent.items() if t is not None and running[slot].t_started < t)


def all_done(turn: Turn) -> bool:
    return all(worker_name(slot) in turn.status.done for slot in range(turn.spec.workers.replicas))


def _slot(process: Process) -> int:
    return int(process.name.rsplit("-", 1)[1])


def _plan_slot(turn: Turn, slot: int, clock: int | None, cut_off: frozenset[int]) -> None:
    name = worker_name(slot)
    process = turn.process(name)
    recorded = turn.status.incarnations.get(slot, 0)
    if process is not None and process.incarnation >= recorded and turn.status.seen.get(slot) != process.instance:
        turn.record(seen={**turn.status.seen, slot: process.instance})
    if process is not None and not process.alive and not is_counted(turn, process):
        _count_worker(turn, process, clock)
    if name in turn.status.done or turn.status.outcome is not None:
        return
    if process is not None and process.alive:
        _keep(turn, slot, process, recorded)
    elif turn.status.goal is not None:
        turn.record(done=(*turn.status.done, name))  # nothing is left for a restarted worker to do
        return
    elif may_start(turn, name):
        _start(turn, slot, process)
        return
    _lend(turn, slot, process is not None and process.phase == "running" and slot not in cut_off, cut_off)


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
    turn.explain(f"{name} is started, incarnation {incarnation}")


def _keep(turn: Turn, slot: int, process: Process, recorded: int) -> None:
    if process.incarnation < recorded and process.phase == "running":
        # Somebody else was given the slot meanwhile: this one is fenced, and another start gets a newer incarnation.
        turn.do(KillProcess(process.name, process.instance, f"incarnation {process.incarnation} is fenced"))
    elif process.incarnation > recorded:  # a record was lost: never fall behind what exists
        turn.record(incarnations={**turn.status.incarnations, slot: process.incarnation})


def _count_worker(turn: Turn, process: Process, clock: int | None) -> None:
    attempt = count_exit(turn, process, clock)
    over = turn.status.goal is not None and process.exit_code != CONFIG_ERROR_EXIT
    rolled_back = turn.status.t_rolled_back
    if process.exit_code == 0 and not over and rolled_back is not None and process.t_started < rolled_back:
        turn.explain(f"{process.name} may have left at an end that was rolled back; it is started again")
    elif process.exit_code == 0 or over:
        turn.record(done=(*turn.status.done, process.name))
        turn.explain(f"{process.name} is done")
    elif not fails_for_good(turn, process, attempt.failures):
        turn.tell("WorkerLost", f"{process.name} ended with {ending(process)}; it is restarted", warning=True)


def _lend(turn: Turn, slot: int, filled: bool, cut_off: frozenset[int]) -> None:
    waits_for_all = turn.spec.training.consistency in ("Sync", "BoundedStaleness")
    empty = not filled and turn.status.t_running is not None and turn.status.goal is None and waits_for_all
    adopter = turn.status.adopted.get(slot)
    running = [k for k in _running_slots(turn) if k not in cut_off]
    if adopter is not None and adopter not in running:
        turn.record(
            adopted={k: v for k, v in turn.status.adopted.items() if k != slot},
            incarnations={**turn.status.incarnations, slot: turn.status.incarnations[slot] + 1},  # the lender's is used
        )
        adopter = None
    if not turn.lasted(f"slot:{slot}", empty, turn.spec.workers.grace_seconds):
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
        turn.tell("SlotLent", f"slot {slot} has had no worker for long; {worker_name(adopter)} fills it too")
    turn.do(AssignSlot(slot, turn.status.incarnations[slot], worker_name(adopter)))


def _running_slots(turn: Turn) -> list[int]:
    return sorted(
        _slot(p)
        for p in turn.observed.processes.values()
        if p.role == "worker" and p.phase == "running" and _slot(p) < turn.spec.workers.replicas
    )


# --- the evaluator ----------------------------------------------------------------------------------------------------


def plan_evaluator(turn: Turn) -> None:
    if not turn.spec.training.evaluated or EVALUATOR in turn.status.done:
        return
    process = turn.process(EVALUATOR)
    finishing = turn.status.goal is not None
    if process is not None and process.alive:
        if turn.lasted("final evaluation", finishing, FINAL_EVALUATION_PATIENCE_S):
            turn.do(KillProcess(EVALUATOR, process.instance, "the final evaluation does not end"))
            _give_up_evaluating(turn, f"it did not end within {FINAL_EVALUATION_PATIENCE_S:g} s")
        return
    if process is not None and not is_counted(turn, process):
        attempt = count_exit(turn, process)
        if process.exit_code == 0 and finishing:
            turn.record(done=(*turn.status.done, EVALUATOR))
            return
        if finishing and attempt.failures > turn.spec.run_policy.backoff_limit:
            _give_up_evaluating(turn, process.reason or ending(process))
            return
        if fails_for_good(turn, process, attempt.failures):
            return
    if may_start(turn, EVALUATOR):
        turn.do(StartProcess(EVALUATOR, "evaluator", replaces=None if process is None else process.instance))


def _give_up_evaluating(turn: Turn, why: str) -> None:
    turn.record(done=(*turn.status.done, EVALUATOR))
    turn.tell("NoFinalEvaluation", f"the final evaluation failed: {why}", warning=True)


def evaluated(turn: Turn) -> bool:
    return not turn.spec.training.evaluated or EVALUATOR in turn.status.done

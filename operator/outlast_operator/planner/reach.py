"""Which workers are out of reach, and which of them are given up.

Rules:
 1. Three words tell of a worker that is out of reach: a head's, to which it is no longer connected; the cluster's, that
    its node does not answer; and a deletion of its pod that has begun. Each alone may mean less: a new connection is on
    its way, the node is cut off from the control plane only, the process takes leave.
 2. A worker of which one of the first two tells is not counted among those that are ready.
 3. A worker of which two tell is given up: it counts as ended, unproved, and its slot gets a new process at once. The
    old one may run on; it is fenced (invariant incarnation-fences).
 4. A head's word counts once it has held for `RECONNECT_S`: at a failover all workers are between two connections. Of a
    worker that a head has never heard, it says something only if that worker is far older than its headship.
"""

from __future__ import annotations

from dataclasses import replace

from outlast_operator.planner.backoff import LONG_LIFE_S
from outlast_operator.planner.observed import Probe, Process
from outlast_operator.planner.turn import Turn
from outlast_operator.planner.views import Shard

RECONNECT_S = 2.0
NO_ANSWER = "its node does not answer"


def slot_of(process: Process) -> int:
    return int(process.name.rsplit("-", 1)[1])


def cut_off_slots(turn: Turn, shards: list[Shard]) -> frozenset[int]:
    """Slots whose process seems to run, and has been connected no more since some time after its start."""
    running = [p for p in turn.observed.processes.values() if p.role == "worker" and p.phase == "running"]
    heads = [s.head for s in shards if s.head is not None]
    return frozenset(slot_of(p) for p in running if any(_is_cut_off(head, p) for head in heads))


def _is_cut_off(head: Probe, process: Process) -> bool:
    slot = slot_of(process)
    if slot in head.absent:
        return process.t_started < head.absent[slot] + head.clock_offset_s
    if head.connected is None or slot in head.connected:  # None: of a release that does not tell
        return False
    installed_t = head.views[head.epoch].installed_t if head.epoch in head.views else None
    return installed_t is not None and process.t_started + LONG_LIFE_S < installed_t + head.clock_offset_s


def look_out(turn: Turn, shards: list[Shard]) -> None:
    """Note who is out of reach (`turn.out_of_reach`); show whom the job gives up as ended in `turn.observed`."""
    cut_off = cut_off_slots(turn, shards)
    shown = dict(turn.observed.processes)
    out_of_reach = set[str]()
    for name, process in turn.observed.processes.items():
        if not process.alive:
            continue
        silent = process.role == "worker" and turn.lasted(f"cut off:{name}", slot_of(process) in cut_off, RECONNECT_S)
        if process.unreachable or silent:
            out_of_reach.add(name)
        if silent and (process.unreachable or process.leaving):
            shown[name] = replace(process, phase="exited", unreachable=True, reason=NO_ANSWER, t_exited=turn.now)
    turn.out_of_reach = frozenset(out_of_reach)
    turn.observed = replace(turn.observed, processes=shown)


def reachable(turn: Turn, role: str) -> list[Process]:
    """Those of this role that live, as far as they can be reached."""
    processes = turn.observed.processes.values()
    return [p for p in processes if p.role == role and p.alive and p.name not in turn.out_of_reach]

"""What must be true, judged from outside: from the parameters' records, the recorded statuses and what workers saw.

Rules:
1. No checker believes a replica, a session or the planner: only what was done counts.
2. What can be judged at once is judged at once, so that a failure's trace ends where it happened.
3. What a strategy does not promise is counted, not judged (`lost`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from network import Process
from parameters import Record

from outlast.api.view import View
from outlast.chain.events import Entry, Identity
from outlast.worker.events import Outcome
from outlast_operator.planner.status import JobStatus

if TYPE_CHECKING:
    from sim_server import SimServer
    from sim_worker import SimWorker
    from world import World

Steps = set[tuple[int, int]]  # (slot, step)
RECENT_S = 2.0  # how long a checkpoint takes to be known to everybody


@dataclass(frozen=True)
class Seen:
    """An acknowledgement, as a worker saw it; `history`: of the state that gave it."""

    slot: int
    first: int
    last: int
    history: int
    outcome: Outcome


class Ledger:
    """What workers computed and saw acknowledged."""

    def __init__(self) -> None:
        self.all_computed: Steps = set()
        self.seen: list[Seen] = []

    def computed(self, slot: int, first: int, last: int) -> None:
        self.all_computed.update((slot, step) for step in range(first, last + 1))

    def acknowledged(self, slot: int, first: int, last: int, history: int, outcome: Outcome) -> None:
        self.seen.append(Seen(slot, first, last, history, outcome))


class Checkers:
    """Hooks that the world calls, and the verdict at the end."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._views: dict[tuple[int, int], View] = {}  # (shard, epoch)
        self._newest: dict[int, View] = {}
        self.floor: dict[int, Steps] = {}  # shard -> what the checkpoint held that was last gone back to
        self.finals: dict[int, tuple[Record, ...]] = {}
        self._clock: dict[int, int] = {}
        self._starts: dict[int, int] = {}
        self.rollbacks = 0
        self.lost = 0

    def recorded_view(self, shard: int) -> View | None:
        return self._newest.get(shard)

    # --- views ---

    def recording(self, status: JobStatus) -> None:
        """One view an epoch, and epochs only grow. A rollback needs a reason."""
        before = dict(self._newest)
        for shard, view in status.views.items():
            known = self._views.setdefault((shard, view.epoch), view)
            assert known == view, f"two views of shard {shard}, epoch {view.epoch}: {known} and {view}"
            newest = before.get(shard)
            assert newest is None or view.epoch >= newest.epoch, f"epoch {newest} was followed by {view}"
            assert newest is None or view.history >= newest.history, f"history {newest} was followed by {view}"
            if newest is None or view.epoch > newest.epoch:
                self.world.trace("status", view)
            self._newest[shard] = view
        if any(shard in before and v.history > before[shard].history for shard, v in status.views.items()):
            self._rolled_back(before, status)
        if status.outcome is not None and not self.finals:
            self._keep_finals()

    def installing(self, server: SimServer, view: View) -> None:
        """Recorded before it is installed."""
        assert self._views.get((view.shard, view.epoch)) == view, f"{server.name} installs {view}, never recorded"

    def _rolled_back(self, before: dict[int, View], status: JobStatus) -> None:
        world = self.world
        self.rollbacks += 1
        histories = {v.history for v in status.views.values()}
        restores = {v.restore for v in status.views.values()}
        assert len(histories) == 1, f"a rollback took the shards to different histories: {status.views}"
        assert len(restores) == 1, f"a rollback took the shards to different checkpoints: {status.views}"
        intact = [shard for shard, view in before.items() if self._survives(view)]
        assert len(intact) < len(before), f"rolled back though every shard had a member that was well: {before}"
        name = restores.pop()
        complete = world.checkpoints.complete()
        chosen = next((c for c in complete if c.name == name), None)
        older = [c for c in complete if c.t_complete is not None and c.t_complete < world.now - RECENT_S]
        readable = [c.order for c in older if c.name not in status.rejected_checkpoints]
        best = max(readable, default=(-1, -1, -1))
        mine = (-1, 0, 0) if chosen is None else chosen.order
        assert mine >= best, f"went back to {name}, though {best} was complete"
        self.floor = {}
        if chosen is not None:
            for shard, (_, state) in chosen.parts.items():
                self.floor[shard] = {step for record in state.records for step in record.steps}

    def _survives(self, view: View) -> bool:
        """Whether the shard has what it needs to go on in its history."""
        world = self.world
        if world.scenario.strategy == "Stateless":
            return not world.redis.lost_data
        failover = world.spec.recovery.failover
        lone = world.scenario.strategy == "Checkpoint"
        patience_s = failover.timeout_seconds if lone else failover.assume_dead_seconds
        for member in view.members:
            server = world.server_of(member.boot)
            if server is None or server.parameters is None or server.leaving:
                continue
            if world.now - world.faults.disturbed.get(server.name, -1e9) > 2 * patience_s + 1.0:
                return True
        return False

    # --- servers ---

    def applying(self, server: SimServer, entry: Entry, again: tuple[int, int] | None) -> None:
        """Exactly once, and in the predecessor's order."""
        assert again is None, f"{server.name} applied {again} twice, with seq {entry.seq}"
        assert server.parameters is not None
        mine = server.parameters.records[-1]
        for slot, step in mine.steps:
            self._clock[slot] = max(step, self._clock.get(slot, 0))
        view = server.replica.view
        above = None if view is None else view.predecessor(server.boot)
        if view is not None and above is None and view.is_joining(server.boot):
            above = view.tail
        other = None if above is None else self.world.server_of(above.boot)
        if other is None or other.parameters is None or other.replica.epoch != server.replica.epoch:
            return
        theirs = other.parameters.records[mine.seq - 1 : mine.seq]
        assert theirs == [mine], f"{server.name} applied {mine}, its predecessor {other.name} has {theirs}"

    def acknowledging(self, server: SimServer, identity: Identity | None) -> None:
        """Chain and Hybrid, ack Tail: every living member of the recorded view holds what is acknowledged."""
        world, scenario = self.world, self.world.scenario
        if scenario.strategy not in ("Chain", "Hybrid") or scenario.ack != "Tail" or identity is None:
            return
        recorded, view = self._newest.get(server.shard), server.replica.view
        if recorded is None or view is None or recorded.history != view.history:
            return
        steps = {(identity.slot, step) for step in range(identity.first, identity.last + 1)}
        for member in recorded.members:
            other = world.server_of(member.boot)
            if other is None or other.parameters is None or other.replica.history != recorded.history:
                continue
            missing = steps - other.parameters.steps
            assert not missing, f"{server.name} acknowledged {missing}; {other.name} of epoch {recorded.epoch} lacks it"

    def ending(self, process: Process) -> None:
        """A process is about to end."""

    # --- workers ---

    def computing(self, worker: SimWorker) -> None:
        """BoundedStaleness: nobody is further ahead than allowed, where the bound holds in outages too."""
        world = self.world
        if world.scenario.consistency != "BoundedStaleness" or self.rollbacks:
            return
        if world.scenario.strategy in ("Stateless", "Hybrid") and world.faults.near(world.now):
            return
        slots = range(world.spec.workers.replicas)
        slowest = min(self._clock.get(slot, 0) for slot in slots)
        # A worker that replaces one goes on after its predecessor's last step, whether that was answered or not.
        bound = world.spec.training.max_staleness + 1 + worker.incarnation - 1
        ahead = worker.step - 1 - slowest
        assert ahead <= bound, f"{worker.name} computes step {worker.step}, the slowest slot is at {slowest}"

    # --- the end ---

    def _keep_finals(self) -> None:
        """The surviving state: the heads', or else the newest checkpoint."""
        world = self.world
        complete = world.checkpoints.complete()
        for shard in range(world.scenario.shards):
            head = world.head(shard)
            if head is not None and head.parameters is not None:
                self.finals[shard] = tuple(head.parameters.records)
            elif complete:
                self.finals[shard] = complete[0].parts[shard][1].records

    def digests(self) -> list[int]:
        """Of the surviving state, by shard."""
        return [records[-1].digest for _, records in sorted(self.finals.items())]

    def at_the_end(self, status: JobStatus) -> None:
        assert status.outcome == "Succeeded", f"the job has {status.outcome}: {status.reason}: {status.message}"
        scenario = self.world.scenario
        assert not (scenario.planned_only and self.rollbacks), "a planned loss was answered by a rollback"
        for shard in range(scenario.shards):
            assert shard in self.finals, f"nothing is left of shard {shard}"
        versions = [records[-1].version for _, records in sorted(self.finals.items())]
        # Shards count on their own; each is to have what the goal asks for, whatever happened to the others at the end.
        assert set(versions) == {scenario.goal}, f"ended at {versions}, expected {scenario.goal} in each"
        for shard in range(scenario.shards):
            self._nothing_lost(shard)

    def _nothing_lost(self, shard: int) -> None:
        world = self.world
        counted = [step for record in self.finals[shard] for step in record.steps]
        final = set(counted)
        assert len(counted) == len(final), "a step stands twice in the final state"
        strange = final - world.ledger.all_computed
        assert not strange, f"applied, though nobody computed it: {sorted(strange)}"
        fallen = self.floor.get(shard, set()) - final
        assert not fallen, f"lost from the checkpoint that was restored: {sorted(fallen)}"
        unread: Steps = set()
        if world.redis_or_none is not None:
            for item, _ in world.redis.model._state.streams.get(shard, []):
                unread |= {(item.slot, step) for step in range(item.first, item.last + 1)}
        for seen in world.ledger.seen:
            steps = {(seen.slot, step) for step in range(seen.first, seen.last + 1)}
            missing = steps - final - unread
            self.lost += len(missing)
            if missing:
                assert not self._promised(seen), f"acknowledged ({seen}) and lost from shard {shard}: {sorted(missing)}"

    def _promised(self, seen: Seen) -> bool:
        world, scenario = self.world, self.world.scenario
        if scenario.planned_only:
            return True
        if seen.history < self._newest[0].history:
            return False  # rolled back: counted; the checkpoint's content is judged by `floor`
        if seen.outcome is Outcome.BUFFER and world.redis.lost_data:
            return False
        return scenario.ack == "Tail"

"""Random histories of a chain against a dumb list model (hypothesis).

Replicas crash, are suspected while they live, join and are taken in; links are cut with messages in flight; views are
installed late, repeatedly and out of order; workers resend. Views keep the order of members who stay, as membership
does. After every step the checkers of `replica_world` compare.
"""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from replica_world import World, gradient, member, view

from outlast.api.view import View
from outlast.chain.events import Acknowledged, Identity, SetSlots
from outlast.chain.replica import Replica, ReplicaSettings

PICK = st.integers(0, 10**6)


class ChainMachine(RuleBasedStateMachine):
    """Async, ack Tail. Two slots; a worker sends its next step, or an old one again, to any process it knows."""

    make: type[Replica] = Replica

    def __init__(self) -> None:
        super().__init__()
        self.world = World("abc", ReplicaSettings(slots=2), self.make)
        self.next_boot = 0
        self.next_step = {0: 1, 1: 1}
        self.believed: set[Any] = set()  # tokens whose acknowledgement was counted
        self.sent: dict[Any, tuple[str, Identity]] = {}
        self.checkpoints: dict[str, tuple[dict[str, Any], list[Any]]] = {}

    @initialize(boots=st.sampled_from(["a", "ab", "abc"]))
    def begin(self, boots: str) -> None:
        self.world.install(view(1, boots))
        self.world.join_up()
        self.world.init("a")
        self.world.run()

    # --- workers ---

    def _send(self, boot: str, slot: int, step: int, epoch: int) -> None:
        r = self.world.replicas[boot]
        token = f"w{len(self.sent)}"
        self.sent[token] = boot, Identity(slot, step, step)
        self.world.push(boot, gradient(slot, step, r.version), epoch=epoch, token=token)

    @rule(slot=st.integers(0, 1), pick=PICK)
    def push_next(self, slot: int, pick: int) -> None:
        boots = [b for b, r in self.world.replicas.items() if r.role in ("head", "single")]
        if boots:
            boot = boots[pick % len(boots)]
            self._send(boot, slot, self.next_step[slot], self.world.replicas[boot].epoch)
            self.next_step[slot] += 1

    @rule(slot=st.integers(0, 1), back=st.integers(1, 3), pick=PICK, stale=st.booleans())
    def push_again(self, slot: int, back: int, pick: int, stale: bool) -> None:
        boots = list(self.world.replicas)
        boot, step = boots[pick % len(boots)], self.next_step[slot] - back
        if step >= 1:
            self._send(boot, slot, step, max(1, self.world.replicas[boot].epoch - stale))

    # --- the network ---

    @rule(pick=PICK, several=st.integers(1, 6))
    def deliver(self, pick: int, several: int) -> None:
        busy = [pair for pair, queue in self.world.flight.items() if queue]
        if busy:
            a, b = busy[pick % len(busy)]
            for _ in range(several):
                self.world.deliver(a, b)

    @rule()
    def deliver_all(self) -> None:
        self.world.run()

    @rule(pick=PICK)
    def cut(self, pick: int) -> None:
        if self.world.up:
            self.world.cut(*sorted(self.world.up)[pick % len(self.world.up)])

    @rule()
    def connect_all(self) -> None:
        for a, r in self.world.replicas.items():
            for peer in (r.successor, *r.joiners):
                if peer is not None and peer.boot in self.world.replicas and (a, peer.boot) not in self.world.up:
                    self.world.connect(a, peer.boot)

    # --- processes and views ---

    def _next(self, **changes: Any) -> None:
        # `restore` stays in later views of a history: a member that missed the rollback must know where to go back to.
        now = self.world.recorded[-1]
        self.world.record(now.with_(epoch=now.epoch + 1, **changes))

    @rule(pick=PICK, dead=st.booleans())
    def remove_member(self, pick: int, dead: bool) -> None:
        now = self.world.recorded[-1]
        # A view keeps a member that holds the state; only a rollback may do without.
        gone = now.members[pick % len(now.members)]
        rest = tuple(m for m in now.members if m is not gone)
        holders = [m for m in rest if self.world._in_history(m.boot)] if rest else []
        if not rest or rest[0] not in holders:
            return
        if dead:
            self._crash(gone.boot)
        self._next(members=rest)

    @precondition(lambda self: len(self.world.recorded[-1].joining) < 2)
    @rule()
    def start_joiner(self) -> None:
        boot = chr(ord("d") + self.next_boot)
        self.next_boot += 1
        self.world.start(boot)
        self._next(joining=(*self.world.recorded[-1].joining, member(boot)))

    @rule(joiners=st.integers(1, 2))
    def grow(self, joiners: int) -> None:
        """Joining replicas get all the way to being caught up (the long way is too rare to be taken often)."""
        while len(self.world.recorded[-1].joining) < joiners:
            self.start_joiner()
        self.install_everywhere()
        self.connect_all()
        self.world.run()

    @precondition(lambda self: self.world.recorded[-1].joining)
    @rule()
    def take_in(self) -> None:
        """What the tail, in the recorded view, says is caught up; several at once too."""
        now = self.world.recorded[-1]
        status = self.world.replicas[now.members[-1].boot].status()
        if status.epoch == now.epoch:
            ready = tuple(m for m in now.joining if m.boot in status.caught_up)
            if ready:
                self._next(members=now.members + ready, joining=tuple(m for m in now.joining if m not in ready))

    @precondition(lambda self: self.world.recorded[-1].joining)
    @rule()
    def drop_joiner(self) -> None:
        first, *others = self.world.recorded[-1].joining
        self._crash(first.boot)
        self._next(joining=tuple(others))

    def _crash(self, boot: str) -> None:
        if boot not in self.world.replicas:
            return
        for a, b in list(self.world.up):
            if boot in (a, b):
                self.world.cut(a, b)
        del self.world.replicas[boot], self.world.history[boot]

    @rule(pick=PICK, late=st.integers(0, 2))
    def install(self, pick: int, late: int) -> None:
        views: list[View] = self.world.recorded
        chosen = views[max(0, len(views) - 1 - late)]
        boots = [m.boot for v in views[-2:] for m in (*v.members, *v.joining) if m.boot in self.world.replicas]
        if boots:
            self.world.install(chosen, boots[pick % len(boots)])

    @precondition(lambda self: len(self.world.recorded[-1].members) > 1)
    @rule(keep=PICK)
    def lose_all_but_one(self, keep: int) -> None:
        """The last that holds the state is the chain."""
        now = self.world.recorded[-1]
        kept = now.members[keep % len(now.members)]
        if kept.boot in self.world.replicas and self.world._in_history(kept.boot):
            for m in now.members:
                if m is not kept:
                    self._crash(m.boot)
            self._next(members=(kept,))

    @rule()
    def install_everywhere(self) -> None:
        now = self.world.recorded[-1]
        self.world.install(now, "".join(m.boot for m in (*now.members, *now.joining) if m.boot in self.world.replicas))

    @rule(slots=st.integers(1, 3), pick=PICK)
    def set_slots(self, slots: int, pick: int) -> None:
        boots = list(self.world.replicas)
        self.world.step(boots[pick % len(boots)], SetSlots(slots))

    # --- rollbacks ---

    @rule()
    def take_checkpoint(self) -> None:
        tail = self.world.recorded[-1].members[-1].boot
        if self.world._in_history(tail):
            self.checkpoints[f"ckpt-{len(self.checkpoints)}"] = self.world.snapshot(tail)

    @precondition(lambda self: self.checkpoints)
    @rule(pick=PICK)
    def roll_back(self, pick: int) -> None:
        names = list(self.checkpoints)
        self._next(history=self.world.recorded[-1].history + 1, restore=names[pick % len(names)])

    @precondition(lambda self: self.world.restores)
    @rule(pick=PICK)
    def load(self, pick: int) -> None:
        boots = sorted(b for b in self.world.restores if b in self.world.replicas)
        if boots:
            boot = boots[pick % len(boots)]
            self.world.load(boot, *self.checkpoints[self.world.restores[boot]])

    # --- what must hold ---

    @invariant()
    def checkers_agree(self) -> None:
        for token, (boot, identity) in self.sent.items():
            if token not in self.believed and isinstance(self.world.answer(token), Acknowledged):
                self.believed.add(token)
                if boot in self.world.replicas:
                    self.world.promise(boot, identity)
        self.world.check()

    def teardown(self) -> None:
        """Heal: install, connect, deliver. Then a new push must be acknowledged."""
        world = self.world
        if not world.recorded:
            return
        now = world.recorded[-1]
        for _ in range(4):
            self.install_everywhere()
            for boot in sorted(world.restores):
                if boot in world.replicas:
                    world.load(boot, *self.checkpoints[world.restores[boot]])
            world.join_up()
        head = now.members[0].boot
        token = world.push(head, gradient(0, self.next_step[0]))
        world.run()
        assert world.acknowledged(token), f"after healing: {world.answer(token)}"
        world.check()


TestChain = ChainMachine.TestCase
TestChain.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)

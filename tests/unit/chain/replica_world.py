"""Replicas without processes: in-order links that can be cut, views by hand, and checkers that trust no replica.

The model is dumb on purpose: each process has a list of what it applied, `(seq, kind, identities)`; a state sent down
the chain copies the list. The checkers compare lists, and what was acknowledged, with the views that were recorded.
"""

from __future__ import annotations

import copy
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

from outlast.api.server_status import ServerStatus
from outlast.api.view import Member, View
from outlast.chain.events import (
    Acknowledged,
    Acks,
    Connected,
    Contribution,
    Disconnected,
    Entry,
    Event,
    Forward,
    Identity,
    Install,
    Kind,
    Pull,
    Push,
    Ready,
    Refused,
    Reply,
    SendAcks,
    SendEntry,
    SendState,
    Weights,
)
from outlast.chain.replica import Replica, ReplicaSettings, restored

History = list[tuple[int, str, tuple[Identity, ...]]]


def member(boot: str) -> Member:
    return Member(f"server-{boot}", boot, f"unix:/{boot}")


def view(epoch: int, members: str, joining: str = "", history: int = 1, restore: str | None = None) -> View:
    """`view(2, "bc", "d")`: members b (head) and c (tail), with d joining; a boot id is one letter."""
    return View(0, epoch, history, tuple(map(member, members)), tuple(map(member, joining)), restore)


def gradient(
    slot: int,
    step: int,
    version: int = 0,
    *,
    last: int | None = None,
    history: int = 1,
    kind: Kind = Kind.UPDATE,
    **more: Any,
) -> Contribution:
    payload = f"g{slot}.{step}"
    return Contribution(Identity(slot, step, last or step), version, history, payload, kind, **more)


class World:
    """Processes by boot id, and everything in flight between them."""

    def __init__(
        self, boots: str = "", settings: ReplicaSettings | None = None, make: Callable[..., Replica] = Replica
    ) -> None:
        self.settings = settings or ReplicaSettings(slots=2)
        self.make = make
        self.replicas: dict[str, Replica] = {}
        self.history: dict[str, History] = {}
        self.flight: dict[tuple[str, str], deque[tuple[int, Any]]] = defaultdict(deque)  # (from, to) -> (link, message)
        self.up: dict[tuple[str, str], int] = {}  # (dialler, peer) -> number of the connection
        self.connections = 0
        self.replies: dict[Any, list[Reply]] = defaultdict(list)
        self.restores: dict[str, str] = {}  # boot -> what it was told to load
        self.recorded: list[View] = []
        self.promised: set[tuple[int, int]] = set()  # (slot, step) acknowledged in the recorded history
        self.tokens = 0
        for boot in boots:
            self.start(boot)

    # --- what may happen ---

    def start(self, boot: str) -> None:
        self.replicas[boot] = self.make(f"server-{boot}", boot, 0, self.settings)
        self.history[boot] = []

    def record(self, new: View) -> View:
        assert not self.recorded or new.epoch == self.recorded[-1].epoch + 1, "one view an epoch"
        if self.recorded and new.history > self.recorded[-1].history:
            self.promised.clear()
        self.recorded.append(new)
        return new

    def install(self, new: View, boots: str | None = None) -> None:
        """Record (if it is new) and install, at everybody it names unless told otherwise."""
        if not self.recorded or new.epoch > self.recorded[-1].epoch:
            self.record(new)
        for boot in boots if boots is not None else [m.boot for m in (*new.members, *new.joining)]:
            self.step(boot, Install(new))

    def connect(self, a: str, b: str) -> bool:
        """a dials b, as its view says. False when it has no reason to, or b is not in its epoch."""
        dialler, peer = self.replicas[a], self.replicas[b]
        wanted = [m.boot for m in (dialler.successor, *dialler.joiners) if m is not None]
        if b not in wanted or dialler.epoch != peer.epoch:
            return False
        self.cut(a, b)
        self.connections += 1
        self.up[a, b] = self.connections
        self.step(a, Connected(b, dialler.epoch, peer.last_seq))
        return True

    def cut(self, a: str, b: str) -> None:
        """What is in flight is lost."""
        if self.up.pop((a, b), None) is not None:
            self.flight[a, b].clear()
            self.flight[b, a].clear()
            self.step(a, Disconnected(b))

    def push(
        self,
        boot: str,
        contribution: Contribution,
        *,
        epoch: int | None = None,
        incarnation: int = 1,
        token: Any = None,
    ) -> Any:
        if token is None:
            self.tokens += 1
            token = f"t{self.tokens}"
        epoch = self.replicas[boot].epoch if epoch is None else epoch
        self.step(boot, Push(token, epoch, incarnation, contribution))
        return token

    def init(self, boot: str) -> Any:
        return self.push(boot, gradient(0, 1, kind=Kind.INIT))

    def pull(self, boot: str, slot: int | None = 0, version: int | None = None, incarnation: int = 1) -> Any:
        self.tokens += 1
        self.step(boot, Pull(f"t{self.tokens}", self.replicas[boot].epoch, slot, version, incarnation))
        return f"t{self.tokens}"

    def deliver(self, a: str, b: str) -> bool:
        """The oldest message in flight from a to b."""
        if not self.flight[a, b]:
            return False
        epoch, message = self.flight[a, b].popleft()
        if isinstance(message, SendEntry):
            entry = copy.copy(message.entry)
            entry.parts = ()  # only the head has them
            self.step(b, Forward(a, epoch, entry, message.stable))
        elif isinstance(message, SendAcks):
            self.step(b, Acks(a, epoch, message.received, message.stable))
        else:
            exported, history = message
            event = restored(exported, epoch)
            if self.replicas[b].takes(event):
                self.history[b] = list(history)
            self.step(b, event)
        return True

    def run(self) -> None:
        """Deliver until nothing is in flight."""
        while sum(self.deliver(a, b) for a, b in list(self.flight)):
            pass

    def join_up(self) -> None:
        """Connect everybody who has a reason to, and deliver all."""
        for a, r in self.replicas.items():
            for peer in (r.successor, *r.joiners):
                if peer is not None and peer.boot in self.replicas and (a, peer.boot) not in self.up:
                    self.connect(a, peer.boot)
        self.run()

    def load(self, boot: str, exported: dict[str, Any], history: History) -> None:
        """The shell finished loading what `Ready.restore` named."""
        event = restored(exported, source=self.restores.pop(boot, None))
        if self.replicas[boot].takes(event):
            self.history[boot] = list(history)
        self.step(boot, event)

    def snapshot(self, boot: str) -> tuple[dict[str, Any], History]:
        return self.replicas[boot].export_state(), list(self.history[boot])

    # --- obeying ---

    def step(self, boot: str, event: Event) -> Ready:
        r = self.replicas[boot]
        epoch_before = r.epoch
        ready = r.step(event)
        if r.epoch != epoch_before:  # a shell closes its links with the view
            for a, b in [pair for pair in self.up if pair[0] == boot]:
                self.up.pop((a, b))
                self.flight[a, b].clear()
                self.flight[b, a].clear()
        if ready.restore is not None:
            self.history[boot] = []
            if ready.restore != "empty":
                self.restores[boot] = ready.restore
        for entry in ready.apply:
            self._apply(boot, entry)
        for send in ready.send:
            pair = boot, send.peer
            if isinstance(send, SendAcks):
                if (send.peer, boot) in self.up:
                    self.flight[pair].append((r.epoch, send))
            elif pair in self.up:
                message = self.snapshot(boot) if isinstance(send, SendState) else copy.copy(send)
                self.flight[pair].append((r.epoch, message))
        for reply in ready.reply:
            self.replies[reply.token].append(reply)
            assert len(self.replies[reply.token]) == 1, f"answered twice: {self.replies[reply.token]}"
        if isinstance(event, Push) and isinstance(answer := self.answer(event.token), Acknowledged):
            assert event.epoch == r.epoch, f"a push of epoch {event.epoch} was acknowledged in epoch {r.epoch}"
            assert answer.token == event.token
        return ready

    def _apply(self, boot: str, entry: Entry) -> None:
        history = self.history[boot]
        if entry.kind is Kind.INIT:
            history.clear()
        assert entry.seq == len(history) + 1, f"{boot} applied {entry.seq} after {len(history)}"
        history.append((entry.seq, entry.kind.value, entry.identities))
        steps = steps_of(history)
        assert len(steps) == len(set(steps)), f"{boot} applied a step twice: {entry.identities}"

    # --- asking ---

    def answer(self, token: Any) -> Reply | None:
        return self.replies[token][0] if self.replies[token] else None

    def acknowledged(self, token: Any) -> bool:
        return isinstance(self.answer(token), Acknowledged)

    def refused(self, token: Any) -> str | None:
        answer = self.answer(token)
        return answer.reason.value if isinstance(answer, Refused) else None

    def shown(self, token: Any) -> int | None:
        answer = self.answer(token)
        return answer.version if isinstance(answer, Weights) else None

    # --- the checkers ---

    def check_prefixes(self) -> None:
        """What a replica applied is a prefix of what the one it takes entries from applied, in the recorded history."""
        for below, r in self.replicas.items():
            above = r.upstream
            if r.suspect or above not in self.replicas or not self._in_history(above) or not self._in_history(below):
                continue
            if self.replicas[above].view is None or r.epoch != self.recorded[-1].epoch:
                continue
            a, b = self.history[above], self.history[below]
            assert a[: len(b)] == b, f"{below} is no prefix of {above}:\n{b}\n{a}"

    def check_promises(self) -> None:
        """What was acknowledged is held by every member of the recorded view that holds a state."""
        for m in self.recorded[-1].members:
            if m.boot in self.replicas and self._in_history(m.boot):
                missing = self.promised - set(steps_of(self.history[m.boot]))
                assert not missing, f"acknowledged and lost at {m.boot}: {sorted(missing)}"

    def check_tables(self) -> None:
        """The table says what the list says, each step once."""
        for boot, r in self.replicas.items():
            table = {(i.slot, s) for i in r.applied.identities() for s in range(i.first, i.last + 1)}
            assert table == set(steps_of(self.history[boot])), f"table of {boot}"
            assert r.applied.count == r.status().applied_total, f"{boot} applied a step twice"

    def check(self) -> None:
        if self.recorded:
            self.check_prefixes()
            self.check_promises()
        self.check_tables()

    def promise(self, boot: str, identity: Identity) -> None:
        """A worker believes an acknowledgement (one of an older history promises nothing after the rollback)."""
        if self.recorded and self.replicas[boot].history == self.recorded[-1].history:
            self.promised.update((identity.slot, s) for s in range(identity.first, identity.last + 1))

    def _in_history(self, boot: str) -> bool:
        r = self.replicas[boot]
        return r.initialised and r.history == self.recorded[-1].history


def steps_of(history: History) -> list[tuple[int, int]]:
    return [(i.slot, s) for _, _, identities in history for i in identities for s in range(i.first, i.last + 1)]


def chain(boots: str = "abc", **settings: Any) -> World:
    """A connected, initialised chain in epoch 1."""
    world = World(boots, ReplicaSettings(**{"slots": 2, **settings}))
    world.install(view(1, boots))
    world.join_up()
    token = world.init(boots[0])
    world.run()
    assert world.acknowledged(token)
    return world


def applied(world: World, boot: str) -> list[tuple[int, int]]:
    return [(i.slot, i.first) for i in world.replicas[boot].applied.identities()]


def status(world: World, boot: str) -> ServerStatus:
    return world.replicas[boot].status()


def crash(world: World, *boots: str) -> None:
    for boot in boots:
        for a, b in list(world.up):
            if boot in (a, b):
                world.cut(a, b)
        del world.replicas[boot], world.history[boot]

"""A parameter server: the real `Replica` in a shell that does what the real one does, with records for tensors.

    connections ─▶ step(event) ─▶ obey(Ready): restore, record, apply, send, reply, trim

Links down the chain are in sim_link.py; checkpoints, snapshots and the log's reader in sim_durability.py.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from network import End, Process, Step, Wait
from parameters import Parameters
from sim_durability import Durability, LogReader
from sim_link import Link
from stores import State

from outlast.api.view import Member, View
from outlast.buffer.types import BufferUnavailable
from outlast.chain.events import (
    Acknowledged,
    Acks,
    Entry,
    Event,
    Finish,
    Forward,
    HigherEpoch,
    Identity,
    Install,
    Kind,
    Pull,
    Push,
    Ready,
    Refusal,
    Refused,
    Reply,
    SendAcks,
    SendEntry,
    SendState,
    SetSlots,
)
from outlast.chain.state import restored
from outlast.server.leave import Leave, LeaveStep

if TYPE_CHECKING:
    from world import World

RETRY_S = 0.05
WATCH_INTERVAL_S = 0.02


@dataclass(eq=False)
class Waiter:
    """Who waits for an answer: the replica's token."""

    end: End
    slot: int | None
    wants_weights: bool
    identity: Identity | None = None  # of a push
    answered: bool = False


@dataclass(frozen=True)
class Answer:
    """A reply on its way to a worker; `weights`: (version, digest) of this shard."""

    reply: Reply
    history: int
    weights: tuple[int, int] | None = None
    clocks: dict[int, int] | None = None


WAITING = "waiting"


class SimServer(Process):
    """One start of a server. Its name listens; its boot id is itself."""

    def __init__(self, world: World, name: str, boot: str, shard: int) -> None:
        super().__init__(world.network, name)
        self.world, self.spec, self.boot, self.shard = world, world.spec, boot, shard
        self.pid = world.table.pid(name)
        self.replica = world.make_replica(name, boot, shard, world.settings)
        self.parameters: Parameters | None = None
        self.links: dict[str, Link] = {}
        self.inbound: dict[str, End] = {}
        self.broken: dict[str, float] = {}
        self.epochs: dict[int, dict[str, float | None]] = {}
        self.leaving = self.left = self.not_replaced = False
        self.restore_error: str | None = None
        self.applied_t: float | None = None
        self.changes = 0
        self._status: dict[str, Any] = {}
        self._held: Ready | None = None  # a Ready that waits for Redis, with the lock
        self.durability = Durability(self)
        self.log_reader = LogReader(self)
        self.spawn(self.durability.run())
        if self.log_reader.used:
            self.spawn(self.log_reader.run())

    @property
    def address(self) -> str:
        return f"unix:/{self.name}"

    # --- the replica ---

    def step(self, event: Event) -> None:
        assert not self.busy, "the lock is held"
        if isinstance(event, Install):
            self.world.checkers.installing(self, event.view)
        self._obey(self.replica.step(event))

    def _obey(self, ready: Ready) -> None:
        if ready.restore is not None:
            self.parameters = None
            for reply in ready.reply:
                self._reply(reply)
            if ready.restore != "empty":
                self.durability.restore_later(ready.restore)
            self.notify()
            return
        for record in ready.records[:]:
            try:
                if not self.log_reader.record(record):
                    self.world.trace(self.name, "fenced by Redis")
                    self._obey(self.replica.step(HigherEpoch(self.replica.epoch + 1)))
                    return
            except BufferUnavailable:
                self._hold(ready)
                return
            ready.records.remove(record)
        for entry in ready.apply:
            self._apply(entry)
        if not self.log_reader.publish():
            ready.apply = []
            self._hold(ready)
            return
        for send in ready.send:
            self._send(send)
        for reply in ready.reply:
            self._reply(reply)
        if ready.trim is not None:
            self.log_reader.trim_to(ready.trim)
        if ready.stop:
            self.forget_links()
            self.notify()

    def _hold(self, ready: Ready) -> None:
        """Redis is away and nothing may be published: keep the lock, and try again."""
        self.busy, self._held = True, ready
        self.clock.at(self.now + RETRY_S, self._try_again)

    def _try_again(self) -> None:
        if not self.alive:
            return
        if self.paused:
            self.clock.at(self.now + RETRY_S, self._try_again)
            return
        ready, self._held, self.busy = self._held, None, False
        assert ready is not None
        self._obey(ready)
        if not self.busy:
            self.free()

    def _apply(self, entry: Entry) -> None:
        if entry.parts:
            if entry.kind is Kind.INIT:
                entry.payload = entry.parts[0].payload
            else:
                entry.payload = tuple((p.payload, p.weight) for p in entry.parts)
            entry.parts = ()
        if entry.kind is Kind.INIT:
            self.parameters = Parameters(entry.payload)
        self.applied_t = self.now
        assert self.parameters is not None, f"{self.name} applies {entry.seq} to nothing"
        self.world.checkers.applying(self, entry, self.parameters.apply(entry))
        times = self.epochs.get(self.replica.epoch)
        if times is not None and times["first_update_t"] is None and entry.kind not in (Kind.INIT, Kind.CONFIG):
            times["first_update_t"] = self.now
            self.notify()
        self.durability.applied(entry)

    def _send(self, send: SendEntry | SendState | SendAcks) -> None:
        if isinstance(send, SendAcks):
            end = self.inbound.get(send.peer)
            if end is not None and not end.closed:
                end.send(("acks", self.replica.epoch, send.received, send.stable))
            return
        link = self.links.get(send.peer)
        if link is None:
            return
        if isinstance(send, SendEntry):
            entry = copy.copy(send.entry)
            entry.parts = ()
            link.queue.append(("entry", link.epoch, entry, send.stable))
        else:
            link.queue.append(("state", link.epoch, self.export()))

    def _reply(self, reply: Reply) -> None:
        waiter = reply.token
        if not isinstance(waiter, Waiter):
            return
        assert not waiter.answered, f"answered twice: {reply}"
        waiter.answered = True
        weights = None
        if waiter.wants_weights and not isinstance(reply, Refused):
            assert self.parameters is not None
            version = reply.version if self.spec.traits.barrier else self.parameters.version
            digest = self.parameters.at_version(version)
            if digest is None:  # a state that came whole has no version before it
                reply = Refused(reply.token, Refusal.VERSION, self.replica.view, version=self.parameters.version)
            else:
                weights = (version, digest)
        view = self.replica.view
        history = 0 if view is None else view.history
        clocks = dict(self.replica.status()["clocks"]) if weights is not None else None
        if isinstance(reply, Acknowledged):
            self.world.checkers.acknowledging(self, waiter.identity)
        if not waiter.end.closed:
            waiter.end.send(Answer(reply, history, weights, clocks))

    def export(self) -> State:
        assert self.parameters is not None
        return State(self.replica.export_state(), tuple(self.parameters.records), self.parameters.initial)

    def take_over(self, state: State, epoch: int | None = None, source: str | None = None) -> bool:
        """Hold this state from now on, if the replica wants it."""
        event = restored(state.replica, epoch, source)
        taken = self.replica.takes(event)
        if taken:
            self.parameters = Parameters(state.initial, state.records)
            self.durability.took_over(event.version, from_peer=epoch is not None)
        self.world.trace(self.name, "state of seq", event.seq, "taken" if taken else "not taken", source or "")
        self.step(event)
        self.notify()
        return taken

    # --- views ---

    def install(self, view: View) -> None:
        current = self.replica.view
        if current is None or view.epoch > current.epoch:
            self.world.trace(self.name, "installs", view)
            self.forget_links()
            self._tell_predecessors_later()
            self.epochs[view.epoch] = {"installed_t": self.now, "first_update_t": None}
        self.step(Install(view))
        self._relink()
        self.notify()

    def _tell_predecessors_later(self) -> None:
        before, heartbeat_s = list(self.inbound.values()), self.spec.recovery.failover.heartbeat_seconds
        if before:
            self.after(heartbeat_s, lambda: self._tell_epoch(before), locked=False)

    def _tell_epoch(self, links: list[End]) -> None:
        for end in links:
            if not end.closed:
                end.send(("acks", self.replica.epoch, 0, 0))

    def _relink(self) -> None:
        view = self.replica.view
        if view is None:
            return
        for member in (self.replica.successor, *self.replica.joiners):
            if member is not None and member.boot not in self.links:
                self.links[member.boot] = Link(self, member, view.epoch)

    def forget_links(self) -> None:
        for link in self.links.values():
            link.close()
        self.links.clear()
        self.broken.clear()

    def terminate(self, not_replaced: bool = False) -> None:
        """SIGTERM; `not_replaced`: the operator's, which brings no replacement."""
        self.not_replaced = self.not_replaced or not_replaced
        if not self.leaving:
            self.leaving = True
            self.notify()
            self.spawn(self._leave())

    def _leave(self) -> Step:
        leave = Leave(self.now, self.world.scenario.grace_s)
        while True:
            step = leave.step(self.replica, self.not_replaced, self.now)
            if step is not LeaveStep.SERVE:
                break
            yield Wait(None, self.now + 0.05)
        if step is LeaveStep.SAVE:
            self.step(HigherEpoch(self.replica.epoch + 1))
            save = self.durability.save_and_wait if self.not_replaced else self.durability.save_last_and_wait
            yield from save()
        self.left = True
        self.notify()
        self.world.exited(self, 0)

    def notify(self) -> None:
        self.changes += 1
        self.wake()

    # --- connections ---

    def accept(self, end: End, hello: dict[str, Any]) -> None:
        role = hello["role"]
        if role == "peer":
            self._accept_peer(end, hello)
            return
        end.handler = lambda message: self._request(end, message)
        end.send({"name": self.name, "boot": self.boot})

    def _request(self, end: End, message: Any) -> None:
        """Messages are (word, …); a worker asks one thing at a time."""
        word, *rest = message
        match word:
            case "push":
                epoch, incarnation, contribution, wants = rest
                identity = None if contribution.kind is Kind.INIT else contribution.identity
                waiter = Waiter(end, contribution.identity.slot, wants, identity)
                self._ask_replica(waiter, Push(waiter, epoch, incarnation, contribution))
            case "pull":
                epoch, slot, incarnation, version = rest
                waiter = Waiter(end, slot, True)
                self._ask_replica(waiter, Pull(waiter, epoch, slot, version, incarnation))
            case "view":
                end.send(self.replica.view or "none")
            case "watch":
                self.spawn(self._watch(end), locked=False)
            case "control":
                what, argument = rest
                self._control(what, argument)
                if not end.closed:
                    end.send("done")

    def _ask_replica(self, waiter: Waiter, event: Event) -> None:
        self.after(self.spec.recovery.failover.heartbeat_seconds, lambda: self._still_waiting(waiter), locked=False)
        self.step(event)

    def _still_waiting(self, waiter: Waiter) -> None:
        if not waiter.answered and not waiter.end.closed:
            waiter.end.send(WAITING)
            self.after(self.spec.recovery.failover.heartbeat_seconds, lambda: self._still_waiting(waiter), locked=False)

    def _control(self, what: str, argument: Any) -> None:
        actions: dict[str, Callable[[], object]] = {
            "install": lambda: self.install(View.from_json(argument)),
            "finish": lambda: self._finish(),
            "slots": lambda: self.step(SetSlots(argument)),
            "checkpoint": lambda: self.spawn(self.durability.save_and_wait(argument)),
        }
        actions[what]()

    def _finish(self) -> None:
        self.step(Finish())
        self.notify()

    def _accept_peer(self, end: End, hello: dict[str, Any]) -> None:
        epoch, boot = hello["epoch"], hello["boot"]
        mine = self.replica.epoch
        if epoch > mine:
            self.step(HigherEpoch(epoch))
        stable = self.replica.stable_seq
        if epoch == mine:
            self.inbound[boot] = end
            end.handler = lambda message: self._from_peer(boot, message)
            end.on_close = lambda: self._peer_closed(boot, end)
        end.send({"boot": self.boot, "epoch": mine, "last_seq": self.replica.last_seq, "stable": stable})

    def _peer_closed(self, boot: str, end: End) -> None:
        if self.inbound.get(boot) is end:
            del self.inbound[boot]

    def _from_peer(self, boot: str, message: Any) -> None:
        word, epoch, *rest = message
        if word == "entry":
            entry, stable = rest
            self.step(Forward(boot, epoch, copy.copy(entry), stable))
        elif self.replica.epoch == epoch:
            self.take_over(rest[0], epoch)

    def heard_acks(self, peer: str, epoch: int, received: int, stable: int) -> None:
        self.step(Acks(peer, epoch, received, stable))

    def link_lost(self, member: Member, event: Event) -> None:
        self.broken.setdefault(member.boot, self.now)
        self.step(event)
        self.notify()

    # --- what we say of ourselves ---

    def status(self) -> dict[str, Any]:
        """ServerStatus; the last one known while the lock is held."""
        if not self.busy:
            self._status = {
                "name": self.name,
                "boot": self.boot,
                "shard": self.shard,
                "address": self.address,
                "pid": self.pid,
                **(replica := self.replica.status()),
                "broken": list(self.broken),
                "checkpoints": self.durability.available,
                "last_states": self.durability.last_states(),
                "restore_error": self.restore_error,
                "config_error": None,
                "views": {str(e): dict(t) for e, t in self.epochs.items()},
                "backlog": self.log_reader.backlog,
                "buffer_run": self.log_reader.state_run(replica["history"]),
                "redis_silent_t": None,
                "applied_t": self.applied_t,
                "log_end_t": self.log_reader.end_t,
            }
        return {**self._status, "t": self.now, "leaving": self.leaving, "left": self.left}

    def _watch(self, end: End) -> Step:
        heartbeat_s = self.spec.recovery.failover.heartbeat_seconds
        while not end.closed:
            seen = self.changes
            end.send(self.status())
            deadline = self.now + heartbeat_s
            yield Wait(lambda: end.closed, self.now + WATCH_INTERVAL_S)
            yield Wait(lambda seen=seen: self.changes != seen or end.closed, deadline)  # type: ignore[misc]

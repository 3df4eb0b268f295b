"""A parameter server: the product's `Core` and `Replica`, with simulated time, network and storage at its ports.

    connections ─▶ core.stepping(event) ─▶ state, links (sim_link.py), checkpoints and log (sim_durability.py)

While Redis is away, the core's work stands still and the lock is held: `busy`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from network import End, Process, Step, Wait
from parameters import Parameters
from sim_durability import Durability, LogReader, SimLog
from sim_link import Links, Predecessors
from stores import State

from outlast.api.server_status import ServerStatus
from outlast.api.view import View
from outlast.chain.events import (
    Acknowledged,
    Entry,
    Event,
    Finish,
    Forward,
    HigherEpoch,
    Identity,
    Kind,
    Pull,
    Push,
    Reply,
    SetSlots,
)
from outlast.chain.replica import Replica
from outlast.server.core import RETRY_S, Core, Work
from outlast.server.leave import Leave, LeaveStep
from outlast.server.ports import Ports
from outlast.server.shard_log import ShardLog

if TYPE_CHECKING:
    from world import World

WATCH_INTERVAL_S = 0.02


@dataclass(frozen=True)
class Answer:
    """A reply on its way to a worker; `weights`: (version, digest) of this shard."""

    reply: Reply
    history: int
    weights: tuple[int, int] | None = None
    clocks: dict[int, int] | None = None


@dataclass(eq=False)
class PendingRequest:
    """Waits for an answer: the replica's token. `identity`: of a push."""

    server: SimServer
    end: End
    slot: int | None
    wants_weights: bool
    identity: Identity | None = None
    answered: bool = False

    def answer(self, reply: Reply, weights: tuple[int, int] | None, view: View | None) -> None:
        assert not self.answered, f"answered twice: {reply}"
        self.answered = True
        history = 0 if view is None else view.history
        clocks = self.server.replica.clocks if weights is not None else None
        if isinstance(reply, Acknowledged):
            self.server.world.checkers.acknowledging(self.server, self.identity)
        if not self.end.closed:
            self.end.send(Answer(reply, history, weights, clocks))


WAITING = "waiting"


class ShardState:
    """Records for tensors."""

    def __init__(self, server: SimServer) -> None:
        self._server = server
        self.parameters: Parameters | None = None

    @property
    def _held(self) -> Parameters:
        assert self.parameters is not None, f"{self._server.name} holds no state"
        return self.parameters

    def apply(self, entry: Entry, replica: Replica) -> None:
        if entry.parts:
            initial = entry.kind is Kind.INIT
            parts = entry.parts
            entry.payload = parts[0].payload if initial else tuple((p.payload, p.weight) for p in parts)
            entry.parts = ()
        if entry.kind is Kind.INIT:
            self.parameters = Parameters(entry.payload)
        self._server.world.checkers.applying(self._server, entry, self._held.apply(entry))

    def clear(self) -> None:
        self.parameters = None

    def load(self, initial: int, tensors: dict[str, Any], version: int) -> None:
        self.parameters = Parameters(initial, tensors["records"])

    def export(self) -> tuple[int, dict[str, Any]]:
        return self._held.initial, {"records": tuple(self._held.records)}

    def weights(self, version: int | None, slot: int | None) -> tuple[int, int] | None:
        version = self._held.version if version is None else version
        digest = self._held.at_version(version)
        return None if digest is None else (version, digest)


class SimServer(Process):
    """One start of a server. Its name listens; its boot id is itself."""

    def __init__(self, world: World, name: str, boot: str, shard: int) -> None:
        super().__init__(world.network, name)
        self.world, self.spec, self.boot, self.shard = world, world.spec, boot, shard
        self.pid = world.table.pid(name)
        self.replica = world.make_replica(name, boot, shard, world.settings)
        self.state = ShardState(self)
        self.core = Core(self.spec, self.replica, self.state, self.notify, lambda: self.now)
        self.links, self.predecessors = Links(self), Predecessors(self)
        self.leaving = self.left = self.not_replaced = False
        self.changes = 0
        self._status = self.replica.status()
        self.log = ShardLog(self.core, self.state, SimLog(self))  # type: ignore[arg-type]
        self.durability = Durability(self)
        self.log_reader = LogReader(self)
        self.core.connect(Ports(self.links, self.predecessors, self.log, self.durability))
        self.spawn(self.durability.run())
        if self.log_reader.used:
            self.spawn(self.log_reader.run())

    @property
    def address(self) -> str:
        return f"unix:/{self.name}"

    @property
    def parameters(self) -> Parameters | None:
        return self.state.parameters

    # --- the core's work ---

    def step(self, event: Event) -> None:
        self.start(self.core.stepping(event))

    def install(self, view: View) -> None:
        self.world.checkers.installing(self, view)
        if view.epoch > self.replica.epoch:
            self.world.trace(self.name, "installs", view)
        self.start(self.core.installing(view))

    def take_over(self, state: State, epoch: int | None = None, source: str | None = None) -> None:
        before = self.parameters
        meta = {"replica": state.replica, "initial": state.initial}
        self.start(self.core.taking_over(meta, {"records": state.records}, epoch, source))
        taken = "not taken" if self.parameters is before else "taken"
        self.world.trace(self.name, "state of seq", state.replica["seq"], taken, source or "")

    def start(self, work: Work[None]) -> None:
        """Do it now, or as soon as Redis is back; the lock is held until then."""
        assert not self.busy, "the lock is held"
        self._go_on(work)

    def _go_on(self, work: Work[None]) -> None:
        if not self.alive:
            return
        if not self.paused:
            was_busy, self.busy = self.busy, False
            try:
                next(work)
            except StopIteration:
                if was_busy:
                    self.free()
                return
        self.busy = True
        self.clock.at(self.now + RETRY_S, lambda: self._go_on(work))

    def redis_call(self, what: Callable[..., Any], *args: Any) -> Step:
        """A call to Redis in a task, which takes time; it may fail before it was executed, or after."""
        return self.world.redis.call(self, lambda _: what(*args))

    def export(self) -> State:
        meta, tensors = self.core.export()
        return State(meta["replica"], tensors["records"], meta["initial"])

    # --- leaving ---

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
                request = PendingRequest(self, end, contribution.identity.slot, wants, identity)
                self._ask_replica(request, Push(request, epoch, incarnation, contribution))
            case "pull":
                epoch, slot, incarnation, version = rest
                request = PendingRequest(self, end, slot, True)
                self._ask_replica(request, Pull(request, epoch, slot, version, incarnation))
            case "view":
                end.send(self.replica.view or "none")
            case "watch":
                self.spawn(self._watch(end), locked=False)
            case "control":
                what, argument = rest
                self._control(what, argument)
                if not end.closed:
                    end.send("done")

    def _ask_replica(self, request: PendingRequest, event: Event) -> None:
        self._tell_waiting_later(request)
        self.step(event)

    def _tell_waiting_later(self, request: PendingRequest) -> None:
        heartbeat_s = self.spec.recovery.failover.heartbeat_seconds
        self.after(heartbeat_s, lambda: self._still_waiting(request), locked=False)

    def _still_waiting(self, request: PendingRequest) -> None:
        if not request.answered and not request.end.closed:
            request.end.send(WAITING)
            self._tell_waiting_later(request)

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
            self.predecessors.add(boot, end)
            end.handler = lambda message: self._from_peer(boot, message)
        end.send({"boot": self.boot, "epoch": mine, "last_seq": self.replica.last_seq, "stable": stable})

    def _from_peer(self, boot: str, message: Any) -> None:
        word, epoch, *rest = message
        if word == "entry":
            entry, stable = rest
            self.step(Forward(boot, epoch, copy.copy(entry), stable))
        elif self.replica.epoch == epoch:
            self.take_over(rest[0], epoch)

    # --- what we say of ourselves ---

    def status(self) -> ServerStatus:
        """The last one known while the lock is held."""
        if not self.busy:
            replica = self.replica.status()
            self._status = replace(
                replica,
                address=self.address,
                pid=self.pid,
                serving=self.replica.serving and not self.core.rebuilding,
                broken=tuple(self.links.broken),
                checkpoints=self.durability.available,
                last_states=tuple(self.durability.last_states()),
                restore_error=self.durability.restore_error,
                views=dict(self.core.views),
                backlog=self.log_reader.backlog,
                buffer_run=self.log.state_run(replica.history),
                applied_t=self.core.applied_t,
                log_end_t=self.log_reader.end_t,
            )
        return replace(self._status, t=self.now, leaving=self.leaving, left=self.left)

    def _watch(self, end: End) -> Step:
        heartbeat_s = self.spec.recovery.failover.heartbeat_seconds
        while not end.closed:
            seen = self.changes
            end.send(self.status())
            deadline = self.now + heartbeat_s
            yield Wait(lambda: end.closed, self.now + WATCH_INTERVAL_S)
            yield Wait(lambda seen=seen: self.changes != seen or end.closed, deadline)  # type: ignore[misc]

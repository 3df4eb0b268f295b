"""A worker: the real `Session` in a shell that does what client.py and optimizer.py do, with numbers for gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from network import Disconnected, End, Process, Step, Wait
from parameters import Gradient, value_of
from sim_server import WAITING, Answer

from outlast.api.view import View
from outlast.buffer.types import AppendResult, BufferUnavailable
from outlast.chain.events import Acknowledged, Contribution, DataPlan, Identity, Kind, Refusal, Refused, Weights
from outlast.worker.events import Ask, Dial, Idle, Notice, Outcome, Outgoing, SendPull, SendPush
from outlast.worker.pacing import Pacing, Waits
from outlast.worker.session import Session

if TYPE_CHECKING:
    from world import World

STRAGGLER_S = 0.03
RETRY_S = 0.1
SEND_SO_FAR = 0.1  # how probable it is that a worker sends its local steps so far, after one of them
MEMORY = 32  # gradients on their way, at most


@dataclass
class Staged:
    """The newest weights of one shard."""

    version: int = -1
    history: int = 0
    digest: int = 0
    arrivals: int = 0
    clock: int = 0


class SimWorker(Process):
    """One start of a worker."""

    def __init__(self, world: World, slot: int, incarnation: int) -> None:
        super().__init__(world.network, f"worker-{slot}")
        self.world, self.spec, self.slot, self.incarnation = world, world.spec, slot, incarnation
        shards = world.spec.servers.shards
        self.session = Session(shards, self.spec.traits)
        self.staged = [Staged() for _ in range(shards)]
        self.data = DataPlan(slots=world.spec.workers.replicas)
        self.clocks: dict[int, int] = {}
        self.fenced = False
        self._answers: dict[int, list[tuple[float, str, View | None]]] = {}  # by shard
        self.step = 0
        self._traits = self.spec.traits
        self._local = world.spec.local_steps
        self._local_first = self._local_value = 0
        self._cut_off = False  # the weights at hand are its own
        self._awaited: int | None = None
        self.resync = False
        self._ticks = 0
        self._pacing = Pacing(self, self._traits, self.spec.training.max_staleness)
        self._open: list[Outgoing] = []
        self._histories: dict[int, int] = {}  # id(item) -> lowest history that acknowledged it
        self._asking: set[str] = set()
        self._speed = self.rng.uniform(0.7, 1.5)
        for index in range(shards):
            self.spawn(self._serve_shard(index))
        if self._traits.buffered:
            self.spawn(self._append())
        self.spawn(self._main())

    def terminate(self) -> None:
        """SIGTERM: nothing of a worker needs saving."""
        self.world.exited(self, 0)

    def notify(self) -> None:
        self._ticks += 1
        self.wake()

    # --- what its pacing asks (`Servers`, and `Answers`) ---

    @property
    def inbox(self) -> SimWorker:
        return self

    @property
    def stopped(self) -> bool:
        return self.session.finished or self.fenced

    @property
    def arrivals(self) -> int:
        return sum(s.arrivals for s in self.staged)

    @property
    def arrivals_by_shard(self) -> list[int]:
        return [s.arrivals for s in self.staged]

    @property
    def versions(self) -> tuple[int, ...]:
        return tuple(s.version for s in self.staged)

    @property
    def histories(self) -> tuple[int, ...]:
        return tuple(s.history for s in self.staged)

    @property
    def torn(self) -> bool:
        return len({(s.version, s.history) for s in self.staged}) > 1

    def arrived_since(self, seen: list[int]) -> bool:
        return all(s.arrivals > n for s, n in zip(self.staged, seen, strict=True))

    def take_resync(self) -> bool:
        resync, self.resync = self.resync, False
        return resync

    def request(self, versions: Sequence[int | None] | None = None) -> None:
        for shard in range(len(self.staged)):
            self.session.request(shard, None if versions is None else versions[shard])
        self.notify()

    # --- the training loop ---

    def _main(self) -> Step:
        version = yield from self._synchronise()
        if not self.stopped:
            self.step = 1 + (version if self._traits.barrier else (yield from self._highest_step()))
            self._load()
        while not self.stopped:
            self.world.checkers.computing(self)
            local = self._local and self.session.outage()
            versions = [(version, digest) for version, _, digest in self._loaded]
            yield Wait(None, self.now + self.rng.uniform(0.006, 0.014) * self._speed)
            batch = self.data.batch(self.slot, self.step)
            value = value_of(self.slot, self.step, batch, versions)
            if local and self.session.outage():
                self._cut_off, self._awaited = True, None
                self._step_locally(value)
                self._send_so_far()
                continue
            if self._cut_off:
                self._step_locally(value)  # computed on weights of its own: part of the difference
                self._follow()
                continue
            yield from self._send(value)
        self.world.trace(self.name, "ends", "fenced" if self.fenced else "finished")
        self.world.exited(self, 0)

    def _highest_step(self) -> Step:
        clock, slot = self.clocks.get(self.slot, 0), self.slot
        while self._traits.buffered:
            try:
                held = yield from self.world.redis.call(self, lambda m: m.fence(slot, self.incarnation))
                self.fenced = self.fenced or held > self.incarnation
                buffered = yield from self.world.redis.call(self, lambda m: m.highest_step(slot))
                return max(clock, buffered)
            except BufferUnavailable:
                yield Wait(None, self.now + RETRY_S)
        return clock

    def _submit(self, first: int, last: int, value: int, kind: Kind) -> Outgoing:
        versions = tuple(max(0, version) for version, _, _ in self._loaded)
        history = max(history for _, history, _ in self._loaded)
        share = 1.0 / self.data.slots if kind is Kind.DELTA else 1.0
        item = Outgoing(first, last, versions, history, value, kind, share)
        self.session.submit(item)
        self._open.append(item)
        self.settle()
        return item

    def _send(self, value: int) -> Step:
        yield from self._wait(lambda: self.session.unanswered < MEMORY)
        if self.stopped:
            return
        self.world.ledger.computed(self.slot, self.step, self.step)
        item = self._submit(self.step, self.step, value, Kind.UPDATE)
        self.step += 1
        yield from self._follow_pace(self._pacing.after_push(item))
        if self.stopped:
            return
        if self._pacing.must_synchronise(item.last):
            self.step = (yield from self._synchronise()) + 1
        self._load()

    def _load(self) -> None:
        self._pacing.load(self._copy_weights)

    def _copy_weights(self) -> None:
        self._loaded = [(s.version, s.history, s.digest) for s in self.staged]

    def _wait(self, ready: Any, timeout_s: float | None = None) -> Step:
        until = None if timeout_s is None else self.now + timeout_s
        return (yield Wait(lambda: ready() or self.stopped, until))

    def _follow_pace(self, waits: Waits) -> Step:
        """Wait as `Pacing` says."""
        try:
            until = next(waits)
            while True:
                until = waits.send((yield from self._wait(until.ready, until.timeout_s)))
        except StopIteration:
            return

    def _synchronise(self) -> Step:
        yield from self._follow_pace(self._pacing.synchronise())
        return max(0, min(self.versions))

    def _step_locally(self, value: int) -> None:
        if not self._local_first:
            self._local_first, self._local_value = self.step, 0
        self._local_value = value_of(self._local_value, value)
        self.world.ledger.computed(self.slot, self.step, self.step)
        self.step += 1

    def _send_so_far(self) -> None:
        if self.session.unanswered <= 1 and self.rng.random() < SEND_SO_FAR:
            self._send_delta()

    def _follow(self) -> None:
        """Servers are back: they get what was moved, and are followed once they have applied it."""
        awaited = self._awaited
        over = awaited is not None and all(s.clock >= awaited for s in self.staged)
        if self._awaited is None or over:
            self._send_delta()
        else:
            self._send_so_far()
        if over:
            self._cut_off = False
            self._load()
            return
        if self._awaited is None:
            self._awaited = self.step - 1
        self.request()

    def _send_delta(self) -> None:
        first, self._local_first = self._local_first, 0
        self._submit(first, self.step - 1, self._local_value, Kind.DELTA)

    # --- a shard's thread ---

    def _serve_shard(self, index: int) -> Step:
        session, end = self.session, None
        while True:
            action = session.next_action(index, self.now)
            while isinstance(action, Idle):
                ticks = self._ticks
                yield Wait(lambda ticks=ticks: self._ticks != ticks, action.until)  # type: ignore[misc]
                action = session.next_action(index, self.now)
            try:
                if isinstance(action, Ask):
                    told = yield from self._ask(index)
                    session.heard(index, told, self.now)
                elif isinstance(action, Dial):
                    if end is not None:
                        end.close()
                    end = yield from self._dial(action)
                    session.dialled(index, action.member)
                elif isinstance(action, SendPush):
                    assert end is not None
                    yield from self._push(index, end, action)
                else:
                    assert isinstance(action, SendPull)
                    assert end is not None
                    yield from self._pull(index, end, action)
            except ConnectionError as error:
                self.world.trace(self.name, "shard", index, "lost:", error)
                if end is not None:
                    end.close()
                    end = None
                session.lost(index, self.now)
                self.settle()

    def _timeout_s(self) -> float:
        return self.spec.recovery.failover.timeout_seconds

    def _dial(self, action: Dial) -> Step:
        hello = {"role": "worker"}
        end, welcome = yield from self.network.dial(self, action.member.name, hello, self._timeout_s())
        if welcome["boot"] != action.member.boot:
            end.close()
            raise Disconnected(f"{action.member.name} has restarted and is in no view yet")
        return end

    def _ask(self, index: int) -> Step:
        """Ask all servers of the shard at once; late answers are taken when they come."""
        answers, asked_t, asked = self._answers.setdefault(index, []), self.now, 0
        for name in self.world.server_names(index):
            if name not in self._asking:
                self._asking.add(name)
                self.spawn(self._ask_one(name, asked_t, answers))
                asked += 1
        told: dict[str, View] = {}
        deadline = self.now + self._timeout_s()
        while asked or answers:
            if not (yield Wait(lambda: answers, deadline)):
                break
            t, boot, view = answers.pop(0)
            asked -= t == asked_t
            if view is not None:
                told[boot] = max(told.get(boot, view), view, key=lambda v: v.epoch)
                deadline = min(deadline, self.now + STRAGGLER_S)
        return told

    def _ask_one(self, name: str, asked_t: float, answers: list[tuple[float, str, View | None]]) -> Step:
        boot, view = "", None
        try:
            end, welcome = yield from self.network.dial(self, name, {"role": "control"}, self._timeout_s())
            try:
                end.send(("view",))
                raw = yield from end.receive(self._timeout_s())
                boot, view = welcome["boot"], None if raw is None or raw == "none" else raw
            finally:
                end.close()
        except ConnectionError:
            pass
        self._asking.discard(name)
        answers.append((asked_t, boot, view))

    def _push(self, index: int, end: End, action: SendPush) -> Step:
        item = action.item
        if item.kind is Kind.INIT:
            identity, payload = Identity(self.slot, 1, 1), self.world.initial(index)
        else:
            identity = Identity(self.slot, item.first, item.last)
            payload = self._payload(item, index)
        contribution = Contribution(identity, item.versions[index], item.history, payload, item.kind, item.lr_scale)
        end.send(("push", action.epoch, self.incarnation, contribution, action.want_weights))
        answer = yield from self._answer(index, end)
        if isinstance(answer.reply, Acknowledged):
            self.data = answer.reply.data
            self._histories[id(item)] = min(answer.history, self._histories.get(id(item), answer.history))
            self.session.acknowledged(index, item)
            if item.kind is Kind.INIT:
                self.session.request(index)
        else:
            self._refused(index, answer)
        self.settle()

    def _payload(self, item: Outgoing, index: int) -> Any:
        return Gradient(self.slot, item.first, item.last, value_of(item.payload, index))

    def _pull(self, index: int, end: End, action: SendPull) -> Step:
        end.send(("pull", action.epoch, self.slot, self.incarnation, action.version))
        answer = yield from self._answer(index, end)
        if isinstance(answer.reply, Weights):
            self.data = answer.reply.data
            for slot, step in (answer.clocks or {}).items():
                self.clocks[slot] = max(step, self.clocks.get(slot, 0))
            staged = self.staged[index]
            staged.clock = max(staged.clock, (answer.clocks or {}).get(self.slot, 0))
            self.session.pulled(index)
        else:
            self._refused(index, answer)
        self.settle()

    def _answer(self, index: int, end: End) -> Step:
        answer = WAITING
        while answer == WAITING:
            answer = yield from end.receive(self._timeout_s())
            if self.session.stale(index):
                raise Disconnected("has not heard of a rollback")
        assert isinstance(answer, Answer)
        if answer.weights is not None:
            staged = self.staged[index]
            staged.version, staged.digest = answer.weights
            staged.history = answer.history
            staged.arrivals += 1
        return answer

    def _refused(self, index: int, answer: Answer) -> None:
        refused = answer.reply
        assert isinstance(refused, Refused)
        self.world.trace(self.name, "refused:", refused.reason, refused.detail)
        self.session.refused(index, refused.reason, refused.view, self.now)
        if refused.reason is Refusal.EMPTY:
            self.session.submit_init(Outgoing(0, 0, (0,) * len(self.staged), 0, None, Kind.INIT), index)

    def settle(self) -> None:
        """Pass on what the session has to say, and write down what has become of gradients."""
        for notice in self.session.take_notices():
            if notice is Notice.FENCED:
                self.fenced = True
            elif notice is Notice.RESYNC:
                self.resync = True
        still = []
        for item in self._open:
            if item.outcome is None:
                still.append(item)
                continue
            history = self._histories.pop(id(item), item.history)
            if item.outcome in (Outcome.SERVER, Outcome.BUFFER):
                self.world.ledger.acknowledged(self.slot, item.first, item.last, history, item.outcome)
        self._open = still
        self.notify()

    # --- the appender's thread ---

    def _append(self) -> Step:
        session = self.session
        while True:
            yield Wait(lambda: session.next_for_buffer() is not None)
            item = session.next_for_buffer()
            assert item is not None
            try:
                result = yield from self._append_one(item)
            except BufferUnavailable:
                result = AppendResult.FULL
            if result in (AppendResult.OK, AppendResult.DUPLICATE):
                session.buffered(item)
            elif result is AppendResult.CLOSED:
                session.buffered(item, closed=True)
            elif result is AppendResult.FENCED:
                self.fenced = True
            else:
                session.take_back()
                self.settle()
                yield Wait(None, self.now + RETRY_S)
            self.settle()

    def _append_one(self, item: Outgoing) -> Step:
        payloads = [self._payload(item, index) for index in range(len(self.staged))]
        return (
            yield from self.world.redis.call(
                self,
                lambda m: m.append(
                    self.slot, self.incarnation, item.history, max(item.versions), item.kind, item.first, item.last,
                    item.lr_scale, payloads,
                ),
            )
        )  # fmt: skip

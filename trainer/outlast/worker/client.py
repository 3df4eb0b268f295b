"""The worker's shell around `Session`: threads that dial, push, pull and append, and the weights that come in.

    main thread     take() a gradient's memory, submit() it, wait, load_weights()
    one thread a shard   does what session.next_action says, over one connection
    one thread           appends to the buffer in Redis (Stateless; Hybrid while a head is away)

Incoming weights are received straight into the spare of two vectors a shard and then swapped, so the worker never
sees half of an update.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

import torch

from outlast.api.config import ProcessConfig
from outlast.api.spec import JobSpec
from outlast.api.view import Member, View
from outlast.chain.events import DataPlan, Kind, Refusal
from outlast.model.flat import Manifest, byte_view, shard_ranges
from outlast.process.ledger import Fact, LedgerWriter
from outlast.process.metrics import Sample, WorkerCounts, worker_samples
from outlast.wire.dial import connect
from outlast.wire.frames import DType, Flag, Header, Op, ProtocolError
from outlast.wire.pool import Lease, TensorPool
from outlast.wire.shared_memory import AVAILABLE, Place, make_pool
from outlast.wire.sharing import Sharing
from outlast.worker.appender import Appender
from outlast.worker.events import Ask, Dial, Idle, Notice, Outcome, Outgoing, SendPull, SendPush
from outlast.worker.session import Session

log = logging.getLogger("outlast.client")

_MEMORY_BYTES = 1 << 30  # gradients that may wait in a worker's memory
_STRAGGLER_S = 0.03  # how long to wait for slower servers once one has told its view

FACTS = {Outcome.SERVER: Fact.ACKNOWLEDGED, Outcome.BUFFER: Fact.BUFFERED, Outcome.UNAPPLIED: Fact.UNAPPLIED}


@dataclass
class _Staged:
    """The newest weights of one shard: float32 [n], and the spare that the next ones are received into."""

    front: torch.Tensor
    spare: torch.Tensor
    version: int = -1
    history: int = 0
    arrivals: int = 0
    clock: int = 0  # our slot's highest step that the shard told as applied


class Weights(Enum):
    """What came of the weights that an answer promised."""

    NONE = "none were promised"
    CAME = "they are in the spare vector"
    MISSED = "the server needed their memory before they were read"


@dataclass(frozen=True)
class _Answer:
    """What a server that was asked at `asked_t` told."""

    asked_t: float
    boot: str
    view: View | None


class Client:
    """One worker's connection to its job. All public methods belong to the worker's main thread."""

    def __init__(
        self, config: ProcessConfig, spec: JobSpec, manifest: Manifest, optimizer: dict[str, Any], initial: torch.Tensor
    ) -> None:
        self.config, self.spec = config, spec
        self.ranges = shard_ranges(manifest.numel, len(config.servers))
        self.session = Session(len(config.servers), spec.traits)
        self.condition = threading.Condition()
        self.data = DataPlan(slots=spec.workers.replicas)
        self.clocks: dict[int, int] = {}
        self.fenced = False
        self.failure: str | None = None
        self._resync = False
        self._initial, self._manifest, self._optimizer = initial, manifest, optimizer
        pinned = torch.cuda.is_available()
        self._staged = [
            _Staged(torch.zeros(b - a, pin_memory=pinned), torch.zeros(b - a, pin_memory=pinned))
            for a, b in self.ranges
        ]
        limit = max(4, min(_MEMORY_BYTES // (manifest.numel * 4), 256))
        local = any(s.address.startswith("unix:") for shard in config.servers for s in shard)
        self._pool = (
            TensorPool(manifest.numel, limit, pinned=True) if pinned else make_pool(manifest.numel, limit, local)
        )
        self._ledger = LedgerWriter(config.ledger_dir, config.slot, config.incarnation) if config.ledger_dir else None
        self._loaded: tuple[tuple[int, ...], int] = ((0,) * len(self.ranges), 0)  # versions, history
        self._open: list[Outgoing] = []
        self.counts = WorkerCounts()
        self._closed = False
        self._asks: list[dict[str, threading.Thread]] = [{} for _ in self.ranges]  # [shard], by address
        self._answers: list[queue.SimpleQueue[_Answer]] = [queue.SimpleQueue() for _ in self.ranges]
        self._threads = [
            threading.Thread(target=self._serve_shard, args=(i,), name=f"shard-{i}", daemon=True)
            for i in range(len(config.servers))
        ]
        self.appender = Appender(self) if spec.traits.buffered else None

    # --- the worker's thread ---

    def start(self) -> None:
        for thread in self._threads:
            thread.start()
        if self.appender is not None:
            self.appender.start()

    def take(self, timeout_s: float | None = None) -> Lease | None:
        """Memory for one gradient, float32 [numel]; waits while too many are on their way."""
        began = time.monotonic()
        lease = self._pool.take(timeout_s)
        self.counts.waited_s += time.monotonic() - began
        return lease

    def submit(self, first: int, last: int, lease: Lease, kind: Kind, lr_scale: float) -> Outgoing:
        """Send a gradient computed on the weights last loaded."""
        versions, history = self._loaded
        item = Outgoing(first, last, versions, history, lease, kind, lr_scale)
        with self.condition:
            self.session.submit(item)
            self._open.append(item)
            self._settle()
            self.condition.notify_all()
        return item

    def record(self, fact: Fact, first: int, last: int) -> None:
        self.counts.gradients[fact] += last - first + 1
        if self._ledger is not None:
            self._ledger.write(fact, first, last)

    def wait_until(self, ready: Any, timeout_s: float | None = None) -> bool:
        """Wait (without the lock's knowledge of why) until `ready()`; False after `timeout_s` seconds."""
        with self.condition:
            began = time.monotonic()
            held = self.condition.wait_for(lambda: ready() or self.stopped, timeout_s)
            self.counts.waited_s += time.monotonic() - began
            return held

    @property
    def stopped(self) -> bool:
        return self.session.finished or self.fenced or self.failure is not None or self._closed

    def _answered_since(self, seen: list[int]) -> bool:
        return self.stopped or self._resync or self.arrived_since(seen)

    @property
    def torn(self) -> bool:
        """Are the shards' newest weights of different versions or histories?"""
        return len({(s.version, s.history) for s in self._staged}) > 1

    def arrived_since(self, seen: list[int]) -> bool:
        """Have weights come from every shard since its `arrivals_by_shard` was `seen`?"""
        return all(s.arrivals > n for s, n in zip(self._staged, seen, strict=True))

    def applied(self, step: int) -> bool:
        """Has every shard told that it has applied this worker's step, or a later one?"""
        return all(s.clock >= step for s in self._staged)

    @property
    def arrivals_by_shard(self) -> list[int]:
        return [s.arrivals for s in self._staged]

    def request_weights(self) -> None:
        """Ask every shard for its newest weights."""
        with self.condition:
            for shard in range(len(self.ranges)):
                self.session.request(shard)
            self.condition.notify_all()

    def take_resync(self) -> bool:
        """True once after the servers said that this worker must pull again (Sync)."""
        with self.condition:
            resync, self._resync = self._resync, False
            return resync

    def synchronise(self) -> int:
        """Pull from all shards until all are of one version (Sync) or simply there; returns the lowest version.

        Shards ahead keep the version before, which a worker lost between two shards' pushes makes necessary.
        """
        began = time.monotonic()
        try:
            return self._synchronise()
        finally:
            self.counts.waited_s += time.monotonic() - began

    def _synchronise(self) -> int:
        exact: list[int | None] = [None] * len(self.ranges)
        while not self.stopped:
            seen = self.arrivals_by_shard
            with self.condition:
                self._resync = False
                for shard, version in enumerate(exact):
                    self.session.request(shard, version)
                self.condition.notify_all()
                self.condition.wait_for(partial(self._answered_since, seen))
                if self._resync:
                    exact = [None] * len(self.ranges)
                    self.condition.wait(0.01)  # a shard has moved on or back meanwhile: look again
                    continue
            versions = [s.version for s in self._staged]
            if not self.spec.traits.barrier or not self.torn:
                return min(versions)
            if len({s.history for s in self._staged}) > 1:  # some shard has not heard of a rollback yet
                exact = [None] * len(self.ranges)
                with self.condition:
                    self.condition.wait(0.01)
                continue
            exact = [min(versions)] * len(versions)
        return max(0, min(s.version for s in self._staged))

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def versions(self) -> tuple[int, ...]:
        return tuple(s.version for s in self._staged)

    @property
    def arrivals(self) -> int:
        """Grows whenever weights come in."""
        return sum(s.arrivals for s in self._staged)

    def samples(self) -> Iterator[Sample]:
        """For Prometheus."""
        with self.condition:
            session = self.session
            received = sum((b - a) * 4 * s.arrivals for (a, b), s in zip(self.ranges, self._staged, strict=True))
            return worker_samples(
                self.counts, received, session.unanswered, session.outage(), session.buffer_down, time.monotonic()
            )

    def copy_weights(self, out: torch.Tensor) -> None:
        """Copy the newest weights into `out`, float32 [numel]; what is submitted from now on was computed on them."""
        with self.condition:
            self._loaded = (tuple(max(0, s.version) for s in self._staged), max(s.history for s in self._staged))
            for (a, b), staged in zip(self.ranges, self._staged, strict=True):
                out[a:b].copy_(staged.front, non_blocking=True)
            if out.is_cuda:
                torch.cuda.current_stream().synchronize()  # the memory is received into again once the lock is free

    def close(self) -> None:
        with self.condition:
            self._closed = True
            self.condition.notify_all()
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None

    # --- a shard's thread ---

    def _serve_shard(self, index: int) -> None:
        link: Sharing | None = None
        while True:
            with self.condition:
                action = self.session.next_action(index, time.monotonic())
                while isinstance(action, Idle) and not self._closed:
                    pause = None if action.until is None else max(0.0, action.until - time.monotonic())
                    self.condition.wait(pause)
                    action = self.session.next_action(index, time.monotonic())
            if self._closed:
                break
            try:
                if isinstance(action, Ask):
                    told = self._ask(index)
                    with self.condition:
                        self.session.heard(index, told, time.monotonic())
                elif isinstance(action, Dial):
                    if link is not None:
                        link.connection.close()
                    link = self._dial(action.member)
                    with self.condition:
                        self.session.dialled(index, action.member)
                elif isinstance(action, SendPush):
                    assert link is not None
                    self._push(index, link, action)
                elif isinstance(action, SendPull):
                    assert link is not None
                    self._pull(index, link, action)
            except ConnectionError as error:
                log.info("shard %d: %s", index, error)
                if link is not None:
                    link.connection.close()
                    link = None
                with self.condition:
                    self.session.lost(index, time.monotonic())
                    self.settle()
            del action
        if link is not None:
            link.connection.close()

    def _dial(self, member: Member) -> Sharing:
        timeout_s = self.spec.recovery.failover.timeout_seconds
        hello = {"role": "worker", "name": self.config.name, "shared_memory": AVAILABLE}
        connection, welcome = connect(member.address, self.config.job_uid, self.config.token, hello, timeout_s)
        if welcome.get("boot") != member.boot:
            connection.close()
            raise ConnectionError(f"{member.name} has restarted and is in no view yet")
        return Sharing(connection, bool(welcome.get("shared_memory")))

    def _ask(self, index: int) -> dict[str, View]:
        """Ask all servers of the shard at once, but those that still owe an answer: a paused one must not hold up the
        others' answers. Its own is taken when it comes. Returns the views by the boot of who told it."""
        began, answers = time.monotonic(), self._answers[index]
        pending = {address: thread for address, thread in self._asks[index].items() if thread.is_alive()}
        asked = [address for address in self._places(index) if address not in pending]
        for address in asked:
            pending[address] = threading.Thread(target=self._ask_one, args=(index, address, began), daemon=True)
            pending[address].start()
        self._asks[index] = pending
        told: dict[str, View] = {}
        deadline, outstanding = began + self.spec.recovery.failover.timeout_seconds, len(asked)
        while outstanding or not answers.empty():
            try:
                answer = answers.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            outstanding -= answer.asked_t == began
            if answer.view is not None:
                told[answer.boot] = max(told.get(answer.boot, answer.view), answer.view, key=lambda v: v.epoch)
                deadline = min(deadline, time.monotonic() + _STRAGGLER_S)
        return told

    def _places(self, index: int) -> list[str]:
        """Where servers of the shard may answer: the addresses that its last view told, for a name may not be found
        for many seconds after a node is lost (the resolver waits for the DNS server on it), and all names, for whoever
        is in no view that we know."""
        with self.condition:
            view = self.session.view(index)
        members = () if view is None else (*view.members, *view.joining)
        return list(dict.fromkeys([*(m.address for m in members), *(s.address for s in self.config.servers[index])]))

    def _ask_one(self, index: int, address: str, asked_t: float) -> None:
        boot, view = "", None
        try:
            timeout_s = self.spec.recovery.failover.timeout_seconds
            hello = {"role": "control"}
            connection, welcome = connect(address, self.config.job_uid, self.config.token, hello, timeout_s)
            try:
                connection.send(Header(Op.VIEW))
                _, meta = connection.receive()
                told = None if meta.get("view") is None else View.from_json(meta["view"])
                # The address of a pod that is gone may be that of another shard's server by now.
                boot, view = str(welcome.get("boot")), told if told is not None and told.shard == index else None
            finally:
                connection.close()
        except ConnectionError as error:
            log.debug("asked %s for its view: %s", address, error)
        self._answers[index].put(_Answer(asked_t, boot, view))

    def _push(self, index: int, link: Sharing, action: SendPush) -> None:
        item = action.item
        start, stop = self.ranges[index]
        init = item.kind is Kind.INIT
        meta: dict[str, Any] | None = None
        if init:
            meta = {
                "manifest": self._manifest.to_json(),
                "optimizer": self._optimizer,
                "start": start,
                "stop": stop,
            }
        elif item.lr_scale != 1.0:
            meta = {"lr_scale": item.lr_scale}
        flags = Flag.INIT if init else Flag.DELTA if item.kind is Kind.DELTA else 0
        header = Header(
            Op.PUSH,
            DType.FLOAT32,
            flags | (Flag.WANT_WEIGHTS if action.want_weights else 0),
            slot=self.config.slot,
            incarnation=self.config.incarnation,
            epoch=action.epoch,
            history=item.history,
            first_step=item.first,
            step=item.last,
            version=item.versions[index],
        )
        if init:
            link.connection.send(header, meta, byte_view(item.payload[start:stop]))
        else:
            link.send(header, meta, self._pool, item.payload, (start, stop))
        self.counts.sent_bytes += (stop - start) * 4
        answer, body, weights = self._answer(index, link)
        with self.condition:
            self._take_in(index, answer, weights)
            if answer.op == Op.ACKNOWLEDGED:
                self._note(index, answer, body)
                self.session.acknowledged(index, item)
                if init or weights is Weights.MISSED:
                    self.session.request(index)
            else:
                self._refused(index, answer, body)
            self.settle()

    def _pull(self, index: int, link: Sharing, action: SendPull) -> None:
        header = Header(
            Op.PULL,
            flags=0 if action.version is None else Flag.EXACT,
            slot=self.config.slot,
            incarnation=self.config.incarnation,
            epoch=action.epoch,
            version=action.version or 0,
        )
        link.connection.send(header)
        answer, body, weights = self._answer(index, link)
        with self.condition:
            self._take_in(index, answer, weights)
            if answer.op == Op.WEIGHTS:
                self._note(index, answer, body)
                self.session.pulled(index)
                if weights is Weights.MISSED:
                    self.session.request(index, action.version)
            else:
                self._refused(index, answer, body)
            self.settle()

    def _answer(self, index: int, link: Sharing) -> tuple[Header, dict[str, Any], Weights]:
        """The answer, and what became of the weights that it promised: they are in `spare`, for `_take_in`."""
        connection = link.connection
        connection.set_timeout(self.spec.recovery.failover.timeout_seconds, None)
        while True:
            header, meta = connection.receive()
            with self.condition:
                if self.session.stale(index):  # before anything it says is heeded
                    raise ConnectionError("this head has not heard of a rollback that another shard's has told")
            if header.op != Op.WAITING:
                break
        if header.op not in (Op.ACKNOWLEDGED, Op.WEIGHTS, Op.REFUSED):
            raise ProtocolError(f"a server answered with op {header.op}")
        weights = Weights.NONE
        if header.length or header.flags & Flag.SHARED:
            weights = self._receive_weights(index, link, header, meta)
        return header, meta, weights

    def _receive_weights(self, index: int, link: Sharing, header: Header, meta: dict[str, Any]) -> Weights:
        staged = self._staged[index]
        place = Place.from_json(meta.get("shared")) if header.flags & Flag.SHARED else None
        size = header.length if place is None else place.length
        if size != staged.spare.numel() * 4:
            with self.condition:  # the connection is of no more use, and another would be no better
                self.failure = (
                    f"the servers hold {size // 4} elements of shard {index}, this worker's model has "
                    f"{staged.spare.numel()} there: every worker, and a checkpoint restored from, must have the same "
                    "model; build it from the job's seed and args alone"
                )
                self.condition.notify_all()
            raise ProtocolError(f"weights of {size} bytes, expected {staged.spare.numel() * 4}")
        if place is None:
            link.connection.receive_into(byte_view(staged.spare))
        elif not link.read(place, staged.spare):
            return Weights.MISSED
        return Weights.CAME

    def _note(self, index: int, answer: Header, meta: dict[str, Any]) -> None:
        self.data = DataPlan(*meta["data"])
        clocks = {int(slot): int(step) for slot, step in meta.get("clocks", {}).items()}
        for slot, step in clocks.items():
            self.clocks[slot] = max(step, self.clocks.get(slot, 0))
        staged = self._staged[index]
        staged.clock = max(staged.clock, clocks.get(self.config.slot, 0))

    def _refused(self, index: int, answer: Header, meta: dict[str, Any]) -> None:
        view = None if meta.get("view") is None else View.from_json(meta["view"])
        reason = Refusal(meta["reason"])
        log.info("shard %d refused (%s): %s", index, reason, meta.get("detail", ""))
        self.session.refused(index, reason, view, time.monotonic())
        if reason is Refusal.EMPTY:
            a = Outgoing(0, 0, (0,) * len(self.ranges), 0, self._initial, Kind.INIT)
            self.session.submit_init(a, index)

    # --- with the lock held ---

    def _take_in(self, index: int, answer: Header, weights: Weights) -> None:
        """Show weights that came. In one go with their request's end: one made in between would end with it unheard."""
        if weights is Weights.CAME:
            staged = self._staged[index]
            staged.front, staged.spare = staged.spare, staged.front
            staged.version, staged.history = answer.version, answer.history
            staged.arrivals += 1

    def settle(self) -> None:
        """Pass on what the session has to say, and write down what has become of gradients."""
        for notice in self.session.take_notices():
            if notice is Notice.FENCED:
                self.fenced = True
            elif notice is Notice.RESYNC:
                self._resync = True
        self._settle()
        self.condition.notify_all()

    def _settle(self) -> None:
        """Write down what has become of gradients, and let their memory go."""
        still = []
        for item in self._open:
            if item.outcome is None:
                still.append(item)
                continue
            fact = FACTS.get(item.outcome)
            if fact is not None:
                self.record(fact, item.first, item.last)
        self._open = still

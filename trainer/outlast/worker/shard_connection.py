"""A worker's connection to one shard: a thread that asks for views, dials the head, pushes and pulls.

It does what `session.next_action` says, one request at a time, and reports what came of it.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch

from outlast.api.config import ProcessConfig
from outlast.api.view import Member, View
from outlast.chain.events import Kind, Refusal
from outlast.model.flat import byte_view
from outlast.wire.dial import connect
from outlast.wire.frames import DType, Flag, Header, Op, ProtocolError
from outlast.wire.pool import TensorPool
from outlast.wire.shared_memory import AVAILABLE, Place
from outlast.wire.sharing import Sharing
from outlast.worker.events import Ask, Dial, Idle, Outgoing, SendPull, SendPush
from outlast.worker.inbox import Inbox
from outlast.worker.outbox import Outbox
from outlast.worker.view_poll import ViewPoll

log = logging.getLogger("outlast.client")


class _Weights(Enum):
    """What came of the weights that an answer promised."""

    NONE = "none were promised"
    CAME = "they are in the spare vector"
    MISSED = "the server needed their memory before they were read"


@dataclass(frozen=True)
class Initial:
    """What a shard without weights is given: the model's own, float32 [numel], and how to hold and update them."""

    weights: torch.Tensor
    manifest: dict[str, Any]
    optimizer: dict[str, Any]


class ShardConnection:
    """The thread that serves shard `index`; `pool` holds the gradients that it sends."""

    def __init__(
        self,
        config: ProcessConfig,
        timeout_s: float,
        index: int,
        outbox: Outbox,
        inbox: Inbox,
        pool: TensorPool,
        initial: Initial,
    ) -> None:
        self._config, self._timeout_s, self._index = config, timeout_s, index
        self._outbox, self._session, self._inbox = outbox, outbox.session, inbox
        self._pool, self._initial = pool, initial
        self._start, self._stop = inbox.ranges[index]
        self._poll = ViewPoll(config, index, timeout_s)
        self._link: Sharing | None = None
        self._thread = threading.Thread(target=self._run, name=f"shard-{index}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        while (action := self._next_action()) is not None:
            try:
                if isinstance(action, Ask):
                    self._ask()
                elif isinstance(action, Dial):
                    self._dial(action.member)
                elif isinstance(action, SendPush):
                    self._push(self._connected(), action)
                else:
                    self._pull(self._connected(), action)
            except ConnectionError as error:
                log.info("shard %d: %s", self._index, error)
                self._hang_up()
                with self._outbox.condition:
                    self._session.lost(self._index, time.monotonic())
                    self._outbox.settle()
            del action  # a gradient's memory is free once its last name is
        self._hang_up()

    def _next_action(self) -> Ask | Dial | SendPush | SendPull | None:
        """Wait for something to do. None: the worker ends."""
        condition = self._outbox.condition
        with condition:
            while not self._outbox.closed:
                action = self._session.next_action(self._index, time.monotonic())
                if not isinstance(action, Idle):
                    return action
                condition.wait(None if action.until is None else max(0.0, action.until - time.monotonic()))
        return None

    # --- finding the head ---

    def _ask(self) -> None:
        with self._outbox.condition:
            view = self._session.view(self._index)
        told = self._poll.ask(view)
        with self._outbox.condition:
            self._session.heard(self._index, told, time.monotonic())

    def _dial(self, member: Member) -> None:
        self._hang_up()
        hello = {"role": "worker", "name": self._config.name, "shared_memory": AVAILABLE}
        connection, welcome = connect(member.address, self._config.job_uid, self._config.token, hello, self._timeout_s)
        if welcome.get("boot") != member.boot:
            connection.close()
            raise ConnectionError(f"{member.name} has restarted and is in no view yet")
        self._link = Sharing(connection, bool(welcome.get("shared_memory")))
        with self._outbox.condition:
            self._session.dialled(self._index, member)

    def _connected(self) -> Sharing:
        if self._link is None:
            raise ConnectionError("there is no connection to its head")
        return self._link

    def _hang_up(self) -> None:
        if self._link is not None:
            self._link.connection.close()
            self._link = None

    # --- requests ---

    def _push(self, link: Sharing, action: SendPush) -> None:
        item = action.item
        flags = {Kind.INIT: Flag.INIT, Kind.DELTA: Flag.DELTA}.get(item.kind, 0)
        header = Header(
            Op.PUSH,
            DType.FLOAT32,
            flags | (Flag.WANT_WEIGHTS if action.want_weights else 0),
            slot=self._config.slot,
            incarnation=self._config.incarnation,
            epoch=action.epoch,
            history=item.history,
            first_step=item.first,
            step=item.last,
            version=item.versions[self._index],
        )
        if item.kind is Kind.INIT:
            initial = self._initial
            meta = {
                "manifest": initial.manifest, "optimizer": initial.optimizer, "start": self._start, "stop": self._stop,
            }  # fmt: skip
            link.connection.send(header, meta, byte_view(initial.weights[self._start : self._stop]))
        else:
            scale = {"lr_scale": item.lr_scale} if item.lr_scale != 1.0 else None
            link.send(header, scale, self._pool, item.payload, (self._start, self._stop))
        self._outbox.counts.sent_bytes += (self._stop - self._start) * 4
        answer, body, weights = self._answer(link)
        with self._outbox.condition:
            self._take_in(answer, weights)
            if answer.op == Op.ACKNOWLEDGED:
                self._inbox.note(self._index, body)
                self._session.acknowledged(self._index, item)
                if item.kind is Kind.INIT or weights is _Weights.MISSED:
                    self._session.request(self._index)
            else:
                self._refused(body)
            self._outbox.settle()

    def _pull(self, link: Sharing, action: SendPull) -> None:
        header = Header(
            Op.PULL,
            flags=0 if action.version is None else Flag.EXACT,
            slot=self._config.slot,
            incarnation=self._config.incarnation,
            epoch=action.epoch,
            version=action.version or 0,
        )
        link.connection.send(header)
        answer, body, weights = self._answer(link)
        with self._outbox.condition:
            self._take_in(answer, weights)
            if answer.op == Op.WEIGHTS:
                self._inbox.note(self._index, body)
                self._session.pulled(self._index)
                if weights is _Weights.MISSED:
                    self._session.request(self._index, action.version)
            else:
                self._refused(body)
            self._outbox.settle()

    # --- answers ---

    def _answer(self, link: Sharing) -> tuple[Header, dict[str, Any], _Weights]:
        """The answer, and what became of the weights that it promised: they are in `spare`, for `_take_in`."""
        connection = link.connection
        connection.set_timeout(self._timeout_s, None)
        while True:
            header, meta = connection.receive()
            with self._outbox.condition:
                if self._session.stale(self._index):  # before anything it says is heeded
                    raise ConnectionError("this head has not heard of a rollback that another shard's has told")
            if header.op != Op.WAITING:
                break
        if header.op not in (Op.ACKNOWLEDGED, Op.WEIGHTS, Op.REFUSED):
            raise ProtocolError(f"a server answered with op {header.op}")
        weights = _Weights.NONE
        if header.length or header.flags & Flag.SHARED:
            weights = self._receive_weights(link, header, meta)
        return header, meta, weights

    def _receive_weights(self, link: Sharing, header: Header, meta: dict[str, Any]) -> _Weights:
        spare = self._inbox.spare(self._index)
        place = Place.from_json(meta.get("shared")) if header.flags & Flag.SHARED else None
        size = header.length if place is None else place.length
        if size != spare.numel() * 4:
            self._outbox.fail(  # the connection is of no more use, and another would be no better
                f"the servers hold {size // 4} elements of shard {self._index}, this worker's model has "
                f"{spare.numel()} there: every worker, and a checkpoint restored from, must have the same "
                "model; build it from the job's seed and args alone"
            )
            raise ProtocolError(f"weights of {size} bytes, expected {spare.numel() * 4}")
        if place is None:
            link.connection.receive_into(byte_view(spare))
        elif not link.read(place, spare):
            return _Weights.MISSED
        return _Weights.CAME

    def _take_in(self, answer: Header, weights: _Weights) -> None:
        """Show weights that came. In one go with their request's end: one made in between would end with it unheard."""
        if weights is _Weights.CAME:
            self._inbox.show(self._index, answer.version, answer.history)

    def _refused(self, meta: dict[str, Any]) -> None:
        view = None if meta.get("view") is None else View.from_json(meta["view"])
        reason = Refusal(meta["reason"])
        log.info("shard %d refused (%s): %s", self._index, reason, meta.get("detail", ""))
        self._session.refused(self._index, reason, view, time.monotonic())
        if reason is Refusal.EMPTY:
            versions = (0,) * len(self._inbox.ranges)
            item = Outgoing(0, 0, versions, 0, self._initial.weights, Kind.INIT)
            self._session.submit_init(item, self._index)

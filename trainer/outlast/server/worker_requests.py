"""Pushes and pulls: a thread a connection, one request at a time.

A worker's thread receives a complete push into pooled memory, steps the replica, waits for its answer and sends it.
While it waits it says so each heartbeat (WAITING), so that a worker tells a slow answer (a barrier) from a dead server.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from typing import Any

from outlast.api.view import View
from outlast.chain.events import (
    Acknowledged,
    Contribution,
    Identity,
    Kind,
    Pull,
    Push,
    Refusal,
    Refused,
    Reply,
    Weights,
)
from outlast.server.core import Core
from outlast.server.incoming import take_payload
from outlast.server.parameters import Snapshot
from outlast.server.presence import Presence
from outlast.server.shard_state import ShardState
from outlast.wire.connection import Connection
from outlast.wire.frames import DType, Flag, Header, Op
from outlast.wire.sharing import Sharing

Answer = tuple[Reply, Snapshot | None, View | None]
Other = Callable[[Connection, Header, dict[str, Any]], None]


class PendingRequest:
    """A request that waits for one answer; the token that the replica knows."""

    def __init__(self, slot: int | None, wants_weights: bool) -> None:
        self.slot, self.wants_weights = slot, wants_weights
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()

    def answer(self, reply: Reply, weights: Snapshot | None, view: View | None) -> None:
        self._answers.put((reply, weights, view))

    def wait(self, timeout_s: float) -> Answer | None:
        try:
            return self._answers.get(timeout=timeout_s)
        except queue.Empty:
            return None


class WorkerRequests:
    """Serves workers and evaluators."""

    def __init__(self, core: Core, state: ShardState) -> None:
        self._core, self._state = core, state
        self._heartbeat_s = core.spec.recovery.failover.heartbeat_seconds
        self.presence = Presence()
        self.pushed_bytes = self.pulled_bytes = 0

    def serve(self, reader: Sharing, counts: bool, other: Other) -> None:
        """`counts`: it fills a slot, which is absent when it goes. `other` answers what is no push or pull."""
        connection, readers = reader.connection, self._state.readers
        try:
            while True:
                header, meta = connection.receive()
                readers.ends(connection)  # it has taken the weights that the last answer showed it
                if counts and header.op in (Op.PUSH, Op.PULL) and self.presence.speaks(connection, header.slot):
                    self._core.notify()
                if header.op == Op.PUSH:
                    self._push(reader, header, meta)
                elif header.op == Op.PULL:
                    self._pull(reader, header, meta)
                else:
                    other(connection, header, meta)
        finally:
            readers.ends(connection)
            if self.presence.ends(connection):
                self._core.notify()

    def _push(self, reader: Sharing, header: Header, meta: dict[str, Any]) -> None:
        request = PendingRequest(header.slot, bool(header.flags & Flag.WANT_WEIGHTS))
        payload = take_payload(reader, header, meta, self._state.pool, self._waiting(reader.connection))
        if payload is None:
            view = self._core.replica.view
            self._send_answer(reader, Refused(request, Refusal.EMPTY, view, "no initial weights yet"), None, view)
            return
        self.pushed_bytes += payload.tensor.numel() * 4
        kind = Kind.INIT if header.flags & Flag.INIT else Kind.DELTA if header.flags & Flag.DELTA else Kind.UPDATE
        contribution = Contribution(
            Identity(header.slot, header.first_step, header.step),
            header.version,
            header.history,
            payload,
            kind,
            float(meta.get("lr_scale", 1.0)),
        )
        self._core.step(Push(request, header.epoch, header.incarnation, contribution))
        del payload, contribution  # the gradient's memory goes back to its pool
        self._await_answer(reader, request)

    def _waiting(self, connection: Connection) -> Callable[[], None]:
        """To be called now and then while a request takes long: says WAITING each heartbeat."""
        told = time.monotonic()

        def tell() -> None:
            nonlocal told
            if time.monotonic() > told + self._heartbeat_s:
                connection.send(Header(Op.WAITING))
                told = time.monotonic()

        return tell

    def _pull(self, reader: Sharing, header: Header, meta: dict[str, Any]) -> None:
        if meta.get("evaluator"):
            self._peek(reader)
            return
        request = PendingRequest(header.slot, True)
        version = header.version if header.flags & Flag.EXACT else None
        self._core.step(Pull(request, header.epoch, header.slot, version, header.incarnation))
        self._await_answer(reader, request)

    def _peek(self, reader: Sharing) -> None:
        """Weights for a reader that takes part in nothing: any member's, of any version."""
        replica = self._core.replica
        with self._core.lock:
            parameters, view = self._state.parameters, replica.view
            snapshot = parameters.snapshot() if parameters is not None and replica.initialised else None
            answer: Reply = Refused(None, Refusal.EMPTY, view)
            if snapshot is not None:
                answer = Weights(None, snapshot.version, replica.data)
        self._send_answer(reader, answer, snapshot, view)

    def _await_answer(self, reader: Sharing, request: PendingRequest) -> None:
        while (answer := request.wait(self._heartbeat_s)) is None:
            if self._overtaken():
                view = self._core.replica.view
                answer = (Refused(request, Refusal.STOPPED, view, "waits for a newer view"), None, view)
                break
            reader.connection.send(Header(Op.WAITING))
        self._send_answer(reader, *answer)

    def _overtaken(self) -> bool:
        """Whether a view was heard of that is not installed here: what waits may never be answered."""
        with self._core.lock:
            view = self._core.replica.view
            return view is not None and not self._core.replica.current(view.epoch)

    def _send_answer(self, reader: Sharing, reply: Reply, snapshot: Snapshot | None, view: View | None) -> None:
        epoch, history = (view.epoch, view.history) if view is not None else (0, 0)
        if isinstance(reply, Refused):
            refusal = {
                "reason": str(reply.reason),
                "detail": reply.detail,
                "view": None if reply.view is None else reply.view.to_json(),
            }
            header = Header(Op.REFUSED, epoch=epoch, history=history, version=reply.version)
            reader.connection.send(header, refusal)
            return
        data = reply.data
        meta: dict[str, Any] = {"data": [data.base, data.step0, data.slots]}
        if isinstance(reply, Weights):
            meta["clocks"] = {str(k): v for k, v in self._core.replica.clocks.items()}
        op = Op.ACKNOWLEDGED if isinstance(reply, Acknowledged) else Op.WEIGHTS
        flags = Flag.DUPLICATE if isinstance(reply, Acknowledged) and reply.duplicate else 0
        if snapshot is None:
            header = Header(op, flags=flags, epoch=epoch, history=history, version=reply.version)
            reader.connection.send(header, meta)
            return
        header = Header(op, DType.FLOAT32, flags, epoch=epoch, history=history, version=snapshot.version)
        self._send_weights(reader, header, meta, snapshot)

    def _send_weights(self, reader: Sharing, header: Header, meta: dict[str, Any], snapshot: Snapshot) -> None:
        parameters, readers = self._state.parameters, self._state.readers
        readers.begins(reader.connection, snapshot)
        if reader.send(header, meta, None if parameters is None else parameters.pool, snapshot.lease):
            readers.reads_in_place(reader.connection)
        else:
            readers.ends(reader.connection)
        self.pulled_bytes += snapshot.tensor.numel() * 4

"""The server's side of its connections: one thread each, one request at a time.

A worker's thread receives a complete push into pooled memory, steps the replica, waits for its answer and sends it.
While it waits it says so each heartbeat (WAITING), so that a worker tells a slow answer (a barrier) from a dead server.
Peers (predecessors) send entries; the control plane probes, watches and installs views.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from outlast.api.view import View
from outlast.chain.events import (
    Acknowledged,
    Contribution,
    Entry,
    Forward,
    HigherEpoch,
    Identity,
    Kind,
    Pull,
    Push,
    Refusal,
    Refused,
    SendAcks,
    Weights,
)
from outlast.model.flat import byte_view
from outlast.server.checkpoint_peers import send_part
from outlast.server.parameters import Snapshot
from outlast.server.presence import LOST_S, Presence
from outlast.server.readers import Readers
from outlast.wire.connection import Connection
from outlast.wire.entries import entry_from_wire
from outlast.wire.frames import DType, Flag, Header, Op, ProtocolError
from outlast.wire.payloads import InitialState, unflatten
from outlast.wire.pool import TensorPool
from outlast.wire.shared_memory import Place, make_pool
from outlast.wire.sharing import Sharing

if TYPE_CHECKING:
    from outlast.api.spec import JobSpec
    from outlast.server.main import Server

log = logging.getLogger("outlast.server")

_WATCH_INTERVAL_S = 0.02
_POOL_BYTES = 1 << 30  # gradients in flight and in the chain's log; at least a few whatever their size


class Waiter:
    """Somebody who waits for one answer; the token that the replica knows."""

    def __init__(self, connection: Connection, slot: int | None, wants_weights: bool) -> None:
        self.connection, self.slot, self.wants_weights = connection, slot, wants_weights
        self.since = time.monotonic()
        self._answers: queue.SimpleQueue[tuple[Any, Snapshot | None, View | None]] = queue.SimpleQueue()

    def answer(self, reply: Acknowledged | Weights | Refused, snapshot: Snapshot | None, view: View | None) -> None:
        self._answers.put((reply, snapshot, view))

    def wait(self, timeout_s: float) -> tuple[Any, Snapshot | None, View | None] | None:
        try:
            return self._answers.get(timeout=timeout_s)
        except queue.Empty:
            return None


class Serving:
    """Dispatches connections by the role their HELLO names."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.pushed_bytes = 0
        self.pulled_bytes = 0
        self._heartbeat_s = server.spec.recovery.failover.heartbeat_seconds
        self._pool: TensorPool | None = None
        self.readers = Readers()
        self.presence = Presence()

    def make_pool(self, numel: int, spec: JobSpec, shared: bool) -> None:
        """Memory for gradients; `shared`: a successor on this host reads them in place."""
        if self._pool is None or self._pool.numel != numel:
            least = 2 * spec.workers.replicas + 4
            self._pool = make_pool(numel, max(least, _POOL_BYTES // (numel * 4)), shared)

    @property
    def pool(self) -> TensorPool | None:
        return self._pool

    def serve(self, connection: Connection, hello: dict[str, Any]) -> None:
        role = hello.get("role")
        if role in ("worker", "evaluator"):
            connection.end_when_lost(LOST_S)
            self._serve_worker(Sharing(connection, bool(hello.get("shared_memory"))), counts=role == "worker")
        elif role == "peer":
            self._serve_peer(connection, hello)
        elif role == "control":
            self._serve_control(connection)
        else:
            raise ProtocolError(f'HELLO names the role "{role}"; expected worker, evaluator, peer or control')

    # --- workers ---

    def _serve_worker(self, reader: Sharing, counts: bool) -> None:
        """`counts`: it fills a slot, which is absent when it goes."""
        connection = reader.connection
        try:
            while True:
                header, meta = connection.receive()
                self.readers.ends(connection)  # it has taken the weights that the last answer showed it
                if counts and header.op in (Op.PUSH, Op.PULL) and self.presence.speaks(connection, header.slot):
                    self.server.notify()
                if header.op == Op.PUSH:
                    self._push(reader, header, meta)
                elif header.op == Op.PULL:
                    self._pull(reader, header, meta)
                else:
                    self._control(connection, header, meta)
        finally:
            self.readers.ends(connection)
            if self.presence.ends(connection):
                self.server.notify()

    def _push(self, reader: Sharing, header: Header, meta: dict[str, Any]) -> None:
        payload = self._take_payload(reader, header, meta, self._waiting(reader.connection))
        waiter = Waiter(reader.connection, header.slot, bool(header.flags & Flag.WANT_WEIGHTS))
        if payload is None:
            refused = Refused(waiter, Refusal.EMPTY, self.server.replica.view, "no initial weights yet")
            self._send_answer(reader, refused, None, self.server.replica.view)
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
        self.server.step(Push(waiter, header.epoch, header.incarnation, contribution))
        del payload, contribution
        self._await_answer(reader, waiter)

    def _take_payload(
        self, reader: Sharing, header: Header, meta: dict[str, Any], between: Callable[[], None] | None = None
    ) -> Any:
        """What a frame carries, in memory of ours; None while there is nothing to hold it yet."""
        if header.flags & Flag.SHARED:
            return self._copy_payload(reader, header, meta, between)
        return self._receive_payload(reader.connection, header, meta)

    def _copy_payload(
        self, reader: Sharing, header: Header, meta: dict[str, Any], between: Callable[[], None] | None
    ) -> Any:
        """A gradient, copied out of its sender's memory; None while there is nothing to hold it yet."""
        if header.length or header.flags & Flag.INIT or header.dtype != DType.FLOAT32:
            raise ProtocolError("what comes through shared memory is a float32 gradient or delta, and has no payload")
        pool = self._pool
        if pool is None:
            return None
        lease = pool.take()
        assert lease is not None
        place = Place.from_json(meta.get("shared"))
        if not reader.read(place, lease.tensor, between):
            # A worker: it is safe elsewhere (in the buffer, say). A predecessor: it has given up this link.
            raise ConnectionResetError("a gradient was overwritten before it was read: its sender has moved on")
        return lease

    def _waiting(self, connection: Connection) -> Callable[[], None]:
        """To be called now and then while a request takes long: says WAITING each heartbeat."""
        told = time.monotonic()

        def tell() -> None:
            nonlocal told
            if time.monotonic() > told + self._heartbeat_s:
                connection.send(Header(Op.WAITING))
                told = time.monotonic()

        return tell

    def _receive_payload(self, connection: Connection, header: Header, meta: dict[str, Any]) -> Any:
        """The push's payload in memory of ours; None when it had to be thrown away (nothing to hold it yet)."""
        if header.dtype != DType.FLOAT32:
            raise ProtocolError(f"push has dtype {header.dtype}, expected float32")
        if header.flags & Flag.INIT:
            tensor = torch.empty(header.length // 4)
            connection.receive_into(byte_view(tensor))
            return InitialState(tensor, meta)
        pool = self._pool
        if pool is None or header.length != pool.numel * 4:
            if pool is not None:
                raise ProtocolError(f"push has {header.length} bytes, this shard's gradients have {pool.numel * 4}")
            _discard(connection, header.length)
            return None
        lease = pool.take()
        assert lease is not None
        connection.receive_into(byte_view(lease.tensor))
        return lease

    def _pull(self, reader: Sharing, header: Header, meta: dict[str, Any]) -> None:
        evaluator = bool(meta.get("evaluator"))
        waiter = Waiter(reader.connection, None if evaluator else header.slot, True)
        if evaluator:
            self._peek(waiter)
        else:
            version = header.version if header.flags & Flag.EXACT else None
            self.server.step(Pull(waiter, header.epoch, header.slot, version, header.incarnation))
        self._await_answer(reader, waiter)

    def _peek(self, waiter: Waiter) -> None:
        """Weights for a reader that takes part in nothing: any member's, of any version."""
        server = self.server
        with server.lock:
            parameters = server.parameters
            snapshot = (
                None if parameters is None or not server.replica.status()["initialised"] else (parameters.snapshot())
            )
            if snapshot is None:
                waiter.answer(Refused(waiter, Refusal.EMPTY, server.replica.view), None, server.replica.view)
            else:
                answer = Weights(waiter, snapshot.version, server.replica.data)
                waiter.answer(answer, snapshot, server.replica.view)

    def _await_answer(self, reader: Sharing, waiter: Waiter) -> None:
        while (answer := waiter.wait(self._heartbeat_s)) is None:
            if self._overtaken():
                view = self.server.replica.view
                answer = (Refused(waiter, Refusal.STOPPED, view, "waits for a newer view"), None, view)
                break
            reader.connection.send(Header(Op.WAITING))
        self._send_answer(reader, *answer)

    def _overtaken(self) -> bool:
        """Whether we have heard of a view that we do not have: who waits here may never be answered."""
        with self.server.lock:
            view = self.server.replica.view
            return view is not None and not self.server.replica.current(view.epoch)

    def _send_answer(
        self,
        reader: Sharing,
        reply: Acknowledged | Weights | Refused,
        snapshot: Snapshot | None,
        view: View | None,
    ) -> None:
        replica, connection = self.server.replica, reader.connection
        epoch, history = (view.epoch, view.history) if view is not None else (0, 0)
        meta: dict[str, Any]
        if isinstance(reply, Refused):
            meta = {
                "reason": str(reply.reason),
                "detail": reply.detail,
                "view": None if reply.view is None else reply.view.to_json(),
            }
            connection.send(Header(Op.REFUSED, epoch=epoch, history=history, version=reply.version), meta)
            return
        data = reply.data
        meta = {"data": [data.base, data.step0, data.slots]}
        if isinstance(reply, Weights):
            meta["clocks"] = {str(k): v for k, v in replica.status()["clocks"].items()}
        op = Op.ACKNOWLEDGED if isinstance(reply, Acknowledged) else Op.WEIGHTS
        flags = Flag.DUPLICATE if isinstance(reply, Acknowledged) and reply.duplicate else 0
        if snapshot is None:
            connection.send(Header(op, flags=flags, epoch=epoch, history=history, version=reply.version), meta)
            return
        header = Header(op, DType.FLOAT32, flags, epoch=epoch, history=history, version=snapshot.version)
        parameters = self.server.parameters
        self.readers.begins(connection, snapshot)
        if reader.send(header, meta, None if parameters is None else parameters.pool, snapshot.lease):
            self.readers.reads_in_place(connection)
        else:
            self.readers.ends(connection)
        self.pulled_bytes += snapshot.tensor.numel() * 4

    def snapshot_from_readers(self, version: int | None) -> Snapshot | None:
        """All snapshots are lent: take back what readers hold. Called with the server's lock held."""
        parameters = self.server.parameters
        assert parameters is not None
        while (snapshot := parameters.snapshot(version)) is None:
            left = self.readers.leave_without()
            if left is None:
                return None
            if left == "closed":
                log.warning("all snapshots are lent; dropped the slowest reader")
        return snapshot

    # --- predecessors ---

    def _serve_peer(self, connection: Connection, hello: dict[str, Any]) -> None:
        server = self.server
        epoch, boot = int(hello["epoch"]), str(hello["boot"])
        with server.lock:
            view = server.replica.view
            mine = 0 if view is None else view.epoch
            if epoch > mine:
                server.step(HigherEpoch(epoch))
            last, stable = server.replica.last_seq, server.replica.stable_seq
            if epoch == mine:
                server.inbound[boot] = connection
        connection.send(Header(Op.PEER_STATE, epoch=mine), {"boot": server.boot, "last_seq": last, "stable": stable})
        if epoch != mine:
            return
        connection.payload_limit = 16 << 30  # a whole state may come
        reader = Sharing(connection, bool(hello.get("shared_memory")))
        try:
            while True:
                header, meta = connection.receive()
                if self._is_stale(header.epoch):
                    # It is about to get our view, most often, and drops this link itself. Else it has been told by then
                    # (tell_predecessors_later): to close a link with unread entries may lose the last word.
                    time.sleep(2 * self._heartbeat_s)
                    return
                if header.op == Op.STATE:
                    self._take_state(connection, header, meta)
                elif header.op == Op.FORWARD:
                    entry = self._receive_entry(reader, header, meta)
                    server.step(Forward(boot, header.epoch, entry, int(meta["stable"])))
                    del entry
                else:
                    raise ProtocolError(f"op {header.op} on a chain link")
        finally:
            with server.lock:
                if server.inbound.get(boot) is connection:
                    del server.inbound[boot]

    def tell_predecessors_later(self) -> None:
        """A newer view is there (lock held). Most often they get it as well and end their links themselves. One whom
        nobody tells, for its pod is deleted and its process lives on, sends nothing while all its workers wait for
        acknowledgements that will never come: it hears our epoch, and lets them go. Over the link that is there: a
        network policy lets a deleted pod dial nobody."""
        before = dict(self.server.inbound)
        if before:
            timer = threading.Timer(self._heartbeat_s, self._tell_epoch, before.values())
            timer.daemon = True
            timer.start()

    def _tell_epoch(self, *links: Connection) -> None:
        with self.server.lock:
            header = Header(Op.ACKS, epoch=self.server.replica.epoch)
            for link in links:
                try:
                    link.send_now(header)
                except ConnectionError as error:
                    log.debug("a link of an older epoch: %s", error)

    def _is_stale(self, epoch: int) -> bool:
        with self.server.lock:
            view = self.server.replica.view
            return view is not None and epoch < view.epoch

    def _take_state(self, connection: Connection, header: Header, meta: dict[str, Any]) -> None:
        flat = torch.empty(header.length // 4)
        connection.receive_into(byte_view(flat))
        with self.server.lock:
            view = self.server.replica.view
            if view is None or view.epoch != header.epoch:
                return  # a later view has made another plan
            self.server.take_over(meta["state"], unflatten(meta["places"], flat), header.epoch)

    def _receive_entry(self, reader: Sharing, header: Header, meta: dict[str, Any]) -> Entry:
        payload: Any = None
        if header.dtype != DType.NONE:
            payload = self._take_payload(reader, header, meta["initial"] if header.flags & Flag.INIT else meta)
            if payload is None:
                raise ProtocolError("a gradient came down the chain before any weights")
        return entry_from_wire(header, meta, payload)

    def send_acks(self, acks: SendAcks) -> None:
        """Tell a predecessor how far we are. Called with the server's lock held, so it never waits."""
        connection = self.server.inbound.get(acks.peer)
        view = self.server.replica.view
        if connection is None or view is None:
            return
        try:
            connection.send_now(Header(Op.ACKS, epoch=view.epoch, seq=acks.received, version=acks.stable))
        except ConnectionError as error:
            log.debug("acks to a predecessor: %s", error)
            connection.close()  # it dials again when it lives, and then hears how far we are

    # --- the control plane ---

    def _serve_control(self, connection: Connection) -> None:
        while True:
            header, meta = connection.receive()
            if header.op == Op.WATCH:
                self._watch(connection)
                return
            self._control(connection, header, meta)

    def _control(self, connection: Connection, header: Header, meta: dict[str, Any]) -> None:
        server, answer = self.server, {}
        if header.op == Op.PROBE:
            connection.send(Header(Op.STATUS), server.status())
            return
        if header.op == Op.PART:
            shards = server.spec.servers.shards
            send_part(connection, server.durability.own_parts, meta, server.shard, shards)
            return
        if header.op == Op.INSTALL:
            server.install(View.from_json(meta["view"]))
        elif header.op == Op.VIEW:
            view = server.replica.view
            answer = {"view": None if view is None else view.to_json()}
        elif header.op == Op.FINISH:
            server.finish()
        elif header.op == Op.SET_SLOTS:
            server.set_slots(int(meta["slots"]))
        elif header.op == Op.CHECKPOINT:
            answer = server.durability.save_and_wait("asked for", meta.get("label"))
        elif header.op == Op.TABLE:
            answer = server.table()
        elif header.op == Op.LEAVE:
            server.not_replaced.set()
            os.kill(os.getpid(), signal.SIGTERM)
        elif header.op == Op.EVALUATION:
            server.evaluation = meta
            server.notify()
        else:
            raise ProtocolError(f"op {header.op} is no request")
        connection.send(Header(Op.DONE), answer)

    def _watch(self, connection: Connection) -> None:
        server = self.server
        while not connection.closed:
            noted = server.noted
            status = server.status()
            connection.send(Header(Op.STATUS), status)
            shown = _notable(status)
            deadline = time.monotonic() + self._heartbeat_s
            time.sleep(_WATCH_INTERVAL_S)  # the promised upper bound on the rate of notices
            while (left := deadline - time.monotonic()) > 0 and _notable(server.status()) == shown:
                noted = server.wait_for_notice(noted, left)


def _notable(status: dict[str, Any]) -> tuple[Any, ...]:
    keys = (
        "epoch", "role", "serving", "initialised", "caught_up", "leaving", "left", "finished", "broken", "checkpoints",
        "last_states", "restore_error", "config_error", "views", "evaluation", "slots", "absent",
    )  # fmt: skip
    return tuple(repr(status.get(key)) for key in keys)


def _discard(connection: Connection, length: int) -> None:
    scratch = bytearray(min(length, 1 << 20))
    while length > 0:
        part = memoryview(scratch)[: min(length, len(scratch))]
        connection.receive_into(part)
        length -= len(part)

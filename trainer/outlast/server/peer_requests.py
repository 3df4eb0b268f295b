"""Links from up the chain: a predecessor's entries and states, and the acknowledgements that go back over them."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import torch

from outlast.chain.events import Entry, Forward, HigherEpoch, SendAcks
from outlast.model.flat import byte_view
from outlast.server.core import Core
from outlast.server.incoming import take_payload
from outlast.server.shard_state import ShardState
from outlast.wire.connection import Connection
from outlast.wire.entries import entry_from_wire
from outlast.wire.frames import DType, Flag, Header, Op, ProtocolError
from outlast.wire.payloads import unflatten
from outlast.wire.sharing import Sharing

log = logging.getLogger("outlast.server")


class PeerRequests:
    """One connection a predecessor, by its boot id; the server's lock guards them."""

    def __init__(self, core: Core, state: ShardState) -> None:
        self._core, self._state = core, state
        self._heartbeat_s = core.spec.recovery.failover.heartbeat_seconds
        self._inbound: dict[str, Connection] = {}

    def serve(self, connection: Connection, hello: dict[str, Any]) -> None:
        epoch, boot = int(hello["epoch"]), str(hello["boot"])
        if not self._agree(connection, epoch, boot):
            return
        connection.payload_limit = 16 << 30  # a whole state may come
        reader = Sharing(connection, bool(hello.get("shared_memory")))
        try:
            while True:
                header, meta = connection.receive()
                if self._is_stale(header.epoch):
                    # It is about to get our view, most often, and drops this link itself. Else it has been told by then
                    # (tell_later): to close a link with unread entries may lose the last word.
                    time.sleep(2 * self._heartbeat_s)
                    return
                self._take(reader, boot, header, meta)
        finally:
            with self._core.lock:
                if self._inbound.get(boot) is connection:
                    del self._inbound[boot]

    def _agree(self, connection: Connection, epoch: int, boot: str) -> bool:
        """Say which epoch this server is in and what it holds. True: the link is of that epoch."""
        core, replica = self._core, self._core.replica
        with core.lock:
            mine = replica.epoch
            if epoch > mine:
                core.step(HigherEpoch(epoch))
            held = {"boot": core.boot, "last_seq": replica.last_seq, "stable": replica.stable_seq}
            if epoch == mine:
                self._inbound[boot] = connection
        connection.send(Header(Op.PEER_STATE, epoch=mine), held)
        return epoch == mine

    def _take(self, reader: Sharing, boot: str, header: Header, meta: dict[str, Any]) -> None:
        if header.op == Op.STATE:
            self._take_state(reader.connection, header, meta)
        elif header.op == Op.FORWARD:
            entry = self._receive_entry(reader, header, meta)
            self._core.step(Forward(boot, header.epoch, entry, int(meta["stable"])))
        else:
            raise ProtocolError(f"op {header.op} on a chain link")

    def _is_stale(self, epoch: int) -> bool:
        with self._core.lock:
            return epoch < self._core.replica.epoch

    def _take_state(self, connection: Connection, header: Header, meta: dict[str, Any]) -> None:
        flat = torch.empty(header.length // 4)
        connection.receive_into(byte_view(flat))
        with self._core.lock:
            if self._core.replica.epoch == header.epoch:  # else a later view has made another plan
                self._core.take_over(meta["state"], unflatten(meta["places"], flat), header.epoch)

    def _receive_entry(self, reader: Sharing, header: Header, meta: dict[str, Any]) -> Entry:
        payload: Any = None
        if header.dtype != DType.NONE:
            carried = meta["initial"] if header.flags & Flag.INIT else meta
            payload = take_payload(reader, header, carried, self._state.pool)
            if payload is None:
                raise ProtocolError("a gradient came down the chain before any weights")
        return entry_from_wire(header, meta, payload)

    # --- what the core asks for, with the lock held ---

    def tell_later(self) -> None:
        """A newer view is there. Most often predecessors get it as well and end their links themselves. One that is
        not told, for its pod is deleted and its process lives on, sends nothing while all its workers wait for
        acknowledgements that will never come: it hears our epoch, and lets them go. Over the link that is there: a
        network policy lets a deleted pod dial nothing."""
        before = dict(self._inbound)
        if before:
            timer = threading.Timer(self._heartbeat_s, self._tell_epoch, before.values())
            timer.daemon = True
            timer.start()

    def _tell_epoch(self, *links: Connection) -> None:
        with self._core.lock:
            header = Header(Op.ACKS, epoch=self._core.replica.epoch)
            for link in links:
                try:
                    link.send_now(header)
                except ConnectionError as error:
                    log.debug("a link of an older epoch: %s", error)

    def send_acks(self, acks: SendAcks) -> None:
        """Tell a predecessor how far this server is, without waiting."""
        connection, replica = self._inbound.get(acks.peer), self._core.replica
        if connection is None:
            return
        try:
            connection.send_now(Header(Op.ACKS, epoch=replica.epoch, seq=acks.received, version=acks.stable))
        except ConnectionError as error:
            log.debug("acks to a predecessor: %s", error)
            connection.close()  # it dials again when it lives, and then hears how far we are

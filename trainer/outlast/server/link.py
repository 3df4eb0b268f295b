"""A link down the chain: to the successor, or from the tail to a replica that joins. Lives for one epoch.

Entries and states go out in order from a queue; a second thread hears the acknowledgements. Where the queue is empty
and the peer reads our memory, an entry is a few hundred bytes: whoever has applied it sends it, and no thread is woken.
The peer must have installed the same epoch before the first entry: else it would have to refuse it, and the order would
have a gap.

A peer on the same host reads gradients out of our memory, and has a copy of its own once it acknowledges them; until
then they are kept for it here, for the replica may let go of them sooner (the tail's log is short).
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from typing import Any

import torch

from outlast.api.config import ProcessConfig
from outlast.api.view import Member
from outlast.chain.events import Acks, Connected, Disconnected, Entry, HigherEpoch, SendEntry
from outlast.model.flat import byte_view
from outlast.server.core import Core
from outlast.server.shard_state import ShardState
from outlast.wire.connection import Connection
from outlast.wire.dial import connect
from outlast.wire.entries import entry_to_wire
from outlast.wire.frames import DType, Header, Op, ProtocolError
from outlast.wire.payloads import flatten
from outlast.wire.pool import Lease
from outlast.wire.shared_memory import AVAILABLE
from outlast.wire.sharing import Sharing

log = logging.getLogger("outlast.chain")

_RETRY_S = 0.005
_RETRY_MAX_S = 0.25


class Links:
    """The links of the present view, by boot id; `broken`: since when which are. The server's lock guards them."""

    def __init__(self, core: Core, state: ShardState, config: ProcessConfig) -> None:
        self.core, self.state, self.config = core, state, config
        self.links: dict[str, ChainLink] = {}
        self.broken: dict[str, float] = {}

    def keep(self, member: Member, epoch: int) -> None:
        if member.boot not in self.links:
            self.links[member.boot] = ChainLink(self, member, epoch)

    def send_entry(self, send: SendEntry) -> None:
        link = self.links.get(send.peer)
        if link is not None:
            link.enqueue_entry(send.entry, send.stable)

    def send_state(self, peer: str) -> None:
        link = self.links.get(peer)
        if link is not None:
            link.enqueue_state(*self.core.export())

    def forget(self) -> None:
        for link in self.links.values():
            link.close()
        self.links.clear()
        self.broken.clear()


class ChainLink:
    """Dials `member` until it answers in `epoch`, then carries what is enqueued."""

    def __init__(self, links: Links, member: Member, epoch: int) -> None:
        self._core, self._state, self._config, self._broken = links.core, links.state, links.config, links.broken
        self._member, self._epoch = member, epoch
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._sharing: Sharing | None = None
        self._queued = self._carried = 0  # what was put into the queue, and what of it is sent or given up
        self._sent: deque[tuple[int, Lease]] = deque()  # seq and gradient: the peer may be reading it in our memory
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"link-{member.name}", daemon=True)
        self._thread.start()

    def enqueue_entry(self, entry: Entry, stable: int) -> None:
        """Called with the server's lock held, as `enqueue_state`: never waits."""
        if self._queued != self._carried or not self._send_at_once(entry, stable):
            self._put((entry, stable))

    def enqueue_state(self, meta: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        self._put((meta, tensors))

    def _put(self, item: tuple[Any, Any]) -> None:
        self._queued += 1
        self._queue.put(item)

    def _send_at_once(self, entry: Entry, stable: int) -> bool:
        link, pool = self._sharing, self._state.pool
        if link is None or not isinstance(entry.payload, Lease) or not link.shows(pool):
            return False
        self._sent.append((entry.seq, entry.payload))  # before it is sent: the answer may be quicker than we are
        try:
            if link.try_send(*entry_to_wire(entry, self._epoch, stable), pool, entry.payload):
                return True
        except ConnectionError as error:
            log.debug("an entry to %s: %s", self._member.name, error)
            link.connection.close()  # the thread that hears acknowledgements tells the one that carries
            return True  # nothing more goes this way: the next connection begins with what the peer lacks
        self._sent.pop()
        return False

    def close(self) -> None:
        self._closed = True
        self._queue.put(None)
        if self._sharing is not None:
            self._sharing.connection.close()

    def _run(self) -> None:
        pause = _RETRY_S
        while not self._closed:
            try:
                if self._dial():
                    pause = _RETRY_S
                    self._carry()
            except ConnectionError as error:
                if not self._closed:
                    log.info("link to %s: %s", self._member.name, error)
                    self._lost()
            if not self._closed:
                time.sleep(pause)  # between attempts to reach a peer that has not installed the view, or is gone
                pause = min(pause * 2, _RETRY_MAX_S)

    def _dial(self) -> bool:
        """True when the peer is there, in our epoch; the replica then knows what it holds."""
        core, config, failover = self._core, self._config, self._core.spec.recovery.failover
        connection, welcome = connect(
            self._member.address,
            config.job_uid,
            config.token,
            {"role": "peer", "epoch": self._epoch, "boot": core.boot, "shared_memory": AVAILABLE},
            failover.timeout_seconds,
        )
        self._sharing = Sharing(connection, bool(welcome.get("shared_memory")))
        self._sent.clear()
        if welcome.get("boot") != self._member.boot:
            connection.close()
            raise ConnectionError(f"{self._member.name} has restarted: boot {welcome.get('boot')}")
        header, meta = connection.receive()
        if header.op != Op.PEER_STATE:
            raise ProtocolError("peer did not say what it holds")
        if header.epoch > self._epoch:
            connection.close()
            core.step(HigherEpoch(header.epoch))
            return False
        if header.epoch < self._epoch:
            connection.close()
            return False
        connection.set_timeout(None, failover.timeout_seconds)
        while not self._queue.empty():  # what an earlier connection of this epoch did not carry is sent anew
            self._queue.get()
        with core.lock:
            if self._closed:
                return False
            self._carried = self._queued
            self._broken.pop(self._member.boot, None)
            core.step(Connected(self._member.boot, self._epoch, int(meta["last_seq"]), int(meta["stable"])))
        # Only now: an acknowledgement that came before the replica knew of the link would be ignored.
        threading.Thread(target=self._hear, args=(connection,), name="acks", daemon=True).start()
        return True

    def _carry(self) -> None:
        link = self._sharing
        assert link is not None
        while (item := self._queue.get()) is not None:
            first, second = item
            if first is None:
                raise ConnectionResetError("the peer closed the link")
            if isinstance(first, Entry):
                self._send_entry(link, first, second)
            else:
                places, flat = flatten(second)
                header = Header(Op.STATE, DType.FLOAT32, epoch=self._epoch)
                link.connection.send(header, {"state": first, "places": places}, byte_view(flat))
            self._carried += 1
            del item, first, second  # the gradient's memory goes back to its pool

    def _send_entry(self, link: Sharing, entry: Entry, stable: int) -> None:
        header, meta = entry_to_wire(entry, self._epoch, stable)
        if isinstance(entry.payload, Lease):
            self._sent.append((entry.seq, entry.payload))  # before it is sent: the answer may be quicker than we are
            link.send(header, meta, self._state.pool, entry.payload)
        else:
            payload = None if entry.payload is None else byte_view(entry.payload.tensor)
            link.connection.send(header, meta, payload)

    def _hear(self, connection: Connection) -> None:
        try:
            while True:
                header, _ = connection.receive()
                if header.op == Op.ACKS:
                    while self._sent and self._sent[0][0] <= header.seq:
                        self._sent.popleft()
                    self._core.step(Acks(self._member.boot, header.epoch, header.seq, header.version))
        except ConnectionError as error:
            log.debug("acks from %s: %s", self._member.name, error)
            connection.close()
            if self._sharing is not None and self._sharing.connection is connection and not self._closed:
                self._queue.put((None, None))

    def _lost(self) -> None:
        if self._sharing is not None:
            self._sharing.connection.close()
        with self._core.lock:
            if self._closed:
                return
            self._broken.setdefault(self._member.boot, time.monotonic())
            self._core.step(Disconnected(self._member.boot))
            self._core.notify()

"""Links of a chain: down, to the successor or to replicas that join, for one epoch each; and from up the chain."""

from __future__ import annotations

import copy
from collections import deque
from typing import TYPE_CHECKING, Any

from network import Disconnected as Closed
from network import End, Step, Wait

from outlast.api.view import Member
from outlast.chain.events import Acks, Connected, Disconnected, HigherEpoch, SendAcks, SendEntry

if TYPE_CHECKING:
    from sim_server import SimServer

RETRY_S = 0.005
RETRY_MAX_S = 0.25


class Links:
    """The links of the present view, by boot id."""

    def __init__(self, server: SimServer) -> None:
        self._server = server
        self._links: dict[str, Link] = {}
        self.broken: dict[str, float] = {}

    def keep(self, member: Member, epoch: int) -> None:
        if member.boot not in self._links:
            self._links[member.boot] = Link(self._server, member, epoch)

    def send_entry(self, send: SendEntry) -> None:
        link = self._links.get(send.peer)
        if link is not None:
            link.queue.append(("entry", link.epoch, copy.copy(send.entry), send.stable))

    def send_state(self, peer: str) -> None:
        link = self._links.get(peer)
        if link is not None:
            link.queue.append(("state", link.epoch, self._server.export()))

    def forget(self) -> None:
        for link in self._links.values():
            link.close()
        self._links.clear()
        self.broken.clear()


class Predecessors:
    """Connections from up the chain, by boot id."""

    def __init__(self, server: SimServer) -> None:
        self._server = server
        self._inbound: dict[str, End] = {}

    def add(self, boot: str, end: End) -> None:
        self._inbound[boot] = end
        end.on_close = lambda: self._closed(boot, end)

    def _closed(self, boot: str, end: End) -> None:
        if self._inbound.get(boot) is end:
            del self._inbound[boot]

    def send_acks(self, acks: SendAcks) -> None:
        self._send(self._inbound.get(acks.peer), acks.received, acks.stable)

    def tell_later(self) -> None:
        before, server = list(self._inbound.values()), self._server
        if before:
            heartbeat_s = server.spec.recovery.failover.heartbeat_seconds
            server.after(heartbeat_s, lambda: self._tell(before), locked=False)

    def _tell(self, ends: list[End]) -> None:
        for end in ends:
            self._send(end, 0, 0)

    def _send(self, end: End | None, received: int, stable: int) -> None:
        if end is not None and not end.closed:
            end.send(("acks", self._server.replica.epoch, received, stable))


class Link:
    """Dials `member` until it answers in `epoch`, then carries what stands in `queue`, in order."""

    def __init__(self, server: SimServer, member: Member, epoch: int) -> None:
        self._server, self._member, self.epoch = server, member, epoch
        self.queue: deque[Any] = deque()
        self._end: End | None = None
        self._closed = False
        server.spawn(self._run())

    def close(self) -> None:
        self._closed = True
        if self._end is not None:
            self._end.close()

    def _run(self) -> Step:
        pause_s = RETRY_S
        while not self._closed:
            try:
                if (yield from self._dial()):
                    pause_s = RETRY_S
                    yield from self._carry()
            except ConnectionError as error:
                if not self._closed:
                    self._server.world.trace(self._server.name, "link:", error)
                    self._lost()
            if not self._closed:
                yield Wait(lambda: self._closed, self._server.now + pause_s)
                pause_s = min(pause_s * 2, RETRY_MAX_S)

    def _dial(self) -> Step:
        server, member = self._server, self._member
        hello = {"role": "peer", "epoch": self.epoch, "boot": server.boot}
        timeout_s = server.spec.recovery.failover.timeout_seconds
        end, welcome = yield from server.network.dial(server, member.name, hello, timeout_s)
        if self._closed:
            end.close()
            return False
        self._end = end
        if welcome["boot"] != member.boot:
            end.close()
            raise Closed(f"{member.name} has restarted")
        if welcome["epoch"] != self.epoch:
            end.close()
            if welcome["epoch"] > self.epoch:
                server.step(HigherEpoch(welcome["epoch"]))
            return False
        self.queue.clear()  # what an earlier connection of this epoch did not carry is sent anew
        server.links.broken.pop(member.boot, None)
        server.step(Connected(member.boot, self.epoch, welcome["last_seq"], welcome["stable"]))
        end.handler = lambda message: self._heard(end, message)
        while end.inbox:  # came right behind the welcome: before Connected the replica would not heed it
            self._heard(end, end.inbox.popleft())
        return True

    def _heard(self, end: End, message: Any) -> None:
        _, epoch, received, stable = message
        if self._end is end and not self._closed:
            self._server.step(Acks(self._member.boot, epoch, received, stable))

    def _carry(self) -> Step:
        end, timeout_s = self._end, self._server.spec.recovery.failover.timeout_seconds
        assert end is not None
        while True:
            yield Wait(lambda: self.queue or self._closed or end.closed)
            if self._closed:
                return
            if end.closed:
                raise Closed(f"{self._member.name} closed the link")
            end.send(self.queue.popleft())
            yield from end.drained(timeout_s)

    def _lost(self) -> None:
        if self._end is not None:
            self._end.close()
        server = self._server
        server.links.broken.setdefault(self._member.boot, server.now)
        server.step(Disconnected(self._member.boot))
        server.notify()

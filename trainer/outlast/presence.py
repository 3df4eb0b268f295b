"""Which slots have no worker connected any more, as a head sees it: the barrier waits for them in vain.

A worker whose host is lost says nothing more, and its connection would stay open for a quarter of an hour: the kernel
is told to ask now and then, and to give up a peer that does not confirm for `LOST_S`. One that is merely stopped
confirms (its kernel does), unless it is sent more than it has room for.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Hashable

LOST_S = 15.0
_ASK_S = 3  # between two questions to a peer that says nothing


def end_when_lost(sock: socket.socket) -> None:
    """Let the kernel end this connection `LOST_S` after its peer's host last answered. Local sockets need no such."""
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # elsewhere the system's own times hold
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _ASK_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _ASK_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, int(LOST_S / _ASK_S) - 1)
        sock.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(LOST_S * 1000)
        )  # while something is unconfirmed


class Presence:
    """Slots and the connections that speak for them. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._speaks: dict[int, set[Hashable]] = {}  # slot -> connections
        self._absent: dict[int, float] = {}

    def speaks(self, connection: Hashable, slot: int) -> bool:
        """The slot's worker uses this connection. Returns whether it was absent."""
        with self._lock:
            self._speaks.setdefault(slot, set()).add(connection)
            return self._absent.pop(slot, None) is not None

    def ends(self, connection: Hashable) -> bool:
        """Returns whether a slot is absent now that was not."""
        now, news = time.monotonic(), False
        with self._lock:
            for slot, connections in self._speaks.items():
                if connection in connections:
                    connections.discard(connection)
                    if not connections:
                        self._absent[slot], news = now, True
        return news

    def absent(self) -> dict[int, float]:
        """Slot -> when its last connection ended; those alone that ever had one here."""
        with self._lock:
            return dict(self._absent)

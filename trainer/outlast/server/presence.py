"""Which slots have a worker connected, and which have none any more, as a head sees it.

A worker whose host is lost says nothing more, and its connection would stay open for a quarter of an hour: so the
transport ends it `LOST_S` after that host last answered. One that is merely stopped answers (its kernel does), unless
it is sent more than it has room for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable

LOST_S = 15.0


class Presence:
    """Slots and the connections that speak for them. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._speaks: dict[int, set[Hashable]] = {}  # slot -> connections
        self._absent: dict[int, float] = {}

    def speaks(self, connection: Hashable, slot: int) -> bool:
        """The slot's worker uses this connection. Returns whether it had none before."""
        with self._lock:
            connections = self._speaks.setdefault(slot, set())
            news = not connections
            connections.add(connection)
            self._absent.pop(slot, None)
            return news

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

    def connected(self) -> tuple[int, ...]:
        with self._lock:
            return tuple(sorted(slot for slot, connections in self._speaks.items() if connections))

    def absent(self) -> dict[int, float]:
        """Slot -> when its last connection ended; those alone that ever had one here."""
        with self._lock:
            return dict(self._absent)

"""Who is taking weights from a server at this moment, and whose memory can be had back when all is lent.

A reader through a socket holds its snapshot while it is sent. One that copies it out of our memory holds it until its
next request, for only that says that it has the weights. It may be left without at any time: the generation tells it
that it came too late, and it asks again. So memory is taken from such readers first, and only then is a connection
closed: that of the reader which has been taking its weights for the longest time.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any, Protocol


class Closable(Protocol):
    def close(self) -> None: ...


@dataclass(frozen=True)
class _Held:
    since: float
    snapshot: Any
    in_place: bool


class Readers:
    """One entry a connection. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[Closable, _Held] = {}

    def begins(self, connection: Closable, snapshot: Any) -> None:
        """Weights are about to be sent, or shown, to this reader."""
        with self._lock:
            self._held[connection] = _Held(time.monotonic(), snapshot, False)

    def reads_in_place(self, connection: Closable) -> None:
        """They were shown: it copies them when it gets to it."""
        with self._lock:
            held = self._held.get(connection)
            if held is not None:
                self._held[connection] = _Held(held.since, held.snapshot, True)

    def ends(self, connection: Closable) -> None:
        with self._lock:
            self._held.pop(connection, None)

    def leave_without(self) -> str | None:
        """Take a snapshot back; says from whom: "in place", "closed", or None when nobody holds any."""
        with self._lock:
            if not self._held:
                return None
            in_place = {c: h for c, h in self._held.items() if h.in_place}
            connection = min(in_place or self._held, key=lambda c: self._held[c].since)
            self._held.pop(connection)
        if in_place:
            return "in place"
        connection.close()
        return "closed"

    def __len__(self) -> int:
        with self._lock:
            return len(self._held)

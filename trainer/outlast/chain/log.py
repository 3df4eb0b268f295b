"""What a replica must be able to send again: the unacknowledged log, and where each downstream peer stands.

Rules:
1. The log holds, without gaps, entries up to the newest; an entry leaves when the tail has acknowledged it.
2. A link delivers in order while it is up; after each `Connected` the peer's own last seq decides what it is sent.
3. Equal seqs mean equal entries only while histories are prefixes of each other; replica.py sees to that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice

from outlast.chain.events import Entry


class ChainLog:
    """Entries `first_seq … last_seq`, contiguous."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque()
        self.last_seq = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    @property
    def first_seq(self) -> int:
        """The lowest seq that can be sent again; `last_seq + 1` when empty."""
        return self.last_seq + 1 - len(self._entries)

    def append(self, entry: Entry) -> None:
        assert entry.seq == self.last_seq + 1, f"log ends at {self.last_seq}, got {entry.seq}"
        self._entries.append(entry)
        self.last_seq = entry.seq

    def drop_through(self, seq: int) -> None:
        while self._entries and self._entries[0].seq <= seq:
            self._entries.popleft()

    def covers(self, seq: int) -> bool:
        """Whether everything from `seq` on can be sent again (trivially so just past the end)."""
        return self.first_seq <= seq <= self.last_seq + 1

    def since(self, seq: int) -> list[Entry]:
        """Entries from `seq` on. Ask `covers` first."""
        assert self.covers(seq), f"log starts at {self.first_seq}, asked for {seq}"
        return list(islice(self._entries, seq - self.first_seq, None))

    def reset(self, seq: int) -> None:
        """Everything to `seq` is held as state now."""
        self._entries.clear()
        self.last_seq = seq


class Link:
    """A downstream peer (the successor, or at the tail a joining replica) in the present view."""

    __slots__ = ("awaited", "connected", "peer", "received", "stable", "synced")

    def __init__(self, peer: str) -> None:
        self.peer = peer  # boot id
        self.connected = False
        self.synced = False  # entries may be sent to it as they come
        self.awaited = False  # it loads its state itself, and says by its first acknowledgement when it is done
        self.received = 0  # it holds everything to here
        self.stable = 0  # its word on stability, where it came before it could be believed

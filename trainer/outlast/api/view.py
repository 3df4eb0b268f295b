"""Who may act, and in which order: members and views.

A view is the unit of agreement: `(epoch, ordered members)` of one shard. It is recorded in the TrainingJob's
status by compare-and-swap before it is installed anywhere, so that no two views share an epoch. The epoch is the
fencing token that every message carries.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from outlast.api import codec

BUFFER = "buffer"  # View.restore: Redis, snapshot and log
EMPTY = "empty"  # View.otherwise: no state, and a worker's initial weights will come


@dataclass(frozen=True)
class Member:
    """One server process: a stable name and address, and the boot id that this start of it drew at random.

    A server that restarts under its name is another member: it is empty, and belongs to no view that lacks its
    boot id.
    """

    name: str
    boot: str
    address: str  # "unix:/path" or "tcp:host:port"


def last_state_name(shard: int, boot: str) -> str:
    """`View.restore` for what the last member of a shard left when no replacement came in time."""
    return f"last-{shard:05d}-{boot}"


@dataclass(frozen=True)
class View:
    """The members of one shard's chain in one epoch: head first, tail last; `joining` ones still catch up.

    `restore` says where the members of a view that keeps nobody take their state from: None (keep what you hold,
    or wait for a worker's initial weights), `"buffer"` (Redis: snapshot and log), the name of a complete checkpoint, or
    that of the last member's state (`last_state_name`). `history` grows with every rollback.

    `otherwise` (Stateless) says what the state is where Redis has no snapshot of this history: what the history was
    begun from, `EMPTY` or the name of a checkpoint; None: a snapshot was there, and is lost.
    """

    shard: int
    epoch: int
    history: int
    members: tuple[Member, ...]
    joining: tuple[Member, ...] = ()
    restore: str | None = None
    otherwise: str | None = None

    @property
    def head(self) -> Member | None:
        return self.members[0] if self.members else None

    @property
    def tail(self) -> Member | None:
        return self.members[-1] if self.members else None

    def position(self, boot: str) -> int | None:
        """Index in the chain (0 is the head), or None for a process that is no member."""
        return next((i for i, m in enumerate(self.members) if m.boot == boot), None)

    def successor(self, boot: str) -> Member | None:
        i = self.position(boot)
        return None if i is None or i + 1 >= len(self.members) else self.members[i + 1]

    def predecessor(self, boot: str) -> Member | None:
        i = self.position(boot)
        return None if i is None or i == 0 else self.members[i - 1]

    def is_joining(self, boot: str) -> bool:
        return any(m.boot == boot for m in self.joining)

    def with_(self, **changes: Any) -> View:
        return replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        return codec.to_json(self)

    @staticmethod
    def from_json(raw: dict[str, Any]) -> View:
        return codec.from_json(View, raw)

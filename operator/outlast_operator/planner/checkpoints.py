"""Where a job's checkpoints lie, and how the planner names them: frozen data, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

# One directory for all servers; a claim a server; in the server's own pod, and gone with it.
Storage = Literal["Shared", "PerServer", "NodeLocal"]


@dataclass(frozen=True)
class CheckpointRef:
    """A server's verified part of a checkpoint; of a whole set, `epoch` is the sum of its parts' (and `crc` is 0)."""

    name: str
    history: int
    version: int
    epoch: int = 0  # of the view in which it was written
    crc: int = 0  # of the part's file: two servers with the same one hold the same state

    @property
    def order(self) -> tuple[int, int, int]:
        return self.history, self.epoch, self.version

    @staticmethod
    def from_json(raw: dict[str, Any]) -> CheckpointRef:
        epoch, crc = int(raw.get("epoch", 0)), int(raw.get("crc", 0))
        return CheckpointRef(str(raw["name"]), int(raw["history"]), int(raw["version"]), epoch, crc)


@dataclass(frozen=True)
class ServerClaim:
    """The claim that a server's checkpoints go to."""

    generation: int = 0
    used: bool = False  # a server has run with it: its volume has a place, which may hold the next one back
    skipped: int = 0  # generations just before this one that no server has run with: they hold nothing

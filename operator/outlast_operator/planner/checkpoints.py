"""Where a job's checkpoints lie, and how the planner names them: frozen data, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# One directory for all servers; a claim a server; in the server's own pod, and gone with it.
Storage = Literal["Shared", "PerServer", "NodeLocal"]


@dataclass(frozen=True)
class ServerClaim:
    """The claim that a server's checkpoints go to."""

    generation: int = 0
    used: bool = False  # a server has run with it: its volume has a place, which may hold the next one back
    skipped: int = 0  # generations just before this one that no server has run with: they hold nothing

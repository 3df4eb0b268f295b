"""Stateless: what a server that is rebuilt from Redis may take for its shard's state.

Rules. (1) A snapshot is loaded only for the history it belongs to [same-history]: a rollback has given up any other.
(2) Before its first snapshot in a history a shard holds what that history was begun from, and whatever it has applied
since is still in the log: only a snapshot lets entries leave it. (3) Where a snapshot was there and is lost, nothing
else will do: all shards go back together, in a new history, and that is the planner's to decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from outlast.api.view import EMPTY, View


class NoSnapshot(RuntimeError):
    """Redis holds no snapshot of this history, which held state before."""


def belongs_to(meta: dict[str, Any], history: int) -> bool:
    """Whether a snapshot is of this history."""
    return int(meta["history"]) == history


def without_snapshot(view: View, parts: Sequence[dict[str, Any]]) -> str:
    """`EMPTY`, or the checkpoint to read, where Redis has no snapshot of the view's history.

    `parts`: the checkpoints of this shard that are readable here. Raises `NoSnapshot`.
    """
    began_empty = view.otherwise == EMPTY
    written_since = began_empty and any(int(part["history"]) == view.history for part in parts)
    if view.otherwise is None or written_since:
        raise NoSnapshot(
            f"Redis holds no snapshot of history {view.history} of this shard, which held state before; roll back"
        )
    return view.otherwise

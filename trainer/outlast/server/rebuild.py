"""Stateless: give a server its shard's state back from Redis: the snapshot, and then the records after it.

Rules. (1) A snapshot is loaded only for the history it belongs to [same-history]: a rollback has given up any other.
(2) Before its first snapshot in a history a shard holds what that history was begun from, and whatever it has applied
since is still in the log: only a snapshot lets entries leave it. (3) Where a snapshot was there and is lost, nothing
else will do: all shards go back together, in a new history, and that is the planner's to decide.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch

from outlast.api.server_status import CheckpointRef
from outlast.api.view import BUFFER, EMPTY, View
from outlast.buffer.types import BufferUnavailable, Fenced, LogItem
from outlast.chain.events import Record, Replay, Restored
from outlast.server.core import RETRY_S, Core
from outlast.server.shard_log import ShardLog

log = logging.getLogger("outlast.log")

T = TypeVar("T")

_PAGE = 512  # manifests read at a time


class NoSnapshot(RuntimeError):
    """Redis holds no snapshot of this history, which held state before."""


def without_snapshot(view: View, parts: Sequence[CheckpointRef]) -> str:
    """`EMPTY`, or the checkpoint to read, where Redis has no snapshot of the view's history.

    `parts`: the checkpoints of this shard that are readable here. Raises `NoSnapshot`.
    """
    began_empty = view.otherwise == EMPTY
    written_since = began_empty and any(part.history == view.history for part in parts)
    if view.otherwise is None or written_since:
        raise NoSnapshot(
            f"Redis holds no snapshot of history {view.history} of this shard, which held state before; roll back"
        )
    return view.otherwise


class Stored(Protocol):
    """Checkpoints that this server can read."""

    def look(self) -> None: ...

    @property
    def available(self) -> Sequence[CheckpointRef]: ...

    def read(self, source: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]: ...


class Rebuild:
    """For the thread that restores."""

    def __init__(self, core: Core, shard_log: ShardLog, stored: Stored) -> None:
        self._core, self._log, self._stored = core, shard_log, stored

    def run(self) -> None:
        """Restore what the view asks for. Raises `Fenced`: a later one has claimed the log; `NoSnapshot`."""
        with self._core.lock:
            view = self._core.replica.view
        if view is None:
            return
        loaded = _patiently(lambda: self._log.load_snapshot(view.epoch, view.history))
        if loaded is not None:
            meta, tensors = loaded
            self._core.take_over(meta, tensors, source=BUFFER)
            _patiently(self._replay)
            return
        # What the history was begun from; `NoSnapshot`: more than that was held, and is lost.
        self._stored.look()
        source = without_snapshot(view, self._stored.available)
        if source == EMPTY:
            empty = Restored(0, version=0, history=0, applied={}, data=self._core.replica.data, source=BUFFER)
            self._core.step(empty)
            return
        tensors, meta = self._stored.read(source)
        self._core.take_over(meta, tensors, source=BUFFER)
        _patiently(self._replay)  # the claim has given up the records of histories before

    def _replay(self) -> None:
        """Obey the records after what is held."""
        records = self._log.log.records(self._log.shard, self._core.replica.last_seq)
        items = self._recorded(records)
        for record in records:
            wanted = [items[offset] for offset, _ in record.parts if offset in items]
            self._core.step(Replay(record, tuple(self._log.fetch(wanted))))

    def _recorded(self, records: list[Record]) -> dict[int, LogItem]:
        """The log's entries that these records speak of, by offset."""
        offsets = [offset for record in records for offset, _ in record.parts]
        items: dict[int, LogItem] = {}
        after, last = min(offsets, default=1) - 1, max(offsets, default=0)
        while after < last:
            page = self._log.log.read(self._log.shard, after, _PAGE)
            if not page:
                break
            items.update((item.offset, item) for item in page)
            after = page[-1].offset
        return items


def _patiently(attempt: Callable[[], T]) -> T:
    """Redis may die in the middle of a restore: nothing is lost by that, only time. Raises `Fenced`."""
    while True:
        try:
            return attempt()
        except Fenced:  # a later view's claim, ours perhaps: what this one asked for is wanted no more
            raise
        except BufferUnavailable as error:
            log.info("%s", error)
            time.sleep(RETRY_S)

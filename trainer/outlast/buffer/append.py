"""Appending one gradient: ask to be admitted, upload its chunks, commit them, in two round trips.

Rules
- Asking first costs one small round trip, and saves a full or closed log an upload of 46 MB.
- Each attempt uploads under a name of its own, the link's own second attempt too: when the answer to an earlier one was
  lost, its chunks may be in the log, and a duplicate's chunks are deleted.
- No room is an answer (`full`), whoever says it: the log's bound, or Redis's own memory limit.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING

from outlast.buffer.codec import Payload, chunks
from outlast.buffer.scripts import APPEND
from outlast.buffer.store import Store
from outlast.buffer.types import (
    AppendResult,
    BufferFull,
    BufferMisconfigured,
    BufferUnavailable,
    LogItem,
    encode_item,
    stored_cost,
)

if TYPE_CHECKING:
    from outlast.buffer.connection import Arg

logger = logging.getLogger("outlast.buffer")


_TRY_AGAIN = {
    "missing": "an upload to Redis at {target} took longer than its {ttl_s:g} s to live; the gradient is kept and sent "
    "again: look for a paused process or a slow network",
    "unclaimed": "the log in Redis at {target} has no server yet (it is new, or lost its data); gradients are kept and "
    "sent again once a server has claimed it",
    "paused": "Redis at {target} is about to end and takes no gradients any more; they are kept and sent again",
}


class Appends:
    """Appends to a log of at most `max_bytes` over all shards; an upload lives `ttl_ms` until it is committed."""

    def __init__(self, store: Store, shards: int, max_bytes: int, ttl_ms: int) -> None:
        self._store, self._shards, self._max_bytes, self._ttl_ms = store, shards, max_bytes, ttl_ms
        self._full_said = False

    def append(self, item: LogItem, payloads: Sequence[Payload]) -> AppendResult:
        """Add `payloads`, one for each shard, as `item`; see `GradientLog.append`."""
        if len(payloads) != self._shards:
            raise ValueError(f"{len(payloads)} payloads for {self._shards} shards; pass one for each")
        if not 1 <= item.first <= item.last:
            raise ValueError(f"steps {item.first}..{item.last} are no interval; steps start at 1")
        with self._store.codec_lock:
            encoded = [self._store.codec.encode(shard, payload) for shard, payload in enumerate(payloads)]
            cost = sum(stored_cost(view.nbytes) for _, view in encoded)
            if cost > self._max_bytes:
                raise BufferMisconfigured(
                    f"recovery.buffer.maxBytes: {self._max_bytes} cannot hold one gradient, which takes {cost} bytes; "
                    "use many times that"
                )
            try:
                result = self.admit(item, cost)
                if result == AppendResult.OK:
                    result = self._commit(item, cost, encoded)
                if result == "missing":  # the upload expired on its way
                    result = self._commit(item, cost, encoded)
            except BufferFull as error:
                if not self._full_said:
                    logger.warning("%s", error)
                self._full_said = True
                return AppendResult.FULL
        if result == AppendResult.OK:
            self._full_said = False
        if result in _TRY_AGAIN:
            raise BufferUnavailable(_TRY_AGAIN[result].format(target=self._store.target, ttl_s=self._ttl_ms / 1000))
        return AppendResult(result)

    def admit(self, item: LogItem, cost: int) -> str:
        """Ask for room for `cost` bytes: the script's word, `ok` if the upload may begin."""
        store = self._store
        answer = store.bulk.script(APPEND, store.prefix, lambda run_id: self._arguments("admit", item, cost, run_id))
        return str(answer[0].decode())

    def _commit(self, item: LogItem, cost: int, encoded: Sequence[tuple[int, memoryview]]) -> str:
        """Upload all chunks and commit them, in one round trip."""

        def make(run_id: str) -> tuple[list[tuple[str, memoryview]], tuple[Arg, ...]]:
            push = secrets.token_hex(8)
            uploads: list[tuple[str, memoryview]] = []
            manifests: list[Arg] = []
            for shard, (elements, view) in enumerate(encoded):
                pieces = list(chunks(view))
                uploads += [(self._store.chunk_key(push, shard, i), piece) for i, piece in enumerate(pieces)]
                manifests += [len(pieces), encode_item(item, elements, view.nbytes, push, len(pieces))]
            return uploads, (*self._arguments("commit", item, cost, run_id), push, *manifests)

        answer = self._store.bulk.upload_and_run(make, self._ttl_ms, APPEND, self._store.prefix)
        return str(answer[0].decode())

    def _arguments(self, mode: str, item: LogItem, cost: int, run_id: str) -> tuple[Arg, ...]:
        who = (item.slot, item.incarnation, item.history, item.first, item.last)
        return (mode, *who, cost, self._max_bytes, self._shards, run_id, self._ttl_ms)

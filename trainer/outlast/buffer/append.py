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
    from outlast.buffer.log import GradientLog

logger = logging.getLogger("outlast.buffer")


def append_gradient(log: GradientLog, item: LogItem, payloads: Sequence[Payload]) -> AppendResult:
    """Add `payloads`, one for each shard, as `item`; see `GradientLog.append`."""
    if len(payloads) != log.shards:
        raise ValueError(f"{len(payloads)} payloads for {log.shards} shards; pass one for each")
    if not 1 <= item.first <= item.last:
        raise ValueError(f"steps {item.first}..{item.last} are no interval; steps start at 1")
    with log.codec_lock:
        encoded = [log.codec.encode(shard, payload) for shard, payload in enumerate(payloads)]
        cost = sum(stored_cost(view.nbytes) for _, view in encoded)
        if cost > log.max_bytes:
            raise BufferMisconfigured(
                f"recovery.buffer.maxBytes: {log.max_bytes} cannot hold one gradient, which takes {cost} bytes; "
                "use many times that"
            )
        try:
            result = admit(log, item, cost)
            if result == AppendResult.OK:
                result = _commit(log, item, cost, encoded)
            if result == "missing":  # the upload expired on its way
                result = _commit(log, item, cost, encoded)
        except BufferFull as error:
            if not log.full_said:
                logger.warning("%s", error)
            log.full_said = True
            return AppendResult.FULL
    if result == "missing":
        raise BufferUnavailable(
            f"an upload to Redis at {log.target} took longer than its {log.upload_ttl_ms / 1000:g} s to live; "
            "the gradient is kept and sent again: look for a paused process or a slow network"
        )
    if result == "unclaimed":
        raise BufferUnavailable(
            f"the log in Redis at {log.target} has no server yet (it is new, or lost its data); gradients are "
            "kept and sent again once a server has claimed it"
        )
    if result == "paused":
        raise BufferUnavailable(
            f"Redis at {log.target} is about to end and takes no gradients any more; they are kept and sent again"
        )
    if result == AppendResult.OK:
        log.full_said = False
    return AppendResult(result)


def admit(log: GradientLog, item: LogItem, cost: int) -> str:
    """Ask for room for `cost` bytes: the script's word, `ok` if the upload may begin."""
    answer = log.bulk.script(APPEND, log.prefix, lambda run_id: _arguments(log, "admit", item, cost, run_id))
    return str(answer[0].decode())


def _commit(log: GradientLog, item: LogItem, cost: int, encoded: Sequence[tuple[int, memoryview]]) -> str:
    """Upload all chunks and commit them, in one round trip."""

    def make(run_id: str) -> tuple[list[tuple[str, memoryview]], tuple[Arg, ...]]:
        push = secrets.token_hex(8)
        uploads: list[tuple[str, memoryview]] = []
        manifests: list[Arg] = []
        for shard, (elements, view) in enumerate(encoded):
            pieces = list(chunks(view))
            uploads += [(log.chunk_key(push, shard, i), piece) for i, piece in enumerate(pieces)]
            manifests += [len(pieces), encode_item(item, elements, view.nbytes, push, len(pieces))]
        return uploads, (*_arguments(log, "commit", item, cost, run_id), push, *manifests)

    answer = log.bulk.upload_and_run(make, log.upload_ttl_ms, APPEND, log.prefix)
    return str(answer[0].decode())


def _arguments(log: GradientLog, mode: str, item: LogItem, cost: int, run_id: str) -> tuple[Arg, ...]:
    who = (item.slot, item.incarnation, item.history, item.first, item.last)
    return (mode, *who, cost, log.max_bytes, log.shards, run_id, log.upload_ttl_ms)

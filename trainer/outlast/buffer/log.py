"""The gradient log in Redis: what Stateless trains from and Hybrid falls back on.

Rules [epoch-in-script, bounded-log]
- A gradient is in the log or it is not: its chunks are uploaded with an expiry, then one script checks the fence,
  duplicates, closing and `maxBytes`, makes the chunks permanent, gives the next offset and adds a manifest to every
  shard's stream, all at once. Nobody ever reads half a gradient.
- Offsets are the order. They start at 1, only grow, are the same in every shard, and have gaps.
- Everything a server writes is guarded by its epoch and by the run of Redis in which it claimed that epoch.
- Every call may be repeated: an append that was answered by a lost connection is a `duplicate` the next time.
- Two ways to fail: `BufferUnavailable` (keep the gradient, try again), and results that are answers (`full`, …).

Theory of operation. Uploading asks first (`admit`): a full or closed log costs one small round trip, not 46 MB, and
uploads under way count against `maxBytes`.

Thread safety: any thread may call anything; appends, fetches and snapshots wait for each other.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from outlast.buffer.append import Appends
from outlast.buffer.codec import Payload, byte_view, chunks
from outlast.buffer.scripts import CLAIM, CLOSE, FENCE, HIGHEST, RECORD, TRIM
from outlast.buffer.snapshot import load_snapshot, save_snapshot
from outlast.buffer.store import Store
from outlast.buffer.types import (
    AppendResult,
    BufferMisconfigured,
    BufferStats,
    Contact,
    EntryMissing,
    LogItem,
    decode_item,
    decode_record,
    encode_record,
    redis_maxmemory,
)
from outlast.chain.events import Identity, Kind, Record

if TYPE_CHECKING:
    import redis

__all__ = ["GradientLog", "redis_maxmemory"]

TRIM_BATCH = 32  # entries a script: it stops everybody else meanwhile


class GradientLog:
    """One job's log in one Redis, which may serve other jobs too. Connects on first use.

    `max_bytes` bounds the log over all shards (see `stored_cost`); `dtype` is what *this* process stores, each entry
    says its own. Raises `BufferMisconfigured` for a bad url or dtype; every method may raise `BufferUnavailable`.
    """

    def __init__(
        self,
        url: str,
        job_uid: str,
        shards: int,
        max_bytes: int,
        dtype: str = "float32",
        *,
        timeout_s: float = 5.0,
        upload_ttl_s: float = 60.0,
    ) -> None:
        self.store = Store(url, job_uid, dtype, timeout_s)
        self._appends = Appends(self.store, shards, max_bytes, int(upload_ttl_s * 1000))

    # --- workers ------------------------------------------------------------------------------------------------------

    def append(
        self,
        slot: int,
        incarnation: int,
        history: int,
        version: int,
        kind: Kind,
        first: int,
        last: int,
        lr_scale: float,
        payloads: Sequence[Payload],
    ) -> AppendResult:
        """Add one gradient: `payloads[shard]` is float32, contiguous, one for each shard; unchanged and not kept.

        `ok` and `duplicate` acknowledge it as durably as Redis is configured. `version` is of the first shard.
        Raises `BufferUnavailable`; `BufferMisconfigured` when the gradient alone is larger than `max_bytes`.
        """
        item = LogItem(
            0, slot, incarnation, history, version, kind, first, last, lr_scale, 0, 0, self.store.codec.dtype, "", 0
        )
        return self._appends.append(item, payloads)

    def fence(self, slot: int, incarnation: int) -> int:
        """From now on only `incarnation` and newer ones of `slot` append. Returns the one in force."""
        return int(self.store.script(FENCE, slot, incarnation))

    def highest_step(self, slot: int) -> int:
        """The highest step of `slot` that is in the log or was applied from it; 0 if none."""
        return int(self.store.script(HIGHEST, slot))

    # --- the head -----------------------------------------------------------------------------------------------------

    def claim(self, shard: int, epoch: int, history: int = 0, offset: int = 0) -> bool:
        """Fence every lower epoch of `shard`. False: a higher one holds it.

        To be repeated when Redis is another run (`ClaimNeeded`). `offset`: what this server has consumed; no lower
        offset is given from now on, whatever Redis forgot. A higher `history` than before gives up this shard's
        records and what the log remembers as applied.
        """
        policy = str(self.store.info("memory").get("maxmemory_policy", "noeviction"))
        if policy.startswith("allkeys"):
            raise BufferMisconfigured(
                f"Redis at {self.store.target} evicts keys when memory is short (maxmemory-policy {policy}), which "
                "would lose acknowledged gradients; set noeviction"
            )
        return self.store.guarded(CLAIM, shard, epoch, history, offset) is not None

    def read(self, shard: int, after_offset: int, limit: int = 256, block_ms: int = 0) -> list[LogItem]:
        """Manifests above `after_offset`, in order, at most `limit`; waits up to `block_ms` for the first one."""
        link = self.store.blocking if block_ms > 0 else self.store.control
        streams = ("STREAMS", self.store.shard_key(shard) + ":log", f"{after_offset}-1")
        deadline = time.monotonic() + block_ms / 1000
        while True:
            # A wait as long as the connection's timeout would pass for a Redis that hangs.
            left_s = min(deadline - time.monotonic(), link.timeout_s / 2)
            block = ("BLOCK", max(1, int(left_s * 1000))) if block_ms > 0 else ()
            reply = link.call("XREAD", "COUNT", limit, *block, *streams)
            if reply:
                return [decode_item(entry_id, fields[b"m"]) for entry_id, fields in reply[0][1]]
            if time.monotonic() >= deadline:
                return []

    def fetch_many(self, shard: int, items: Sequence[LogItem], outs: Sequence[torch.Tensor]) -> None:
        """Read payloads, pipelined, each into its own float32 `[item.elements]`. Raises `EntryMissing` if trimmed."""
        with self.store.codec_lock:
            landings = []
            wanted: list[tuple[str, memoryview]] = []
            for n, (item, out) in enumerate(zip(items, outs, strict=True)):
                landed = self.store.codec.landing(n, item.dtype, out)
                landings.append(landed)
                wanted += self._wanted(shard, item, landed)
            lengths = self.store.bulk.fetch(wanted)
            for length, (key, view) in zip(lengths, wanted, strict=True):
                if length != len(view):
                    raise EntryMissing(
                        f"{key} holds {max(length, 0)} bytes where {len(view)} were expected: the entry was "
                        "trimmed by another epoch; read the log again from its first entry"
                    )
            for landed, out in zip(landings, outs, strict=True):
                self.store.codec.decode(landed, out)

    def _wanted(self, shard: int, item: LogItem, landed: torch.Tensor) -> list[tuple[str, memoryview]]:
        if landed.numel() != item.elements:
            raise ValueError(f"entry {item.offset} has {item.elements} elements, the memory for it {landed.numel()}")
        pieces = chunks(byte_view(landed))
        return [(self.store.chunk_key(item.push, shard, i), piece) for i, piece in enumerate(pieces)]

    def record(self, shard: int, epoch: int, record: Record) -> bool:
        """Write how a stretch of the log became one update, before its result is published [record-before-publish].

        False: fenced. Raises `ClaimNeeded`, `SnapshotNeeded` (records count from a snapshot of this run and history).
        """
        return self.store.guarded(RECORD, shard, epoch, record.entry_seq, encode_record(record)) is not None

    def records(self, shard: int, after_seq: int) -> list[Record]:
        """Records with `entry_seq` above `after_seq`, in order."""
        found = self.store.entries(self.store.shard_key(shard) + ":records", after_seq)
        return [decode_record(fields[b"r"]) for _, fields in found]

    def trim(self, shard: int, epoch: int, offset: int) -> bool:
        """Drop this shard's entries up to `offset`, but none above its snapshot, if it has one. False: fenced.

        When every shard has dropped an entry it counts as applied: appending its steps again is a duplicate.
        """
        while True:
            answer = self.store.guarded(TRIM, shard, epoch, offset, TRIM_BATCH)
            if answer is None or answer[1] == b"0":
                return answer is not None

    def unread(self, shard: int, after: int) -> list[Identity]:
        """Identities in the log above `after`: what was acknowledged and never applied, at the end of a job."""
        found = self.store.entries(self.store.shard_key(shard) + ":log", after)
        return [decode_item(entry_id, fields[b"m"]).identity for entry_id, fields in found]

    def close(self, epoch: int, shard: int = 0) -> bool:
        """Refuse appends from now on (all shards'). False: `epoch` does not hold `shard` any more."""
        return self.store.guarded(CLOSE, shard, epoch) is not None

    # --- snapshots ----------------------------------------------------------------------------------------------------

    def save_snapshot(self, shard: int, epoch: int, meta: dict[str, Any], tensors: dict[str, torch.Tensor]) -> bool:
        """Store the shard's whole state; see `snapshot.save_snapshot`. False: fenced."""
        return save_snapshot(self.store, shard, epoch, meta, tensors)

    def load_snapshot(
        self, shard: int, into: dict[str, torch.Tensor] | None = None
    ) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
        """The newest snapshot's (meta, tensors), or None; see `snapshot.load_snapshot`."""
        return load_snapshot(self.store, shard, into)

    # --- the whole job ------------------------------------------------------------------------------------------------

    def run_id(self) -> str:
        """Of the Redis that answers now; another one than before: claim, then snapshot."""
        return self.store.control.use(lambda client, run_id: run_id if client.ping() else "")

    @property
    def contact(self) -> Contact:
        return self.store.contact

    def max_memory(self) -> int:
        """Redis's own limit in bytes; 0 if it has none."""
        return int(self.store.info("memory").get("maxmemory", "0"))

    def stats(self) -> BufferStats:

        def ask(client: redis.Redis, run_id: str) -> BufferStats:
            both = client.pipeline(transaction=False)
            both.hmget(self.store.prefix + "log", "bytes", "peak", "next", "closed")
            both.hlen(self.store.prefix + "pending")
            log, entries = both.execute()
            held, peak, last, closed = (int(x or 0) for x in log)
            return BufferStats(held, int(entries), peak, last, bool(closed), run_id)

        return self.store.control.use(ask)

    def disconnect(self) -> None:
        self.store.disconnect()

"""What the gradient log speaks of: results, manifests, errors and sizes. No torch, no Redis: the model uses it too.

Rules
- `ok` and `duplicate` both mean that the log holds the gradient, or held it until it was applied: both acknowledge it.
- Sizes are what Redis allocates, not what was sent: a bound that ignored the allocator would not bound memory.
- An error says the fact, what was expected and the remedy, and its type says what the caller does next.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from outlast.chain.events import Contribution, Identity, Kind, Record

# 64 bytes under 1 MiB: with Redis's header, a value of exactly 1 MiB falls into the allocator's class of 1.25 MiB.
CHUNK_BYTES = (1 << 20) - 64
# After a restart Redis may have forgotten its last offsets (durability below Always): it goes on this far above them,
# so that no offset is ever given twice.
RUN_JUMP = 1 << 32
VALUE_OVERHEAD_BYTES = 192  # a value's key, dictionary entry and object
ENTRY_OVERHEAD_BYTES = 1024  # a manifest in one shard's stream, and its share of the tables


class AppendResult(StrEnum):
    OK = "ok"
    DUPLICATE = "duplicate"  # every step of it is in the log, or was and has been applied
    FULL = "full"  # maxBytes, or Redis's own memory limit
    FENCED = "fenced"  # a newer incarnation of this slot exists: this process must end
    CLOSED = "closed"  # the job's goal is reached; nothing more will be applied


class GradientLogError(RuntimeError):
    """Something about the gradient log; the subclass says what to do."""


class BufferUnavailable(GradientLogError):
    """Redis does not answer, is loading, or awaits its server. Keep the gradient and try again."""


class Fenced(BufferUnavailable):
    """A server of a higher epoch has claimed this shard's log: nothing of ours counts until the next view."""


class BufferFull(GradientLogError):
    """No room: `maxBytes` is reached, or Redis's own memory limit. Wait for a trim, or give more memory."""


class BufferMisconfigured(GradientLogError):
    """The url, the password or the permissions are wrong: trying again will not help."""


class BufferRestarted(GradientLogError):
    """Redis is another run than the one this shard's server claimed [record-before-publish]."""


class ClaimNeeded(BufferRestarted):
    """Call `claim` (with the offset that was consumed) before anything else."""


class SnapshotNeeded(BufferRestarted):
    """Records count from a snapshot and this run or history has none: save one, then record."""


class EntryMissing(GradientLogError):
    """The gradient is not in the log any more: another epoch trimmed it."""


class SnapshotCorrupt(GradientLogError):
    """The snapshot's checksum does not match: restore from the newest checkpoint."""


def log_prefix(job_uid: str) -> str:
    """What the names of a job's keys begin with: one hash slot."""
    return f"outlast:{{{job_uid}}}:"


@dataclass(frozen=True)
class LogItem:
    """One gradient's manifest in one shard's log; its payload is fetched separately."""

    offset: int  # grows with every gradient, the same in every shard; gaps are normal
    slot: int
    incarnation: int
    history: int
    version: int
    kind: Kind
    first: int
    last: int
    lr_scale: float
    elements: int  # of this shard's payload, float32 once decoded
    nbytes: int  # as stored: 4 (float32) or 2 (bfloat16) bytes an element
    dtype: str
    push: str  # names the chunks' keys
    chunks: int

    @property
    def identity(self) -> Identity:
        return Identity(self.slot, self.first, self.last)

    def contribution(self, payload: Any) -> Contribution:
        return Contribution(self.identity, self.version, self.history, payload, self.kind, self.lr_scale)


@dataclass(frozen=True)
class BufferStats:
    bytes: int  # that the log holds, as Redis allocates them
    entries: int  # gradients that not every shard has trimmed
    peak_bytes: int
    last_offset: int
    closed: bool
    run_id: str


def chunk_sizes(nbytes: int) -> list[int]:
    """Lengths of the values that a payload of `nbytes` is cut into; all but the last are CHUNK_BYTES."""
    full, rest = divmod(nbytes, CHUNK_BYTES)
    return [CHUNK_BYTES] * full + ([rest] if rest else [])


def _allocated(nbytes: int) -> int:
    """What jemalloc gives for `nbytes`: four size classes for each doubling."""
    if nbytes <= 128:
        return (nbytes + 15) // 16 * 16
    step: int = 1 << ((nbytes - 1).bit_length() - 3)
    return (nbytes + step - 1) // step * step


def stored_cost(nbytes: int) -> int:
    """Bytes of Redis's memory that one shard's payload of `nbytes` takes, its manifest included."""
    values = sum(_allocated(n + 16) + VALUE_OVERHEAD_BYTES for n in chunk_sizes(nbytes))
    return values + ENTRY_OVERHEAD_BYTES


def redis_maxmemory(max_bytes: int, snapshot_bytes: int, slack_bytes: int | None = None) -> int:
    """The `maxmemory` for a Redis that serves one job [bounded-log], to be used with `noeviction`.

    The log's bound, two snapshots (the one before lives until the pointer flips), and slack for connections' buffers,
    records and tables. `snapshot_bytes` is over all shards: parameters plus optimizer state.
    """
    slack = max(64 << 20, max_bytes // 16) if slack_bytes is None else slack_bytes
    return max_bytes + 2 * stored_cost(snapshot_bytes) + slack


def encode_item(item: LogItem, elements: int, nbytes: int, push: str, chunks: int) -> bytes:
    """A manifest as the scripts read it; the offset is its place in the stream."""
    fields = {
        "slot": item.slot,
        "inc": item.incarnation,
        "history": item.history,
        "version": item.version,
        "kind": str(item.kind),
        "first": item.first,
        "last": item.last,
        "lr_scale": item.lr_scale,
        "elements": elements,
        "nbytes": nbytes,
        "dtype": item.dtype,
        "push": push,
        "chunks": chunks,
        "cost": stored_cost(nbytes),
    }
    return json.dumps(fields, separators=(",", ":")).encode()


def decode_item(entry_id: bytes, manifest: bytes) -> LogItem:
    raw = json.loads(manifest)
    return LogItem(
        offset=int(entry_id.split(b"-")[0]),
        slot=raw["slot"],
        incarnation=raw["inc"],
        history=raw["history"],
        version=raw["version"],
        kind=Kind(raw["kind"]),
        first=raw["first"],
        last=raw["last"],
        lr_scale=raw["lr_scale"],
        elements=raw["elements"],
        nbytes=raw["nbytes"],
        dtype=raw["dtype"],
        push=raw["push"],
        chunks=raw["chunks"],
    )


def encode_record(record: Record) -> bytes:
    """JSON; floats survive exactly, which a bit-identical replay needs."""
    return json.dumps(asdict(record), separators=(",", ":")).encode()


def decode_record(text: bytes) -> Record:
    raw = json.loads(text)
    parts = tuple((int(offset), float(weight)) for offset, weight in raw.pop("parts"))
    return Record(**{**raw, "kind": Kind(raw["kind"]), "parts": parts, "skipped": tuple(raw["skipped"])})


class Contact:
    """When Redis last did what it was asked, and since when it cannot be reached; shared by the links to one Redis,
    monotonic. A Redis that refuses (it loads its file, say) is reached, and of no use yet."""

    def __init__(self) -> None:
        self.answered_t: float | None = None
        self.silent_t: float | None = None  # None: it is reached, or was not asked

    def answered(self) -> None:
        self.answered_t, self.silent_t = time.monotonic(), None

    def refused(self) -> None:
        self.silent_t = None

    def missed(self) -> None:
        if self.silent_t is None:
            self.silent_t = time.monotonic()

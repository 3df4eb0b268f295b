"""The gradient log as a plain data structure: what the Lua scripts must agree with, and what the simulator drives.

Rules
- The same calls and answers as `outlast.buffer.log.GradientLog`, on lists and sets, without torch and without Redis.
- Payloads are opaque; `append` is told their size. Nothing blocks, no time passes.
- `restart` is another run of Redis with what was kept; `freeze` and `thaw` take data back to an earlier moment, as a
  restart does when durability is below Always; `wipe` loses everything.

It favours the obvious over the fast: the log is a list, what was applied is a set of steps.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from outlast.buffer.types import (
    RUN_JUMP,
    AppendResult,
    BufferStats,
    BufferUnavailable,
    ClaimNeeded,
    GradientLogError,
    LogItem,
    SnapshotNeeded,
    stored_cost,
)
from outlast.chain.events import Identity, Kind, Record


@dataclass
class _Snapshot:
    meta: dict[str, Any]
    tensors: dict[str, Any]


@dataclass
class _Shard:
    epoch: int
    run: int
    history: int
    dirty: bool = False  # records would not count from the snapshot
    records: list[Record] = field(default_factory=list)
    snapshot: _Snapshot | None = None


@dataclass
class _Pending:
    identity: Identity
    shards: set[int]  # that still hold it
    since: int | None = None  # the history in which the first shard trimmed it
    applied: bool = True


@dataclass
class _State:
    shards: dict[int, _Shard] = field(default_factory=dict)
    streams: dict[int, list[tuple[LogItem, Any]]] = field(default_factory=dict)
    next: int = 0
    bytes: int = 0
    peak: int = 0
    closed: bool = False
    paused: bool = False
    history: int = 0
    appended_run: int | None = None
    fences: dict[int, int] = field(default_factory=dict)
    pending: dict[int, _Pending] = field(default_factory=dict)
    gone: dict[int, set[int]] = field(default_factory=dict)


class ModelLog:
    """One job's log. Raises what `GradientLog` raises: `ClaimNeeded`, `SnapshotNeeded`, `BufferUnavailable`."""

    def __init__(self, shards: int, max_bytes: int, payload_bytes: int = 4) -> None:
        self.shards = shards
        self.max_bytes = max_bytes
        self.payload_bytes = payload_bytes  # of one shard's payload, unless `append` is told otherwise
        self.up = True
        self._run = 1
        self._state = _State()

    # --- the life of Redis --------------------------------------------------------------------------------------------

    def restart(self) -> None:
        """Another run with the same data."""
        self._run += 1
        self.up = True

    def wipe(self) -> None:
        """Another run without data."""
        self._state = _State()
        self.restart()

    def freeze(self) -> object:
        """The data as it is now, for `thaw`."""
        return copy.deepcopy(self._state)

    def thaw(self, frozen: object) -> None:
        """Another run with the data of an earlier moment."""
        assert isinstance(frozen, _State)
        self._state = copy.deepcopy(frozen)
        self.restart()

    def run_id(self) -> str:
        self._live()
        return str(self._run)

    def _live(self) -> _State:
        if not self.up:
            raise BufferUnavailable("Redis is down; gradients are kept and sent again when it is back")
        return self._state

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
        payloads: Sequence[Any],
        nbytes: Sequence[int] | None = None,
    ) -> AppendResult:
        state = self._live()
        if set(state.shards) != set(range(self.shards)):
            raise BufferUnavailable("the log has no server yet; gradients are kept and sent again")
        if incarnation < state.fences.get(slot, 0):
            return AppendResult.FENCED
        state.fences[slot] = incarnation
        self._see_history(history)
        if set(range(first, last + 1)) <= self._steps(slot):
            return AppendResult.DUPLICATE
        if state.closed:
            return AppendResult.CLOSED
        if state.paused:
            raise BufferUnavailable("Redis is about to end; gradients are kept and sent again")
        sizes = list(nbytes) if nbytes is not None else [self.payload_bytes] * self.shards
        cost = sum(stored_cost(n) for n in sizes)
        if state.bytes + cost > self.max_bytes:
            return AppendResult.FULL
        if state.appended_run is not None and state.appended_run != self._run:
            state.next += RUN_JUMP
        state.appended_run = self._run
        state.next += 1
        state.bytes += cost
        state.peak = max(state.peak, state.bytes)
        state.pending[state.next] = _Pending(Identity(slot, first, last), set(range(self.shards)))
        for shard, payload in enumerate(payloads):
            size = sizes[shard]
            item = LogItem(
                state.next, slot, incarnation, history, version, kind, first, last, lr_scale, size // 4, size,
                "float32", "", 0,
            )  # fmt: skip
            state.streams.setdefault(shard, []).append((item, payload))
        return AppendResult.OK

    def pause(self) -> None:
        """Appends are refused from now on, by this data."""
        self._live().paused = True

    def fence(self, slot: int, incarnation: int) -> int:
        fences = self._live().fences
        fences[slot] = max(fences.get(slot, 0), incarnation)
        return fences[slot]

    def highest_step(self, slot: int) -> int:
        self._live()
        return max(self._steps(slot), default=0)

    def _steps(self, slot: int) -> set[int]:
        state = self._state
        live = (p.identity for p in state.pending.values() if p.identity.slot == slot)
        return state.gone.get(slot, set()).union(*(range(i.first, i.last + 1) for i in live))

    def _see_history(self, history: int) -> None:
        if history > self._state.history:
            self._state.history = history
            self._state.gone.clear()
            self._state.closed = False  # an end that was rolled back was none

    # --- the head -----------------------------------------------------------------------------------------------------

    def claim(self, shard: int, epoch: int, history: int = 0, offset: int = 0) -> bool:
        state = self._live()
        held = state.shards.get(shard)
        if held is not None and held.epoch > epoch:
            return False
        self._see_history(history)
        if held is None:
            state.shards[shard] = _Shard(epoch, self._run, history)
        else:
            held.dirty |= held.run != self._run
            if history > held.history:
                held.records.clear()
                held.dirty = True
            held.epoch, held.run, held.history = epoch, self._run, max(history, held.history)
        state.next = max(state.next, offset)
        return True

    def epoch(self, shard: int) -> int:
        held = self._live().shards.get(shard)
        return held.epoch if held is not None else 0

    def _guard(self, shard: int, epoch: int) -> _Shard | None:
        """The shard's state, None when fenced."""
        held = self._live().shards.get(shard)
        if held is not None and held.epoch > epoch:
            return None
        if held is None or held.epoch < epoch or held.run != self._run:
            raise ClaimNeeded(f"shard {shard}: epoch {epoch} was not claimed in this run")
        return held

    def read(self, shard: int, after_offset: int, limit: int = 256, block_ms: int = 0) -> list[LogItem]:
        found = [item for item, _ in self._live().streams.get(shard, []) if item.offset > after_offset]
        return found[:limit]

    def fetch(self, shard: int, item: LogItem) -> Any:
        """The payload itself. Raises `KeyError` if it was trimmed."""
        for held, payload in self._live().streams.get(shard, []):
            if held.offset == item.offset:
                return payload
        raise KeyError(item.offset)

    def record(self, shard: int, epoch: int, record: Record) -> bool:
        held = self._guard(shard, epoch)
        if held is None:
            return False
        if held.snapshot is None or held.dirty:
            raise SnapshotNeeded(f"shard {shard}: no snapshot of this run and history")
        if held.records and held.records[-1].entry_seq >= record.entry_seq:
            if record in held.records:
                return True
            raise GradientLogError(f"shard {shard}: record {record.entry_seq} is out of order")
        held.records.append(record)
        return True

    def records(self, shard: int, after_seq: int) -> list[Record]:
        held = self._live().shards.get(shard)
        return [r for r in held.records if r.entry_seq > after_seq] if held is not None else []

    def save_snapshot(self, shard: int, epoch: int, meta: dict[str, Any], tensors: dict[str, Any]) -> bool:
        held = self._guard(shard, epoch)
        if held is None:
            return False
        if held.snapshot is not None:
            old = held.snapshot.meta
            backwards = old["seq"] > meta["seq"] or old["offset"] > meta["offset"]
            if old["history"] > meta["history"] or (old["history"] == meta["history"] and backwards):
                return True
        held.snapshot = _Snapshot(copy.deepcopy(meta), dict(tensors))
        held.dirty = False
        held.records = [r for r in held.records if r.entry_seq > meta["seq"]]
        return True

    def load_snapshot(self, shard: int) -> tuple[dict[str, Any], dict[str, Any]] | None:
        held = self._live().shards.get(shard)
        if held is None or held.snapshot is None:
            return None
        return copy.deepcopy(held.snapshot.meta), dict(held.snapshot.tensors)

    def trim(self, shard: int, epoch: int, offset: int) -> bool:
        held = self._guard(shard, epoch)
        if held is None:
            return False
        state = self._state
        if held.history < state.history:  # a rollback is recorded, its server has not heard: what it did is undone
            return True
        if held.snapshot is not None:
            offset = min(offset, held.snapshot.meta["offset"])
        stream = state.streams.get(shard, [])
        for item, _ in [e for e in stream if e[0].offset <= offset]:
            state.bytes -= stored_cost(item.nbytes)
            self._drop(shard, item)
        state.streams[shard] = [e for e in stream if e[0].offset > offset]
        return True

    def _drop(self, shard: int, item: LogItem) -> None:
        state = self._state
        pending = state.pending[item.offset]
        pending.shards.discard(shard)
        if pending.since is None:
            pending.since = state.history
        pending.applied &= pending.since == state.history
        if not pending.shards:
            del state.pending[item.offset]
            if pending.applied:
                state.gone.setdefault(item.slot, set()).update(range(item.first, item.last + 1))

    def unread(self, shard: int, after: int) -> list[Identity]:
        return [item.identity for item in self.read(shard, after, limit=1 << 62)]

    def close(self, epoch: int, shard: int = 0) -> bool:
        held = self._guard(shard, epoch)
        if held is None or held.history < self._state.history:
            return False
        self._state.closed = True
        return True

    def stats(self) -> BufferStats:
        state = self._live()
        return BufferStats(state.bytes, len(state.pending), state.peak, state.next, state.closed, str(self._run))

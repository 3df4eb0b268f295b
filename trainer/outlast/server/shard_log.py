"""A server's side of its shard's log in Redis: the claim of its epoch, and what it reads and writes under that.

Every write is fenced by the epoch of the claim. What the replica decided is recorded before its result is published,
and a run of Redis counts from a snapshot in it [record-before-publish].
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import torch

from outlast.buffer.log import GradientLog
from outlast.buffer.types import BufferUnavailable, ClaimNeeded, Fenced, LogItem, SnapshotNeeded
from outlast.chain.events import Contribution, Record
from outlast.server.core import Core
from outlast.server.shard_state import ShardState


class ShardLog:
    """`log` is for all shards. Any thread may call; every method may raise `BufferUnavailable`."""

    def __init__(self, core: Core, state: ShardState, log: GradientLog) -> None:
        self.log, self.shard = log, core.shard
        self._core, self._state = core, state
        self._stateless = core.spec.traits.through_buffer
        self.claimed: tuple[int, str] | None = None  # (epoch, run of Redis)
        self._snapshot: tuple[int, str] | None = None  # (history, run of Redis) of the last one saved or loaded
        self._snapshot_due = False
        self._trim = self._trimmed = 0
        self.room_made_to = 0  # the offset of the last snapshot taken to make room
        self.failed_at = 0.0  # when a snapshot was not saved
        self.wake = threading.Event()  # the reader: there may be something to do

    # --- the claim ---

    def claim_if_needed(self, epoch: int, history: int, offset: int = 0) -> str:
        """Fence lower epochs, in this run of Redis, which is returned. Raises `Fenced`."""
        run = self.log.run_id()
        if self.claimed == (epoch, run):
            return run
        before = self.claimed
        if not self.log.claim(self.shard, epoch, history, offset):
            raise Fenced(f"a higher epoch than {epoch} has claimed the log; waiting for the next view")
        self.claimed = (epoch, run)
        if before is not None and before[1] != run and self._stateless:
            try:
                self._save_state()
            except Fenced:
                raise
            except BufferUnavailable:
                self.claimed = before
                raise
        return run

    def _save_state(self) -> None:
        """[record-before-publish] First the state, then what comes after it. A server that is rebuilt has none yet."""
        with self._core.lock:
            if self._core.replica.initialised:
                self._core.ports.checkpoints.snapshot_now()

    def forget_claim(self) -> None:
        self.claimed = None

    # --- what the core asks for, with its lock held ---

    def record(self, record: Record) -> bool:
        """Write the decision under our epoch's fence; False: fenced."""
        epoch, history = self._core.replica.epoch, self._core.history
        while True:
            try:
                return self.log.record(self.shard, epoch, record)
            except ClaimNeeded:
                self.claimed = None
                if not self.log.claim(self.shard, epoch, history, record.last_offset):
                    return False
                self.claimed = (epoch, self.log.run_id())
            except SnapshotNeeded:
                self._snapshot_due = True  # this record's result goes into it: nothing to obey on a replay
                return True

    def publish(self) -> bool:
        """A snapshot where Redis asked for one: a rebuilt server could not repeat what is published without."""
        if self._snapshot_due:
            try:
                self._core.ports.checkpoints.snapshot_now()
            except Fenced:
                self._snapshot_due = False
                return False
            self._snapshot_due = False
        return True

    def trim_to(self, offset: int) -> None:
        """Entries up to `offset` are as safe as the strategy promises; the reader's thread removes them."""
        self._trim = max(self._trim, offset)
        self.wake.set()

    # --- entries and snapshots ---

    @property
    def trim_is_due(self) -> bool:
        return self._trim > self._trimmed

    def trim(self, epoch: int) -> None:
        target = self._trim
        if self.log.trim(self.shard, epoch, target):
            self._trimmed = target

    def fetch(self, items: Sequence[LogItem]) -> list[tuple[int, int, Contribution]]:
        """Their gradients, in pooled memory: (offset, incarnation, contribution)."""
        pool = self._state.pool
        if pool is None:
            raise RuntimeError("the log is read before there is a state")
        leases = [pool.borrow() for _ in items]
        self.log.fetch_many(self.shard, items, [lease.tensor for lease in leases])
        return [(i.offset, i.incarnation, i.contribution(p)) for i, p in zip(items, leases, strict=True)]

    def save_snapshot(self, epoch: int, meta: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        """`meta` and `tensors`: as the core exports them. Raises `Fenced`, `GradientLogError`."""
        replica = meta["replica"]
        history = int(replica["history"])
        run = self.claim_if_needed(epoch, history)
        if not self.log.save_snapshot(self.shard, epoch, {**replica, "server": meta}, tensors):
            raise Fenced(f"a higher epoch than {epoch} has claimed the log; waiting for the next view")
        self._snapshot = (history, run)  # and from here on the records after it
        self.trim_to(int(replica["offset"]))

    def snapshot_failed(self) -> None:
        """Redis had no room for it, say: another is tried after a while."""
        self.room_made_to, self.failed_at = 0, time.monotonic()

    def load_snapshot(self, epoch: int, history: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
        """What `save_snapshot` was given; None: this run of Redis has none of this history."""
        run = self.claim_if_needed(epoch, history)
        loaded = self.log.load_snapshot(self.shard)
        if loaded is None or int(loaded[0]["history"]) != history:
            return None
        self._snapshot = (history, run)
        return loaded[0]["server"], loaded[1]

    def state_run(self, history: int) -> str:
        """The run of Redis from which a server could rebuild the state of this history; "" if it is not known."""
        return self._snapshot[1] if self._snapshot is not None and self._snapshot[0] == history else ""

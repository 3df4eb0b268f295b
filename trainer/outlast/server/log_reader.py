"""The head's thread that reads the buffer's log and feeds it to the replica (Stateless; Hybrid after an outage).

    claim the log for our epoch ─▶ read manifests ─▶ fetch gradients ─▶ step(FromLog) ─▶ trim

Hybrid reads from the first entry in every epoch: only the table of applied steps says what is new, never the offset.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from outlast.api.view import BUFFER, EMPTY
from outlast.buffer.log import GradientLog
from outlast.buffer.types import (
    BufferMisconfigured,
    BufferStats,
    BufferUnavailable,
    ClaimNeeded,
    EntryMissing,
    Fenced,
    LogItem,
    SnapshotNeeded,
)
from outlast.chain.events import Contribution, FromLog, Record, Replay, Restored
from outlast.server.rebuild import belongs_to, without_snapshot

if TYPE_CHECKING:
    from outlast.api.view import View
    from outlast.server.main import Server

log = logging.getLogger("outlast.log")

T = TypeVar("T")

_BLOCK_MS = 100
_GROUP = 32
_RETRY_S = 0.05
_STATS_S = 0.25
_IDLE_S = 1.0
_PAGE = 512  # manifests read at a time


class Backlog:
    """How many gradients wait together: what `reducedRate.above` is compared with.

    As in the paper, all that is in the log when the reader finds more than one read can hold belongs together, to the
    last of it. Were only what is left counted, the last of a backlog would be applied at the full rate.
    """

    def __init__(self) -> None:
        self._last_offset = -1
        self._count = 0

    def pending(self, first_offset: int, read: int, limit: int, look: Callable[[], tuple[int, int]]) -> int:
        """For `read` entries from `first_offset` on, of at most `limit` that one read gives.

        `look` counts: (entries that are not applied, these included; the last one's offset).
        """
        if first_offset > self._last_offset:
            if read < limit:
                return read
            self._count, self._last_offset = look()
        return max(self._count, read)


class LogReader:
    """One server's side of the gradient log; idle while this server is no head, or the job needs no Redis."""

    def __init__(self, server: Server) -> None:
        self._server = server
        spec, config = server.spec, server.config
        url = spec.recovery.buffer.url or config.redis_url
        self._stateless = spec.traits.through_buffer
        self._counts = spec.recovery.staleness.reduced_rate is not None  # nothing else asks how many are pending
        self._together = Backlog()
        self.log: GradientLog | None = None
        if spec.traits.buffered:
            assert url is not None, "a job that buffers needs recovery.buffer.url or a Redis that the job runs"
            self.log = GradientLog(
                url, config.job_uid, len(config.servers), spec.recovery.buffer.max_bytes, spec.recovery.buffer.dtype
            )
        self._claimed: tuple[int, str] | None = None  # (epoch, run of Redis)
        self._snapshot: tuple[int, str] | None = None  # (history, run of Redis) of the last one saved or loaded
        self._after = 0
        self._epoch = 0
        self._trim = 0
        self._trimmed = 0
        self._snapshot_due = False
        self._closed = False
        self._rebuilding = 0  # restores from the log asked for and not done yet
        self._stats: BufferStats | None = None
        self._stats_at = 0.0
        self._backlog = 0
        self._end_t: float | None = None  # when the log was asked for more, and had none
        self._busy_at = 0.0  # when the log last gave us something
        self._snapshot_offset = 0  # the last snapshot taken to make room
        self._wake = threading.Event()

    def start(self) -> None:
        if self.log is not None:
            threading.Thread(target=self._run, name="log-reader", daemon=True).start()

    def backlog(self) -> int:
        """Gradients in the log that are not applied yet; Stateless keeps applied ones until a snapshot covers them."""
        return self._backlog

    def end_t(self) -> float | None:
        """All that the log held at this time (our clock) has been taken from it; without a log, now."""
        return time.monotonic() if self.log is None else self._end_t

    def contact(self) -> dict[str, float | None]:
        """When Redis last answered this server, and since when it cannot be reached from here (our clock)."""
        contact = None if self.log is None else self.log.contact
        return {
            "redis_answered_t": None if contact is None else contact.answered_t,
            "redis_silent_t": None if contact is None else contact.silent_t,
        }

    def buffer_bytes(self) -> int:
        return 0 if self._stats is None else self._stats.bytes

    @property
    def rebuilding(self) -> bool:
        """Whether records are still to be replayed: until then no new decision may be taken [record-before-publish]."""
        return self._rebuilding > 0

    def rebuild_later(self) -> None:
        """A restore from the log was asked for (lock held); `restore_from_log` ends what this begins."""
        self._rebuilding += 1

    def rebuilt(self) -> None:
        with self._server.lock:
            self._rebuilding -= 1
        self._wake.set()

    def trim_to(self, offset: int) -> None:
        """Entries up to `offset` are as safe as the strategy promises; the reader's thread removes them."""
        self._trim = max(self._trim, offset)
        self._wake.set()

    def unread(self) -> list[list[int]]:
        """Identities that the log holds and the table does not: acknowledged, never applied."""
        if self.log is None:
            return []
        try:
            found = self.log.unread(self._server.shard, 0)
        except BufferUnavailable as error:
            log.warning("%s", error)
            return []
        with self._server.lock:
            applied = self._server.replica.applied
            return [[i.slot, i.first, i.last] for i in found if not applied.contains(i)]

    # --- the thread ---

    def _run(self) -> None:
        while True:
            try:
                if not self._turn():
                    self._wake.wait(_RETRY_S)
                    self._wake.clear()
            except BufferUnavailable as error:
                log.info("%s", error)
                time.sleep(_RETRY_S)  # Redis is away: nothing tells us when it is back
            except BufferMisconfigured as error:
                self._server.fail(str(error))
                return
            except (ClaimNeeded, EntryMissing) as error:
                log.info("%s", error)
                self._claimed = None
                self._epoch = 0

    def _turn(self) -> bool:
        """One round; False when there was nothing for us to do."""
        server, gradient_log = self._server, self.log
        assert gradient_log is not None
        with server.lock:
            view, status = server.replica.view, server.replica.status()
            acting = view is not None and view.head is not None and view.head.boot == server.boot
            ready = status["serving"] and status["initialised"] and not self.rebuilding
            if not acting or view is None or not ready:
                self._epoch = 0
                return False
            epoch, history, finished = view.epoch, view.history, bool(status["finished"])
            offset = int(status["offset"])
        self.claim_if_needed(epoch, history, offset)
        if epoch != self._epoch:
            self._epoch = epoch
            self._after = offset if self._stateless else 0
            self._together = Backlog()
            self._closed = False
        self._housekeeping(epoch)
        if finished:
            if not self._closed:
                self._closed = gradient_log.close(epoch, server.shard)
            return False
        limit = _GROUP if server.serving.pool is None else max(1, min(_GROUP, server.serving.pool.limit // 3))
        asked_t = time.monotonic()
        items = gradient_log.read(server.shard, self._after, limit, _BLOCK_MS)
        self._make_room(idle=not items)
        if not items:
            self._end_t = asked_t
            return True
        contributions = self._fetch(items)
        pending = 0
        if self._counts:
            pending = self._together.pending(items[0].offset, len(items), limit, self._look)
        server.step(FromLog(epoch, tuple(contributions), pending))
        self._after = items[-1].offset
        return True

    def holds_snapshot(self, history: int, run: str) -> None:
        """This run of Redis has a snapshot of the shard, and from here on the records after it."""
        self._snapshot = (history, run)

    def state_run(self, history: int) -> str:
        """The run of Redis from which a server could rebuild the state of this history; "" if it is not known."""
        return self._snapshot[1] if self._snapshot is not None and self._snapshot[0] == history else ""

    def claim_if_needed(self, epoch: int, history: int, offset: int = 0) -> str:
        """Fence lower epochs, in this run of Redis, which is returned. Raises `BufferUnavailable`."""
        assert self.log is not None
        run = self.log.run_id()
        if self._claimed == (epoch, run):
            return run
        before = self._claimed
        if not self.log.claim(self._server.shard, epoch, history, offset):
            raise Fenced(f"a higher epoch than {epoch} has claimed the log; waiting for the next view")
        self._claimed = (epoch, run)
        if before is not None and before[1] != run and self._stateless:
            with self._server.lock:  # [record-before-publish] first the state, then what comes after it
                saved = self._server.durability.snapshot_now()
            if not saved:
                self._claimed = before
                raise BufferUnavailable("this run of Redis has no snapshot of the shard yet")
        return run

    def _fetch(self, items: list[LogItem]) -> list[tuple[int, int, Contribution]]:
        assert self.log is not None
        pool = self._server.serving.pool
        assert pool is not None
        leases = []
        for _ in items:
            lease = pool.take()
            assert lease is not None
            leases.append(lease)
        self.log.fetch_many(self._server.shard, items, [lease.tensor for lease in leases])
        return [(i.offset, i.incarnation, i.contribution(p)) for i, p in zip(items, leases, strict=True)]

    def _housekeeping(self, epoch: int) -> None:
        assert self.log is not None
        if self._trim > self._trimmed:
            target = self._trim
            if self.log.trim(self._server.shard, epoch, target):
                self._trimmed = target
        if time.monotonic() - self._stats_at > _STATS_S:
            self._look()

    def _look(self) -> tuple[int, int]:
        """(gradients in the log that are not applied yet, the last one's offset), now."""
        assert self.log is not None
        self._stats, self._stats_at = self.log.stats(), time.monotonic()
        # Offsets have gaps, so their difference is only an upper bound: exact once all is applied.
        self._backlog = min(self._stats.entries, max(0, self._stats.last_offset - self._after))
        return self._backlog, self._stats.last_offset

    def _make_room(self, idle: bool) -> None:
        """Stateless: only a snapshot lets entries leave the log, so one is taken before the log is full.

        And one when nothing comes any more although the log holds what we have applied: workers may wait for room.
        """
        now = time.monotonic()
        if not idle:
            self._busy_at = now
        stats, server = self._stats, self._server
        if not self._stateless or stats is None or stats.entries == 0:
            return
        if 2 * stats.bytes < server.spec.recovery.buffer.max_bytes and now - self._busy_at < _IDLE_S:
            return
        with server.lock:
            offset = server.replica.offset
            if offset > self._snapshot_offset and server.durability.snapshot_soon():
                self._snapshot_offset = offset

    def snapshot_failed(self) -> None:
        """Redis had no room for it, say: another is tried after a while."""
        self._snapshot_offset, self._busy_at = 0, time.monotonic()

    # --- Stateless: what the replica asks for before it publishes ---

    def record(self, record: Record) -> bool:
        """Write the decision under our epoch's fence (lock held); False: fenced. Waits while Redis is away."""
        assert self.log is not None
        view = self._server.replica.view
        assert view is not None
        while True:
            try:
                return self.log.record(self._server.shard, view.epoch, record)
            except ClaimNeeded:
                self._claimed = None
                if not self.log.claim(self._server.shard, view.epoch, view.history, record.last_offset):
                    return False
                self._claimed = (view.epoch, self.log.run_id())
            except SnapshotNeeded:
                self._snapshot_due = True  # this record's result goes into it: nothing to obey on a replay
                return True
            except BufferUnavailable as error:
                log.info("%s", error)
                time.sleep(_RETRY_S)  # nothing may be published that a rebuilt server could not repeat

    def publish(self) -> bool:
        """After apply, before anybody is answered: a snapshot where Redis asked for one (lock held); False: fenced.

        Waits while there is none: a rebuilt server could not repeat what is published.
        """
        while self._snapshot_due:
            try:
                self._snapshot_due = not self._server.durability.snapshot_now()
            except Fenced:
                self._snapshot_due = False
                return False
            if self._snapshot_due:
                time.sleep(_RETRY_S)
        return True

    def restore_from_log(self) -> None:
        """Stateless: rebuild from the snapshot in Redis and the records after it."""
        server, gradient_log = self._server, self.log
        assert gradient_log is not None
        with server.lock:
            view = server.replica.view
        assert view is not None
        loaded = self._patiently(lambda: self._claim_and_load(view.epoch, view.history))
        if loaded is None:
            self._restore_without_snapshot(view)
            return
        meta, tensors = loaded
        server.take_over(meta["server"], tensors, source=BUFFER)
        self._patiently(self._replay)

    def _patiently(self, attempt: Callable[[], T]) -> T:
        """Redis may die in the middle of a restore: nothing is lost by that, only time. Raises `Fenced`."""
        while True:
            try:
                return attempt()
            except Fenced:  # a later view's claim, ours perhaps: what this one asked for is wanted no more
                raise
            except BufferUnavailable as error:
                log.info("%s", error)
                time.sleep(_RETRY_S)

    def _claim_and_load(self, epoch: int, history: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
        assert self.log is not None
        run = self.claim_if_needed(epoch, history)
        loaded = self.log.load_snapshot(self._server.shard)
        if loaded is None or not belongs_to(loaded[0], history):
            return None
        self.holds_snapshot(history, run)
        return loaded

    def _replay(self) -> None:
        """Obey the records after what we hold."""
        server, gradient_log = self._server, self.log
        assert gradient_log is not None
        records = gradient_log.records(server.shard, server.replica.last_seq)
        items = self._recorded(records)
        for record in records:
            wanted = [items[offset] for offset, _ in record.parts if offset in items]
            server.step(Replay(record, tuple(self._fetch(wanted))))

    def _recorded(self, records: list[Record]) -> dict[int, LogItem]:
        """The log's entries that these records speak of, by offset."""
        assert self.log is not None
        offsets = [offset for record in records for offset, _ in record.parts]
        items: dict[int, LogItem] = {}
        after, last = min(offsets, default=1) - 1, max(offsets, default=0)
        while after < last:
            page = self.log.read(self._server.shard, after, _PAGE)
            if not page:
                break
            items.update((item.offset, item) for item in page)
            after = page[-1].offset
        return items

    def _restore_without_snapshot(self, view: View) -> None:
        """Hold what the history was begun from. Raises `NoSnapshot`: more than that was held, and is lost."""
        server = self._server
        server.durability.look()
        source = without_snapshot(view, server.durability.available())
        if source == EMPTY:
            server.step(Restored(0, version=0, history=0, applied={}, data=server.replica.data, source=BUFFER))
            return
        tensors, meta = server.durability.read(source)
        server.take_over(meta, tensors, source=BUFFER)
        self._patiently(self._replay)  # the claim has given up the records of histories before

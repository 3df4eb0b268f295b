"""The head's thread that reads the buffer's log and feeds it to the replica (Stateless; Hybrid after an outage).

    claim the log for our epoch ─▶ read manifests ─▶ fetch gradients ─▶ step(FromLog) ─▶ trim

Hybrid reads from the first entry in every epoch: only the table of applied steps says what is new, never the offset.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from outlast.api.config import ProcessConfig
from outlast.api.server_status import ServerStatus
from outlast.buffer.log import GradientLog
from outlast.buffer.types import BufferMisconfigured, BufferStats, BufferUnavailable, ClaimNeeded, Contact, EntryMissing
from outlast.chain.events import FromLog, Record
from outlast.server.core import RETRY_S, Core
from outlast.server.shard_log import ShardLog
from outlast.server.shard_state import ShardState

log = logging.getLogger("outlast.log")

_BLOCK_MS = 100
_GROUP = 32
_STATS_S = 0.25
_IDLE_S = 1.0


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


def log_of(core: Core, config: ProcessConfig) -> GradientLog | None:
    """None: the job's strategy uses no Redis."""
    if not core.spec.traits.buffered:
        return None
    buffer = core.spec.recovery.buffer
    url = buffer.url or config.redis_url
    if url is None:
        raise ValueError("a job that buffers needs recovery.buffer.url or a Redis that the job runs")
    return GradientLog(url, config.job_uid, len(config.servers), buffer.max_bytes, buffer.dtype)


class NoLog:
    """In place of a log and its reader, where the job needs no Redis."""

    contact = Contact()

    def record(self, record: Record) -> bool:
        raise RuntimeError("a record is due, and there is no log")

    def publish(self) -> bool:
        return True

    def trim_to(self, offset: int) -> None: ...

    def start(self) -> None: ...

    def tell(self, status: ServerStatus) -> ServerStatus:
        return replace(status, log_end_t=time.monotonic(), buffer_run="")

    def unread(self) -> list[list[int]]:
        return []


class LogReader:
    """Idle while this server is no head."""

    def __init__(self, core: Core, state: ShardState, shard_log: ShardLog) -> None:
        self._core, self._state, self.shard_log, self._log = core, state, shard_log, shard_log.log
        self.contact = self._log.contact
        self._shard = core.shard
        self._stateless = core.spec.traits.through_buffer
        self._counts = core.spec.recovery.staleness.reduced_rate is not None  # nothing else asks how many are pending
        self._together = Backlog()
        self._after = 0
        self._epoch = 0
        self._closed = False
        self._stats: BufferStats | None = None
        self._stats_at = 0.0
        self._backlog = 0
        self._end_t: float | None = None  # when the log was asked for more, and had none
        self._busy_at = 0.0  # when the log last gave us something

    def start(self) -> None:
        threading.Thread(target=self._run, name="log-reader", daemon=True).start()

    def tell(self, status: ServerStatus) -> ServerStatus:
        """Add what it knows to the status."""
        run, stored = self.shard_log.state_run(status.history), 0 if self._stats is None else self._stats.bytes
        return replace(status, log_end_t=self._end_t, backlog=self._backlog, buffer_bytes=stored, buffer_run=run)

    def unread(self) -> list[list[int]]:
        """Identities that the log holds and the table does not: acknowledged, never applied."""
        try:
            found = self._log.unread(self._shard, 0)
        except BufferUnavailable as error:
            log.warning("%s", error)
            return []
        with self._core.lock:
            applied = self._core.replica.applied
            return [[i.slot, i.first, i.last] for i in found if not applied.contains(i)]

    # --- the thread ---

    def _run(self) -> None:
        while True:
            try:
                if not self._turn():
                    self.shard_log.wake.wait(RETRY_S)
                    self.shard_log.wake.clear()
            except BufferUnavailable as error:
                log.info("%s", error)
                time.sleep(RETRY_S)  # Redis is away: nothing tells us when it is back
            except BufferMisconfigured as error:
                self._core.fail(str(error))
                return
            except (ClaimNeeded, EntryMissing) as error:
                log.info("%s", error)
                self.shard_log.forget_claim()
                self._epoch = 0

    def _turn(self) -> bool:
        """One round; False when there was nothing for us to do."""
        core, replica = self._core, self._core.replica
        with core.lock:
            if not replica.serving or core.rebuilding:
                self._epoch = 0
                return False
            epoch, history, finished, offset = replica.epoch, core.history, replica.finished, replica.offset
        self.shard_log.claim_if_needed(epoch, history, offset)
        if epoch != self._epoch:
            self._begin(epoch, offset)
        self._housekeeping(epoch)
        if finished:
            if not self._closed:
                self._closed = self._log.close(epoch, self._shard)
            return False
        self._read(epoch)
        return True

    def _begin(self, epoch: int, offset: int) -> None:
        self._epoch = epoch
        self._after = offset if self._stateless else 0
        self._together = Backlog()
        self._closed = False

    def _read(self, epoch: int) -> None:
        pool = self._state.pool
        limit = _GROUP if pool is None else max(1, min(_GROUP, pool.limit // 3))
        asked_t = time.monotonic()
        items = self._log.read(self._shard, self._after, limit, _BLOCK_MS)
        self._make_room(idle=not items)
        if not items:
            self._end_t = asked_t
            return
        contributions = self.shard_log.fetch(items)
        pending = 0
        if self._counts:
            pending = self._together.pending(items[0].offset, len(items), limit, self._look)
        self._core.step(FromLog(epoch, tuple(contributions), pending))
        self._after = items[-1].offset

    def _housekeeping(self, epoch: int) -> None:
        if self.shard_log.trim_is_due:
            self.shard_log.trim(epoch)
        if time.monotonic() - self._stats_at > _STATS_S:
            self._look()

    def _look(self) -> tuple[int, int]:
        """(gradients in the log that are not applied yet, the last one's offset), now."""
        self._stats, self._stats_at = self._log.stats(), time.monotonic()
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
        stats, core = self._stats, self._core
        if not self._stateless or stats is None or stats.entries == 0:
            return
        quiet_since = max(self._busy_at, self.shard_log.failed_at)
        if 2 * stats.bytes < core.spec.recovery.buffer.max_bytes and now - quiet_since < _IDLE_S:
            return
        with core.lock:
            offset = core.replica.offset
            if offset > self.shard_log.room_made_to and core.ports.checkpoints.snapshot_soon():
                self.shard_log.room_made_to = offset

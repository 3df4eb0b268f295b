"""A server's status as it is now, and the table of what its state holds."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from outlast.api.server_status import Evaluation, ServerStatus
from outlast.process.metrics import Sample, server_samples
from outlast.server.core import Core
from outlast.server.durability import Durability
from outlast.server.link import Links
from outlast.server.log_reader import LogReader, NoLog
from outlast.server.shard_state import ShardState
from outlast.server.worker_requests import WorkerRequests


@dataclass
class Status:
    """`address` and `departure` (whether this server is leaving, and whether it has left) do not need the lock."""

    core: Core
    state: ShardState
    links: Links
    workers: WorkerRequests
    durability: Durability
    log: LogReader | NoLog
    address: str
    departure: Callable[[], tuple[bool, bool]]
    evaluation: Evaluation | None = None

    def __post_init__(self) -> None:
        self._last = self._make()

    def now(self) -> ServerStatus:
        """The last one known while the lock is held by something slow (Redis away, say)."""
        lock = self.core.lock
        if lock.acquire(timeout=0.05):
            try:
                self._last = self._make()
            finally:
                lock.release()
        leaving, left = self.departure()
        contact = self.log.contact
        return replace(
            self._last, t=time.monotonic(), leaving=leaving, left=left,
            redis_answered_t=contact.answered_t, redis_silent_t=contact.silent_t,
        )  # fmt: skip

    def _make(self) -> ServerStatus:
        core, durability, workers, parameters = self.core, self.durability, self.workers, self.state.parameters
        return replace(
            self.log.tell(core.replica.status()), address=self.address, pid=os.getpid(),
            serving=core.replica.serving and not core.rebuilding, restore_error=durability.restore_error,
            config_error=core.error, broken=tuple(self.links.broken), views=dict(core.views),
            absent=workers.presence.absent(), connected=workers.presence.connected(), applied_t=core.applied_t,
            replayed=core.replayed, parameters=0 if parameters is None else parameters.numel,
            pushed_bytes=workers.pushed_bytes, pulled_bytes=workers.pulled_bytes, checkpoints=durability.available,
            last_states=durability.last_states, evaluation=self.evaluation,
        )  # fmt: skip

    def samples(self) -> Iterator[Sample]:
        """For Prometheus."""
        return server_samples(self.now(), self.core.spec.recovery.buffer.max_bytes)

    def table(self) -> dict[str, Any]:
        """What the surviving state holds, for the report."""
        replica = self.core.replica
        with self.core.lock:
            parameters = self.state.parameters
            answer = {
                "applied": replica.applied.to_json(),
                "applied_total": replica.status().applied_total,
                "version": 0 if parameters is None else parameters.version,
                "history": 0 if parameters is None else replica.export_state()["history"],
                "digest": "" if parameters is None else parameters.digest(),
            }
        answer["unread"] = self.log.unread()
        return answer

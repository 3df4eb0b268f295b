"""What a server says of itself: ServerStatus, and the table of what its state holds."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from outlast.process.metrics import Sample, server_samples
from outlast.server.core import Core
from outlast.server.durability import Durability
from outlast.server.link import Links
from outlast.server.log_reader import LogReader, NoLog
from outlast.server.shard_state import ShardState
from outlast.server.worker_requests import WorkerRequests


@dataclass
class Status:
    """`address` and `leaving` (how far this server's departure is) do not need the lock."""

    core: Core
    state: ShardState
    links: Links
    workers: WorkerRequests
    durability: Durability
    log: LogReader | NoLog
    address: str
    leaving: Callable[[], dict[str, bool]]
    evaluation: dict[str, Any] | None = None
    _last: dict[str, Any] = field(default_factory=dict)

    def now(self) -> dict[str, Any]:
        """ServerStatus; the last one known while the lock is held by something slow (Redis away, say)."""
        lock = self.core.lock
        if lock.acquire(timeout=0.05):
            try:
                self._last = self._make()
            finally:
                lock.release()
        return {**self._last, "t": time.monotonic(), **self.leaving(), **self.log.contact()}

    def _make(self) -> dict[str, Any]:
        core, durability, workers, parameters = self.core, self.durability, self.workers, self.state.parameters
        replica = core.replica.status()
        return {
            "name": core.replica.name,
            "boot": core.boot,
            "shard": core.shard,
            "address": self.address,
            "pid": os.getpid(),
            **replica,
            "serving": core.replica.serving and not core.rebuilding,
            "absent": {str(slot): t for slot, t in workers.presence.absent().items()},
            "connected": workers.presence.connected(),
            "applied_t": core.applied_t,
            "broken": list(self.links.broken),
            "checkpoints": durability.available(),
            "last_states": list(durability.last_states),
            "restore_error": durability.restore_error,
            "config_error": core.error,
            "views": {str(e): dict(t) for e, t in core.epochs.items()},
            "evaluation": self.evaluation,
            "pushed_bytes": workers.pushed_bytes,
            "pulled_bytes": workers.pulled_bytes,
            **self.log.status(replica["history"]),
            "parameters": 0 if parameters is None else parameters.numel,
            "replayed": core.replayed,
        }

    def why_not_ready(self) -> str:
        return str(self.now().get("why_not_ready", "it starts"))

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
                "applied_total": replica.status()["applied_total"],
                "version": 0 if parameters is None else parameters.version,
                "history": 0 if parameters is None else replica.export_state()["history"],
                "digest": "" if parameters is None else parameters.digest(),
            }
        answer["unread"] = self.log.unread()
        return answer

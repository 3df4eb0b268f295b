"""A worker's connection to its job: what the training loop calls, over threads that send and receive.

training loop        take() a gradient's memory, submit() it, wait, copy_weights()
one thread a shard   `ShardConnection`
one thread           `Appender`: to the buffer in Redis (Stateless; Hybrid while a head is away)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from outlast.api.config import ProcessConfig
from outlast.api.spec import JobSpec
from outlast.chain.events import Kind
from outlast.model.flat import Manifest, shard_ranges
from outlast.process.ledger import Fact, LedgerWriter
from outlast.process.metrics import Sample, worker_samples
from outlast.wire.pool import Lease, TensorPool
from outlast.wire.shared_memory import make_pool
from outlast.worker.appender import Appender
from outlast.worker.events import Outgoing
from outlast.worker.inbox import Inbox
from outlast.worker.outbox import Outbox
from outlast.worker.session import Session
from outlast.worker.shard_connection import Initial, ShardConnection

_MEMORY_BYTES = 1 << 30  # gradients that may wait in a worker's memory


class Client:
    """All methods belong to the training loop's thread."""

    def __init__(
        self, config: ProcessConfig, spec: JobSpec, manifest: Manifest, optimizer: dict[str, Any], initial: torch.Tensor
    ) -> None:
        shards, pinned = len(config.servers), torch.cuda.is_available()
        ledger = LedgerWriter(config.ledger_dir, config.slot, config.incarnation) if config.ledger_dir else None
        self.session = Session(shards, spec.traits)
        self.outbox = Outbox(self.session, ledger)
        self.inbox = Inbox(shard_ranges(manifest.numel, shards), config.slot, spec.workers.replicas, pinned)
        self._loaded: tuple[tuple[int, ...], int] = ((0,) * shards, 0)  # versions, history
        limit = max(4, min(_MEMORY_BYTES // (manifest.numel * 4), 256))
        local = any(s.address.startswith("unix:") for shard in config.servers for s in shard)
        self._pool = (
            TensorPool(manifest.numel, limit, pinned=True) if pinned else make_pool(manifest.numel, limit, local)
        )
        offer = Initial(initial, manifest.to_json(), optimizer)
        timeout_s = spec.recovery.failover.timeout_seconds
        self._shards = [
            ShardConnection(config, timeout_s, index, self.outbox, self.inbox, self._pool, offer)
            for index in range(shards)
        ]
        self.appender = Appender(config, spec, self.outbox, self.inbox.ranges) if spec.traits.buffered else None

    def start(self) -> None:
        for shard in self._shards:
            shard.start()
        if self.appender is not None:
            self.appender.start()

    def close(self) -> None:
        self.outbox.close()

    @property
    def stopped(self) -> bool:
        return self.outbox.stopped

    def highest_step(self, slot: int) -> int:
        """Where the slot's last process came to: applied, or waiting in the buffer. That is final: this process's first
        pull fenced it in the servers, and the buffer is asked after another fence."""
        buffered = 0 if self.appender is None else self.appender.take_over()
        return max(self.inbox.clocks.get(slot, 0), buffered)

    # --- gradients ---

    def take(self, timeout_s: float | None = None) -> Lease | None:
        """Memory for one gradient, float32 [numel]; waits while too many are on their way."""
        began = time.monotonic()
        lease = self._pool.take(timeout_s)
        self.outbox.counts.waited_s += time.monotonic() - began
        return lease

    def submit(self, first: int, last: int, lease: Lease, kind: Kind, lr_scale: float) -> Outgoing:
        """Send a gradient computed on the weights last loaded."""
        versions, history = self._loaded
        item = Outgoing(first, last, versions, history, lease, kind, lr_scale)
        self.outbox.submit(item)
        return item

    def record(self, fact: Fact, first: int, last: int) -> None:
        self.outbox.record(fact, first, last)

    def wait_until(self, ready: Callable[[], object], timeout_s: float | None = None) -> bool:
        """Wait until `ready()`, or until nothing more will come; False after `timeout_s` seconds."""
        began = time.monotonic()
        with self.outbox.condition:
            held = self.outbox.condition.wait_for(lambda: ready() or self.stopped, timeout_s)
        self.outbox.counts.waited_s += time.monotonic() - began
        return bool(held)

    # --- weights ---

    def request(self, versions: Sequence[int | None] | None = None) -> None:
        """Pull these versions from the shards; None: the newest."""
        with self.outbox.condition:
            for shard in range(len(self._shards)):
                self.session.request(shard, None if versions is None else versions[shard])
            self.outbox.condition.notify_all()

    @property
    def resync(self) -> bool:
        """Whether the servers said that this worker must pull again (Sync)."""
        return self.outbox.resync

    def take_resync(self) -> bool:
        """`resync`, once."""
        with self.outbox.condition:
            resync, self.outbox.resync = self.outbox.resync, False
            return resync

    def copy_weights(self, out: torch.Tensor) -> None:
        """Copy the newest weights into `out`, float32 [numel]; what is submitted from now on was computed on them."""
        with self.outbox.condition:
            self._loaded = (tuple(max(0, v) for v in self.inbox.versions), max(self.inbox.histories))
            self.inbox.copy_to(out)

    # --- for Prometheus ---

    def samples(self) -> Iterator[Sample]:
        with self.outbox.condition:
            session, now = self.session, time.monotonic()
            return worker_samples(
                self.outbox.counts, self.inbox.received_bytes, session.unanswered, session.outage(),
                session.buffer_down, now,
            )  # fmt: skip

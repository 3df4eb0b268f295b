"""A server's state outside its memory: checkpoints, snapshots in Redis, and the way back from either.

Who writes: the tail, which holds only what is acknowledged; the head where replicas lag behind on purpose
(`replicateEveryUpdates`). The state is copied under the server's lock, and written by a thread of its own.
A first checkpoint is written before the initial weights are acknowledged: a total loss always finds something.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from outlast import restore_from
from outlast.buffer_types import BufferMisconfigured, BufferUnavailable, redis_maxmemory
from outlast.checkpoint import CheckpointError, CheckpointStore
from outlast.protocol import Entry, Kind

if TYPE_CHECKING:
    from outlast.server import Server

log = logging.getLogger("outlast.durability")

SNAPSHOT_EVERY = 100  # updates between two snapshots in Redis: what a rebuilt server must replay, at most
_REFRESH_S = 1.0
_RETRY_S = 0.05


@dataclass
class _Job:
    label: int
    epoch: int
    history: int
    meta: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    to_redis: bool
    to_disk: bool
    done: Future[dict[str, Any]] | None = None


class Durability:
    """Writes and restores; `applied` is called with the server's lock held, after each entry."""

    def __init__(self, server: Server) -> None:
        self._server = server
        spec, config = server.spec, server.config
        checkpoint = spec.recovery.checkpoint
        self._every, self._every_s, self._keep = checkpoint.every_updates, checkpoint.every_seconds, checkpoint.keep
        self._may_wait = 0 if spec.servers.shards == 1 else 4
        self._exact = spec.training.consistency == "Sync"
        self._stateless = spec.recovery.strategy == "Stateless"
        self._store = CheckpointStore(Path(config.checkpoint_dir), config.job_uid) if config.checkpoint_dir else None
        self._jobs: queue.SimpleQueue[_Job | str] = queue.SimpleQueue()
        self._available: list[dict[str, Any]] = []
        self._last_label = 0
        self._last_snapshot = 0
        self._last_time = time.monotonic()
        self._busy = False
        self._refreshed = 0.0
        self._thread = threading.Thread(target=self._run, name="durability", daemon=True)

    def start(self) -> None:
        self._refresh()
        self._thread.start()

    def available(self) -> list[dict[str, Any]]:
        """Complete, verified checkpoints, newest first."""
        return self._available

    # --- writing ---

    def applied(self, entry: Entry) -> None:
        """Called after every entry with the server's lock held."""
        if entry.kind is Kind.INIT:
            self._first_state()
            return
        # Shards must write the same labels (in Sync: of the same version), however busy one's disk is.
        if not self._writes() or (self._busy and not self._exact and self._jobs.qsize() >= self._may_wait):
            return
        version = entry.version
        to_disk = self._due(version)
        to_redis = self._stateless and version - self._last_snapshot >= min(
            self._every or SNAPSHOT_EVERY, SNAPSHOT_EVERY
        )
        if to_disk or to_redis:
            self._enqueue(self._label(version), to_redis, to_disk, None)

    def _writes(self) -> bool:
        view = self._server.replica.view
        if view is None:
            return False
        writer = view.head if self._server.spec.recovery.chain.replicate_every_updates > 1 else view.tail
        return writer is not None and writer.boot == self._server.boot

    def _due(self, version: int) -> bool:
        if self._store is None:
            return False
        if self._every is not None and self._label(version) > self._last_label:
            return True
        return self._every_s is not None and time.monotonic() - self._last_time >= self._every_s

    def _label(self, version: int) -> int:
        # Shards of one set must agree on its name, and grouped updates step over exact multiples.
        return version if self._every is None else version // self._every * self._every

    def _first_state(self) -> None:
        if self._writes():
            job = self._job(0, self._stateless, self._store is not None, None)
            if self._stateless and not self._has_room(job):
                return
            while (saved := self._write(job)).get("away"):
                time.sleep(_RETRY_S)  # Redis dies and comes back: nothing is acknowledged meanwhile
            if "error" in saved:  # later failures leave older states; this one leaves a job that could lose everything
                self._server.fail(f"the initial state cannot be kept: {saved['error']}")
        self._last_label = self._last_snapshot = 0

    def _has_room(self, job: _Job) -> bool:
        """A log that can fill Redis up leaves no room for the snapshot that would empty it."""
        server = self._server
        assert server.log_reader.log is not None
        snapshot = sum(t.numel() * t.element_size() for t in job.tensors.values()) * server.spec.servers.shards
        needed = redis_maxmemory(server.spec.recovery.buffer.max_bytes, snapshot, slack_bytes=0)
        try:
            limit = server.log_reader.log.max_memory()
        except BufferUnavailable:
            return True  # what follows waits for it
        too_small = 0 < limit < needed
        if too_small:
            server.fail(
                f"Redis may use {limit} bytes (its maxmemory), but recovery.buffer.maxBytes and two snapshots of this "
                f"model take {needed}; raise maxmemory to that and some slack, or lower maxBytes"
            )
        return not too_small

    def _job(self, label: int, to_redis: bool, to_disk: bool, done: Future[dict[str, Any]] | None) -> _Job:
        server = self._server
        view = server.replica.view
        epoch = 0 if view is None else view.epoch
        meta, tensors = server.export()
        return _Job(label, epoch, int(meta["replica"]["history"]), meta, tensors, to_redis, to_disk, done)

    def _enqueue(self, label: int, to_redis: bool, to_disk: bool, done: Future[dict[str, Any]] | None) -> None:
        job = self._job(label, to_redis, to_disk, done)
        self._busy = True
        if to_disk:
            self._last_label, self._last_time = label, time.monotonic()
        if to_redis:
            self._last_snapshot = int(job.meta["replica"]["version"])
        self._jobs.put(job)

    def save_and_wait(self, why: str, label: int | None = None) -> dict[str, Any]:
        """Write what we hold now, everywhere this job keeps state. Returns {"version"} or {"error"}.

        `label` names the set: asynchronous shards differ by some updates, and must agree on a name.
        """
        server = self._server
        done: Future[dict[str, Any]] = Future()
        with server.lock:
            if server.parameters is None or not server.replica.status()["initialised"]:
                return {"error": "there is nothing to save yet"}
            version = server.parameters.version
            if self._store is None and not self._stateless:
                return {"error": "this job keeps no checkpoints (recovery.checkpoint has no place to write to)"}
            history = int(server.replica.status()["history"])
            label = version if label is None else label
            known = any(c["version"] == label and c["history"] == history for c in self._available)
            if known and not self._stateless:
                return {"version": version}  # requests repeat
            log.info("saving version %d: %s", version, why)
            self._enqueue(label, self._stateless, self._store is not None, done)
        return done.result(timeout=60.0)

    def snapshot_soon(self) -> bool:
        """Begin a snapshot in Redis (lock held). False: another is under way."""
        if self._busy:
            return False
        self._enqueue(self._label(self._server.replica.version), True, False, None)
        return True

    def snapshot_now(self) -> None:
        """Redis lost its data, or is new: give it a snapshot before anything else is published (lock held)."""
        self._write(self._job(0, True, False, None))

    def _run(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=_REFRESH_S)
            except queue.Empty:
                self._refresh()
                continue
            if isinstance(job, str):
                self._restore(job)
                continue
            self._write(job)
            self._busy = not self._jobs.empty()

    def _write(self, job: _Job) -> dict[str, Any]:
        """Save what the job asks for. Never raises: {"version"}, or {"error"}."""
        result: dict[str, Any] = {"version": int(job.meta["replica"]["version"])}
        server = self._server
        try:
            if job.to_redis:
                gradient_log = server.log_reader.log
                assert gradient_log is not None
                meta = {**job.meta["replica"], "server": job.meta}
                server.log_reader.claim_if_needed(job.epoch, job.history)
                if gradient_log.save_snapshot(server.shard, job.epoch, meta, job.tensors):
                    server.log_reader.trim_to(int(job.meta["replica"]["offset"]))
            if job.to_disk and self._store is not None:
                shards = server.spec.servers.shards
                meta = {**job.meta, "range": [job.meta["initial"]["start"], job.meta["initial"]["stop"]]}
                self._store.write_part(server.shard, shards, job.history, job.epoch, job.label, job.tensors, meta)
                self._store.prune(self._keep, job.epoch, server.shard)
                self._refresh(force=True)
        except (CheckpointError, OSError, RuntimeError) as error:
            log.error("state of version %d was not saved: %s", result["version"], error)
            result = {"error": str(error), "away": isinstance(error, BufferUnavailable)}
            if job.to_redis:
                self._last_snapshot = 0  # due again: a full log is trimmed by nothing else
                server.log_reader.snapshot_failed()
        if job.done is not None:
            job.done.set_result(result)
        return result

    def _refresh(self, force: bool = False) -> None:
        if self._store is None or (not force and time.monotonic() - self._refreshed < _REFRESH_S):
            return
        self._refreshed = time.monotonic()
        found = self._store.list_complete(self._server.shard)
        available = [{"name": c.name, "history": c.history, "version": c.version} for c in found]
        if available != self._available:
            self._available = available
            self._server.notify()

    # --- the way back ---

    def restore_later(self, source: str) -> None:
        """Load `source` ("buffer", or a checkpoint's name) on this class's thread, then step(Restored)."""
        if source == "buffer":
            self._server.log_reader.rebuild_later()
        self._jobs.put(source)

    def _restore(self, source: str) -> None:
        server = self._server
        started = time.monotonic()
        try:
            if source == "buffer":
                server.log_reader.restore_from_log()
            else:
                tensors, meta = self._read(source)
                self._last_label = int(meta["replica"]["version"])
                server.take_over(meta, tensors, source=source)
        except BufferMisconfigured as error:
            server.fail(str(error))
        except (CheckpointError, OSError, RuntimeError, ValueError, KeyError) as error:
            log.error("cannot restore %s: %s", source, error)
            server.restore_error = f"{source}: {error}"
        else:
            server.restore_error = None
            log.info("restored %s in %.3f s", source, time.monotonic() - started)
        if source == "buffer":
            server.log_reader.rebuilt()
        server.notify()

    def _read(self, source: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        server, spec = self._server, self._server.spec
        if not restore_from.is_own(source):
            return restore_from.read(source, server.shard, spec.servers.shards, spec.workers.replicas)
        assert self._store is not None, "a view names a checkpoint, but this server has no checkpoint_dir"
        return self._store.read_part(source, server.shard)

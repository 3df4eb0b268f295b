"""A server's state outside its memory: checkpoints, snapshots in Redis, and the way back from either.

`SaveSchedule` decides when, and which member. The state is copied under the server's lock, and written by a thread of
its own. A first checkpoint is written before the initial weights are acknowledged: a total loss always finds something.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch

from outlast.api.config import ProcessConfig
from outlast.api.server_status import CheckpointRef
from outlast.api.view import BUFFER
from outlast.buffer.types import BufferMisconfigured, BufferUnavailable, Fenced, redis_maxmemory
from outlast.chain.events import Entry, Kind
from outlast.checkpoint import restore as restore_from
from outlast.checkpoint.last import NAME, LastStates
from outlast.checkpoint.own import OwnParts
from outlast.checkpoint.schedule import Due, SaveSchedule
from outlast.checkpoint.store import CheckpointError, CheckpointStore
from outlast.server.checkpoint_peers import CheckpointPeers
from outlast.server.core import Core
from outlast.server.rebuild import Rebuild
from outlast.server.shard_log import ShardLog

log = logging.getLogger("outlast.durability")

_REFRESH_S = 1.0


@dataclass
class _Job:
    label: int
    epoch: int
    history: int
    meta: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    to_redis: bool
    to_disk: bool  # a part of a set
    last: bool = False  # the state that only our successor goes on from
    done: Future[dict[str, Any]] | None = None


@dataclass
class _Restore:
    source: str  # "buffer", or a checkpoint's name
    history: int  # of the view that asked for it


def _store(config: ProcessConfig, shards: int) -> CheckpointStore | None:
    if config.checkpoint_dir is None:
        return None
    kind = OwnParts if config.own_checkpoint_dir else CheckpointStore
    return kind(config.checkpoint_dir, config.job_uid)


class Durability:
    """Writes and restores in a thread of its own; the core's port for both."""

    def __init__(self, core: Core, config: ProcessConfig, shard_log: ShardLog | None) -> None:
        self._core = core
        spec = core.spec
        shards = spec.servers.shards
        self._keep = spec.recovery.checkpoint.keep
        self._store = _store(config, shards)
        self._schedule = SaveSchedule(spec, core.boot, self._store is not None, self.own_parts is not None)
        self._log = shard_log
        self._rebuild = None if shard_log is None else Rebuild(core, shard_log, self)
        self._peers = CheckpointPeers(config, spec.recovery.failover.timeout_seconds)
        self._lacks_parts = False  # it joined, and its directory may lack what the others' hold
        self._last_states: LastStates | None = None
        if self._store is not None:
            self._last_states = LastStates(self._store.directory, config.shard, shards)
        self.last_states: tuple[str, ...] = ()  # of our shard, verified
        self.available: tuple[CheckpointRef, ...] = ()  # complete, verified; newest first
        self.restore_error: str | None = None
        self._jobs: queue.SimpleQueue[_Job | _Restore] = queue.SimpleQueue()
        self._first: _Job | None = None  # the initial state, until it is saved
        self._busy = False
        self._refreshed = 0.0
        self._thread = threading.Thread(target=self._run, name="durability", daemon=True)

    def start(self) -> None:
        self._refresh()
        self._thread.start()

    # --- writing ---

    def applied(self, entry: Entry) -> None:
        """Raises `BufferUnavailable` where the initial state must be in Redis, and is not yet."""
        if entry.kind is Kind.INIT:
            self._first_state()
            return
        waiting = self._jobs.qsize() if self._busy else None
        due = self._schedule.next(entry.version, self._core.replica.view, waiting, time.monotonic())
        if due is not None:
            self._enqueue(due, None)

    def _first_state(self) -> None:
        due = self._schedule.first(self._core.replica.view)
        if due is not None:
            if self._first is None:
                self._first = self._job(due, None)
            job, self._first = self._first, None
            if not self._has_room(job):
                return
            saved = self._write(job)
            if saved.get("away"):
                self._first = job  # nothing is acknowledged meanwhile
                raise BufferUnavailable(saved["error"])
            if "error" in saved and not saved["fenced"]:
                # Later failures leave older states; this one leaves a job that could lose everything.
                self._core.fail(f"the initial state cannot be kept: {saved['error']}")
        self._schedule.holds_first()

    def _has_room(self, job: _Job) -> bool:
        """A log that can fill Redis up leaves no room for the snapshot that would empty it."""
        if not job.to_redis or self._log is None:
            return True
        spec = self._core.spec
        snapshot = sum(t.numel() * t.element_size() for t in job.tensors.values()) * spec.servers.shards
        needed = redis_maxmemory(spec.recovery.buffer.max_bytes, snapshot, slack_bytes=0)
        try:
            limit = self._log.log.max_memory()
        except BufferUnavailable:
            return True  # what follows waits for it
        too_small = 0 < limit < needed
        if too_small:
            self._core.fail(
                f"Redis may use {limit} bytes (its maxmemory), but recovery.buffer.maxBytes and two snapshots of this "
                f"model take {needed}; raise maxmemory to that and some slack, or lower maxBytes"
            )
        return not too_small

    def _job(self, due: Due, done: Future[dict[str, Any]] | None) -> _Job:
        meta, tensors = self._core.export()
        epoch, history = self._core.replica.epoch, int(meta["replica"]["history"])
        return _Job(due.label, epoch, history, meta, tensors, due.to_redis, due.to_disk, done=done)

    def _enqueue(self, due: Due, done: Future[dict[str, Any]] | None) -> None:
        job = self._job(due, done)
        self._busy = True
        self._schedule.begins(due, self._core.replica.version, time.monotonic())
        self._jobs.put(job)

    def save_and_wait(self, why: str, label: int | None = None, patience_s: float = 60.0) -> dict[str, Any]:
        """Write what we hold now, everywhere this job keeps state. Returns {"version"} or {"error"}.

        `label` names the set: asynchronous shards differ by some updates, and must agree on a name.
        """
        replica = self._core.replica
        done: Future[dict[str, Any]] = Future()
        with self._core.lock:
            if not replica.initialised:
                return {"error": "there is nothing to save yet"}
            version, history = replica.version, replica.history
            if self._store is None and not self._schedule.stateless:
                return {"error": "this job keeps no checkpoints (recovery.checkpoint has no place to write to)"}
            due = self._schedule.asked(version if label is None else label, history, self.available)
            if due is None:
                return {"version": version}  # requests repeat
            log.info("saving version %d: %s", version, why)
            self._enqueue(due, done)
        return _result(done, patience_s)

    def save_last_and_wait(self, patience_s: float) -> dict[str, Any]:
        """Write what only our successor goes on from: no replacement has come. Nothing may be acknowledged any more."""
        if self._schedule.stateless or self._last_states is None:
            return self.save_and_wait("leaving as the last member", patience_s=patience_s)  # Redis holds the state
        done: Future[dict[str, Any]] = Future()
        with self._core.lock:
            version = self._core.replica.version
            log.info("saving version %d for a successor", version)
            job = self._job(Due(version, to_redis=False, to_disk=False), done)
            job.last = True
            self._jobs.put(job)
        return _result(done, patience_s)

    def snapshot_soon(self) -> bool:
        if self._busy:
            return False
        self._enqueue(Due(self._core.replica.version, to_redis=True, to_disk=False), None)
        return True

    def snapshot_now(self) -> None:
        saved = self._write(self._job(Due(0, to_redis=True, to_disk=False), None))
        if "error" in saved:
            raise (Fenced if saved["fenced"] else BufferUnavailable)(saved["error"])

    def _run(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=_REFRESH_S)
            except queue.Empty:
                self._fill_directory()
                self._refresh()
                continue
            if isinstance(job, _Restore):
                self._restore(job)
                continue
            self._write(job)
            self._busy = not self._jobs.empty()
            if not self._busy:
                self._schedule.kept_up()

    def _write(self, job: _Job) -> dict[str, Any]:
        """Save what the job asks for. Never raises: {"version"}, or {"error"}."""
        result: dict[str, Any] = {"version": int(job.meta["replica"]["version"])}
        core = self._core
        try:
            if job.to_redis and self._log is not None:
                self._log.save_snapshot(job.epoch, job.meta, job.tensors)
            if job.last and self._last_states is not None:
                self._last_states.write(core.boot, job.epoch, job.tensors, job.meta)
            if job.to_disk and self._store is not None:
                shards, initial = core.spec.servers.shards, job.meta["initial"]
                meta = {**job.meta, "range": [initial["start"], initial["stop"]]}
                self._store.write_part(core.shard, shards, job.history, job.epoch, job.label, job.tensors, meta)
                self._prune(job.epoch)
                self._refresh(force=True)
        except (CheckpointError, OSError, RuntimeError) as error:
            log.error("state of version %d was not saved: %s", result["version"], error)
            fenced = isinstance(error, Fenced)
            away = isinstance(error, BufferUnavailable) and not fenced
            result = {"error": str(error), "away": away, "fenced": fenced}
            if job.to_redis and self._log is not None:
                self._schedule.snapshot_failed()
                self._log.snapshot_failed()
        if job.done is not None:
            job.done.set_result(result)
        return result

    def _prune(self, epoch: int) -> None:
        shard = self._core.shard
        if self.own_parts is not None:
            self.own_parts.prune_own(self._keep, epoch, shard, self._peers.sets_elsewhere())
        elif self._store is not None:
            self._store.prune(self._keep, epoch, shard)

    def look(self) -> None:
        """Look at the directory at once, not at its time."""
        self._refresh(force=True)

    def _refresh(self, force: bool = False) -> None:
        if self._store is None or (not force and time.monotonic() - self._refreshed < _REFRESH_S):
            return
        self._refreshed = time.monotonic()
        available = tuple(self._store.held(self._core.shard))
        last_states = tuple(self._last_states.available()) if self._last_states is not None else ()
        if (available, last_states) != (self.available, self.last_states):
            self.available, self.last_states = available, last_states
            self._core.notify()

    @property
    def own_parts(self) -> OwnParts | None:
        return self._store if isinstance(self._store, OwnParts) else None

    def took_over(self, version: int, from_peer: bool) -> None:
        self._schedule.holds(version)
        self._lacks_parts = from_peer

    def _fill_directory(self) -> None:
        store = self.own_parts
        if store is not None and self._lacks_parts and self._peers.fill(store, self._keep):
            self._lacks_parts = False
            self._refresh(force=True)

    # --- the way back ---

    def restore_later(self, source: str) -> None:
        self.restore_error = None  # of another source
        self._jobs.put(_Restore(source, self._core.history))

    def _restore(self, job: _Restore) -> None:
        core, source = self._core, job.source
        started = time.monotonic()
        try:
            if source == BUFFER and self._rebuild is not None:
                self._rebuild.run()
            else:
                tensors, meta = self.read(source)
                core.take_over(meta, tensors, source=source)
        except BufferMisconfigured as error:
            core.fail(str(error))
        except (CheckpointError, OSError, RuntimeError, ValueError, KeyError) as error:
            log.error("cannot restore %s: %s", source, error)
            with core.lock:
                if core.history == job.history:  # else a newer view has rolled it back
                    self.restore_error = f"{source}: {error}"
        else:
            self.restore_error = None
            log.info("restored %s in %.3f s", source, time.monotonic() - started)
        if source == BUFFER:
            core.rebuilt()
            if self._log is not None:
                self._log.wake.set()
        core.notify()

    def read(self, source: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        shard, spec = self._core.shard, self._core.spec
        if NAME.fullmatch(source) and self._last_states is not None:
            return self._last_states.read(source)
        if not restore_from.is_own(source):
            return restore_from.read(source, shard, spec.servers.shards, spec.workers.replicas)
        assert self._store is not None, "a view names a checkpoint, but this server has no checkpoint_dir"
        return self._store.read_part(source, shard)


def _result(done: Future[dict[str, Any]], patience_s: float) -> dict[str, Any]:
    try:
        return done.result(timeout=patience_s)
    except TimeoutError:
        return {"error": f"the checkpoint was not written within {patience_s:.0f} s; look at its volume"}

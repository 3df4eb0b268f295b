"""A server's state outside its memory: checkpoints, snapshots in Redis, and the way back from either.

Who writes: where servers share a directory, the tail, which holds only what is acknowledged (the head where replicas
lag behind on purpose, `replicateEveryUpdates`); where each has one of its own, every member, so that no checkpoint
lies in one place only. The state is copied under the server's lock, and written by a thread of its own.
A first checkpoint is written before the initial weights are acknowledged: a total loss always finds something.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from outlast.api.config import ProcessConfig
from outlast.buffer.types import BufferMisconfigured, BufferUnavailable, Fenced, redis_maxmemory
from outlast.chain.events import Entry, Kind
from outlast.checkpoint import restore as restore_from
from outlast.checkpoint.last import NAME, LastStates
from outlast.checkpoint.own import OwnParts
from outlast.checkpoint.schedule import CheckpointSchedule
from outlast.checkpoint.store import CheckpointError, CheckpointStore
from outlast.server.checkpoint_peers import CheckpointPeers

if TYPE_CHECKING:
    from outlast.server.main import Server

log = logging.getLogger("outlast.durability")

SNAPSHOT_EVERY = 100  # updates between two snapshots in Redis: what a rebuilt server must replay, at most
_REFRESH_S = 1.0
_RETRY_S = 0.05
_MAY_WAIT = 4  # parts, where shards must write the same labels; one shard alone writes what its volume has time for


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
    """Writes and restores; `applied` is called with the server's lock held, after each entry."""

    def __init__(self, server: Server) -> None:
        self._server = server
        spec, config = server.spec, server.config
        checkpoint = spec.recovery.checkpoint
        shards = spec.servers.shards
        self._every, self._keep = checkpoint.every_updates, checkpoint.keep
        self._schedule = CheckpointSchedule(checkpoint.every_updates, checkpoint.every_seconds, shards)
        self._may_wait = 0 if shards == 1 else _MAY_WAIT
        self._stateless = spec.traits.through_buffer
        self._store = _store(config, shards)
        self._peers = CheckpointPeers(config, spec.recovery.failover.timeout_seconds)
        self._lacks_parts = False  # it joined, and its directory may lack what the others' hold
        self._last_states: LastStates | None = None
        if self._store is not None:
            self._last_states = LastStates(self._store.directory, config.shard, spec.servers.shards)
        self.last_states: list[str] = []  # of our shard, verified
        self._jobs: queue.SimpleQueue[_Job | _Restore] = queue.SimpleQueue()
        self._available: list[dict[str, Any]] = []
        self._last_snapshot = 0
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
        version = entry.version
        label = self._schedule.next_label(version, time.monotonic())
        if not self._writes():
            return
        to_disk = label is not None and self._store is not None
        if self._busy and self._jobs.qsize() >= self._may_wait:
            if to_disk:
                self._schedule.skipped()
            return
        to_redis = self._stateless and version - self._last_snapshot >= min(
            self._every or SNAPSHOT_EVERY, SNAPSHOT_EVERY
        )
        if to_disk or to_redis:
            self._enqueue(version if label is None else label, to_redis, to_disk, None)

    def _history(self) -> int:
        """Of the view (lock held)."""
        view = self._server.replica.view
        return 0 if view is None else view.history

    def _writes(self) -> bool:
        view, server = self._server.replica.view, self._server
        if view is None:
            return False
        if self.own_parts is not None:
            return view.position(server.boot) is not None
        writer = view.head if server.spec.recovery.chain.replicate_every_updates > 1 else view.tail
        return writer is not None and writer.boot == server.boot

    def _first_state(self) -> None:
        if self._writes():
            job = self._job(0, self._stateless, self._store is not None, None)
            if self._stateless and not self._has_room(job):
                return
            while (saved := self._write(job)).get("away"):
                time.sleep(_RETRY_S)  # Redis dies and comes back: nothing is acknowledged meanwhile
            if "error" in saved and not saved["fenced"]:
                # Later failures leave older states; this one leaves a job that could lose everything.
                self._server.fail(f"the initial state cannot be kept: {saved['error']}")
        self._schedule.holds(0)
        self._last_snapshot = 0

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
        return _Job(label, epoch, int(meta["replica"]["history"]), meta, tensors, to_redis, to_disk, done=done)

    def _enqueue(self, label: int, to_redis: bool, to_disk: bool, done: Future[dict[str, Any]] | None) -> None:
        job = self._job(label, to_redis, to_disk, done)
        self._busy = True
        if to_disk:
            self._schedule.written(time.monotonic())
        if to_redis:
            self._last_snapshot = int(job.meta["replica"]["version"])
        self._jobs.put(job)

    def save_and_wait(self, why: str, label: int | None = None, patience_s: float = 60.0) -> dict[str, Any]:
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
        return _result(done, patience_s)

    def save_last_and_wait(self, patience_s: float) -> dict[str, Any]:
        """Write what only our successor goes on from: no replacement has come. Nothing may be acknowledged any more."""
        if self._stateless or self._last_states is None:
            return self.save_and_wait("leaving as the last member", patience_s=patience_s)  # Redis holds the state
        done: Future[dict[str, Any]] = Future()
        with self._server.lock:
            log.info("saving version %d for a successor", self._server.replica.version)
            job = self._job(self._server.replica.version, False, False, done)
            job.last = True
            self._jobs.put(job)
        return _result(done, patience_s)

    def snapshot_soon(self) -> bool:
        """Begin a snapshot in Redis (lock held). False: another is under way."""
        if self._busy:
            return False
        self._enqueue(self._server.replica.version, True, False, None)
        return True

    def snapshot_now(self) -> bool:
        """Give Redis, which lost its data or is new, a snapshot (lock held). False: not yet. Raises `Fenced`."""
        saved = self._write(self._job(0, True, False, None))
        if saved.get("fenced"):
            raise Fenced(saved["error"])
        return "error" not in saved

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
        server = self._server
        try:
            if job.to_redis:
                gradient_log = server.log_reader.log
                assert gradient_log is not None
                meta = {**job.meta["replica"], "server": job.meta}
                run = server.log_reader.claim_if_needed(job.epoch, job.history)
                if not gradient_log.save_snapshot(server.shard, job.epoch, meta, job.tensors):
                    raise Fenced(f"a higher epoch than {job.epoch} has claimed the log; waiting for the next view")
                server.log_reader.holds_snapshot(job.history, run)
                server.log_reader.trim_to(int(job.meta["replica"]["offset"]))
            if job.last and self._last_states is not None:
                self._last_states.write(server.boot, job.epoch, job.tensors, job.meta)
            if job.to_disk and self._store is not None:
                shards = server.spec.servers.shards
                meta = {**job.meta, "range": [job.meta["initial"]["start"], job.meta["initial"]["stop"]]}
                self._store.write_part(server.shard, shards, job.history, job.epoch, job.label, job.tensors, meta)
                self._prune(job.epoch)
                self._refresh(force=True)
        except (CheckpointError, OSError, RuntimeError) as error:
            log.error("state of version %d was not saved: %s", result["version"], error)
            fenced = isinstance(error, Fenced)
            away = isinstance(error, BufferUnavailable) and not fenced
            result = {"error": str(error), "away": away, "fenced": fenced}
            if job.to_redis:
                self._last_snapshot = 0  # due again: a full log is trimmed by nothing else
                server.log_reader.snapshot_failed()
        if job.done is not None:
            job.done.set_result(result)
        return result

    def _prune(self, epoch: int) -> None:
        shard = self._server.shard
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
        available = [part.to_json() for part in self._store.held(self._server.shard)]
        last_states = self._last_states.available() if self._last_states is not None else []
        if (available, last_states) != (self._available, self.last_states):
            self._available, self.last_states = available, last_states
            self._server.notify()

    @property
    def own_parts(self) -> OwnParts | None:
        return self._store if isinstance(self._store, OwnParts) else None

    def took_over(self, version: int, from_peer: bool) -> None:
        """The server holds another state now, of this version (lock held)."""
        self._schedule.holds(version)
        self._lacks_parts = from_peer

    def _fill_directory(self) -> None:
        store = self.own_parts
        if store is not None and self._lacks_parts and self._peers.fill(store, self._keep):
            self._lacks_parts = False
            self._refresh(force=True)

    # --- the way back ---

    def restore_later(self, source: str) -> None:
        """Load `source` ("buffer", or a checkpoint's name) on this class's thread, then step(Restored)."""
        self._server.restore_error = None  # of another source
        if source == "buffer":
            self._server.log_reader.rebuild_later()
        self._jobs.put(_Restore(source, self._history()))

    def _restore(self, job: _Restore) -> None:
        server, source = self._server, job.source
        started = time.monotonic()
        try:
            if source == "buffer":
                server.log_reader.restore_from_log()
            else:
                tensors, meta = self.read(source)
                server.take_over(meta, tensors, source=source)
        except BufferMisconfigured as error:
            server.fail(str(error))
        except (CheckpointError, OSError, RuntimeError, ValueError, KeyError) as error:
            log.error("cannot restore %s: %s", source, error)
            with server.lock:
                if self._history() == job.history:  # else a newer view has rolled it back
                    server.restore_error = f"{source}: {error}"
        else:
            server.restore_error = None
            log.info("restored %s in %.3f s", source, time.monotonic() - started)
        if source == "buffer":
            server.log_reader.rebuilt()
        server.notify()

    def read(self, source: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        server, spec = self._server, self._server.spec
        if NAME.fullmatch(source) and self._last_states is not None:
            return self._last_states.read(source)
        if not restore_from.is_own(source):
            return restore_from.read(source, server.shard, spec.servers.shards, spec.workers.replicas)
        assert self._store is not None, "a view names a checkpoint, but this server has no checkpoint_dir"
        return self._store.read_part(source, server.shard)


def _result(done: Future[dict[str, Any]], patience_s: float) -> dict[str, Any]:
    try:
        return done.result(timeout=patience_s)
    except TimeoutError:
        return {"error": f"the checkpoint was not written within {patience_s:.0f} s; look at its volume"}

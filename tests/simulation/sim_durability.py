"""A server's state outside its memory: checkpoints, snapshots and records in Redis; and the reader of the log."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from network import Step, Wait
from stores import State

from outlast.api.view import BUFFER, EMPTY, View, last_state_name
from outlast.buffer.types import BufferUnavailable, ClaimNeeded, EntryMissing, LogItem, SnapshotNeeded
from outlast.chain.events import Contribution, Entry, FromLog, Kind, Record, Replay, Restored
from outlast.checkpoint.schedule import CheckpointSchedule
from outlast.server.rebuild import NoSnapshot, belongs_to, without_snapshot

if TYPE_CHECKING:
    from sim_server import SimServer

REFRESH_S = 1.0
RETRY_S = 0.05
MAY_WAIT = 4
IDLE_S = 0.1
GROUP = 8


@dataclass
class Job:
    label: int
    epoch: int
    state: State
    to_redis: bool
    to_disk: bool
    done: bool = False


@dataclass
class Restore:
    source: str
    history: int


class Durability:
    """Writes and restores, in a task of its own."""

    def __init__(self, server: SimServer) -> None:
        self._server = server
        recovery = server.spec.recovery
        self._every, self._keep = recovery.checkpoint.every_updates, recovery.checkpoint.keep
        self._stateless = server.spec.traits.through_buffer
        self._own = server.world.scenario.own_directories
        self._lacks_parts = False
        self._schedule = CheckpointSchedule(self._every, None, server.spec.servers.shards)
        self._jobs: deque[Job | Restore] = deque()
        # A set needs a part of every shard under one label: several shards keep a due one waiting rather than miss it.
        self._may_wait = MAY_WAIT if server.spec.servers.shards > 1 else 1
        self.available: list[dict[str, Any]] = []
        self._last_snapshot = 0
        self._busy = False
        self.replaying = False

    # --- writing ---

    def applied(self, entry: Entry) -> None:
        if entry.kind is Kind.INIT:
            self._first_state()
            return
        label = self._schedule.next_label(entry.version, self._server.now)
        if not self._writes():
            return
        if len(self._jobs) >= self._may_wait:
            if label is not None:
                self._schedule.skipped()
            return
        to_redis = self._stateless and entry.version - self._last_snapshot >= (self._every or 100)
        if label is not None or to_redis:
            self._enqueue(entry.version if label is None else label, to_redis, label is not None)

    def _history(self) -> int:
        view = self._server.replica.view
        return 0 if view is None else view.history

    def _writes(self) -> bool:
        view, chain = self._server.replica.view, self._server.spec.recovery.chain
        if self._own:
            return view is not None and view.position(self._server.boot) is not None
        writer = None if view is None else view.head if chain.replicate_every_updates > 1 else view.tail
        return writer is not None and writer.boot == self._server.boot

    def _first_state(self) -> None:
        """Before the initial weights are acknowledged, under the lock."""
        if self._writes():
            job = self._job(0, self._stateless, True)
            self._to_disk(job)
            if self._stateless:
                self.snapshot_now()
        self._schedule.holds(0)
        self._last_snapshot = 0

    def took_over(self, version: int, from_peer: bool) -> None:
        self._schedule.holds(version)
        self._lacks_parts = from_peer

    def _fill_directory(self) -> None:
        """Copy what the fellows hold."""
        server, store = self._server, self._server.world.checkpoints
        if not (self._own and self._lacks_parts):
            return
        for fellow in server.world.servers():
            if fellow.shard != server.shard or fellow is server or server.network.is_cut(server.name, fellow.name):
                continue
            for part in fellow.durability.available[: self._keep]:
                found = store.of(fellow.name).get(part["name"])
                if found is not None:
                    epoch, state = found.parts[server.shard]
                    store.write_part(server.name, server.shard, found.history, epoch, found.version, state, server.now)
                    self._lacks_parts = False

    def snapshot_later(self) -> None:
        """Before it is due."""
        if not self._busy and self._server.replica.version > self._last_snapshot:
            self._enqueue(self._server.replica.version, to_redis=True, to_disk=False)

    def _job(self, label: int, to_redis: bool, to_disk: bool) -> Job:
        return Job(label, self._server.replica.epoch, self._server.export(), to_redis, to_disk)

    def _enqueue(self, label: int, to_redis: bool, to_disk: bool) -> Job:
        job = self._job(label, to_redis, to_disk)
        self._busy = True
        if to_redis:
            self._last_snapshot = job.state.replica["version"]
        self._jobs.append(job)
        self._server.wake()
        return job

    def save_and_wait(self, label: int | None = None) -> Step:
        """Write what we hold now, everywhere this job keeps state; `label` names the set, for all shards."""
        server = self._server
        if not server.replica.initialised or server.parameters is None:
            return
        job = self._enqueue(server.parameters.version if label is None else label, self._stateless, True)
        yield Wait(lambda: job.done, server.now + 60.0)

    def save_last_and_wait(self) -> Step:
        """Write what only our successor goes on from."""
        server = self._server
        if self._stateless:
            yield from self.save_and_wait()
            return
        state = server.export()
        yield Wait(None, server.now + server.rng.uniform(0.002, 0.02))
        name = last_state_name(server.shard, server.boot)
        server.world.checkpoints.last_states_of(server.name)[name] = state

    def last_states(self) -> list[str]:
        prefix = last_state_name(self._server.shard, "")
        found = self._server.world.checkpoints.last_states_of(self._server.name)
        return [name for name in found if name.startswith(prefix)]

    def snapshot_now(self) -> bool:
        """Under the lock. False: Redis is away. Fenced is as good as saved: nothing of ours counts any more."""
        server = self._server
        job = self._job(0, True, False)
        try:
            if server.log_reader.claim_now():
                self._save(job)
        except (BufferUnavailable, ClaimNeeded):
            return False
        return True

    def _save(self, job: Job) -> None:
        server = self._server
        state, meta = job.state, {**job.state.replica, "server": job.state}
        saved = server.world.redis.call_now(
            server, lambda m: m.save_snapshot(server.shard, job.epoch, meta, {"records": state.records})
        )
        if saved:
            server.log_reader.holds_snapshot(int(job.state.replica["history"]))
            server.log_reader.trim_to(int(job.state.replica["offset"]))

    def run(self) -> Step:
        server = self._server
        self._refresh()
        while True:
            if not (yield Wait(lambda: self._jobs, server.now + REFRESH_S)):
                self._fill_directory()
                self._refresh()
                continue
            job = self._jobs.popleft()
            if isinstance(job, Restore):
                yield from self._restore(job)
                continue
            slow = server.rng.random() < 0.1
            yield Wait(None, server.now + server.rng.uniform(0.002, 0.5 if slow else 0.02))
            if job.to_redis:
                try:
                    yield from server.log_reader.claim_if_needed(job.epoch)
                    self._save(job)
                except (BufferUnavailable, ClaimNeeded) as error:
                    server.world.trace(server.name, "no snapshot:", error)
                    self._last_snapshot = 0  # at the next opportunity
            if job.to_disk:
                self._to_disk(job)
            job.done = True
            self._busy = bool(self._jobs)
            if not self._busy:
                self._schedule.kept_up()

    def _to_disk(self, job: Job) -> None:
        server = self._server
        store, history = server.world.checkpoints, int(job.state.replica["history"])
        store.write_part(server.name, server.shard, history, job.epoch, job.label, job.state, server.now)
        store.prune(server.name, self._keep, job.epoch, server.shard)
        self._refresh()

    def _refresh(self) -> None:
        available = self._server.world.checkpoints.held(self._server.name, self._server.shard)
        if available != self.available:
            self.available = available
            self._server.notify()

    # --- the way back ---

    def restore_later(self, source: str) -> None:
        self._server.restore_error = None
        self._jobs.append(Restore(source, self._history()))
        self._server.wake()

    def _restore(self, job: Restore) -> Step:
        server, source = self._server, job.source
        yield Wait(None, server.now + server.rng.uniform(0.005, 0.1))
        try:
            if source == "buffer":
                yield from self._from_log()
            else:
                self._from_disk(source, source)
        except (EntryMissing, NoSnapshot, ValueError, KeyError) as error:
            if self._history() == job.history:
                server.restore_error = f"{source}: {error}"
            server.world.trace(server.name, "cannot restore", f"{source}: {error}")
        else:
            server.restore_error = None
        server.notify()

    def _from_disk(self, name: str, source: str) -> None:
        server = self._server
        last = server.world.checkpoints.last_states_of(server.name).get(name)
        if last is not None:
            server.take_over(last, source=source)
            return
        found = server.world.checkpoints.of(server.name).get(name)
        if found is None:
            raise KeyError(f"{name} is gone")
        state = found.parts[server.shard][1]
        server.take_over(state, source=source)

    def _from_log(self) -> Step:
        """Snapshot, then the records after it, obeyed."""
        server = self._server
        redis, shard = server.world.redis, server.shard
        while True:
            view = server.replica.view
            assert view is not None
            try:
                yield from server.log_reader.claim_if_needed(view.epoch)
                loaded = yield from redis.call(server, lambda m: m.load_snapshot(shard))
                if loaded is None or not belongs_to(loaded[0], view.history):
                    self._without_snapshot(view)
                    return
                server.log_reader.holds_snapshot(view.history)
                yield from self._replay_all(loaded[0]["server"])
                return
            except (BufferUnavailable, ClaimNeeded) as error:
                server.world.trace(server.name, "restoring:", error)
                yield Wait(None, server.now + RETRY_S)

    def _without_snapshot(self, view: View) -> None:
        server = self._server
        self._refresh()
        source = without_snapshot(view, self.available)
        if source == EMPTY:
            server.step(Restored(0, 0, 0, {}, server.replica.data, source=BUFFER))
        else:
            self._from_disk(source, BUFFER)

    def _replay_all(self, state: State) -> Step:
        server = self._server
        redis, shard, seq = server.world.redis, server.shard, int(state.replica["seq"])
        records = yield from redis.call(server, lambda m: m.records(shard, seq))
        items: dict[int, tuple[LogItem, Any]] = {}
        if records:
            found = yield from redis.call(server, lambda m: [(i, m.fetch(shard, i)) for i in m.read(shard, 0, 1 << 30)])
            items = {item.offset: (item, payload) for item, payload in found}
        if not server.take_over(state, source="buffer"):
            return
        for record in records:
            wanted = [items[offset] for offset, _ in record.parts if offset in items]
            contributions = tuple((i.offset, i.incarnation, i.contribution(p)) for i, p in wanted)
            server.step(Replay(record, contributions))


class LogReader:
    """The head's task that feeds the log to the replica; idle at everybody else."""

    def __init__(self, server: SimServer) -> None:
        self._server = server
        spec = server.spec
        self._stateless = spec.traits.through_buffer
        self.used = spec.traits.buffered
        self.backlog = 0
        self.end_t: float | None = None
        self._claimed: tuple[int, str] | None = None
        self._epoch = self._after = 0
        self._trim = self._trimmed = 0
        self._snapshot_due = self._closed = False
        self._snapshot: tuple[int, str] | None = None  # (history, run of Redis) of the last one saved or loaded

    def holds_snapshot(self, history: int) -> None:
        """In the run of Redis that this server has claimed."""
        assert self._claimed is not None
        self._snapshot = (history, self._claimed[1])

    def state_run(self, history: int) -> str:
        return self._snapshot[1] if self._snapshot is not None and self._snapshot[0] == history else ""

    def trim_to(self, offset: int) -> None:
        self._trim = max(self._trim, offset)

    def run(self) -> Step:
        server = self._server
        while True:
            try:
                if not (yield from self._turn()):
                    yield Wait(None, server.now + RETRY_S)
            except BufferUnavailable:
                yield Wait(None, server.now + RETRY_S)
            except (ClaimNeeded, EntryMissing, KeyError):
                self._claimed = None
                self._epoch = 0

    def _turn(self) -> Step:
        server, replica = self._server, self._server.replica
        redis, shard = server.world.redis, server.shard
        if not replica.serving:
            self._epoch = 0
            return False
        epoch = replica.epoch
        yield from self.claim_if_needed(epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            self._after = replica.offset if self._stateless else 0
            self._closed = False
        if self._trim > self._trimmed:
            target = self._trim
            if (yield from redis.call(server, lambda m: m.trim(shard, epoch, target))):
                self._trimmed = target
        if replica.finished:
            if not self._closed:
                self._closed = yield from redis.call(server, lambda m: m.close(epoch, shard))
            return False
        asked_t = server.now
        items = yield from redis.call(server, lambda m: m.read(shard, self._after, GROUP))
        if not items and self._stateless and redis.model.stats().bytes > redis.model.max_bytes // 2:
            server.durability.snapshot_later()  # only a snapshot makes room
        self.backlog = len(items)
        if not items:
            self.end_t = asked_t
            yield Wait(None, server.now + IDLE_S / 10)
            return True
        found = yield from redis.call(server, lambda m: [m.fetch(shard, i) for i in items])
        contributions: list[tuple[int, int, Contribution]] = [
            (i.offset, i.incarnation, i.contribution(p)) for i, p in zip(items, found, strict=True)
        ]
        server.step(FromLog(epoch, tuple(contributions)))
        self._after = items[-1].offset
        yield Wait(lambda: not server.busy, None)
        return True

    def claim_if_needed(self, epoch: int) -> Step:
        """Fence lower epochs, in this run of Redis. Raises `BufferUnavailable`."""
        server = self._server
        view = server.replica.view
        assert view is not None
        run = yield from server.world.redis.call(server, lambda m: m.run_id())
        if self._claimed == (epoch, run):
            return
        another = self._claimed is not None and self._claimed[1] != run
        offset, history = server.replica.offset, view.history
        if not (yield from server.world.redis.call(server, lambda m: m.claim(server.shard, epoch, history, offset))):
            raise BufferUnavailable(f"a higher epoch than {epoch} has claimed the log")
        self._claimed = (epoch, run)
        if another and self._stateless and server.replica.serving:
            server.durability.snapshot_now()

    def claim_now(self) -> bool:
        """False: fenced."""
        server, view = self._server, self._server.replica.view
        assert view is not None
        redis, offset = server.world.redis, server.replica.offset
        run = redis.call_now(server, lambda m: m.run_id())
        if self._claimed != (view.epoch, run):
            if not redis.call_now(server, lambda m: m.claim(server.shard, view.epoch, view.history, offset)):
                return False
            self._claimed = (view.epoch, run)
        return True

    def record(self, record: Record) -> bool:
        """Under the lock; False: fenced. Raises `BufferUnavailable`."""
        server = self._server
        view, redis = server.replica.view, server.world.redis
        assert view is not None
        offset = record.last_offset
        for _ in range(2):
            try:
                return redis.call_now(server, lambda m: m.record(server.shard, view.epoch, record))
            except ClaimNeeded:
                if not redis.call_now(server, lambda m: m.claim(server.shard, view.epoch, view.history, offset)):
                    return False
                self._claimed = (view.epoch, redis.call_now(server, lambda m: m.run_id()))
            except SnapshotNeeded:
                self._snapshot_due = True  # this record's result goes into it
                return True
        raise BufferUnavailable("Redis restarts again and again")

    def publish(self) -> bool:
        """A snapshot where Redis asked for one; False: Redis is away."""
        if self._snapshot_due and not self._server.durability.snapshot_now():
            return False
        self._snapshot_due = False
        return True

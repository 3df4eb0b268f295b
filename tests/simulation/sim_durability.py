"""A server's state outside its memory: checkpoints, snapshots in Redis; and the reader of the log.

What is decided is the product's: `SaveSchedule`, and `ShardLog` for what is claimed, recorded and saved under the lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from network import Step, Wait
from stores import State

from outlast.api.server_status import CheckpointRef
from outlast.api.view import BUFFER, EMPTY, View, last_state_name
from outlast.buffer.types import (
    BufferUnavailable,
    ClaimNeeded,
    EntryMissing,
    Fenced,
    GradientLogError,
    LogItem,
)
from outlast.chain.events import Contribution, Entry, FromLog, Kind, Replay, Restored
from outlast.checkpoint.schedule import Due, SaveSchedule
from outlast.server.core import RETRY_S
from outlast.server.rebuild import NoSnapshot, without_snapshot

if TYPE_CHECKING:
    from sim_server import SimServer

REFRESH_S = 1.0
IDLE_S = 0.1
GROUP = 8


class SimLog:
    """The job's log as one server reaches it: each call in no time, as under a lock."""

    def __init__(self, server: SimServer) -> None:
        self._server = server

    def __getattr__(self, name: str) -> Callable[..., Any]:
        server = self._server
        return lambda *args: server.world.redis.call_now(server, lambda model: getattr(model, name)(*args))


@dataclass
class Job:
    due: Due
    epoch: int
    meta: dict[str, Any]
    tensors: dict[str, Any]
    done: bool = False

    @property
    def state(self) -> State:
        return State(self.meta["replica"], self.tensors["records"], self.meta["initial"])


@dataclass
class Restore:
    source: str
    history: int


class Durability:
    """Writes and restores, in a task of its own."""

    def __init__(self, server: SimServer) -> None:
        self._server = server
        self._keep = server.spec.recovery.checkpoint.keep
        self._own = server.world.scenario.own_directories
        self._schedule = SaveSchedule(server.spec, server.boot, on_disk=True, own=self._own)
        self._lacks_parts = False
        self._jobs: deque[Job | Restore] = deque()
        self.available: tuple[CheckpointRef, ...] = ()
        self.restore_error: str | None = None
        self._busy = False

    # --- writing ---

    def applied(self, entry: Entry) -> None:
        if entry.kind is Kind.INIT:
            self._first_state()
            return
        waiting = len(self._jobs) if self._busy else None
        due = self._schedule.next(entry.version, self._server.replica.view, waiting, self._server.now)
        if due is not None:
            self._enqueue(due)

    def _first_state(self) -> None:
        due = self._schedule.first(self._server.replica.view)
        if due is not None:
            job = self._job(due)
            try:
                if due.to_redis:
                    self._save_now(job)
                self._to_disk(job)
            except Fenced as error:
                self._server.world.trace(self._server.name, "no first state:", error)
        self._schedule.holds_first()

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
                found = store.of(fellow.name).get(part.name)
                if found is not None:
                    epoch, state = found.parts[server.shard]
                    store.write_part(server.name, server.shard, found.history, epoch, found.version, state, server.now)
                    self._lacks_parts = False

    def snapshot_soon(self) -> bool:
        if self._busy:
            return False
        self._enqueue(Due(self._server.replica.version, to_redis=True, to_disk=False))
        return True

    def snapshot_now(self) -> None:
        self._save_now(self._job(Due(0, to_redis=True, to_disk=False)))

    def _save_now(self, job: Job) -> None:
        try:
            self._server.log.save_snapshot(job.epoch, job.meta, job.tensors)
        except Fenced:
            raise
        except GradientLogError as error:
            self._schedule.snapshot_failed()
            raise BufferUnavailable(str(error)) from error

    def _job(self, due: Due) -> Job:
        return Job(due, self._server.replica.epoch, *self._server.core.export())

    def _enqueue(self, due: Due) -> Job:
        job, server = self._job(due), self._server
        self._busy = True
        self._schedule.begins(due, server.replica.version, server.now)
        self._jobs.append(job)
        server.wake()
        return job

    def save_and_wait(self, label: int | None = None) -> Step:
        """Write what we hold now, everywhere this job keeps state; `label` names the set, for all shards."""
        server, replica = self._server, self._server.replica
        if not replica.initialised:
            return
        due = self._schedule.asked(replica.version if label is None else label, replica.history, self.available)
        if due is not None:
            job = self._enqueue(due)
            yield Wait(lambda: job.done, server.now + 60.0)

    def save_last_and_wait(self) -> Step:
        """Write what only our successor goes on from."""
        server = self._server
        if self._schedule.stateless:
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
            yield from self._write(job)
            job.done = True
            self._busy = bool(self._jobs)
            if not self._busy:
                self._schedule.kept_up()

    def _write(self, job: Job) -> Step:
        server, history = self._server, int(job.meta["replica"]["history"])
        try:
            if job.due.to_redis:
                yield from server.log_reader.claim_if_needed(job.epoch, history)
                self._save_now(job)
            if job.due.to_disk:
                self._to_disk(job)
        except (BufferUnavailable, ClaimNeeded) as error:
            server.world.trace(server.name, "no snapshot:", error)
            self._schedule.snapshot_failed()

    def _to_disk(self, job: Job) -> None:
        server, state = self._server, job.state
        store, history = server.world.checkpoints, int(state.replica["history"])
        store.write_part(server.name, server.shard, history, job.epoch, job.due.label, state, server.now)
        store.prune(server.name, self._keep, job.epoch, server.shard)
        self._refresh()

    def _refresh(self) -> None:
        available = self._server.world.checkpoints.held(self._server.name, self._server.shard)
        if available != self.available:
            self.available = available
            self._server.notify()

    # --- the way back ---

    def restore_later(self, source: str) -> None:
        self.restore_error = None
        self._jobs.append(Restore(source, self._server.core.history))
        self._server.wake()

    def _restore(self, job: Restore) -> Step:
        server, source = self._server, job.source
        yield Wait(None, server.now + server.rng.uniform(0.005, 0.1))
        try:
            if source == BUFFER:
                yield from self._from_log()
            else:
                self._from_disk(source, source)
        except (Fenced, EntryMissing, NoSnapshot, ValueError, KeyError) as error:
            if server.core.history == job.history:
                self.restore_error = f"{source}: {error}"
            server.world.trace(server.name, "cannot restore", f"{source}: {error}")
        else:
            self.restore_error = None
        if source == BUFFER:
            server.core.rebuilt()
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
        while True:
            view = server.replica.view
            assert view is not None
            epoch, history = view.epoch, view.history
            try:
                yield from server.log_reader.claim_if_needed(epoch, history)
                loaded = yield from server.redis_call(server.log.load_snapshot, epoch, history)
                if loaded is None:
                    self._without_snapshot(view)
                else:
                    meta, tensors = loaded
                    yield from self._replay_all(State(meta["replica"], tensors["records"], meta["initial"]))
                return
            except Fenced:
                raise
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
        server.take_over(state, source=BUFFER)
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
        self._epoch = self._after = 0
        self._closed = False

    def run(self) -> Step:
        server = self._server
        while True:
            try:
                if not (yield from self._turn()):
                    yield Wait(None, server.now + RETRY_S)
            except BufferUnavailable:
                yield Wait(None, server.now + RETRY_S)
            except (ClaimNeeded, EntryMissing, KeyError):
                server.log.forget_claim()
                self._epoch = 0

    def _turn(self) -> Step:
        server, replica = self._server, self._server.replica
        redis, shard = server.world.redis, server.shard
        if not replica.serving or server.core.rebuilding:
            self._epoch = 0
            return False
        epoch = replica.epoch
        yield from self.claim_if_needed(epoch, server.core.history, replica.offset)
        if epoch != self._epoch:
            self._epoch = epoch
            self._after = replica.offset if self._stateless else 0
            self._closed = False
        if server.log.trim_is_due:
            yield from server.redis_call(server.log.trim, epoch)
        if replica.finished:
            if not self._closed:
                self._closed = yield from redis.call(server, lambda m: m.close(epoch, shard))
            return False
        asked_t = server.now
        items = yield from redis.call(server, lambda m: m.read(shard, self._after, GROUP))
        if not items and self._stateless and redis.model.stats().bytes > redis.model.max_bytes // 2:
            self._make_room()
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

    def _make_room(self) -> None:
        """Only a snapshot lets entries leave the log."""
        log, offset = self._server.log, self._server.replica.offset
        if offset > log.room_made_to and self._server.durability.snapshot_soon():
            log.room_made_to = offset

    def claim_if_needed(self, epoch: int, history: int, offset: int = 0) -> Step:
        """As the product's, with the time that it takes."""
        server, log, before = self._server, self._server.log, self._server.log.claimed
        run = yield from server.world.redis.call(server, lambda m: m.run_id())
        if before == (epoch, run):
            return
        try:
            yield from server.redis_call(log.claim_if_needed, epoch, history, offset)
        except BufferUnavailable:
            log.claimed = before  # the answer was lost
            raise

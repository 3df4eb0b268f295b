"""What outlives a process: the job's recorded status, its checkpoints, and Redis. All of it simple.

Rules:
1. The status is text under compare-and-swap; what is read has gone through JSON.
2. A part of a checkpoint is written at one moment (the real one is renamed); a set is complete with its last part.
3. Redis is `ModelLog` behind calls that may fail before they were executed, or after.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from network import Network, Process, Step, Wait

from outlast.buffer_model import ModelLog
from outlast.buffer_types import BufferUnavailable
from outlast_operator.runtime import Conflict
from outlast_operator.state import JobStatus

T = TypeVar("T")


class StatusStore:
    """The job's status. `on_write` sees every status that was recorded."""

    def __init__(self, on_write: Callable[[JobStatus], None]) -> None:
        self.text = json.dumps(JobStatus().to_json())
        self.version = 0
        self._on_write = on_write

    def read(self) -> JobStatus:
        return JobStatus.from_json(json.loads(self.text), resource_version=str(self.version))

    def write(self, status: JobStatus, expected: str | None) -> str:
        if expected != str(self.version):
            raise Conflict(f"version {self.version} is recorded, {expected} was observed")
        self.text = json.dumps(status.to_json())
        self.version += 1
        self._on_write(status)
        return str(self.version)


@dataclass(frozen=True)
class State:
    """A server's whole state: what the replica exports, and the parameters' records."""

    replica: dict[str, Any]
    records: tuple[Any, ...]
    initial: int


@dataclass
class CheckpointSet:
    """Parts by shard: (epoch, state)."""

    name: str
    history: int
    version: int
    parts: dict[int, tuple[int, State]] = field(default_factory=dict)
    t_complete: float | None = None

    @property
    def order(self) -> tuple[int, int, int]:
        return self.history, sum(epoch for epoch, _ in self.parts.values()), self.version


class Checkpoints:
    """The job's volume."""

    def __init__(self, shards: int) -> None:
        self.shards = shards
        self.sets: dict[str, CheckpointSet] = {}

    def write_part(self, shard: int, history: int, epoch: int, version: int, state: State, now: float) -> None:
        name = f"ckpt-h{history:04d}-v{version:08d}"
        held = self.sets.setdefault(name, CheckpointSet(name, history, version))
        if shard in held.parts and held.parts[shard][0] > epoch:
            return  # of two parts the higher epoch's counts
        held.parts[shard] = (epoch, state)
        if len(held.parts) == self.shards and held.t_complete is None:
            held.t_complete = now

    def complete(self) -> list[CheckpointSet]:
        found = [s for s in self.sets.values() if len(s.parts) == self.shards]
        return sorted(found, key=lambda s: s.order, reverse=True)

    def prune(self, keep: int, epoch: int, shard: int) -> None:
        kept = self.complete()[:keep]
        for old in self.complete()[keep:]:
            if old.parts[shard][0] <= epoch and old.order < kept[-1].order:
                del self.sets[old.name]


class Redis(Process):
    """The job's Redis: one process that may die, and its data, which may not survive it (`durable`)."""

    def __init__(self, network: Network, model: ModelLog, durable: str) -> None:
        super().__init__(network, "redis")
        self.model = model
        self.durable = durable  # Always | Some (an earlier moment comes back) | None
        self.alive = self.model.up = False
        self.lost_data = False
        self._saved: object = None
        self._runs = 0

    def start(self) -> None:
        """Another run, with what survived."""
        self._runs += 1
        if self._runs == 1:
            self.model.up = True
        elif self.durable == "Always":
            self.model.restart()
        else:
            self.lost_data = True
            if self._saved is not None and self.durable == "Some":
                self.model.thaw(self._saved)
            else:
                self.model.wipe()
        self.alive, self.paused, self.model.up = True, False, True
        if self.durable == "Some":
            self._save_sometimes(self._runs)

    def _save_sometimes(self, run: int) -> None:
        if self.alive and self._runs == run:
            self._saved = self.model.freeze()
            self.clock.at(self.now + 0.5, lambda: self._save_sometimes(run))

    def kill(self) -> None:
        super().kill()
        self.model.up = False

    def reachable(self, process: Process) -> bool:
        return self.alive and not self.paused and not self.network.is_cut(process.name, self.name)

    def call_now(self, process: Process, what: Callable[[ModelLog], T]) -> T:
        """A call in no time, as under a lock."""
        if not self.reachable(process):
            raise BufferUnavailable("Redis cannot be reached")
        return what(self.model)

    def call(self, process: Process, what: Callable[[ModelLog], T]) -> Step:
        """Returns what `what(model)` does. Raises `BufferUnavailable`, also after it was executed."""
        yield Wait(None, process.now + self.network.delay_s())
        answer, run = self.call_now(process, what), self._runs
        yield Wait(None, process.now + self.network.delay_s())
        if not self.reachable(process) or self._runs != run:
            raise BufferUnavailable("Redis went away before it answered")
        return copy.copy(answer)

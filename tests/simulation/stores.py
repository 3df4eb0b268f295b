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

from model_log import ModelLog
from network import Network, Process, Step, Wait

from outlast.api.server_status import CheckpointRef
from outlast.buffer.types import BufferUnavailable
from outlast_operator.planner.status import JobStatus
from outlast_operator.runtime.reconcile import Conflict

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

    @property
    def crc(self) -> int:
        """The same for two replicas that applied the same."""
        return int(self.records[-1].digest) if self.records else self.initial


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
    """The job's volume; where each server has one of its own (`own`), all of them."""

    def __init__(self, shards: int, own: bool = False) -> None:
        self.shards, self.own = shards, own
        self._volumes: dict[str, dict[str, CheckpointSet]] = {}
        self._t_complete: dict[str, float] = {}
        self._last_states: dict[str, dict[str, State]] = {}  # what leaving last members left

    def of(self, server: str) -> dict[str, CheckpointSet]:
        """What this server sees, by the names of sets."""
        return self._volumes.setdefault(server if self.own else "", {})

    def last_states_of(self, server: str) -> dict[str, State]:
        """Those that this server sees, by name."""
        return self._last_states.setdefault(server if self.own else "", {})

    def write_part(
        self, server: str, shard: int, history: int, epoch: int, version: int, state: State, now: float
    ) -> None:
        name = f"ckpt-h{history:04d}-v{version:08d}"
        held = self.of(server).setdefault(name, CheckpointSet(name, history, version))
        if shard in held.parts and held.parts[shard][0] > epoch:
            return  # of two parts the higher epoch's counts
        held.parts[shard] = (epoch, state)
        if any(found.name == name for found in self.complete()):
            self._t_complete.setdefault(name, now)

    def held(self, server: str, shard: int) -> tuple[CheckpointRef, ...]:
        """The parts that a server tells of, newest first."""
        seen = self.of(server).values()
        sets = [s for s in seen if shard in s.parts and (self.own or len(s.parts) == self.shards)]
        found = [(s, *s.parts[shard]) for s in sets]
        found.sort(key=lambda item: (item[0].history, item[1], item[0].version), reverse=True)
        return tuple(CheckpointRef(s.name, s.history, s.version, epoch, state.crc) for s, epoch, state in found)

    def complete(self) -> list[CheckpointSet]:
        """Sets of which every shard has a part somewhere, with the best parts, newest first."""
        merged: dict[str, CheckpointSet] = {}
        for volume in self._volumes.values():
            for found in volume.values():
                t = self._t_complete.get(found.name)
                best = merged.setdefault(found.name, CheckpointSet(found.name, found.history, found.version, {}, t))
                for shard, part in found.parts.items():
                    if shard not in best.parts or part[0] > best.parts[shard][0]:
                        best.parts[shard] = part
        whole = [s for s in merged.values() if len(s.parts) == self.shards]
        return sorted(whole, key=lambda s: s.order, reverse=True)

    def prune(self, server: str, keep: int, epoch: int, shard: int) -> None:
        kept = [s for s in self.complete() if shard in self.of(server).get(s.name, s).parts][:keep]
        for old in list(self.of(server).values()):
            if kept and shard in old.parts and old.parts[shard][0] <= epoch and old.name not in {k.name for k in kept}:
                newer = kept[-1]
                mine = (old.history, old.parts[shard][0], old.version)
                if mine < (newer.history, newer.parts[shard][0], newer.version):
                    del self.of(server)[old.name]

    def lose(self, server: str) -> None:
        """With its disk."""
        self._volumes.pop(server, None)
        self._last_states.pop(server, None)


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

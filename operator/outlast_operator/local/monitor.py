"""The observer of a local run: it asks servers, processes and ledgers itself, and believes no plan.

Three kinds of threads: one to each server (a probe, 20 times a second), one for CPU and memory of every process (twice
a second), and the caller's own, which asks for `now()`. Everything heard is kept for the report (`data.py`).
Times are `time.monotonic()`, as the servers' own are.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import psutil

from outlast.api.server_status import Evaluation
from outlast.process.ledger import Fact, LedgerRecord, read_ledger, record_bytes
from outlast.wire.control import ServerControl
from outlast_operator.local.directory import RunConfig, RunDirectory
from outlast_operator.local.forkserver_client import ProcessRecord
from outlast_operator.planner.observed import Probe

PROBE_INTERVAL_S = 0.05
PROBE_TIMEOUT_S = 1.0
RESOURCE_INTERVAL_S = 0.5
RESOURCE_LOOK_S = 0.1  # between two looks for processes that are new: one that lives shortly is shown as well
RATE_WINDOW_S = 2.0


@dataclass(frozen=True, slots=True)
class ServerSample:
    """What one server said at one moment."""

    t: float
    name: str
    boot: str
    shard: int
    role: str
    epoch: int
    serving: bool
    version: int
    backlog: int
    buffer_bytes: int


@dataclass(frozen=True, slots=True)
class ResourceSample:
    t: float
    process: str
    cpu_s: float  # user and system, since the process started
    rss_bytes: int


@dataclass
class Heard:
    """Everything observed in a run; the report is built from it."""

    samples: list[ServerSample] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    resources: list[ResourceSample] = field(default_factory=list)
    ledger: list[LedgerRecord] = field(default_factory=list)
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)  # server -> its last table, once it had finished
    table_shards: dict[str, int] = field(default_factory=dict)
    first_updates: dict[tuple[int, int], float] = field(default_factory=dict)  # (shard, epoch) -> first update
    traffic: dict[str, tuple[int, int]] = field(default_factory=dict)  # boot -> bytes pushed to it, pulled from it


@dataclass(frozen=True)
class Moment:
    """What is known right now, for progress and the kill schedule."""

    t_first_update: float | None
    version: int
    evaluation: Evaluation | None
    probes: dict[str, Probe]
    gradients_per_s: float
    computed: int


class LedgerTail:
    """Reads what workers appended to their ledgers since the last call."""

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory.ledger
        self._offsets: dict[str, int] = {}

    def read(self) -> list[LedgerRecord]:
        fresh: list[LedgerRecord] = []
        for path in sorted(self._directory.glob("worker-*.bin")):
            offset = self._offsets.get(path.name, 0)
            if path.stat().st_size < offset + record_bytes():
                continue
            records = list(read_ledger(path, offset))
            self._offsets[path.name] = offset + len(records) * record_bytes()
            fresh += records
        return sorted(fresh, key=lambda record: record.t)


class Monitor:
    """Starts observing when made; `stop` ends it and leaves everything in `heard`."""

    def __init__(
        self, directory: RunDirectory, config: RunConfig, list_processes: Callable[[], Iterable[ProcessRecord]]
    ):
        self.heard = Heard()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._probes: dict[str, Probe] = {}
        self._tail = LedgerTail(directory)
        self._computed = 0
        self._version = 0
        self._list_processes = list_processes
        self._threads = [threading.Thread(target=self._watch_resources, name="monitor-resources", daemon=True)]
        self._controls: list[ServerControl] = []
        for server in (s for shard in config.servers for s in shard):
            control = ServerControl(server.address, config.job_uid, config.token, timeout_s=PROBE_TIMEOUT_S)
            self._controls.append(control)
            work = threading.Thread(target=self._watch_server, args=(server.name, control), daemon=True)
            self._threads.append(work)
        for thread in self._threads:
            thread.start()

    def now(self) -> Moment:
        """The newest of everything; reads what the workers wrote meanwhile."""
        fresh = self._tail.read()
        with self._lock:
            self.heard.ledger += fresh
            probes = dict(self._probes)
            first = min(self.heard.first_updates.values(), default=None)
            evaluation = self.heard.evaluations[-1] if self.heard.evaluations else None
        self._computed += sum(record.fact is Fact.COMPUTED for record in fresh)
        oldest = time.monotonic() - RATE_WINDOW_S
        recent = takewhile(lambda record: record.t >= oldest, reversed(self.heard.ledger))
        rate = sum(record.fact is Fact.COMPUTED for record in recent) / RATE_WINDOW_S
        self._version = current_version(probes.values()) or self._version  # while nobody serves: the last one known
        return Moment(first, self._version, evaluation, probes, rate, self._computed)

    def stop(self) -> Heard:
        """Stop observing and return everything."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(PROBE_TIMEOUT_S * 2)
        for control in self._controls:
            control.close()
        self.heard.ledger += self._tail.read()
        self.heard.ledger.sort(key=lambda record: record.t)
        return self.heard

    # --- servers ---

    def _watch_server(self, name: str, control: ServerControl) -> None:
        next_t = time.monotonic()
        while not self._stopped.is_set():
            try:
                probe = Probe.of(control.probe(PROBE_TIMEOUT_S), time.monotonic())
                self._take(name, probe)
                if probe.finished and name not in self.heard.tables:
                    self.heard.tables[name] = control.table()
                    self.heard.table_shards[name] = probe.shard
            except (OSError, RuntimeError):
                with self._lock:
                    self._probes.pop(name, None)  # what a dead server said is not the present
            next_t = max(next_t + PROBE_INTERVAL_S, time.monotonic())
            self._stopped.wait(max(PROBE_INTERVAL_S / 2, next_t - time.monotonic()))

    def _take(self, name: str, probe: Probe) -> None:
        with self._lock:
            self._probes[name] = probe
            self.heard.samples.append(
                ServerSample(
                    probe.t_heard, name, probe.boot, probe.shard, probe.role, probe.epoch, probe.serving,
                    probe.version, probe.backlog, probe.buffer_bytes,
                )
            )  # fmt: skip
            self.heard.traffic[probe.boot] = (probe.pushed_bytes, probe.pulled_bytes)
            if probe.is_head:  # a middle one applies in the same epoch, a moment later
                for epoch, times in probe.views.items():
                    if times.first_update_t is not None:
                        self.heard.first_updates.setdefault((probe.shard, epoch), times.first_update_t)
            known = self.heard.evaluations
            evaluation = probe.evaluation
            if evaluation is not None and all(evaluation.t != e.t for e in known[-8:]):
                known.append(evaluation)
                known.sort(key=lambda e: e.t)

    # --- processes ---

    def _watch_resources(self) -> None:
        known: dict[int, psutil.Process] = {}
        due = 0.0
        while not self._stopped.wait(RESOURCE_LOOK_S):
            running = {r.pid: r.name for r in self._list_processes() if r.running}
            if time.monotonic() >= due:
                due = time.monotonic() + RESOURCE_INTERVAL_S
            else:
                running = {pid: name for pid, name in running.items() if pid not in known}
            for pid, name in running.items():
                try:
                    process = known.setdefault(pid, psutil.Process(pid))
                    with process.oneshot():
                        cpu, memory = process.cpu_times(), process.memory_info()
                except psutil.Error:
                    known.pop(pid, None)
                    continue
                sample = ResourceSample(time.monotonic(), name, cpu.user + cpu.system, memory.rss)
                with self._lock:
                    self.heard.resources.append(sample)


def current_version(probes: Iterable[Probe]) -> int:
    """The version that all shards have reached, as their heads (or serving members) report; 0 before any does."""
    shards: dict[int, int] = {}
    for probe in probes:
        if probe.initialised and (probe.is_head or probe.serving):
            shards[probe.shard] = max(shards.get(probe.shard, 0), probe.version)
    return min(shards.values(), default=0)

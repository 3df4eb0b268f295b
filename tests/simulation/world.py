"""One simulated job: `World(scenario, seed).run()`. It owns time, chance, processes and faults; checkers.py judges.

Everything that decides is real: `Replica` in every server, `Session` in every worker, `plan()` in the operator, and the
log of gradients is `ModelLog`. What a seed did once, it does again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from checkers import Checkers, Ledger
from faults import Faults
from model_log import ModelLog
from network import Clock, Network, Process
from parameters import value_of
from sim_operator import SimOperator
from sim_server import SimServer
from sim_worker import SimWorker
from stores import Checkpoints, Redis, StatusStore

from outlast.api.job import read_spec
from outlast.api.spec import JobSpec
from outlast.api.view import View
from outlast.chain.replica import Replica
from outlast.chain.settings import settings_from
from outlast.server.leave import GRACE_S
from outlast_operator.planner import plan as planner
from outlast_operator.planner.actions import Plan, StartProcess, StartRedis
from outlast_operator.planner.observed import ObservedJob
from outlast_operator.planner.observed import Process as Shown
from outlast_operator.planner.status import JobStatus
from outlast_operator.planner.turn import server_names

PLANNING = Callable[[JobSpec, ObservedJob, float], Plan]
PATIENCE_S = 120.0  # after the last fault
LIMIT_EVENTS = 600_000
START_S = (0.02, 0.15)


@dataclass(frozen=True)
class Scenario:
    """A job and what may happen to it."""

    name: str
    strategy: str = "Chain"
    consistency: str = "Async"
    shards: int = 1
    workers: int = 2
    updates: int = 0  # 0: enough for the job to outlast a failure's detection
    faults: tuple[str, ...] = ()  # kinds to choose from
    count: tuple[int, int] = (1, 4)  # how many
    ack: str = "Tail"
    replicate_every: int = 1
    durable: str = "Always"
    outage: str = "StaleGradients"
    max_bytes: int = 4 << 20  # of the gradient log; a gradient takes some 1,300
    checkpoint_every: int = 20
    own_directories: bool = False  # each server has one for its parts of checkpoints
    planned_only: bool = False  # nothing but planned losses: nothing at all may be lost
    grace_s: float = GRACE_S  # between SIGTERM and SIGKILL
    late: float = 0.0  # how often a leaving server's replacement comes too late
    make_replica: Callable[..., Replica] = Replica
    make_log: Callable[..., ModelLog] = ModelLog
    plan: PLANNING = field(default=lambda spec, observed, now: planner.plan(spec, observed, now))

    @property
    def goal(self) -> int:
        """Stateless workers wait for nobody, and are soon done."""
        return self.updates or (300 if self.strategy == "Stateless" else 150)

    def spec(self, rng: Random) -> JobSpec:
        chained = self.strategy in ("Chain", "Hybrid")
        recovery: dict[str, Any] = {
            "strategy": self.strategy,
            "checkpoint": {"everyUpdates": self.checkpoint_every},
            "chain": {"ack": self.ack, "replicateEveryUpdates": self.replicate_every},
            "staleness": {
                "policy": rng.choice(["InverseStaleness", "Sum", "Mean", "DelayCompensation"]),
                "outage": {"mode": self.outage},
            },
            "failover": {"heartbeatSeconds": 0.25, "timeoutSeconds": 1.0, "assumeDeadSeconds": 5.0},
        }
        return read_spec({
            "training": {
                "task": "outlast.tasks.synthetic",
                "consistency": self.consistency,
                "maxStaleness": 3,
                "stopAfter": {"updates": self.goal},
                "evaluate": {"everySeconds": None},
            },
            "servers": {"shards": self.shards, "replicas": rng.choice([2, 3, 3]) if chained else 1},
            "workers": {"replicas": self.workers},
            "recovery": recovery,
        })  # fmt: skip


class ProcessTable:
    """What the system knows of processes: the truth, as a runtime over local processes has it."""

    def __init__(self) -> None:
        self.records: dict[str, Shown] = {}  # by instance
        self.running: dict[str, Process] = {}  # by name
        self._pids: dict[str, int] = {}
        self._count = 0

    def add(self, shown: Shown, process: Process) -> int:
        self._count += 1
        shown = replace(shown, instance=f"{self._count}:{shown.t_started:.3f}")
        self.records[shown.instance] = shown
        self.running[shown.name] = process
        self._pids[shown.name] = self._count
        return self._count

    def pid(self, name: str) -> int:
        return self._pids.get(name, 0)

    def newest(self) -> dict[str, Shown]:
        return {p.name: p for p in self.records.values()}

    def dead(self) -> frozenset[str]:
        shown = {p.instance for p in self.newest().values()}
        return frozenset(i for i, p in self.records.items() if p.proven_dead and i not in shown)

    def end(self, name: str, code: int | None, signal: int | None, now: float, proven: bool = True) -> str:
        """Returns the instance that ended."""
        self.running.pop(name, None)
        shown = self.newest()[name]
        self.records[shown.instance] = replace(
            shown, phase="exited", exit_code=code, exit_signal=signal, proven_dead=proven, t_exited=now
        )
        return shown.instance

    def prove(self, instance: str) -> None:
        """It is known by now that this start of a process acts no more."""
        self.records[instance] = replace(self.records[instance], proven_dead=True)


class World:
    """A job under faults, from one seed."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.scenario, self.seed = scenario, seed
        self.rng = Random(f"{scenario.name}:{seed}")
        self.clock = Clock()
        self.network = Network(self.clock, self.rng)
        self.spec = scenario.spec(self.rng)
        self.settings = settings_from(self.spec, group_max=8)
        self.events: deque[tuple[float, str, tuple[Any, ...]]] = deque(maxlen=4000)
        self.table = ProcessTable()
        self.held: dict[str, float] = {}
        self._signalled: set[tuple[str, str]] = set()
        self.status = StatusStore(self._recorded)
        self.checkpoints = Checkpoints(scenario.shards, scenario.own_directories)
        self.redis_or_none: Redis | None = None
        if self.spec.traits.buffered:
            self.redis_or_none = Redis(
                self.network, scenario.make_log(scenario.shards, scenario.max_bytes), scenario.durable
            )
        self.ledger = Ledger()
        self.checkers = Checkers(self)
        self.make_replica, self.plan = scenario.make_replica, scenario.plan
        self.done: JobStatus | None = None
        self.ghosts: dict[Process, str] = {}  # processes of lost nodes, whose names are others' by now
        self.faults = Faults(self)
        self.start_operator()

    # --- what the parts ask ---

    @property
    def redis(self) -> Redis:
        assert self.redis_or_none is not None
        return self.redis_or_none

    @property
    def now(self) -> float:
        return self.clock.now

    def trace(self, who: str, *what: Any) -> None:
        self.events.append((self.clock.now, who, what))

    def server_names(self, shard: int) -> list[str]:
        return server_names(self.spec, shard)

    def initial(self, shard: int) -> int:
        return value_of("initial", shard)

    def servers(self) -> list[SimServer]:
        return [p for p in self.table.running.values() if isinstance(p, SimServer)]

    def server_of(self, boot: str) -> SimServer | None:
        return next((s for s in self.servers() if s.boot == boot), None)

    def head(self, shard: int) -> SimServer | None:
        view = self.checkers.recorded_view(shard)
        return None if view is None or view.head is None else self.server_of(view.head.boot)

    # --- processes ---

    def start_operator(self) -> None:
        operator = SimOperator(self)
        self.table.running["operator"] = operator
        self.trace("operator", "starts")

    @property
    def operator(self) -> SimOperator | None:
        found = self.table.running.get("operator")
        return found if isinstance(found, SimOperator) else None

    def start(self, action: StartProcess) -> None:
        if not self._make_room(action.name, action.replaces):
            return
        if action.role == "worker":
            started = [p.incarnation for p in self.table.records.values() if p.name == action.name]
            if max(started, default=0) >= action.incarnation:
                return
        self.trace(action.name, "is started, incarnation", action.incarnation)
        shown = Shown(
            action.name, action.role, "", "running", None,
            f"unix:/{action.name}" if action.role == "server" else "", action.incarnation, t_started=self.now,
        )  # fmt: skip
        starting = _Starting(self.network, action.name)
        pid = self.table.add(shown, starting)
        delay_s = self.rng.uniform(*START_S)
        self.clock.at(self.now + delay_s, lambda: self._started(action, starting, pid))

    def _started(self, action: StartProcess, starting: Process, pid: int) -> None:
        if not starting.alive:
            return
        if starting.paused:
            self.clock.at(self.now + 0.1, lambda: self._started(action, starting, pid))
            return
        process: Process
        if action.role == "server":
            boot = f"{action.name.removeprefix('server-')}.{pid}"
            process = SimServer(self, action.name, boot, action.shard)
        else:
            process = SimWorker(self, action.slot, action.incarnation)
        self.table.running[action.name] = process
        self.network.listening[action.name] = process

    def _make_room(self, name: str, replaces: str | None) -> bool:
        living = self.table.running.get(name)
        if living is None:
            return True
        if self.table.newest()[name].instance != replaces:
            return False
        self._remove(name)
        return True

    def start_redis(self, action: StartRedis) -> None:
        if self._make_room("redis", action.replaces):
            self.trace("redis", "starts")
            self.redis.start()
            self.table.add(Shown("redis", "redis", "", t_started=self.now), self.redis)
            self.notify_operator()

    def signal(self, name: str, instance: str, what: str, why: str) -> None:
        """From the operator, to this start of a process alone."""
        process = self.table.running.get(name)
        if process is None or self.table.newest()[name].instance != instance:
            return
        if (instance, what) not in self._signalled:
            self._signalled.add((instance, what))
            self.trace(name, f"SIG{what}:", why)
        if what == "KILL":
            self._remove(name)
        else:
            self.terminate(name, by_operator=True)

    def terminate(self, name: str, by_operator: bool = False) -> None:
        process = self.table.running.get(name)
        if isinstance(process, SimServer):
            process.deliver(lambda: process.terminate(by_operator), locked=True)
        elif isinstance(process, SimWorker):
            process.deliver(process.terminate, locked=False)
        elif process is not None:
            self._end(name, process, 0, None)

    def kill(self, name: str, signal: int = 9) -> None:
        process = self.table.running.get(name)
        if process is not None:
            self._end(name, process, None, signal)

    def _remove(self, name: str) -> None:
        """The operator's SIGKILL, which does not reach a lost node."""
        process = self.table.running.get(name)
        if process is not None and process.lost:
            self._abandon(name, process)
        else:
            self.kill(name)

    def _abandon(self, name: str, process: Process) -> None:
        """Its node is lost: the name is free again, the process goes on with the connections it has."""
        self.trace(name, "is given up with its node")
        if self.network.listening.get(name) is process:
            del self.network.listening[name]
        process.name = f"{name}~{self.table.pid(name)}"
        self.network.cut("operator", process.name)
        self.network.heal("operator", name)
        instance = self.table.end(name, None, None, self.now, proven=False)
        self.ghosts[process] = instance
        self.notify_operator()

    def lose(self, name: str) -> Callable[[], None] | None:
        """The control plane loses the node of a process; returns what brings the node back."""
        process = self.table.running.get(name)
        if process is None or process.lost:
            return None
        process.lost = True
        self.network.cut("operator", name)

        def back() -> None:
            process.lost = False
            self.network.heal("operator", process.name)
            instance = self.ghosts.pop(process, None)
            if instance is not None:  # the node's agent ends what is no longer wanted
                self.trace(process.name, "ends with the return of its node")
                process.kill()
                self.table.prove(instance)
                self.notify_operator()

        return back

    def exited(self, process: Process, code: int) -> None:
        if not process.alive:
            return
        if process in self.ghosts:
            self.trace(process.name, "ends unheard,", f"code {code}")  # until its node is back
            self.checkers.ending(process)
            process.kill()
        else:
            self._end(process.name, process, code, None)

    def _end(self, name: str, process: Process, code: int | None, signal: int | None) -> None:
        self.trace(name, "ends,", f"signal {signal}" if signal else f"code {code}")
        self.checkers.ending(process)
        process.kill()
        if self.network.listening.get(name) is process:
            del self.network.listening[name]
        if name == "operator":
            del self.table.running[name]
            return
        self.table.end(name, code, signal, self.now)
        self.notify_operator()

    def notify_operator(self) -> None:
        operator = self.operator
        if operator is not None:
            operator.deliver(operator.signal)

    # --- the run ---

    def _recorded(self, status: JobStatus) -> None:
        self.checkers.recording(status)

    def over(self, status: JobStatus) -> None:
        self.done = status

    def run(self) -> World:
        """Until the job is complete. Raises `AssertionError` for whatever the checkers find."""
        while self.done is None:
            assert self.clock.step(), "nothing is left to happen"
            late = self.faults.healed_at is not None and self.now > self.faults.healed_at + PATIENCE_S
            assert not late, f"the job was not complete {PATIENCE_S:g} s after the last fault"
            assert self.clock.count < LIMIT_EVENTS, f"more than {LIMIT_EVENTS} events in {self.now:.1f} s"
        self.checkers.at_the_end(self.done)
        return self

    def tell(self, lines: int = 80) -> str:
        """The last events, for a failure's message."""
        last = list(self.events)[-lines:] if lines else []
        return "\n".join(f"{t:9.4f} {who:10} {' '.join(map(_words, what))}" for t, who, what in last)


def _words(what: Any) -> str:
    if not isinstance(what, View):
        return str(what)
    chain = " -> ".join(m.boot for m in what.members)
    joining = f", joining {' '.join(m.boot for m in what.joining)}" if what.joining else ""
    restore = f", from {what.restore}" if what.restore else ""
    return f"shard {what.shard}, epoch {what.epoch}, history {what.history}: {chain}{joining}{restore}"


class _Starting(Process):
    """A process that does not listen yet."""

"""A world small enough to reason about, for tests of the planner: servers, workers and Redis as plain records.

It implements the planner's Runtime. A chain "applies" an update in every step of time in which all of its members run
in one epoch; joining servers copy the tail and are reported as caught up a step later, from when on they are waited
for. So the world knows what was acknowledged, and its checkers can tell when it is gone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

from outlast.api.job import read_spec
from outlast.api.server_status import CheckpointRef, Evaluation, ViewTimes
from outlast.api.spec import JobSpec
from outlast.api.view import BUFFER, EMPTY, View, last_state_name
from outlast.server.leave import GRACE_S, SAVING_SHARE
from outlast_operator.planner.actions import (
    Action,
    AssignSlot,
    EndRedis,
    ExpandClaims,
    FinishJob,
    InstallView,
    KillProcess,
    PauseAppends,
    Plan,
    RequestCheckpoint,
    SetSlots,
    StartProcess,
    StartRedis,
    TermProcess,
)
from outlast_operator.planner.checkpoints import Storage
from outlast_operator.planner.observed import ObservedJob, Probe, Process, RedisState
from outlast_operator.planner.plan import plan
from outlast_operator.planner.status import JobStatus, Wait
from outlast_operator.runtime.reconcile import Conflict

TICK_S = 0.05
LEAVE_WAIT_S = GRACE_S * (1 - SAVING_SHARE)


def make_spec(strategy: str = "Chain", **changes: Any) -> JobSpec:
    """A spec with few workers and no evaluator; `changes` are dotted paths with `__`: `servers__replicas=2`."""
    raw: dict[str, Any] = {
        "training": {
            "task": "outlast.tasks.synthetic",
            "stopAfter": {"updates": 1_000_000},
            "evaluate": {"everySeconds": None},
        },
        "workers": {"replicas": 1},
        "recovery": {"strategy": strategy},
    }
    for path, value in changes.items():
        at = raw
        *parents, leaf = path.split("__")
        for part in parents:
            at = at.setdefault(part, {})
        at[leaf] = value
    return read_spec(raw)


@dataclass
class FakeServer:
    process: Process
    boot: str
    shard: int
    paused: bool = False
    cut_off: bool = False  # its node is lost: nobody hears it, it cannot be killed, it may well run on
    t_last_word: float = 0.0  # when the operator last heard of it: its silence counts from there
    leaving: bool = False
    t_leaving: float | None = None
    view: View | None = None
    history: int = 0
    initialised: bool = False
    version: int = 0
    former_version: int = 0
    slots: int = 0
    finishing: bool = False
    updates: int | None = None  # stopAfter, as it was when the server was started
    sealed: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    restore_error: str | None = None
    applied_t: float | None = None
    log_end_t: float | None = None
    replayed: int = 0
    buffer_run: str = ""  # the run of Redis that its state was last written to
    redis_answered_t: float | None = None
    redis_silent_t: float | None = None
    absent: dict[int, float] = field(default_factory=dict)
    connected: tuple[int, ...] | None = None
    views: dict[int, ViewTimes] = field(default_factory=dict)

    @property
    def acts(self) -> bool:
        return self.process.alive and not self.paused and not self.cut_off

    @property
    def is_member(self) -> bool:
        return self.view is not None and self.view.position(self.boot) is not None


class World:
    """Time, processes and the store of one job. `turn()` is one turn of the operator."""

    def __init__(self, spec: JobSpec, start: float = 100.0) -> None:
        self.spec = spec
        self.now = start
        self.t_operator_start = start
        self.starts = 0
        self.servers: dict[str, FakeServer] = {}
        self.others: dict[str, Process] = {}
        self.past: list[FakeServer] = []
        self.heard: dict[str, Probe] = {}
        self.held: dict[str, float] = {}
        self.waits: dict[str, Wait] = {}  # requests that the cluster refused, and pods that do not start
        self.dead: set[str] = set()
        self.store: tuple[int, str | None] = (0, None)
        self.checkpoints: list[CheckpointRef] = []
        self.own: dict[str, list[CheckpointRef]] | None = None  # server -> parts, where each has a directory of its own
        self.node_local = False  # each server's own directory goes with its process
        self.parameters = 0  # of each shard
        self.claim_bytes: int | None = None
        self.claim_refusal: Wait | None = None
        self.storage_known = True
        self.claim_troubles: dict[str, str] = {}  # server -> why its claim keeps it from starting
        self.troubled_generations = 1  # how many claims of such a server have the trouble
        self.last_states: dict[str, tuple[int, int, str]] = {}  # name -> shard, version, the server that wrote it
        self.unreadable: set[str] = set()
        self.redis_keeps = True
        self.redis_paused = False
        self.older_trainer = False  # servers run an image that tells neither `buffer_run` nor `redis_silent_t`
        self.redis_unreachable: set[str] = set()  # by whom: "operator", names of servers
        self.redis_loading = False  # it is reached, and refuses whatever it is asked
        self.buffer: dict[int, tuple[int, int]] = {}  # Stateless: shard -> (history, version) that Redis holds
        self.log: dict[int, int] = {}  # shard -> gradients in Redis's log that no head has applied yet
        self.acknowledged: dict[tuple[int, int], int] = {}  # (shard, history) -> version
        self.history: list[JobStatus] = []
        self.executed: list[Action] = []
        self.plans: list[Plan] = []
        self.wrongs: list[str] = []  # what the checkers object to
        self.recorded_views: set[View] = set()
        self.started_workers: set[tuple[str, int]] = set()
        self.dropped: set[str] = set()  # boots that a view did without
        self.evaluation: Evaluation | None = None

    # --- the planner's Runtime ---

    def observe(self) -> ObservedJob:
        for name, s in self.servers.items():
            if s.acts and not self._claim_trouble(s):
                self.heard[name] = self._probe(s)
        return ObservedJob(
            status=self.status,
            processes={**{n: self._known(s) for n, s in self.servers.items()}, **self.others},
            probes=dict(self.heard),
            redis=RedisState(self._reaches_redis("operator"), self.redis_run, self.redis_paused),
            held=dict(self.held),
            waits=dict(self.waits),
            dead=frozenset(self.dead),
            storage=self._storage(),
            claim_bytes=self.claim_bytes,
            claim_refusal=self.claim_refusal,
            t_operator_start=self.t_operator_start,
        )

    def _storage(self) -> Storage | None:
        if self.status.storage is not None:
            return self.status.storage
        offered: Storage = "Shared" if self.own is None else "NodeLocal" if self.node_local else "PerServer"
        return offered if self.storage_known else None

    def _known(self, s: FakeServer) -> Process:
        """As a runtime learns a process's boot: from a word of its own."""
        trouble = self._claim_trouble(s)
        if trouble and s.process.alive:
            out_of_reach = trouble.startswith("no node with access to its volume")
            return replace(s.process, phase="starting", held_by_claim=trouble, claim_out_of_reach=out_of_reach)
        word = self.heard.get(s.process.name)
        return replace(s.process, boot=s.boot) if word is not None and word.boot == s.boot else s.process

    def _claim_trouble(self, s: FakeServer) -> str:
        troubled = s.process.claim < self.troubled_generations and s.view is None
        return self.claim_troubles.get(s.process.name, "") if troubled else ""

    @property
    def status(self) -> JobStatus:
        version, text = self.store
        return JobStatus() if text is None else JobStatus.from_json(json.loads(text), str(version))

    def write_status(self, status: JobStatus, expected_version: str | None) -> str:
        version, text = self.store
        if expected_version != (None if text is None else str(version)):
            raise Conflict(f"the recorded status has version {version}, not {expected_version}")
        before = self.status
        self.store = (version + 1, json.dumps(status.to_json()))
        self._judge(before, self.status)
        self.history.append(self.status)
        return str(version + 1)

    def execute(self, action: Action) -> None:
        self.executed.append(action)
        match action:
            case StartProcess():
                self._start(action)
            case StartRedis():
                if not self._alive("redis"):
                    self.others["redis"] = self._process("redis", "redis")
                    self.redis_paused = False
            case PauseAppends():
                self.redis_paused = True
            case EndRedis(instance):
                if self.log.get(0) or not self.redis_paused:
                    self.wrongs.append("redis was ended while it held what no head has applied")
                self.end("redis", code=0, instance=instance)
            case KillProcess(name, instance, _):
                self.end(name, signal=9, instance=instance)
            case TermProcess(name, instance, _):
                server = self.servers.get(name)
                if server is None or not server.is_member:
                    self.end(name, code=0 if server is not None else 143, instance=instance)
                elif server.process.instance == instance:
                    server.leaving = True
            case InstallView(to, view):
                if view not in self.recorded_views:
                    self.wrongs.append(f"installed without being recorded: {view}")
                server = self.servers.get(to.name)
                if server is not None and server.acts and server.boot == to.boot:
                    self._install(server, view)
            case SetSlots(to, slots):
                self.servers[to.name].slots = slots
            case FinishJob(to):
                self.servers[to.name].finishing = True
            case RequestCheckpoint(to):
                self._save(self.servers[to.name])
            case AssignSlot() | ExpandClaims():
                pass

    def turn(self, actions: int | None = None, write: bool = True) -> Plan:
        """Observe, plan, write, execute. Dies before the write, or after so many actions, if told to."""
        observed = self.observe()
        result = plan(self.spec, observed, self.now)
        self.plans.append(result)
        if not write:
            return result
        if result.status != observed.status:
            self.write_status(result.status, observed.status.resource_version)
        for action in result.actions[:actions]:
            self.execute(action)
        return result

    # --- what happens ---

    def advance(self, dt_s: float = TICK_S) -> None:
        """Let time pass; chains apply updates, joining servers catch up, who leaves ends."""
        end = self.now + dt_s
        while self.now < end - 1e-9:
            self.now = min(end, self.now + TICK_S)
            for s in list(self.servers.values()):
                if s.acts and s.leaving:
                    self._leave(s)
            for s in list(self.servers.values()):
                if s.acts and s.view is not None and s.view.head is not None and s.view.head.boot == s.boot:
                    self._apply(s)
        self.now = end

    def _leave(self, s: FakeServer) -> None:
        """Out of the view it ends; the only member waits for a replacement, and saves when none comes in time."""
        s.t_leaving = self.now if s.t_leaving is None else s.t_leaving
        serves = s.view is not None and (s.is_member or s.view.is_joining(s.boot))
        if serves and (len(s.view.members) > 1 or self.now < s.t_leaving + LEAVE_WAIT_S):  # type: ignore[union-attr]
            return
        if s.is_member and s.initialised:
            self.last_states[last_state_name(s.shard, s.boot)] = (s.shard, s.version, s.process.name)
        self.heard[s.process.name] = replace(self._probe(s), left=True)
        self.end(s.process.name, code=0)

    def run(self, duration_s: float) -> None:
        """Turns and time, as a loop with a heartbeat would have them."""
        end = self.now + duration_s
        while self.now < end - 1e-9:
            self.turn()
            self.turn()
            self.advance()

    def end(self, name: str, code: int | None = None, signal: int | None = None, instance: str | None = None) -> None:
        """A process ends, and is reaped."""
        server = self.servers.get(name)
        process = server.process if server is not None else self.others.get(name)
        if process is None or not process.alive or (instance is not None and process.instance != instance):
            return
        if server is not None and server.cut_off:
            return
        ended = replace(
            process, phase="exited", exit_code=code, exit_signal=signal, proven_dead=True, t_exited=self.now
        )
        if server is not None:
            server.process = ended
            server.paused = False
        else:
            self.others[name] = ended

    def kill(self, name: str) -> None:
        self.end(name, signal=9)

    def restart_operator(self) -> None:
        self.t_operator_start = self.now
        self.heard.clear()

    def cut_off(self, name: str) -> None:
        """The node of a server is lost: it may run on, but nobody hears it, and nobody can end it."""
        server = self.servers.get(name)
        if server is not None and server.process.alive:
            server.cut_off = True

    def seems(self, name: str, **words: bool) -> None:
        """What the cluster says of a worker's pod: `unreachable`, `leaving`."""
        self.others[name] = replace(self.others[name], **words)  # type: ignore[arg-type]

    def heal(self) -> None:
        """What was paused goes on, what was held is free, lost nodes come back without their processes."""
        self.held.clear()
        for s in (*self.servers.values(), *self.past):
            s.paused, s.broken = False, ()
            if s.cut_off:
                s.cut_off = False
                s.process = replace(s.process, phase="exited", exit_signal=9, proven_dead=True, t_exited=self.now)
                self.dead.add(s.process.instance)

    def head(self, shard: int = 0) -> FakeServer:
        view = self.status.views[shard]
        assert view.head is not None
        return self.servers[view.head.name]

    def members(self, shard: int = 0) -> list[str]:
        view = self.status.views.get(shard)
        return [] if view is None else [m.name for m in view.members]

    # --- the checkers ---

    def _judge(self, before: JobStatus, after: JobStatus) -> None:
        for shard, view in after.views.items():
            self.recorded_views.add(view)
            old = before.views.get(shard)
            if old is None or old == view:
                continue
            if view.epoch <= old.epoch:
                self.wrongs.append(f"an epoch was recorded twice or ran backwards: {old} then {view}")
            if view.history < old.history:
                self.wrongs.append(f"history ran backwards: {old} then {view}")
            floor = next((c.version for c in self.checkpoints if c.name == view.restore), 0)
            self.acknowledged.setdefault((shard, view.history), floor)
            now_in = {m.boot for m in (*view.members, *view.joining)}
            if now_in & self.dropped:
                self.wrongs.append(f"dropped once, taken in again: {now_in & self.dropped} in {view}")
            self.dropped |= {m.boot for m in (*old.members, *old.joining)} - now_in
            kept = {m.boot for m in old.members} & {m.boot for m in view.members}
            if not kept and not self.spec.traits.through_buffer:
                self.wrongs += [
                    f"{m.name} may still act: {old} then {view}" for m in old.members if self._may_act(m.boot)
                ]
            if view.history == old.history and view.restore != BUFFER and view.restore not in self.last_states:
                for m in view.members:
                    if m not in old.members and m not in old.joining:
                        self.wrongs.append(f"{m.name} never caught up: {old} then {view}")
        for slot, incarnation in before.incarnations.items():
            if after.incarnations.get(slot, 0) < incarnation:
                self.wrongs.append(f"incarnation of slot {slot} ran backwards from {incarnation}")

    def _may_act(self, boot: str) -> bool:
        for s in (*self.servers.values(), *self.past):
            if s.boot == boot:
                patience_s = self.spec.recovery.failover.assume_dead_seconds
                assumed = s.cut_off and self.now - max(s.t_last_word, self.t_operator_start) >= patience_s - 1e-6
                return s.process.alive and not assumed
        return False

    # --- inside ---

    def _process(self, name: str, role: Any, incarnation: int = 1, address: str = "") -> Process:
        self.starts += 1
        instance = f"pid{self.starts}"
        return Process(name, role, instance, t_started=self.now, incarnation=incarnation, address=address)

    @property
    def redis_run(self) -> str | None:
        return self.others["redis"].instance if self._alive("redis") else None

    def _reaches_redis(self, name: str) -> bool:
        return self._alive("redis") and name not in self.redis_unreachable and not self.redis_loading

    def _alive(self, name: str) -> bool:
        process = self.others.get(name)
        return process is not None and process.alive

    def _start(self, a: StartProcess) -> None:
        if a.role != "server":
            replaced = self.others.get(a.name)
            if replaced is not None and replaced.instance == a.replaces:
                del self.others[a.name]  # whether it lives on or not
            newer = all(incarnation < a.incarnation for name, incarnation in self.started_workers if name == a.name)
            if not self._alive(a.name) and (newer or a.role != "worker"):
                self.others[a.name] = self._process(a.name, a.role, a.incarnation)
                self.started_workers.add((a.name, a.incarnation))
                if a.role == "worker" and self.status.incarnations.get(a.slot, 0) < a.incarnation:
                    self.wrongs.append(f"started before its incarnation was recorded: {a}")
            return
        old = self.servers.get(a.name)
        if old is not None:
            if old.process.alive and (old.process.instance != a.replaces or not old.cut_off):
                return  # the real ones would end a paused one first; here that is the planner's KillProcess
            if not old.process.alive:
                self.dead.add(old.process.instance)
            self.past.append(old)
            if self.node_local and self.own is not None:
                self.own[a.name] = []
        process = replace(self._process(a.name, "server", address=f"unix:/{a.name}"), claim=a.claim)
        self.servers[a.name] = FakeServer(
            process, f"boot{self.starts}", a.shard, updates=self.spec.training.stop_after.updates
        )

    def _probe(self, s: FakeServer) -> Probe:
        s.t_last_word = self.now
        view = s.view
        head = view is not None and view.head is not None and view.head.boot == s.boot
        updates = s.updates
        if head and self.spec.traits.buffered:
            self._ask_redis(s)
        return Probe(
            name=s.process.name, boot=s.boot, t_heard=self.now, address=s.process.address, shard=s.shard,
            epoch=view.epoch if view is not None else 0, history=s.history,
            role="empty" if view is None else "head" if head else "middle" if s.is_member else "stopped",
            serving=s.is_member and s.restore_error is None, initialised=s.initialised, version=s.version,
            former_version=s.former_version, slots=s.slots, caught_up=s.sealed, leaving=s.leaving,
            finished=s.finishing or (updates is not None and s.initialised and s.version >= updates),
            last_states=self._last_states_seen_by(s), buffer_run=None if self.older_trainer else s.buffer_run,
            tells_silence=not self.older_trainer,
            broken=s.broken, checkpoints=self._held_by(s), restore_error=s.restore_error,
            clocks={0: s.version}, views=dict(s.views), evaluation=self.evaluation, applied_t=s.applied_t,
            log_end_t=s.log_end_t, absent=dict(s.absent), connected=s.connected, backlog=self.log.get(s.shard, 0),
            replayed=s.replayed, redis_answered_t=s.redis_answered_t,
            redis_silent_t=None if self.older_trainer else s.redis_silent_t,
            parameters=self.parameters,
            restoring=(view.restore or BUFFER) if view is not None and s.restore_error is not None else None,
        )  # fmt: skip

    def _ask_redis(self, s: FakeServer) -> None:
        if self._reaches_redis(s.process.name):
            s.redis_answered_t, s.redis_silent_t = self.now, None
        elif self.redis_loading:
            s.redis_silent_t = None
        elif s.redis_silent_t is None:
            s.redis_silent_t = self.now

    def _install(self, s: FakeServer, view: View) -> None:
        if s.view is not None and view.epoch <= s.view.epoch:
            return
        s.view, s.sealed = view, ()
        s.views[view.epoch] = ViewTimes(self.now)
        if s.initialised and s.history != view.history:
            s.initialised, s.version, s.buffer_run = False, 0, ""
        if not s.is_member:
            if view.is_joining(s.boot):
                s.initialised, s.version = False, 0
            return
        s.history, s.restore_error = view.history, None
        if s.initialised or view.restore is None:
            return
        if view.restore == BUFFER:
            held = self.buffer.get(s.shard) if self.redis_keeps else None
            if held is not None and held[0] == view.history:
                s.version, s.initialised = held[1], True
                s.buffer_run = self.redis_run or ""
            elif view.otherwise is None:
                s.restore_error = "Redis holds no snapshot"
            elif view.otherwise != EMPTY:
                self._load(s, view.otherwise)
        elif view.restore in self.unreadable:
            s.restore_error = "checksum"
        elif view.restore in self._last_states_seen_by(s):
            s.version, s.initialised = self.last_states[view.restore][1], True
        else:
            self._load(s, view.restore)

    def _load(self, s: FakeServer, name: str) -> None:
        s.version = next(c.version for c in self._held_by(s) if c.name == name)
        s.initialised = True

    def _peers(self, s: FakeServer) -> list[FakeServer]:
        assert s.view is not None
        names = [*s.view.members, *(j for j in s.view.joining if j.boot in self._tail_sealed(s))]
        return [self.servers[m.name] for m in names]

    def _tail_sealed(self, s: FakeServer) -> tuple[str, ...]:
        assert s.view is not None
        assert s.view.tail is not None
        tail = self.servers[s.view.tail.name]
        return tail.sealed if tail.boot == s.view.tail.boot else ()

    def _apply(self, head: FakeServer) -> None:
        """One update through the chain, if all of it is there in the head's epoch."""
        view = head.view
        assert view is not None
        chain = self._peers(head)
        boots = [m.boot for m in view.members]
        if [s.boot for s in chain[: len(boots)]] != boots or any(s.restore_error for s in chain):
            return
        together = [s for s in chain if s.acts and s.view is not None and s.view.epoch == view.epoch]
        if together != chain:
            return
        if not head.initialised and any(s.initialised for s in chain):
            self.wrongs.append(f"an empty head leads members that hold state: {view}")
        if not self._is_fed(head):
            return
        top = max(s.version for s in chain)
        partly = any(s.initialised for s in chain) and not all(s.initialised for s in chain[: len(boots)])
        if partly and view.restore is not None:
            return
        for s in chain:
            s.initialised, s.version, s.history, s.applied_t = True, top + 1, view.history, self.now
        if head.views[view.epoch].first_update_t is None:
            head.views[view.epoch] = replace(head.views[view.epoch], first_update_t=self.now)
        if top + 1 <= self.acknowledged.get((head.shard, view.history), 0):
            self.wrongs.append(f"acknowledged updates are gone: {top} in {view}")
        self.acknowledged[head.shard, view.history] = top + 1
        self.buffer[head.shard] = (view.history, top + 1)
        head.buffer_run = self.redis_run or head.buffer_run
        if top % 10 == 0:
            self._save(head)
        tail = chain[len(boots) - 1]
        ready = []
        for j in view.joining:
            other = self.servers[j.name]
            if other.boot == j.boot and other.acts and other.view is not None and other.view.epoch == view.epoch:
                other.initialised, other.version, other.history = True, tail.version, tail.history
                ready.append(j.boot)
        tail.sealed = tuple(ready)

    def _is_fed(self, head: FakeServer) -> bool:
        """Whether there is a gradient to apply: a worker computes, or Redis holds one."""
        held = self.log.get(head.shard, 0)
        if self._reaches_redis(head.process.name) and head.initialised:  # who has no weights yet reads no log
            if held > 0:
                self.log[head.shard] = held - 1
                head.replayed += 1
                return True
            head.log_end_t = self.now
        return any(p.role == "worker" and p.alive for p in self.others.values())

    def _last_states_seen_by(self, s: FakeServer) -> tuple[str, ...]:
        found = [(name, writer) for name, (shard, _, writer) in self.last_states.items() if shard == s.shard]
        return tuple(name for name, writer in found if self.own is None or writer == s.process.name)

    def _held_by(self, s: FakeServer) -> tuple[CheckpointRef, ...]:
        return tuple(reversed(self.checkpoints if self.own is None else self.own.get(s.process.name, [])))

    def _save(self, s: FakeServer) -> None:
        if not s.initialised:
            return
        ref = CheckpointRef(f"c-{s.history}-{s.version}", s.history, s.version)
        if self.own is not None and s.view is not None:
            for m in s.view.members:
                held = self.own.setdefault(m.name, [])
                part = replace(ref, epoch=s.view.epoch, crc=s.version)
                self.own[m.name] = [*(c for c in held if c.name != part.name), part][-4:]
        if ref not in self.checkpoints:
            self.checkpoints = sorted([*self.checkpoints, ref], key=lambda c: (c.history, c.version))[-4:]

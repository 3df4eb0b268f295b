"""The operator: the real `plan()` in a loop of observing, recording and doing; it may die between any two lines."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from network import End, Process, Step, Wait

from outlast.api.server_status import ServerStatus
from outlast.api.view import Member
from outlast_operator.planner.actions import (
    Action,
    AssignSlot,
    Emit,
    ExpandClaims,
    FinishJob,
    InstallView,
    KillProcess,
    Plan,
    RequestCheckpoint,
    SetSlots,
    StartProcess,
    StartRedis,
    TermProcess,
)
from outlast_operator.planner.observed import ObservedJob, Probe, RedisState
from outlast_operator.planner.status import JobStatus
from outlast_operator.runtime.reconcile import Conflict

if TYPE_CHECKING:
    from world import World

log = logging.getLogger("outlast.simulation")

RETRY_S = 0.05
MOMENT_S = 0.002


class SimOperator(Process):
    """One start of the operator. It adopts what lives."""

    def __init__(self, world: World) -> None:
        super().__init__(world.network, "operator")
        self.world, self.spec = world, world.spec
        self.t_start = self.now
        self.probes: dict[str, Probe] = {}
        self._reason = ""
        self._signalled = True
        self._under_way: set[tuple[str, str]] = set()
        for shard in range(world.spec.servers.shards):
            for name in world.server_names(shard):
                self.spawn(self._watch(name))
        self.spawn(self._main())

    def signal(self) -> None:
        """Something happened that a plan could answer."""
        self._signalled = True
        self.wake()

    # --- the loop ---

    def _main(self) -> Step:
        heartbeat_s = self.spec.recovery.failover.heartbeat_seconds
        while True:
            observed = self._observe()
            plan = self.world.plan(self.spec, observed, self.now)
            if plan.reason != self._reason:
                self._reason = plan.reason
                self.world.trace("operator", "plan:", plan.reason)
            changed = replace(plan.status, resource_version=None) != replace(observed.status, resource_version=None)
            installs = [a for a in plan.actions if isinstance(a, InstallView)]  # recorded by an earlier turn
            yield from self._execute_all(installs)
            if changed:
                yield Wait(None, self.now + self.rng.uniform(0, MOMENT_S))
                if not self._write(plan, observed.status):
                    continue
            yield from self._execute_all([a for a in plan.actions if a not in installs])
            if changed:
                continue
            if plan.status.outcome is not None and not any(p.alive for p in self._observe().processes.values()):
                self.world.over(plan.status)
                return
            until = min(self.now + heartbeat_s, plan.wake_at or self.now + heartbeat_s)
            yield Wait(lambda: self._signalled, until)
            self._signalled = False
            if self.now > until + heartbeat_s:
                self.t_start = self.now  # we were stopped: silence meanwhile proves nothing

    def _execute_all(self, actions: Sequence[Action]) -> Step:
        for action in actions:
            yield Wait(None, self.now + self.rng.uniform(0, MOMENT_S))
            self._execute(action)

    def _observe(self) -> ObservedJob:
        world, shown = self.world, self.world.table.newest()
        processes = {name: replace(p, boot=self._boot_of(p.name, p.t_started)) for name, p in shown.items()}
        processes = {
            name: replace(p, phase="starting") if p.alive and p.role == "server" and p.boot is None else p
            for name, p in processes.items()
        }
        redis = world.redis_or_none
        up = redis is not None and redis.reachable(self)
        return ObservedJob(
            status=world.status.read(),
            processes=processes,
            probes=dict(self.probes),
            redis=RedisState(up=up, run_id=redis.model.run_id() if redis is not None and up else None),
            held={name: t for name, t in world.held.items() if t > self.now},
            dead=world.table.dead(),
            storage="PerServer" if world.scenario.own_directories else "Shared",
            t_operator_start=self.t_start,
            generation=1,
        )

    def _boot_of(self, name: str, t_started: float) -> str | None:
        """As a runtime learns it: from a status that this start of the server sent."""
        probe = self.probes.get(name)
        told = probe is not None and probe.t >= t_started and probe.pid == self.world.table.pid(name)
        return probe.boot if told and probe is not None else None

    def _write(self, plan: Plan, seen: JobStatus) -> bool:
        try:
            self.world.status.write(plan.status, seen.resource_version)
        except Conflict as conflict:
            self.world.trace("operator", conflict)
            return False
        return True

    # --- listening ---

    def _watch(self, name: str) -> Step:
        timeout_s = self.spec.recovery.failover.timeout_seconds
        while True:
            end: End | None = None
            try:
                end, _ = yield from self.network.dial(self, name, {"role": "control"}, timeout_s)
                end.send(("watch",))
                while True:
                    self._heard(name, (yield from end.receive(timeout_s)))
            except ConnectionError as error:
                known = self.probes.get(name)
                silent = "silent" in str(error) or "cannot be reached" in str(error)
                if known is not None and not known.refused and not silent:
                    self.probes[name] = replace(known, refused=True)
                    self.signal()
            finally:
                if end is not None:
                    end.close()
            yield Wait(None, self.now + RETRY_S)

    def _heard(self, name: str, status: ServerStatus) -> None:
        before, probe = self.probes.get(name), Probe.of(status, self.now)
        self.probes[name] = probe
        if before is None or before.refused or before.notable() != probe.notable():
            self.signal()

    # --- doing ---

    def _execute(self, action: Action) -> None:
        world = self.world
        match action:
            case StartProcess():
                world.start(action)
            case StartRedis():
                world.start_redis(action)
            case KillProcess(name, instance, why):
                world.signal(name, instance, "KILL", why)
            case TermProcess(name, instance, why):
                world.signal(name, instance, "TERM", why)
            case InstallView(to, view):
                self._send(to, f"install {view.epoch}", "install", view.to_json())
            case SetSlots(to, slots):
                self._send(to, f"slots {slots}", "slots", slots)
            case FinishJob(to):
                self._send(to, "finish", "finish", None)
            case RequestCheckpoint(to, label):
                self._send(to, f"checkpoint {label}", "checkpoint", label)
            case AssignSlot() | ExpandClaims():
                world.trace("operator", action)
            case Emit(_, reason, message):
                world.trace("operator", f"{reason}: {message}")

    def _send(self, to: Member, key: str, what: str, argument: Any) -> None:
        """Call a server, unless this very message to it is still under way."""
        if (to.boot, key) not in self._under_way:
            self._under_way.add((to.boot, key))
            self.spawn(self._call(to, key, what, argument))

    def _call(self, to: Member, key: str, what: str, argument: Any) -> Step:
        timeout_s = self.spec.recovery.failover.timeout_seconds
        try:
            end, _ = yield from self.network.dial(self, to.name, {"role": "control"}, timeout_s)
            try:
                end.send(("control", what, argument))
                yield from end.receive(timeout_s)
            finally:
                end.close()
        except ConnectionError as error:
            self.world.trace("operator", key, "to", to.name, "failed:", error)
        self._under_way.discard((to.boot, key))

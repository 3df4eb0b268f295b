"""All outages of one (workers, seed): trained once to the start, gradients computed once and given to every policy.

    untrained ─▶ start ─┬─▶ control: goes on, measured after N and N + later gradients
                        ├─▶ frozen gradients, one pass: 32 at a time to the server of every (policy, N)
                        └─▶ local steps, one pass a rate: pseudo-gradients taken at every N
    after its drain each policy's server trains on, `later` gradients, and is measured again

A longer outage begins with the gradients of a shorter one, so one pass serves them all. The drain takes no time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from outlast.replica_state import ReplicaSettings
from outlast_operator.state import finite
from outlast_operator.study.backlog_policies import LR, POLICIES, Policy
from outlast_operator.study.backlog_records import Applied, BacklogRecord, Control, Start
from outlast_operator.study.backlog_server import Gradient, SimulatedServer
from outlast_operator.study.backlog_workers import Diverged, Fleet, LocalFleet, Model, clip

GROUP = 32  # what the log's reader takes at a time, and the replica makes one update of
_LOOK_EVERY = 10  # updates between two evaluations on the way to the start
_LONGEST_START = 2000  # updates: a task that never gets to the start accuracy starts here


@dataclass(frozen=True)
class Unit:
    """What is to be computed in one go."""

    workers: int
    seed: int
    outages: tuple[int, ...]
    later: int
    samples: int
    quick: bool
    task: str = "outlast.tasks.fashion_mnist"
    args: tuple[tuple[str, Any], ...] = ()
    start_accuracy: float = 0.5
    start_version: int | None = None  # in its stead
    policies: tuple[Policy, ...] = POLICIES


Outcomes = dict[int, dict[str, Applied]]  # by outage, by policy


class Experiment:
    """Runs a unit."""

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self.outages = sorted(unit.outages)
        self.model = Model.of(unit.task, dict(unit.args), unit.seed, LR)
        untrained = self.model.weights()
        self.guess_loss = self.model.evaluate(untrained, unit.samples)[1]
        self.server = self.new_server(ReplicaSettings(strategy="Stateless", slots=unit.workers))
        self.server.initialise(untrained)
        self.fleet = Fleet(self.model, unit.workers, self.server)
        self.outcomes: Outcomes = {outage: {} for outage in self.outages}

    def run(self) -> list[BacklogRecord]:
        began = time.monotonic()
        start = self.train_to_start()
        controls = self.control()
        self.fleet.cut_off()
        self.idle()
        self.frozen()
        self.local()
        wall_s = round(time.monotonic() - began, 1)
        unit = self.unit
        return [
            BacklogRecord(
                unit.workers, outage, unit.seed, unit.task, LR, GROUP, unit.samples, unit.later, unit.quick, wall_s,
                start, controls[outage], {p.name: self.outcomes[outage][p.name] for p in unit.policies},
            )
            for outage in self.outages
        ]  # fmt: skip

    def new_server(self, settings: ReplicaSettings) -> SimulatedServer:
        return SimulatedServer(self.model.flat.manifest, self.model.optimizer, settings)

    def train_to_start(self) -> Start:
        unit = self.unit
        if unit.start_version is not None:
            self.fleet.train(self.server, unit.start_version)
        accuracy, loss = self.measure(self.server)
        while unit.start_version is None and accuracy < unit.start_accuracy and self.server.version < _LONGEST_START:
            self.fleet.train(self.server, _LOOK_EVERY)
            accuracy, loss = self.measure(self.server)
        self.start = self.server.vector.clone()
        return Start(self.server.version, accuracy, loss, self.guess_loss)

    def measure(self, server: SimulatedServer) -> tuple[float, float]:
        return self.model.evaluate(server.vector, self.unit.samples)

    # --- no outage ---

    def control(self) -> dict[int, Control]:
        unit, fleet = self.unit, self.fleet.fork()
        server = self.server_of(ReplicaSettings(strategy="Stateless", slots=unit.workers))
        wanted = sorted({*self.outages, *(outage + unit.later for outage in self.outages)})
        measured: dict[int, tuple[float, float]] = {}
        for count in wanted:
            fleet.train(server, count - (fleet.turn - self.fleet.turn))
            measured[count] = self.measure(server)
        return {n: Control(*measured[n], *measured[n + unit.later]) for n in self.outages}

    def server_of(self, settings: ReplicaSettings) -> SimulatedServer:
        """One that was rebuilt, at the start."""
        server = self.new_server(settings)
        server.rebuild(self.server)
        return server

    # --- policies ---

    def idle(self) -> None:
        """Workers' next gradients are those that the outage kept them from, however long it was."""
        for policy in self.of("nothing"):
            server = self.server_of(policy.settings(self.unit.workers, 1))
            applied = self.judge(policy, server, self.fleet, None)
            for outage in self.outages:
                self.outcomes[outage][policy.name] = applied

    def frozen(self) -> None:
        policies = self.of("frozen")
        if not policies:
            return
        servers = {
            (policy.name, outage): self.server_of(policy.settings(self.unit.workers, outage))
            for policy in policies
            for outage in self.outages
        }
        fleet, group = self.fleet.fork(), list[Gradient]()
        memory = [torch.zeros(self.model.numel) for _ in range(GROUP)]
        for k, gradient in enumerate(fleet.compute_on(self.outages[-1], memory), start=1):
            group.append(gradient)
            if len(group) < GROUP and k not in self.outages:
                continue
            whole = len(group) == GROUP
            for policy in policies:
                sent = self.sent(policy, group, k - len(group))
                for outage in self.outages:
                    if k == outage or (whole and k < outage):
                        servers[policy.name, outage].take(sent, pending=outage)
            for policy in policies if k in self.outages else ():
                server = servers.pop((policy.name, k))
                self.outcomes[k][policy.name] = self.judge(policy, server, fleet, server.applied_weight)
            if whole:
                group = []

    def sent(self, policy: Policy, group: Sequence[Gradient], before: int) -> list[Gradient]:
        """The group as this policy's workers would have sent it, `before` gradients of the outage before it."""
        made = []
        for i, g in enumerate(group):
            payload = g.payload
            if policy.clip_norm is not None:
                payload = payload.clone()
                clip(payload, self.model.flat.manifest.parameters, policy.clip_norm)
            copy = g.copy if policy.copies else None
            scale = policy.scale(before + i)
            made.append(Gradient(g.slot, g.first, g.last, g.pulled, payload, g.kind, scale, copy))
        return made

    def local(self) -> None:
        policies = self.of("local")
        workers = self.unit.workers
        for times in sorted({policy.times(workers) for policy in policies}):
            chosen = [policy for policy in policies if policy.times(workers) == times]
            fleet = LocalFleet(self.fleet, times)
            for k in range(1, self.outages[-1] + 1):
                fleet.step()
                for policy in chosen if k in self.outages else ():
                    self.outcomes[k][policy.name] = self.rejoin(policy, fleet, k)

    def rejoin(self, policy: Policy, local: LocalFleet, outage: int) -> Applied:
        server = self.server_of(policy.settings(self.unit.workers, outage))
        for delta in local.deltas():
            if policy.add_deltas:
                delta.payload[: self.model.flat.manifest.parameters].mul_(self.unit.workers)
            server.take([delta], pending=outage)
        fleet = self.fleet.fork()
        fleet.turn = local.turn
        return self.judge(policy, server, fleet, None)

    def judge(self, policy: Policy, server: SimulatedServer, fleet: Fleet, weight: float | None) -> Applied:
        """Measure what the drain came to, train on, measure again."""
        moved = float(torch.linalg.vector_norm(server.vector - self.start))
        accuracy, loss = self.measure(server)
        diverged = not math.isfinite(loss) or loss > self.guess_loss
        later: tuple[float | None, float | None] = (None, None)
        if math.isfinite(loss):
            try:
                fleet.fork(server).train(server, self.unit.later, policy.clip_norm, policy.copies)
                then, its_loss = self.measure(server)
                later = (then, finite(its_loss))
            except Diverged:
                pass  # it has no later: that is the finding
        return Applied(accuracy, finite(loss), *later, diverged, weight, finite(moved))

    def of(self, computed: str) -> list[Policy]:
        return [policy for policy in self.unit.policies if policy.computed == computed]


def run_unit(unit: Unit) -> list[BacklogRecord]:
    """In a process of its own: one thread, so that two units share two cores."""
    torch.set_num_threads(1)
    return Experiment(unit).run()

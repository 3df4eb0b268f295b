"""All outages of one (workers, seed): trained once to the start, gradients computed once and given to every policy.

    untrained ─▶ start ─┬─▶ control: goes on, measured after 0 and after N gradients
                        ├─▶ frozen gradients, one pass: 32 at a time to the server of every (policy, N)
                        └─▶ local steps, one pass a rate: pseudo-gradients taken at every N
    after its drain each policy's weights train on as the control's do, on the same batches, and are measured meanwhile

A longer outage begins with the gradients of a shorter one, so one pass serves them all. The drain takes no time.

How weights are measured. One snapshot of SGD's weights is 3 to 5 points of accuracy off what those a few updates before
and after come to (measured from update 100 to 220, two seeds, 2,000 images), which is as much as the control gains in
some outages; what lies 5 updates apart is hardly correlated. So everything (the control at the start and after N
gradients, the weights after a drain, and those of workers that only waited) is measured in one way: 8 evaluations, the
first at once, the others 5 ordinary gradients apart. Their mean is 1 point off. 1,000 images are as good for that as
2,000, for it is the weights that jump. What is ruined may mend in those 35 gradients, so ruin is told by the first
evaluation alone; and averaged weights of local steps lose there what is only the calm of averaging. The loss of the
same evaluations jumps by 0.05 or less where 100 gradients gain 0.2 to 0.6: it is the second opinion.

The start is a number of updates, the same for every seed. Where a seed's own accuracy reaches a bound it has often just
jumped up, and what the control gains from there is too little.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from outlast.api.server_status import finite
from outlast.chain.settings import ReplicaSettings
from outlast_bench.study.backlog.policies import BY_NAME, LR, POLICIES, Policy
from outlast_bench.study.backlog.records import Applied, BacklogRecord, Evaluations, Start
from outlast_bench.study.backlog.server import Gradient, SimulatedServer
from outlast_bench.study.backlog.workers import Diverged, Fleet, LocalFleet, Model, clip

GROUP = 32  # what the log's reader takes at a time, and the replica makes one update of
EVALUATIONS = 8  # of everything
CONTROL = "Sum"  # whose server applies what follows a drain


@dataclass(frozen=True)
class Unit:
    """What is to be computed in one go."""

    workers: int
    seed: int
    outages: tuple[int, ...]
    start_version: int
    later: int
    samples: int
    quick: bool
    task: str = "outlast.tasks.fashion_mnist"
    args: tuple[tuple[str, Any], ...] = ()
    policies: tuple[Policy, ...] = POLICIES

    @property
    def after(self) -> tuple[int, ...]:
        """After how many more gradients everything is evaluated: from none to `later`."""
        return tuple(sorted({round(i * self.later / (EVALUATIONS - 1)) for i in range(EVALUATIONS)}))


def unit_of(record: BacklogRecord) -> Unit:
    """What makes a record again, with the code of its commit. Raises `KeyError` for a policy that this code has not."""
    return Unit(
        record.workers, record.seed, (record.outage,), record.start.version, record.after[-1], record.samples,
        record.quick, record.task, tuple(record.args.items()), tuple(BY_NAME[name] for name in record.policies),
    )  # fmt: skip


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
        self.fleet.train(self.server, self.unit.start_version)
        self.start = self.server.vector.clone()
        controls = self.control()
        start = Start(self.server.version, self.guess_loss, controls[0])
        self.fleet.cut_off()
        self.idle()
        self.frozen()
        self.local()
        wall_s = round(time.monotonic() - began, 1)
        return [self.record(outage, start, controls[outage], wall_s) for outage in self.outages]

    def record(self, outage: int, start: Start, control: Evaluations, wall_s: float) -> BacklogRecord:
        unit = self.unit
        policies = {policy.name: self.outcomes[outage][policy.name] for policy in unit.policies}
        return BacklogRecord(
            unit.workers, outage, unit.seed, unit.task, dict(unit.args), LR, GROUP, unit.samples, unit.after,
            unit.quick, wall_s, start, control, policies, torch.__version__,
        )  # fmt: skip

    def new_server(self, settings: ReplicaSettings) -> SimulatedServer:
        return SimulatedServer(self.model.flat.manifest, self.model.optimizer, settings)

    def measure(self, server: SimulatedServer) -> tuple[float, float]:
        return self.model.evaluate(server.vector, self.unit.samples)

    # --- no outage ---

    def control(self) -> dict[int, Evaluations]:
        """By gradients computed since the start, 0 among them. It never stops: its gradients are as old as ever."""
        fleet, server = self.fleet.fork(), self.server_of(self.control_settings)
        ends = (0, *self.outages)
        measured: dict[int, tuple[float, float]] = {}
        for count in sorted({end + after for end in ends for after in self.unit.after}):
            fleet.train(server, count - (fleet.turn - self.fleet.turn))
            measured[count] = self.measure(server)
        return {end: _evaluations([measured[end + after] for after in self.unit.after]) for end in ends}

    @property
    def control_settings(self) -> ReplicaSettings:
        return BY_NAME[CONTROL].settings(self.unit.workers, 1)

    def server_of(self, settings: ReplicaSettings, like: SimulatedServer | None = None) -> SimulatedServer:
        """One that was rebuilt to be like another: without one, as that at the start."""
        server = self.new_server(settings)
        server.rebuild(like or self.server)
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
        """Measure what the drain came to, and what the control's own updates make of that."""
        moved = float(torch.linalg.vector_norm(server.vector - self.start))
        found = [self.measure(server)]
        loss = found[0][1]
        diverged = not math.isfinite(loss) or loss > self.guess_loss
        found += self.followed(server, fleet, found[0])
        return Applied(_evaluations(found), diverged, weight, finite(moved))

    def followed(
        self, drained: SimulatedServer, fleet: Fleet, at_once: tuple[float, float]
    ) -> list[tuple[float, float]]:
        """The evaluations after the first. Where training breaks off the weights stay as bad as they are."""
        wanted, found = self.unit.after[1:], list[tuple[float, float]]()
        if math.isfinite(at_once[1]):
            server = self.server_of(self.control_settings, drained)
            twin, done = fleet.fork(server), 0
            try:
                for after in wanted:
                    twin.train(server, after - done)
                    done = after
                    found.append(self.measure(server))
            except Diverged:
                pass
        accuracy = (found or [at_once])[-1][0]
        return found + [(accuracy, math.inf)] * (len(wanted) - len(found))

    def of(self, computed: str) -> list[Policy]:
        return [policy for policy in self.unit.policies if policy.computed == computed]


def _evaluations(found: Sequence[tuple[float, float]]) -> Evaluations:
    return Evaluations(tuple(accuracy for accuracy, _ in found), tuple(finite(loss) for _, loss in found))


def run_unit(unit: Unit) -> list[BacklogRecord]:
    """In a process of its own: one thread, so that two units share two cores."""
    torch.set_num_threads(1)
    return Experiment(unit).run()

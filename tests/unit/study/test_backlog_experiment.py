"""The backlog experiment: the arithmetic that it compares, by hand; its workers, its schedule, its files."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from outlast.chain.events import Kind
from outlast.chain.settings import ReplicaSettings
from outlast.chain.staleness import ReducedRate
from outlast.model.flat import Manifest, TensorPlace
from outlast_bench.study.backlog import experiment as backlog
from outlast_bench.study.backlog.policies import BY_NAME, LR, POLICIES, Policy
from outlast_bench.study.backlog.records import (
    Evaluations,
)
from outlast_bench.study.backlog.server import Gradient, SimulatedServer
from outlast_bench.study.backlog.unit import EVALUATIONS, GROUP, Experiment, Unit, unit_of
from outlast_bench.study.backlog.workers import Diverged, Fleet, LocalFleet, Model, clip

ONE = Manifest((TensorPlace("p", (1,), "float32", 0, 1, 0),), 1, 1)
SGD = {"name": "SGD", "groups": [{"lr": LR}]}


def server(settings: ReplicaSettings) -> SimulatedServer:
    made = SimulatedServer(ONE, SGD, settings)
    made.initialise(torch.zeros(1))
    return made


def moved_by(policy: Policy, count: int, workers: int = 1) -> float:
    """How many gradients of 1 the policy makes of `count` frozen ones, from what it did to the weights."""
    made = server(policy.settings(workers, count))
    for start in range(0, count, GROUP):
        sent = []
        for k in range(start, min(start + GROUP, count)):
            payload = torch.ones(1)
            clip(payload, 1, policy.clip_norm)
            slot, step = k % workers, 1 + k // workers
            sent.append(Gradient(slot, step, step, 0, payload, lr_scale=policy.scale(k)))
        made.take(sent, pending=count)
    assert made.version == count
    weights = -float(made.vector[0]) / LR
    assert math.isclose(weights, made.applied_weight, rel_tol=1e-4), "what it says it applied"
    return weights


def harmonic(first: int, last: int) -> float:
    return sum(1 / k for k in range(first, last + 1))


@pytest.mark.parametrize(
    ("name", "count", "workers", "expected"),
    [
        ("Sum", 40, 1, 40.0),
        ("SumReducedRate", 50, 1, 50.0),
        ("SumReducedRate", 100, 1, 10.0),  # all of it at 0.001: also the last 4, which are fewer than 50
        ("Mean", 70, 1, 3.0),  # 32, 32 and 6
        # usual staleness (2, with two workers 5) costs nothing: 1, 1, 1, 3/4, 3/5, …
        ("InverseStaleness", 40, 1, 3 + 3 * harmonic(4, 40)),
        ("InverseStaleness", 40, 2, 6 + 6 * harmonic(7, 40)),
        # 1/(1 + i) within a group; the second group as a whole by 2/(1 + 32)
        ("DelayCompensation", 64, 1, harmonic(1, 32) + harmonic(1, 32) * 2 / 33),
        ("SumCapped", 40, 1, 40.0),
        ("SumCapped", 400, 1, 50.0),
        ("InverseSqrt", 3, 1, 1 + 1 / math.sqrt(2) + 1 / math.sqrt(3)),
    ],
)
def test_what_a_policy_makes_of_a_backlog(name: str, count: int, workers: int, expected: float) -> None:
    assert moved_by(BY_NAME[name], count, workers) == pytest.approx(expected, rel=1e-4)


def test_clipping_bounds_each_gradient_and_leaves_buffers_alone() -> None:
    gradient = torch.tensor([3.0, 4.0, 100.0])
    clip(gradient, 2, 1.0)
    assert gradient.tolist() == pytest.approx([0.6, 0.8, 100.0])


def test_delay_compensation_corrects_for_the_way_since_the_pull() -> None:
    made = server(ReplicaSettings(strategy="Hybrid", policy="DelayCompensation"))
    made.take([Gradient(0, 1, 1, 0, torch.tensor([-100.0]))])  # the weights are at 1 now
    payload = torch.tensor([2.0])
    made.take([Gradient(0, 2, 2, 0, payload, copy=torch.zeros(1))])
    assert float(made.vector[0]) == pytest.approx(1.0 - LR * (2 + 0.04 * 4 * 1.0))
    assert float(payload[0]) == 2.0, "other policies take the same gradient"


def test_pseudo_gradients_are_averaged_past_the_learning_rate() -> None:
    made = server(ReplicaSettings(strategy="Stateless", slots=2))
    for slot in range(2):
        made.take([Gradient(slot, 1, 5, 0, torch.tensor([0.5]), Kind.DELTA, 0.5)])
    assert (float(made.vector[0]), made.version) == (-0.5, 2)


def test_a_rebuilt_server_goes_on_as_the_old_one() -> None:
    old = server(ReplicaSettings(strategy="Stateless", policy="InverseStaleness"))
    old.take([Gradient(0, 1, 1, 0, torch.ones(1))])
    new = SimulatedServer(ONE, SGD, ReplicaSettings(strategy="Stateless", reduced_rate=ReducedRate(50, 0.001)))
    new.rebuild(old)
    assert (new.version, float(new.vector[0])) == (1, float(old.vector[0]))
    new.take([Gradient(0, 1, 1, 0, torch.ones(1)), Gradient(0, 2, 2, 0, torch.ones(1))])
    assert new.version == 2, "the step that the old one has applied is a duplicate"


# --- workers ---

TASK = "outlast.tasks.synthetic"
ARGS = {"parameters": 12, "tensors": 2, "computeMs": 0.0}


def fleet_of(workers: int) -> tuple[Model, Fleet, SimulatedServer]:
    model = Model.of(TASK, ARGS, 0, LR)
    made = SimulatedServer(model.flat.manifest, model.optimizer, ReplicaSettings(strategy="Stateless", slots=workers))
    made.initialise(model.weights())
    return model, Fleet(model, workers, made), made


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_gradients_of_healthy_workers_are_as_old_as_usual(workers: int) -> None:
    _, fleet, made = fleet_of(workers)
    fleet.train(made, 4 * workers)
    slot, _ = fleet.next_identity()
    assert made.version - fleet.held[slot].version == 2 * workers - 1


def test_a_cut_off_fleet_computes_at_the_last_weights_it_got() -> None:
    model, fleet, made = fleet_of(2)
    fleet.train(made, 6)
    fleet.cut_off()
    memory = [torch.zeros(model.numel) for _ in range(4)]
    sent = list(fleet.fork().compute_on(4, memory))
    assert [(g.slot, g.first, g.pulled) for g in sent] == [(0, 4, 5), (1, 4, 6), (0, 5, 5), (1, 5, 6)]
    assert sent[0].payload is memory[0]


@pytest.mark.parametrize("times", [1, 3])
def test_local_steps_send_what_the_products_own_would(times: int) -> None:
    model, fleet, made = fleet_of(2)
    fleet.train(made, 4)
    fleet.cut_off()
    local = LocalFleet(fleet, times)
    for _ in range(5):
        local.step()
    first, second = local.deltas()
    assert [(g.slot, g.first, g.last, g.kind) for g in (first, second)] == [
        (0, 3, 5, Kind.DELTA),
        (1, 3, 4, Kind.DELTA),
    ]
    again, _ = local.deltas()
    assert torch.equal(again.payload, first.payload), "asking changes nothing"
    out = torch.zeros(model.numel)
    assert local._local[0].take_delta(out) == (3, 5)
    assert torch.allclose(out, first.payload, atol=1e-7)


def unit(**changes: object) -> Unit:
    small = Unit(2, 0, (5, 40), 20, 4, 1, True, TASK, tuple(ARGS.items()))
    return replace(small, **changes)  # type: ignore[arg-type]


def first_loss(evaluations: Evaluations) -> float:
    assert evaluations.losses[0] is not None
    return evaluations.losses[0]


def test_a_unit_measures_every_policy_on_every_outage() -> None:
    records = Experiment(unit()).run()
    assert [r.outage for r in records] == [5, 40]
    for record in records:
        assert list(record.policies) == [p.name for p in POLICIES]
        assert record.start.version == 20
        start = first_loss(record.start.evaluations)
        assert start < record.start.guess_loss
        losses = {name: first_loss(applied.evaluations) for name, applied in record.policies.items()}
        assert losses["Idle"] == pytest.approx(start)
        assert all(loss < start for name, loss in losses.items() if name != "Idle")
        assert record.policies["Sum"].weight == pytest.approx(record.outage)
        # The task's gradient is the distance to the goal, so what the control gains can be had by local steps too.
        assert losses["LocalSteps"] == pytest.approx(first_loss(record.control), rel=0.05)
    assert Experiment(unit(outages=(40,))).run()[0].policies == records[1].policies, "alone or in one pass"


def test_everything_is_measured_over_the_same_updates_that_follow() -> None:
    """The control's evaluations are those of its own way; what waited repeats the start's, a little less stale."""
    assert unit(later=35).after == (0, 5, 10, 15, 20, 25, 30, 35)
    assert len(unit(later=1000).after) == EVALUATIONS
    few = (BY_NAME["Idle"], BY_NAME["SumClipped"], BY_NAME["DelayCompensationCopies"])
    (record,) = Experiment(unit(outages=(4,), later=4, policies=few)).run()
    assert record.after == (0, 1, 2, 3, 4)
    assert record.control.losses[0] == record.start.evaluations.losses[4], "4 gradients after the start, twice"
    idle = record.policies["Idle"].evaluations.losses
    assert idle[0] == record.start.evaluations.losses[0]
    assert idle[1] != idle[0]
    for applied in record.policies.values():
        assert len(applied.evaluations.losses) == len(applied.evaluations.accuracies) == len(record.after)


def test_what_follows_a_drain_is_applied_by_the_controls_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a policy would be measured by what it does without an outage, too."""
    experiment = Experiment(unit(outages=(40,), policies=(BY_NAME["Mean"], BY_NAME["DelayCompensation"])))
    asked: list[ReplicaSettings] = []
    whole = experiment.server_of

    def noted(settings: ReplicaSettings, like: SimulatedServer | None = None) -> SimulatedServer:
        if like is not None:
            asked.append(settings)
        return whole(settings, like)

    monkeypatch.setattr(experiment, "server_of", noted)
    experiment.run()
    assert [(settings.strategy, settings.policy) for settings in asked] == [("Stateless", "Sum")] * 2


def test_the_start_is_not_chosen_by_how_good_it_is() -> None:
    versions = {Experiment(unit(seed=seed, outages=(5,), policies=())).run()[0].start.version for seed in range(3)}
    assert versions == {20}
    assert {u.start_version for u in backlog.units(quick=False) if u.workers == 2} == {backlog.START[2]}


def test_a_record_holds_what_makes_it_again() -> None:
    for record in Experiment(unit(policies=(BY_NAME["Sum"], BY_NAME["LocalSteps"]))).run():
        (again,) = Experiment(unit_of(record)).run()
        assert replace(again, wall_s=record.wall_s) == record


def test_a_policy_that_diverges_is_told_as_that() -> None:
    (record,) = Experiment(unit(outages=(1000,), policies=(BY_NAME["Sum"], BY_NAME["LocalSteps"]))).run()
    assert record.policies["Sum"].diverged
    assert not record.policies["LocalSteps"].diverged


def test_a_training_that_breaks_off_has_all_its_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, trained = Experiment(unit(outages=(5,), policies=(BY_NAME["Sum"],))), Fleet.train

    def breaks(fleet: Fleet, server: SimulatedServer, count: int) -> None:
        if server.version >= 20 + 5 + 2:
            raise Diverged
        trained(fleet, server, count)

    monkeypatch.setattr(experiment, "idle", lambda: monkeypatch.setattr(Fleet, "train", breaks))  # after the control
    (record,) = experiment.run()
    losses = record.policies["Sum"].evaluations.losses
    assert [loss is None for loss in losses] == [False, False, False, True, True]
    assert len(record.policies["Sum"].evaluations.accuracies) == 5

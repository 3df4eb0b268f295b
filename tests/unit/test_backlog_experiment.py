"""The backlog experiment: the arithmetic that it compares, by hand; its workers, its schedule, its files."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from outlast.protocol import Kind
from outlast.replica_state import ReplicaSettings
from outlast.staleness import ReducedRate
from outlast.tensors import Manifest, TensorPlace
from outlast_operator.study import backlog
from outlast_operator.study.backlog_policies import BY_NAME, LR, POLICIES, Policy
from outlast_operator.study.backlog_records import (
    Applied,
    BacklogRecord,
    Control,
    Start,
    load_all,
    path_of,
    read,
    write,
)
from outlast_operator.study.backlog_server import Gradient, SimulatedServer
from outlast_operator.study.backlog_unit import GROUP, Experiment, Unit
from outlast_operator.study.backlog_workers import Fleet, LocalFleet, Model, clip
from outlast_operator.study.figures_backlog import cells

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
    small = Unit(2, 0, (5, 40), 4, 1, True, TASK, tuple(ARGS.items()), start_version=20)
    return replace(small, **changes)  # type: ignore[arg-type]


def test_a_unit_measures_every_policy_on_every_outage() -> None:
    records = Experiment(unit()).run()
    assert [r.outage for r in records] == [5, 40]
    for record in records:
        assert list(record.policies) == [p.name for p in POLICIES]
        assert record.start.version == 20
        assert record.start.loss < record.start.guess_loss
        losses = {name: applied.loss_after_drain for name, applied in record.policies.items()}
        assert losses["Idle"] == pytest.approx(record.start.loss)
        assert all(loss is not None and loss < record.start.loss for name, loss in losses.items() if name != "Idle")
        assert record.policies["Sum"].weight == pytest.approx(record.outage)
        # The task's gradient is the distance to the goal, so what the control gains can be had by local steps too.
        assert losses["LocalSteps"] == pytest.approx(record.control.loss_at_equal_time, rel=0.05)
    assert Experiment(unit(outages=(40,))).run()[0].policies == records[1].policies, "alone or in one pass"


def test_a_task_that_never_gets_to_the_start_accuracy_starts_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outlast_operator.study.backlog_unit._LONGEST_START", 30)
    (record,) = Experiment(unit(outages=(5,), policies=(), start_version=None, start_accuracy=2.0)).run()
    assert record.start.version == 30


def test_a_policy_that_diverges_is_told_as_that() -> None:
    (record,) = Experiment(unit(outages=(1000,), policies=(BY_NAME["Sum"], BY_NAME["LocalSteps"]))).run()
    assert record.policies["Sum"].diverged
    assert not record.policies["LocalSteps"].diverged


# --- schedule and files ---


def record(seed: int = 0, start: float = 0.5, control: float = 0.7, policy: float = 0.6) -> BacklogRecord:
    applied = Applied(policy, 1.0, None, None, False, None, 0.1)
    return BacklogRecord(
        2, 100, seed, TASK, LR, 32, 2000, 50, True, 1.5,
        Start(150, start, 1.7, 2.3), Control(control, 1.0, 0.75, 0.8), {"Sum": applied},
    )  # fmt: skip


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = write(tmp_path, record())
    assert path == path_of(tmp_path, 2, 100, 0)
    assert load_all(tmp_path) == [record()]
    path.write_text('{"schema": 2}')
    with pytest.raises(ValueError, match=r"seed-0\.json is no record .*delete it"):
        read(path)


def test_progress_kept_is_a_ratio_of_sums() -> None:
    seeds = [record(0, 0.5, 0.7, 0.6), record(1, 0.5, 0.5, 0.55)]
    (cell,) = cells(seeds)
    assert cell.kept is not None
    assert cell.kept.mean == pytest.approx(0.15 / 0.2)
    (cell,) = cells([record(0, 0.5, 0.4)])
    assert cell.kept is None


def test_the_full_study_asks_for_every_outage_and_number_of_workers() -> None:
    wanted = backlog.units(quick=False)
    asked = {(u.workers, n, u.seed) for u in wanted for n in u.outages}
    assert {(w, n) for w, n, _ in asked} == {(w, n) for w in (1, 2, 8) for n in (10, 100, 375, 1000, 10_000)}
    assert {seed for _, n, seed in asked if n == 375} == set(range(5))


def test_what_is_there_is_not_computed_again(tmp_path: Path) -> None:
    wanted = backlog.units(quick=True, seeds=2)
    whole_s = backlog.estimate_s(tmp_path, True, 2)
    write(tmp_path, record(seed=0))
    left = backlog.missing(tmp_path, wanted)
    assert [(u.seed, u.outages) for u in left] == [(0, (375,)), (1, (100, 375))]
    assert 0 < backlog.estimate_s(tmp_path, True, 2) < whole_s
    for n in (100, 375):
        for seed in (0, 1):
            write(tmp_path, replace(record(seed), outage=n))
    assert backlog.missing(tmp_path, wanted) == []
    assert backlog.estimate_s(tmp_path, True, 2) == 0

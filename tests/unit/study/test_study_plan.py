"""What a study compares and in which order: configurations, experiments, schedule, and what is still to be made."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlast_bench.study.design import configurations, experiments
from outlast_bench.study.design.configurations import (
    ALL,
    BY_NAME,
    CONTROL_NAME,
    NONE_YET,
    PAPERS,
    RECOMMENDED,
    make_job,
)
from outlast_bench.study.design.experiments import Experiment, models
from outlast_bench.study.design.records import PlannedRun, RunRecord


def job(name: str, **changes: Any) -> Any:
    wanted = {
        "task": "outlast.tasks.fashion_mnist",
        "task_args": {},
        "optimizer": dict(experiments.SGD),
        "evaluate": dict(experiments.EVALUATE),
        "seed": 3,
        "stop_after": {"seconds": 30.0},
    }
    return make_job(BY_NAME[name], **{**wanted, **changes})


@pytest.mark.parametrize("name", [c.name for c in ALL])
def test_every_configuration_is_a_valid_job(name: str) -> None:
    spec = job(name).spec
    assert spec.servers.replicas == (3 if spec.recovery.strategy in ("Chain", "Hybrid") else 1)
    assert spec.training.stop_after.seconds == 30.0


@pytest.mark.parametrize("name", [c.name for c in ALL])
def test_what_is_compared_differs_in_recovery_alone(name: str) -> None:
    """The same task, optimizer, seed, workers, evaluator and time: else it would be no comparison."""

    def shared(configuration: str) -> dict[str, Any]:
        raw = job(configuration).spec.to_json()
        raw["training"].pop("consistency")
        return {key: raw[key] for key in ("training", "workers", "cost")}

    assert shared(name) == shared(CONTROL_NAME)


def test_the_papers_five_are_as_it_ran_them() -> None:
    assert len(PAPERS) == 5
    found = {name: job(name).spec for name in PAPERS}
    assert Counter(spec.training.consistency for spec in found.values()) == {"Async": 3, "Sync": 2}
    for name, spec in found.items():
        recovery = spec.recovery
        assert recovery.staleness.policy == "Sum"
        if "chain" in name:
            assert (recovery.chain.replicate_every_updates, recovery.chain.ack) == (100, "Successor")
        elif "checkpoint" in name:
            assert recovery.checkpoint.every_updates == 100
        else:
            reduced = recovery.staleness.reduced_rate
            assert reduced is not None
            assert (reduced.above, reduced.lr) == (50, 0.001)
            assert not spec.local_steps, "the paper's workers computed on at the weights they had"


def test_ours_are_the_four_strategies_with_the_recommended_policy() -> None:
    specs = [job(name).spec for name in RECOMMENDED]
    assert {spec.recovery.strategy for spec in specs} == {"Checkpoint", "Chain", "Stateless", "Hybrid"}
    default = configurations.TrainingJob.load(
        {
            "apiVersion": "outlast.dev/v1alpha1",
            "kind": "TrainingJob",
            "metadata": {"name": "x"},
            "spec": {"training": {"task": "a.b", "stopAfter": {"updates": 1}}},
        }
    ).spec.recovery
    for spec in specs:
        assert spec.recovery.staleness == default.staleness
        assert spec.recovery.chain == default.chain


@pytest.mark.parametrize("name", [CONTROL_NAME, NONE_YET])
def test_no_checkpoint_disturbs_the_control(name: str) -> None:
    every = job(name).spec.recovery.checkpoint.every_updates
    assert every is not None
    assert every > 10_000_000


# --- experiments ---

STUDIES = {
    "full": [*experiments.full(), *models()],
    "quick": experiments.quick(),
    "own": experiments.own_task("my.task", {}, {}, False, None),
}


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES.keys())
def test_every_seed_has_its_control_and_every_run_is_planned_once(study: list[Experiment]) -> None:
    for experiment in study:
        runs = experiment.planned().runs
        assert len(runs) == len(set(runs))
        seeds = {run.seed for run in runs}
        assert seeds == set(range(experiment.seeds))
        assert {run.seed for run in runs if run.configuration == CONTROL_NAME and run.kills == 0} == seeds


def test_a_full_study_kills_each_of_nine_never_once_and_twice() -> None:
    steep = STUDIES["full"][0]
    assert {name for name, counts in steep.kills.items() if counts == (0, 1, 2)} == {*PAPERS, *RECOMMENDED}
    assert steep.seeds == 5


def test_a_quick_study_has_five_strategies_and_two_seeds_and_fits_eight_minutes() -> None:
    (steep,) = STUDIES["quick"]
    assert (len(set(steep.kills) - {CONTROL_NAME}), steep.seeds) == (5, 2)
    assert steep.estimate_s() <= 7 * 60, "the backlog experiment and the page take the rest"


def test_a_full_study_fits_four_hours() -> None:
    assert sum(experiment.estimate_s() for experiment in STUDIES["full"]) <= 3.7 * 3600


@pytest.mark.parametrize("experiment", models(), ids=lambda experiment: experiment.name)
def test_other_models_are_valid_jobs(experiment: Experiment) -> None:
    for name in experiment.kills:
        job(name, task=experiment.task, task_args=experiment.task_args, optimizer=experiment.optimizer)


# --- schedule ---


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES.keys())
def test_an_interruption_leaves_all_configurations_with_equally_many_seeds(study: list[Experiment]) -> None:
    planned = [experiment.planned() for experiment in study]
    order = experiments.order(planned)
    assert sorted(order) == sorted(run for experiment in planned for run in experiment.runs)
    for experiment in planned:
        kinds = {(run.configuration, run.kills) for run in experiment.runs}
        made: Counter[tuple[str, int]] = Counter()
        for run in (run for run in order if run.experiment == experiment.name):
            made[run.configuration, run.kills] += 1
            counts = [made[kind] for kind in kinds]
            assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES.keys())
def test_an_interruption_splits_one_experiment_at_most(study: list[Experiment]) -> None:
    order = [run.experiment for run in experiments.order([experiment.planned() for experiment in study])]
    assert list(dict.fromkeys(order)) == [experiment.name for experiment in study], "in the order asked, steep first"
    assert sum(a != b for a, b in pairwise(order)) == len(study) - 1


def test_the_order_is_the_same_each_time_and_differs_from_seed_to_seed() -> None:
    planned = [STUDIES["full"][0].planned()]
    order = experiments.order(planned)
    assert order == experiments.order(planned)
    by_seed = [[(r.configuration, r.kills) for r in order if r.seed == seed] for seed in range(5)]
    assert len({tuple(kinds) for kinds in by_seed}) == 5, "no configuration may always run at the same place"


def record(run: PlannedRun, status: str) -> RunRecord:
    return RunRecord(
        **run.to_json(), task="t", status=status, kill_arguments=[], command="", started="", wall_s=1.0, error=""
    )


@given(st.lists(st.sampled_from(["ok", "failed", None]), min_size=1, max_size=20), st.booleans())
def test_what_succeeded_is_never_made_again_and_what_failed_only_when_asked(
    states: list[str | None], retry: bool
) -> None:
    runs = [PlannedRun("steep", "chain", 1, seed) for seed in range(len(states))]
    made = {run: record(run, state) for run, state in zip(runs, states, strict=True) if state is not None}
    pending = experiments.to_make(runs, made.get, retry)
    assert pending == [
        run for run, state in zip(runs, states, strict=True) if state is None or (state == "failed" and retry)
    ]


def test_more_seeds_go_on_where_fewer_ended() -> None:
    few, more = (replace(STUDIES["quick"][0], seeds=n).planned() for n in (2, 3))
    before = experiments.order([few])
    assert experiments.order([more])[: len(before)] == before

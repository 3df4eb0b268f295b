"""In which order a study's runs are made, and which are still to be made. Pure.

Rules. (1) Experiment by experiment, in the order asked: a study that is made in several sittings, perhaps on several
machines of one kind, splits at most one experiment at each interruption. (2) Within one seed by seed: wherever it is
interrupted, no configuration is more than one seed ahead of another. (3) Within a seed in an order drawn from it: a
machine that grows slower hits all alike, and what is compared in pairs ran within the same hour.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence

from outlast_bench.study.design.records import PlannedExperiment, PlannedRun, RunRecord


def order(experiments: Sequence[PlannedExperiment]) -> list[PlannedRun]:
    """Every planned run once. The same plan has the same order."""
    return [run for experiment in experiments for seed in experiment.seeds for run in _shuffled(experiment, seed)]


def _shuffled(experiment: PlannedExperiment, seed: int) -> list[PlannedRun]:
    runs = sorted(run for run in experiment.runs if run.seed == seed)
    random.Random(f"{experiment.name}/{seed}").shuffle(runs)
    return runs


def to_make(
    runs: Iterable[PlannedRun], made: Callable[[PlannedRun], RunRecord | None], retry_failed: bool
) -> list[PlannedRun]:
    """The runs without a record, and with `retry_failed` those that failed. What succeeded is never made again."""
    pending = []
    for run in runs:
        record = made(run)
        if record is None or (retry_failed and not record.ok):
            pending.append(run)
    return pending

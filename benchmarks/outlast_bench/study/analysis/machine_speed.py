"""How fast the machine itself was in each run, and what the comparisons are where that is taken out. Pure.

A host that is shared slows all its guests' instructions, which no stolen time shows. Rules. (1) What tells it is the
evaluator: in every run of an experiment it does the same, the same network on the same test images, at the same low
priority; so its CPU seconds an evaluation are the machine's, and no strategy's. (2) They are taken out by analysis of
covariance: one slope for the whole experiment, of a measure over the logarithm of those seconds, from what is left
when each configuration's mean and each seed's are subtracted; a run's measure is then moved along it to the speed that
the control of the same seed ran at. (3) This stands beside the figures at equal wall time, and decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence

from outlast_bench.study.analysis.measures import RunMeasures
from outlast_bench.study.analysis.statistics import Estimate, paired
from outlast_bench.study.analysis.summary import Group, Summary, Value

LEAST_RUNS = 12  # an experiment with fewer in groups of several seeds tells no slope
PASSES = 50  # of subtracting means by turns: where no run is missing, one does

Cell = tuple[str, int, int]  # configuration, kills, seed


def at_the_controls_speed(summary: Summary, group: Group, value: Value) -> Estimate | None:
    """What `against_control` gives, had every run been made at its control's speed; None where nothing tells it."""
    control = summary.control(group.experiment, group)
    if control is None:
        return None
    moved = moved_to_the_control(summary, group, value)
    return paired(moved, {s: v for s, v in control.values(value).items() if s in moved}) if moved else None


def moved_to_the_control(summary: Summary, group: Group, value: Value) -> dict[int, float]:
    """Seed -> the measure at the speed of the control of that seed; empty where nothing tells it."""
    control, slope = summary.control(group.experiment, group), slope_of(summary, group.experiment, value)
    if control is None or slope is None:
        return {}
    mine, its = (logarithms(g.runs) for g in (group, control))
    return {s: v - slope * (mine[s] - its[s]) for s, v in group.values(value).items() if s in mine and s in its}


def slope_of(summary: Summary, experiment: str, value: Value) -> float | None:
    """Of `value` over the logarithm of the CPU seconds an evaluation, within configurations and seeds."""
    x: dict[Cell, float] = {}
    y: dict[Cell, float] = {}
    for group in summary.of(experiment):
        logs, measured = logarithms(group.runs), group.values(value)
        for seed in logs.keys() & measured.keys():
            cell = (group.configuration, group.kills, seed)
            x[cell], y[cell] = logs[seed], measured[seed]
    if len(x) < LEAST_RUNS:
        return None
    x, y = (within(side) for side in (x, y))
    spread = sum(v * v for v in x.values())
    return sum(x[cell] * y[cell] for cell in x) / spread if spread > 1e-9 else None


def within(found: Mapping[Cell, float]) -> dict[Cell, float]:
    """What is left without the means of configurations (and kills) and of seeds."""
    left = dict(found)
    for _ in range(PASSES):
        left = _without_means(left, lambda cell: cell[:2])
        left = _without_means(left, lambda cell: cell[2])
    return left


def _without_means(found: Mapping[Cell, float], part: Callable[[Cell], Hashable]) -> dict[Cell, float]:
    together: dict[Hashable, list[float]] = {}
    for cell, value in found.items():
        together.setdefault(part(cell), []).append(value)
    means = {key: sum(values) / len(values) for key, values in together.items()}
    return {cell: value - means[part(cell)] for cell, value in found.items()}


def logarithms(runs: Sequence[RunMeasures]) -> dict[int, float]:
    """Seed -> the logarithm of its CPU seconds an evaluation."""
    found = {run.run.seed: run.evaluation_cpu_s for run in runs}
    return {seed: math.log(s) for seed, s in found.items() if s is not None}


def range_of(summary: Summary, experiment: str) -> tuple[float, float, int] | None:
    """(least, most) CPU seconds an evaluation over the experiment's runs, and of how many runs."""
    found = [s for g in summary.of(experiment) for run in g.runs if (s := run.evaluation_cpu_s) is not None]
    return (min(found), max(found), len(found)) if found else None

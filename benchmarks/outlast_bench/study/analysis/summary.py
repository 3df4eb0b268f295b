"""Everything a study measured, by experiment, configuration and number of kills. Pure.

A `Group` is what a row of a table and a mark in a figure stand for: the runs of one configuration with so many kills,
each measure with its mean over seeds, and how many of its runs failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import median

from outlast_bench.study.analysis.load import StudyData, StudyRun, is_control
from outlast_bench.study.analysis.measures import RunMeasures, measure
from outlast_bench.study.analysis.run_curves import RunCurves
from outlast_bench.study.analysis.statistics import Estimate, estimate, paired, ratio

Value = Callable[[RunMeasures], float | None]
NOISE = 0.02  # accuracy: what an evaluation of some 500 images may be off


@dataclass(frozen=True)
class Group:
    experiment: str
    configuration: str
    label: str
    kills: int
    runs: tuple[RunMeasures, ...]
    failures: tuple[StudyRun, ...] = ()
    missing: int = 0  # planned and not made yet
    target: float = 0.8

    @property
    def failed(self) -> int:
        return len(self.failures)

    @property
    def diverged(self) -> int:
        """How many of the failed ones failed because they diverged."""
        return sum(run.diverged for run in self.failures)

    @property
    def n(self) -> int:
        return len(self.runs)

    @property
    def wanted(self) -> int:
        """How many runs a comparison should have."""
        return self.n + self.failed + self.missing

    def values(self, value: Value) -> dict[int, float]:
        """Seed -> what was measured; without the seeds for which it was not."""
        found = {run.run.seed: value(run) for run in self.runs}
        return {seed: v for seed, v in found.items() if v is not None}

    def estimate(self, value: Value) -> Estimate | None:
        return estimate(list(self.values(value).values()), self.failed)

    @property
    def time_to_target(self) -> Estimate | None:
        """Seconds; a run that did not reach it counts with its whole time, and as censored."""
        runs = [r for r in self.runs if r.evaluated]
        seconds = [r.trained_s if r.time_to_target_s is None else r.time_to_target_s for r in runs]
        return estimate(seconds, self.failed, sum(r.time_to_target_s is None for r in runs))

    @property
    def kept(self) -> Estimate | None:
        """Progress kept through the outages: gains of all seeds over those of the control.

        None where the control gained less than `NOISE` in them: near a plateau a share of it tells nothing.
        """
        pairs = [run.gains for run in self.runs if run.gains is not None]
        return ratio([a for a, _ in pairs], [b for _, b in pairs], NOISE)

    def kept_by_seed(self) -> dict[int, float]:
        """Seed -> its own ratio, where its control gained anything."""
        pairs = {run.run.seed: run.gains for run in self.runs if run.gains is not None}
        return {seed: a / b for seed, (a, b) in pairs.items() if b > 0.0}


@dataclass(frozen=True)
class Summary:
    """`groups` in the order of the study's configurations, then by kills. Failed runs are in their groups."""

    data: StudyData
    groups: tuple[Group, ...] = field(repr=False)

    @cached_property
    def experiments(self) -> list[str]:
        """Those with at least one run that succeeded."""
        return [e for e in self.data.experiments if any(g.runs for g in self.groups if g.experiment == e)]

    def of(self, experiment: str, kills: int | None = None, control: bool = True) -> list[Group]:
        """Groups with runs. With `kills`: of so many, and the control's, which has none, first or not at all."""
        mine = [g for g in self.groups if g.experiment == experiment and g.runs]
        return [
            g
            for g in mine
            if (control if is_control(g.configuration) else kills in (None, g.kills))
        ]  # fmt: skip

    def group(self, experiment: str, configuration: str, kills: int) -> Group | None:
        """None when no run of it succeeded."""
        mine = (g for g in self.groups if g.experiment == experiment and g.configuration == configuration)
        return next((g for g in mine if g.kills == kills and g.runs), None)

    def attempted(self, experiment: str, configuration: str, kills: int) -> Group | None:
        """Also one of which all runs failed or are still to be made; None when none was planned or made."""
        mine = (g for g in self.groups if g.experiment == experiment and g.configuration == configuration)
        made = next((g for g in mine if g.kills == kills), None)
        missing = _missing(self.data, experiment, configuration, kills)
        if made is not None or not missing:
            return made
        return Group(experiment, configuration, self.data.label(configuration), kills, (), missing=missing)

    def planned_kills(self, experiment: str, kills: int) -> bool:
        """Whether any run with so many kills was made or planned."""
        planned = self.data.planned(experiment)
        return any(r.kills == kills for r in self.data.of(experiment)) or (
            planned is not None and kills in planned.kills
        )

    def control(self, experiment: str, like: Group | None = None) -> Group | None:
        """The runs without failure; where an experiment trains several models, those of the model of `like`."""
        controls = [g for g in self.of(experiment, kills=0) if is_control(g.configuration)]
        if like is not None and like.runs:
            model = like.runs[0].run.model
            controls = [g for g in controls if g.runs[0].run.model == model]
        return controls[0] if controls else None

    def against_control(self, group: Group, value: Value) -> Estimate | None:
        """What the group has more than the control of the same seeds, pair by pair."""
        control = self.control(group.experiment, group)
        return None if control is None else paired(group.values(value), control.values(value))

    @property
    def failures(self) -> list[StudyRun]:
        return [run for run in self.data.runs if not run.ok]


def summarise(data: StudyData) -> Summary:
    """Measure every run that succeeded."""
    groups = []
    for experiment in data.experiments:
        for configuration in data.configurations(experiment):
            mine = data.of(experiment, configuration)
            counts = sorted({run.kills for run in mine})
            groups += [_group(data, [run for run in mine if run.kills == kills]) for kills in counts]
    return Summary(data, tuple(groups))


def _group(data: StudyData, runs: list[StudyRun]) -> Group:
    first = runs[0]
    target = data.target(first.experiment)
    ordered_s = data.outage_s(first.experiment)
    measured = tuple(
        measure(run, data.control(run), data.siblings(run), ordered_s, target) for run in runs if run.ok
    )  # fmt: skip
    return Group(
        experiment=first.experiment,
        configuration=first.configuration,
        label=data.label(first.configuration),
        kills=first.kills,
        runs=measured,
        failures=tuple(run for run in runs if not run.ok),
        missing=_missing(data, first.experiment, first.configuration, first.kills),
        target=target,
    )


def _missing(data: StudyData, experiment: str, configuration: str, kills: int) -> int:
    wanted = (experiment, configuration, kills)
    return sum((run.experiment, run.configuration, run.kills) == wanted for run in data.missing)


def curves_of(group: Group) -> Iterable[RunCurves]:
    return (run.curves for run in group.runs)


def kills_label(kills: int) -> str:
    return {0: "no kill", 1: "one kill", 2: "two kills"}.get(kills, f"{kills} kills")


# --- what is measured, by name ---


def final_accuracy(run: RunMeasures) -> float | None:
    return run.final_accuracy


def late_accuracy(run: RunMeasures) -> float | None:
    return run.late_accuracy


def goodput(run: RunMeasures) -> float | None:
    return run.goodput


def outage_s(run: RunMeasures) -> float | None:
    """Of all kills together."""
    each = [o.outage_s for o in run.outages]
    return None if not each or any(s is None for s in each) else sum(s for s in each if s is not None)


def drop(index: int) -> Value:
    """At the `index`-th kill, from 0."""
    return lambda run: run.outages[index].drop if index < len(run.outages) else None


def gradients(name: str) -> Value:
    """A count of the report's `gradients`."""
    return lambda run: run.gradients.get(name)


# --- time to the target ---


def passed_before_kill(summary: Summary, experiment: str) -> tuple[int, int]:
    """(seeds in which the control passed the target before the first kill, seeds with a control and kills)."""
    killed: dict[int, list[float]] = {}
    for group in summary.of(experiment, control=False):
        for run in group.runs:
            if run.curves.outages:
                killed.setdefault(run.run.seed, []).append(run.curves.outages[0].killed)
    control = summary.control(experiment)
    known = [run for run in control.runs if run.run.seed in killed] if control is not None else []
    passed = [
        run.time_to_target_s is not None and run.time_to_target_s < median(killed[run.run.seed]) for run in known
    ]  # fmt: skip
    return sum(passed), len(passed)


def target_is_told(summary: Summary, experiment: str, kills: int) -> bool:
    """Whether time and cost to the target are said of runs with so many kills.

    Where the control passed the target before the first kill, in most seeds, so did the others: time and cost to get
    there are those of undisturbed training.
    """
    passed, known = passed_before_kill(summary, experiment)
    return not kills or 2 * passed <= known


def later_than_control(summary: Summary, group: Group) -> Estimate | None:
    """Seconds after the control of the same seed; None where it is not told.

    A run that did not get there counts with its whole time, and as censored. Seeds whose control did not get there
    are left out: nobody knows then how much later the run was.
    """
    control = summary.control(group.experiment, group)
    if control is None or is_control(group.configuration) or not target_is_told(summary, group.experiment, group.kills):
        return None
    reached = control.values(lambda run: run.time_to_target_s)
    runs = [run for run in group.runs if run.evaluated and run.run.seed in reached]
    seconds = {r.run.seed: r.trained_s if r.time_to_target_s is None else r.time_to_target_s for r in runs}
    found = paired(seconds, reached)
    return None if found is None else replace(found, censored=sum(r.time_to_target_s is None for r in runs))

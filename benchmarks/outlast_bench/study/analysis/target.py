"""Whether the time to the target accuracy tells anything of a kill, and how much later it is than the control's. Pure.

Rule. Where the control passed the target before the first kill, in most seeds, so did the others: time and cost to get
there are those of undisturbed training, and are left out of what is said about runs with kills.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import median

from outlast_bench.study.analysis.load import is_control
from outlast_bench.study.analysis.statistics import Estimate, paired
from outlast_bench.study.analysis.summary import Group, Summary


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


def is_told(summary: Summary, experiment: str, kills: int) -> bool:
    """Whether time and cost to the target are said of runs with so many kills."""
    passed, known = passed_before_kill(summary, experiment)
    return not kills or 2 * passed <= known


def why_not(summary: Summary, experiment: str) -> str:
    """The sentence that says what is left out; empty where nothing is."""
    passed, known = passed_before_kill(summary, experiment)
    if 2 * passed <= known:
        return ""
    return (
        f"The control passed {summary.data.target(experiment):.2f} before the first kill in {passed} of {known} seeds: "
        "time and cost to get there say nothing of a kill, and are left out."
    )


def later_than_control(summary: Summary, group: Group) -> Estimate | None:
    """Seconds after the control of the same seed; None where it is not told.

    A run that did not get there counts with its whole time, and as censored. Seeds whose control did not get there
    are left out: nobody knows then how much later the run was.
    """
    control = summary.control(group.experiment, group)
    if control is None or is_control(group.configuration) or not is_told(summary, group.experiment, group.kills):
        return None
    reached = control.values(lambda run: run.time_to_target_s)
    runs = [run for run in group.runs if run.evaluated and run.run.seed in reached]
    seconds = {r.run.seed: r.trained_s if r.time_to_target_s is None else r.time_to_target_s for r in runs}
    found = paired(seconds, reached)
    return None if found is None else replace(found, censored=sum(r.time_to_target_s is None for r in runs))

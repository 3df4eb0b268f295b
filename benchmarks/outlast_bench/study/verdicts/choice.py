"""Which strategy: the recommended ones side by side, what a kill costs with each and what each costs without one. Pure.

Rules. (1) A difference between two strategies is paired by seed; where its interval has 0 inside, these seeds do not
tell them apart. (2) Which one ends highest is decided by the seeds that all have. (3) Runs that failed or are not made
yet are counted in the table. (4) Money is of the price table's first set of machines.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from outlast.api.strategy import traits_of
from outlast_bench.study.analysis.cells import NOTHING, Cell, Grid, Line, cell, points, seeds_of
from outlast_bench.study.analysis.cost import PriceTable, hourly_of, usual
from outlast_bench.study.analysis.statistics import Estimate, paired
from outlast_bench.study.analysis.summary import (
    Group,
    Summary,
    goodput,
    gradients,
    late_accuracy,
    later_than_control,
    outage_s,
)
from outlast_bench.study.design.configurations import RECOMMENDED
from outlast_operator.reporting import words

CHEAPEST = "checkpoint"  # what an hour is compared with
KILLS = (1, 2)


def which(summary: Summary, prices: PriceTable, experiment: str) -> Grid | None:
    """None where no recommended strategy has a run with a kill."""
    found = [recommended(summary, experiment, kills) for kills in KILLS]
    if not any(group.runs for groups in found for group in groups):
        return None
    columns = (
        "strategy", "kills", "late accuracy against the control (points)", "below the best (points)",
        _time_column(summary, experiment), "without an update (s)", "gradients lost", "goodput without a kill",
        f"money an hour, {' '.join(usual(prices))} ({CHEAPEST.capitalize()}: 1)", "needs", "n",
    )  # fmt: skip
    lines = []
    for groups in found:
        below = below_best(summary, groups)
        lines += [_line(summary, prices, group, below.get(group.configuration)) for group in groups]
    return Grid("", columns, tuple(lines)).filled


def recommended(summary: Summary, experiment: str, kills: int) -> list[Group]:
    """Those with runs with so many kills, or with planned ones."""
    return [g for name in RECOMMENDED if (g := summary.attempted(experiment, name, kills)) is not None]


def _time_column(summary: Summary, experiment: str) -> str:
    control = summary.control(experiment)
    found = None if control is None else control.time_to_target
    takes = "" if found is None else f" (the control: {' '.join(cell(found, 1)).split(' (')[0]} s)"
    return f"{summary.data.target(experiment):.2f} later than the control by (s){takes}"


def _line(summary: Summary, prices: PriceTable, group: Group, below: Estimate | None) -> Line:
    lost = group.estimate(gradients("lost"))
    unfailed = summary.group(group.experiment, group.configuration, 0)
    hour = times_cheapest(summary, prices, group)
    cells: tuple[Cell, ...] = (
        (str(group.kills), ""),
        points(summary.against_control(group, late_accuracy)),
        cell(below, 1, 100.0),
        cell(later_than_control(summary, group), 1, signed=True, of=group.n),
        cell(group.estimate(outage_s), 2),
        NOTHING if lost is None else (f"{lost.mean:,.0f}", ""),
        NOTHING if unfailed is None else cell(unfailed.estimate(goodput), 2),
        NOTHING if hour is None else (f"{hour:.2f}", ""),
        (needs(group), "") if group.runs else NOTHING,
        seeds_of(group),
    )
    return Line(group.label, cells, failed=bool(group.failed))


def below_best(summary: Summary, groups: Sequence[Group]) -> dict[str, Estimate]:
    """Configuration -> how much lower it ends than the one that ends highest, which has no entry.

    Of one number of kills; empty with fewer than two that can be compared with the control, or no seed of all.
    """
    known = [g for g in groups if summary.against_control(g, late_accuracy) is not None]
    shared = set.intersection(*(set(g.values(late_accuracy)) for g in known)) if known else set()
    if len(known) < 2 or not shared:
        return {}
    best = max(known, key=lambda g: fmean(g.values(late_accuracy)[seed] for seed in sorted(shared)))
    less = {
        g.configuration: paired(best.values(late_accuracy), g.values(late_accuracy)) for g in known if g is not best
    }
    return {name: found for name, found in less.items() if found is not None}


def needs(group: Group) -> str:
    """`3 servers a shard, Redis`: a study's jobs have one shard. `group` has runs."""
    report = group.runs[0].run.report
    servers = f"{words.count(int(report.get('servers') or 0), 'server')} a shard"
    traits = traits_of(report)
    return f"{servers}, Redis" if traits is not None and traits.buffered else servers


def times_cheapest(summary: Summary, prices: PriceTable, group: Group) -> float | None:
    """What an hour costs over what one of Checkpoint does; None where either has no runs, or is free."""
    base = next((g for g in summary.of(group.experiment) if g.configuration == CHEAPEST), None)
    if base is None or not group.runs:
        return None
    above, below = (hourly_of(g.runs[0], prices, *usual(prices)) for g in (group, base))
    return above / below if below > 0 else None

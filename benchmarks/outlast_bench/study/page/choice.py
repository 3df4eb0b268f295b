"""Which strategy: the recommended ones side by side, what a kill costs with each and what each costs without one. Pure.

Rules. (1) A difference between two strategies is paired by seed, and told only where its interval has not 0 inside; too
few seeds for an interval tell none apart, whatever their means. (2) Who ends highest is decided by the seeds that all
have. (3) Runs that failed or are not made yet are counted in the table. (4) Money is of the price table's first set of
machines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from outlast.api.strategy import TABLE
from outlast_bench.study.analysis import target
from outlast_bench.study.analysis.cost import PriceTable, hourly_of, usual
from outlast_bench.study.analysis.statistics import Estimate, paired
from outlast_bench.study.analysis.summary import (
    Group,
    Summary,
    goodput,
    gradients,
    kills_in_words,
    late_accuracy,
    outage_s,
)
from outlast_bench.study.design.configurations import RECOMMENDED
from outlast_bench.study.page.cells import NOTHING, Cell, Grid, Line, cell, seeds_of
from outlast_bench.study.verdicts.verdict import points
from outlast_operator.reporting import words

CHEAPEST = "checkpoint"  # what an hour is compared with
KILLS = (1, 2)


@dataclass(frozen=True)
class Choice:
    """`sentences` read the table for the reader."""

    grid: Grid
    sentences: tuple[str, ...]


def which(summary: Summary, prices: PriceTable, experiment: str) -> Choice | None:
    """None where no recommended strategy has a run with a kill, or one is planned."""
    found = [_attempted(summary, experiment, kills) for kills in KILLS]
    lines = [_line(summary, prices, group) for groups in found for group in groups]
    if not any(group.runs for groups in found for group in groups):
        return None
    columns = (
        "strategy", "kills", "late accuracy against the control (points)", _time_column(summary, experiment),
        "without an update (s)", "gradients lost", "goodput without a kill",
        f"money an hour, {' '.join(usual(prices))} ({CHEAPEST.capitalize()}: 1)", "needs", "n",
    )  # fmt: skip
    most = [groups for groups in found if any(g.runs for g in groups)][-1]
    ended = [ends(summary, groups) for groups in found]
    prices_told = [cheapest(summary, prices, groups) for groups in found]
    sentences = [*(s for pair in zip(ended, prices_told, strict=True) for s in pair), unfailed(summary, most)]
    return Choice(Grid("", columns, tuple(lines)).filled, tuple(s for s in sentences if s))


def _attempted(summary: Summary, experiment: str, kills: int) -> list[Group]:
    groups = (summary.attempted(experiment, name, kills) for name in RECOMMENDED)
    return [group for group in groups if group is not None]


def _time_column(summary: Summary, experiment: str) -> str:
    control = summary.control(experiment)
    found = None if control is None else control.time_to_target
    takes = "" if found is None else f" (the control: {' '.join(cell(found, 1)).split(' (')[0]} s)"
    return f"{summary.data.target(experiment):.2f} later than the control by (s){takes}"


def _line(summary: Summary, prices: PriceTable, group: Group) -> Line:
    lost = group.estimate(gradients("lost"))
    unfailed_group = summary.group(group.experiment, group.configuration, 0)
    hour = times_cheapest(summary, prices, group)
    cells: tuple[Cell, ...] = (
        (str(group.kills), ""),
        cell(summary.against_control(group, late_accuracy), 1, 100.0, signed=True),
        cell(target.later_than_control(summary, group), 1, signed=True, of=group.n),
        cell(group.estimate(outage_s), 2),
        NOTHING if lost is None else (f"{lost.mean:,.0f}", ""),
        NOTHING if unfailed_group is None else cell(unfailed_group.estimate(goodput), 2),
        NOTHING if hour is None else (f"{hour:.2f}", ""),
        (needs(group), "") if group.runs else NOTHING,
        seeds_of(group),
    )
    return Line(group.label, cells, failed=bool(group.failed))


def needs(group: Group) -> str:
    """`3 servers a shard, Redis`: a study's jobs have one shard. `group` has runs."""
    report = group.runs[0].run.report
    servers = f"{words.count(int(report.get('servers') or 0), 'server')} a shard"
    return f"{servers}, Redis" if TABLE[report["strategy"], report["consistency"]].buffered else servers


def times_cheapest(summary: Summary, prices: PriceTable, group: Group) -> float | None:
    """What an hour costs over what one of Checkpoint does; None where either has no runs, or is free."""
    base = next((g for g in summary.of(group.experiment) if g.configuration == CHEAPEST), None)
    if base is None or not group.runs:
        return None
    above, below = (hourly_of(g.runs[0], prices, *usual(prices)) for g in (group, base))
    return above / below if below > 0 else None


# --- in words ---


Less = tuple[tuple[Group, Estimate], ...]  # each with what the best has more


@dataclass(frozen=True)
class Ranked:
    """Who ends highest by the mean, who is behind it, who cannot be told from it, who has too few seeds for either."""

    best: Group
    behind: Less
    level: Less
    few: tuple[Group, ...]


def ranked(summary: Summary, groups: Sequence[Group]) -> Ranked | None:
    """Of one number of kills; None with fewer than two that can be compared with the control, or no seed of all."""
    known = [g for g in groups if summary.against_control(g, late_accuracy) is not None]
    shared = set.intersection(*(set(g.values(late_accuracy)) for g in known)) if known else set()
    if len(known) < 2 or not shared:
        return None
    best = max(known, key=lambda g: fmean(g.values(late_accuracy)[seed] for seed in sorted(shared)))
    others = [(g, paired(best.values(late_accuracy), g.values(late_accuracy))) for g in known if g is not best]
    told = [(g, less) for g, less in others if less is not None and less.kind == "interval"]
    behind = tuple((g, less) for g, less in told if less.low > 0.0)
    level = tuple((g, less) for g, less in told if less.low <= 0.0)
    return Ranked(best, behind, level, tuple(g for g, less in others if less is None or less.kind != "interval"))


def ends(summary: Summary, groups: Sequence[Group]) -> str:
    """How they end, of one number of kills; empty where there is nothing to compare."""
    found = ranked(summary, groups)
    if found is None:
        return ""
    around = points(summary.against_control(found.best, late_accuracy))
    text = f"After {kills_in_words(found.best.kills)} {found.best.label} ends highest: {around} against the control."
    for place, less in (("Behind it", found.behind), ("Behind it, but not told from it by these seeds", found.level)):
        if less:
            text += f" {place}: {words.listing([f'{g.label} by {_less(e)}' for g, e in less])}."
    if found.few:
        text += f" Too few seeds to be told from it: {words.listing([g.label for g in found.few])}."
    return text


def _less(found: Estimate) -> str:
    return points(found).replace("+", "")


def cheapest(summary: Summary, prices: PriceTable, groups: Sequence[Group]) -> str:
    """Of those that these seeds do not tell from the best, the one whose hour costs least.

    Empty where too few seeds tell who these are: the cheapest would win for want of evidence.
    """
    found = ranked(summary, groups)
    if found is None or found.few:
        return ""
    hours = [(times_cheapest(summary, prices, g), g) for g in (found.best, *(g for g, _ in found.level))]
    known = [(hour, g) for hour, g in hours if hour is not None]
    if not known:
        return ""
    hour, group = min(known, key=lambda pair: pair[0])
    times = f"{hour:.2f} times what an hour of {CHEAPEST.capitalize()} costs"
    price = "the cheapest of all" if group.configuration == CHEAPEST else times
    after = kills_in_words(group.kills)
    if not found.level:
        return f"An hour of {group.label}, which alone ends that high after {after}, is {price}."
    told = f"Of those not told apart after {after} {group.label} costs least an hour ({price})"
    return f"{told}; it needs {needs(group)}."


def unfailed(summary: Summary, groups: Sequence[Group]) -> str:
    """What the strategies cost while nothing fails."""
    found = [(g.label, summary.group(g.experiment, g.configuration, 0)) for g in groups]
    known = [(label, e) for label, g in found if g is not None and (e := g.estimate(goodput)) is not None]
    if not known:
        return "What a strategy costs while nothing fails is not in this study: it has no such runs."
    each = words.listing([f"{label} {e.mean:.2f}" for label, e in sorted(known, key=lambda pair: -pair[1].mean)])
    return f"While nothing fails, the parameters come to hold, of the control's gradients: {each}."

"""The paper's worry about models without normalisation, answered as far as the data goes. Pure.

Rules. (1) Seeds are compared in pairs: with a seed both kinds see the same data in the same order, and are killed at
the same place between two checkpoints. (2) A comparison is decided where what surrounds the mean difference has not 0
inside. (3) A run that diverged kept nothing: against one that did not it keeps less, and is named. It is no interval's
member, so with one every seed must say the same. (4) Any other failed or missing run leaves its comparison open.
(5) Where a control gains little in an outage, the share of it that is kept is wide; beside it stands, deciding nothing,
how far each model ends from its own control.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from outlast_bench.study.analysis.cells import NOTHING, Cell, cell, points, seeds_in, seeds_of
from outlast_bench.study.analysis.load import is_control
from outlast_bench.study.analysis.statistics import estimate
from outlast_bench.study.analysis.summary import Group, Summary, late_accuracy
from outlast_bench.study.verdicts.verdict import Row, Verdict

BUFFERED = ("stateless", "hybrid")
PREFIX, PLAIN = "models-", "-plain"


@dataclass(frozen=True)
class Pair:
    """Two experiments that differ in normalisation alone."""

    name: str
    normalised: str
    plain: str


def pairs(summary: Summary) -> list[Pair]:
    """Those of which both have runs that succeeded."""
    known = [e for e in summary.experiments if e.startswith(PREFIX)]
    return [Pair(e.removeprefix(PREFIX), e, e + PLAIN) for e in known if e + PLAIN in known]


def kills_of(summary: Summary, pair: Pair, configuration: str) -> tuple[Group | None, Group | None]:
    """(with, without normalisation): the groups with one kill."""
    return summary.group(pair.normalised, configuration, 1), summary.group(pair.plain, configuration, 1)


def configurations(summary: Summary, pair: Pair) -> list[str]:
    """In either, with a kill, in the study's order."""
    found = [g.configuration for e in (pair.normalised, pair.plain) for g in summary.of(e, 1, control=False) if g.kills]
    return [name for name in summary.data.configurations(pair.normalised) if name in found]


def normalisation(summary: Summary) -> Verdict | None:
    """None where the study has no models in both kinds. Only strategies that apply a backlog decide."""
    found = [_row(summary, pair, name) for pair in pairs(summary) for name in _names(summary, pair)]
    rows = tuple(row for row in found if row is not None)
    told = {row.met for row in rows if row.decides}
    if not told:
        return None
    return Verdict(
        "A model without normalisation keeps less of its progress through an outage than the same model with it.",
        told.pop() if len(told) == 1 else None,
        (
            "kept with",
            "kept without",
            "difference",
            "ends with (points)",
            "ends without (points)",
            "runs with",
            "runs without",
        ),
        rows,
    )


def _names(summary: Summary, pair: Pair) -> list[str]:
    names = summary.data.configurations(pair.normalised) + summary.data.configurations(pair.plain)
    return [name for name in dict.fromkeys(names) if not is_control(name)]


def _row(summary: Summary, pair: Pair, name: str) -> Row | None:
    """What each kind keeps, and how far each ends from its own control, which decides nothing."""
    groups = [summary.attempted(e, name, 1) for e in (pair.normalised, pair.plain)]
    if groups == [None, None]:
        return None
    ends = [NOTHING if g is None else points(summary.against_control(g, late_accuracy)) for g in groups]
    label = f"{pair.name}, {summary.data.label(name)}"
    if not any(word in BUFFERED for word in name.split("-")):
        counts = [NOTHING if g is None else seeds_of(g) for g in groups]
        return Row(label, (NOTHING, NOTHING, NOTHING, *ends, *counts), decides=False)
    kept = [NOTHING if g is None else cell(g.kept, 2) for g in groups]
    counts = [NOTHING if g is None else seeds_in(g.kept, [g]) for g in groups]
    differences = {} if groups[0] is None or groups[1] is None else compared(groups[0], groups[1])
    met = decided(differences) if all(g is not None and _whole(g, differences) for g in groups) else None
    return Row(label, (*kept, difference(differences, *groups), *ends, *counts), met)


def compared(normalised: Group, plain: Group) -> dict[int, float]:
    """Seed -> what the model with normalisation keeps more; infinite where one of the two diverged, 0 where both."""
    kept = [{**g.kept_by_seed(), **dict.fromkeys(_diverged(g), -math.inf)} for g in (normalised, plain)]
    seeds = sorted(kept[0].keys() & kept[1].keys())
    return {s: 0.0 if kept[0][s] == kept[1][s] else kept[0][s] - kept[1][s] for s in seeds}


def decided(differences: Mapping[int, float]) -> bool | None:
    """Whether the plain model keeps less; None where the seeds leave it open, or there is but one."""
    if len(differences) < 2:
        return None
    values = list(differences.values())
    found = estimate(values) if all(math.isfinite(v) for v in values) else None
    low, high = (min(values), max(values)) if found is None else (found.low, found.high)
    return True if low > 0.0 else False if high < 0.0 else None


def _diverged(group: Group) -> list[int]:
    return [run.seed for run in group.failures if run.diverged]


def _whole(group: Group, differences: Mapping[int, float]) -> bool:
    """Whether every planned run is in the differences: measured, or diverged."""
    return group.wanted == len(differences)


def difference(differences: Mapping[int, float], normalised: Group | None, plain: Group | None) -> Cell:
    """Of the two shares, which are ratios of means; around it the differences seed by seed.

    Where the two are not of the same seeds their difference is of nothing that was compared, and has no mean.
    """
    finite = estimate([d for d in differences.values() if math.isfinite(d)])
    shares = [None if g is None else g.kept for g in (normalised, plain)]
    if finite is None or shares[0] is None or shares[1] is None:
        return NOTHING
    if not finite.n == shares[0].n == shares[1].n:
        return "", cell(finite, 2, of=max(share.n for share in shares if share is not None))[1]
    return cell(replace(finite, mean=shares[0].mean - shares[1].mean), 2)

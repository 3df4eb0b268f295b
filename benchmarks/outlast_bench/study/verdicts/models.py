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
from dataclasses import replace

from outlast_bench.study.analysis.load import is_control
from outlast_bench.study.analysis.models import Pair, pairs
from outlast_bench.study.analysis.statistics import estimate
from outlast_bench.study.analysis.summary import Group, Summary, late_accuracy
from outlast_bench.study.verdicts.verdict import Row, Verdict, lacking, points, share

QUESTION = "A model without normalisation keeps less of its progress through an outage than the same model with it."
BUFFERED = ("stateless", "hybrid")
KINDS = ("with", "without")  # normalisation


def normalisation(summary: Summary) -> Verdict | None:
    """None where the study has no models in both kinds. Only strategies that apply a backlog decide."""
    compared_pairs = pairs(summary)
    rows = [row for pair in compared_pairs for row in _rows(summary, pair)]
    if not rows:
        return None
    told = [row.met for row in rows if row.met is not None]
    less = sum(told)
    answer = (
        f"Of {len(rows)} comparisons {less} show it, {len(told) - less} show the contrary, and in "
        f"{len(rows) - len(told)} the seeds disagree, or runs are missing."
    )
    holds = None if len(told) < len(rows) or 0 < less < len(told) else bool(less)
    measure = (
        "progress kept, one kill, and the mean over seeds of what the model with normalisation keeps more; then the "
        "evaluations of the last 5 s less those of the model's own control"
    )
    ends = [row for pair in compared_pairs for row in _ends(summary, pair)]
    return Verdict(QUESTION, holds, answer, measure, (*rows, *ends))


def _ends(summary: Summary, pair: Pair) -> list[Row]:
    """How far each kind ends from its own control, checkpointing among them: beside the verdict."""
    found = []
    for name in _names(summary, pair):
        groups = [summary.attempted(e, name, 1) for e in (pair.normalised, pair.plain)]
        if is_control(name) or groups == [None, None]:
            continue
        figure = ", ".join(f"{kind} {_end(summary, g)}" for kind, g in zip(KINDS, groups, strict=True))
        found.append(Row(f"{pair.name}, {summary.data.label(name)}, at the end", figure, decides=False))
    return found


def _end(summary: Summary, group: Group | None) -> str:
    if group is None:
        return "not measured"
    found = summary.against_control(group, late_accuracy)
    return points(found) + lacking(group, found)


def _names(summary: Summary, pair: Pair) -> list[str]:
    names = summary.data.configurations(pair.normalised) + summary.data.configurations(pair.plain)
    return list(dict.fromkeys(names))


def _rows(summary: Summary, pair: Pair) -> list[Row]:
    found = []
    for name in _names(summary, pair):
        groups = [summary.attempted(e, name, 1) for e in (pair.normalised, pair.plain)]
        if not any(word in BUFFERED for word in name.split("-")) or groups == [None, None]:
            continue
        figure = ", ".join(
            f"{kind} {'not measured' if g is None else share(g.kept) + lacking(g, g.kept) + diverged(g)}"
            for kind, g in zip(KINDS, groups, strict=True)
        )
        differences = {} if groups[0] is None or groups[1] is None else compared(groups[0], groups[1])
        met = decided(differences) if all(g is not None and _whole(g, differences) for g in groups) else None
        figure += _in_words(differences, *groups)
        found.append(Row(f"{pair.name}, {summary.data.label(name)}", figure, met))
    return found


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


def diverged(group: Group) -> str:
    """How a divergence counts, where there was one."""
    return "; what diverged counts as keeping less" if _diverged(group) else ""


def _diverged(group: Group) -> list[int]:
    return [run.seed for run in group.failures if run.diverged]


def _whole(group: Group, differences: Mapping[int, float]) -> bool:
    """Whether every planned run is in the differences: measured, or diverged."""
    return group.n + group.failed + group.missing == len(differences)


def _in_words(differences: Mapping[int, float], normalised: Group | None, plain: Group | None) -> str:
    """Of the two shares, which are ratios of means; around it the differences seed by seed.

    Where the two are not of the same seeds their difference is of nothing that was compared, and is not told.
    """
    finite = estimate([d for d in differences.values() if math.isfinite(d)])
    shares = [None if g is None else g.kept for g in (normalised, plain)]
    if finite is None or shares[0] is None or shares[1] is None:
        return ""
    if not finite.n == shares[0].n == shares[1].n:
        low, high = (f"{v:.2f}".replace("-", "−") for v in (finite.low, finite.high))
        return f"; differences in the seeds that both have {low} to {high}, n = {finite.n}"
    return f"; difference {share(replace(finite, mean=shares[0].mean - shares[1].mean))}"

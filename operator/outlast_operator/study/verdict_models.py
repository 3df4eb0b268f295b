"""The paper's worry about models without normalisation, answered as far as the data goes. Pure."""

from __future__ import annotations

from outlast_operator.study.figures_models import Pair, pairs
from outlast_operator.study.statistics import Estimate
from outlast_operator.study.summary import Summary
from outlast_operator.study.verdicts import Row, Verdict, lacking, share, wanted

QUESTION = "A model without normalisation keeps less of its progress through an outage than the same model with it."
BUFFERED = ("stateless", "hybrid")


def normalisation(summary: Summary) -> Verdict | None:
    """None where the study has no models in both kinds. Only strategies that apply a backlog decide."""
    rows = [row for pair in pairs(summary) for row in _rows(summary, pair)]
    if not rows:
        return None
    told = [row.met for row in rows if row.met is not None]
    less = sum(told)
    answer = (
        f"Of {len(rows)} comparisons {less} show it, {len(told) - less} show the contrary, and in "
        f"{len(rows) - len(told)} the intervals of the two overlap, or runs are missing."
    )
    holds = None if len(told) < len(rows) or 0 < less < len(told) else bool(less)
    return Verdict(QUESTION, holds, answer, "progress kept, one kill", tuple(rows))


def _rows(summary: Summary, pair: Pair) -> list[Row]:
    found = []
    names = summary.data.configurations(pair.normalised) + summary.data.configurations(pair.plain)
    for name in dict.fromkeys(names):
        groups = [summary.attempted(e, name, 1) for e in (pair.normalised, pair.plain)]
        if not any(word in BUFFERED for word in name.split("-")) or groups == [None, None]:
            continue
        kept = [None if g is None else g.kept for g in groups]
        figure = ", ".join(
            f"{kind} {share(k)}{'' if g is None else lacking(g, k)}"
            for kind, g, k in zip(("with", "without"), groups, kept, strict=True)
        )
        whole = all(g is not None and k is not None and k.n >= wanted(g) for g, k in zip(groups, kept, strict=True))
        met = less(kept[1], kept[0]) if whole and kept[0] is not None and kept[1] is not None else None
        found.append(Row(f"{pair.name}, {summary.data.label(name)}", figure, met))
    return found


def less(one: Estimate, other: Estimate) -> bool | None:
    """Whether `one` is below `other`; None where their intervals overlap or are no intervals."""
    if one.kind != "interval" or other.kind != "interval":
        return None
    return True if one.high < other.low else False if one.low > other.high else None

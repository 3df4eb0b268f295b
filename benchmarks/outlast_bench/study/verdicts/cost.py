"""The paper's claim about money, confirmed or refuted; and every verdict of a study in order. Pure."""

from __future__ import annotations

from outlast_bench.study.analysis.cells import NOTHING, Cell, cell, seeds_in
from outlast_bench.study.analysis.cost import Claim, PriceTable, compare_costs, usual
from outlast_bench.study.analysis.summary import Group, Summary
from outlast_bench.study.verdicts.backlog import backlog_kept
from outlast_bench.study.verdicts.ordering import ordering
from outlast_bench.study.verdicts.verdict import Row, Verdict, ahead_of_checkpointing, all_of, close_to_control

PAIRS = (
    ("paper-stateless", "paper-async-checkpoint", "As the paper ran them"),
    ("stateless", "checkpoint", "As recommended"),
)


def verdicts(summary: Summary, prices: PriceTable, experiment: str) -> list[Verdict]:
    """Of the experiment whose kills fall on the steep part."""
    return [
        ordering(summary, experiment),
        close_to_control(summary, experiment),
        backlog_kept(summary, experiment),
        ahead_of_checkpointing(summary, experiment),
        cost_claim(summary, prices, experiment),
    ]


def cost_claim(summary: Summary, prices: PriceTable, experiment: str) -> Verdict:
    """Prices and terms of the same runs are not so many experiments; the Redis of Stateless is one more machine."""
    target = summary.data.target(experiment)
    rows = []
    for one, other, whose in PAIRS:
        groups = _groups(summary, experiment, (one, other))
        lost = any(g.failed + g.missing for g in groups)
        found = claims(summary, prices, experiment, one, other)
        if lost and not found:
            rows.append(
                Row(whose, (NOTHING, NOTHING, NOTHING, NOTHING, seeds_in(None, groups, sum(g.n for g in groups))))
            )
        for claim in found:
            late = [(str(count), "") if count else NOTHING for count in claim.censored]
            seeds = seeds_in(claim.ratio, groups, sum(g.n for g in groups))
            cells = (_times(claim.hourly_ratio), cell(claim.ratio, 2), *late, seeds)
            rows.append(Row(f"{whose}, {claim.setup}, {claim.term}", cells, None if lost else claim.holds))
    beside = _without_a_kill(summary, prices, experiment) if rows else []
    return Verdict(
        "The stateless server costs no more than checkpointing (the paper's claim about cost).",
        all_of(rows),
        (
            "an hour costs times checkpointing's", f"money to {target:.2f}, times checkpointing's",
            "runs of stateless never there", "of checkpointing", "seeds",
        ),
        (*rows, *beside),
    )  # fmt: skip


def _times(found: float) -> Cell:
    return f"{found:.2f}", ""


def _without_a_kill(summary: Summary, prices: PriceTable, experiment: str) -> list[Row]:
    """What the log costs while nothing fails: beside the claim, which is about failures."""
    found = []
    for one, other, whose in PAIRS:
        sides = [summary.group(experiment, name, 0) for name in (one, other)]
        if sides[0] is not None and sides[1] is not None:
            claims_ = compare_costs(sides[0].runs, sides[1].runs, prices)
            label = f"{whose}, {', '.join(usual(prices))}, without a kill"
            found += [
                Row(label, (_times(c.hourly_ratio), cell(c.ratio, 2), NOTHING, NOTHING, NOTHING), decides=False)
                for c in claims_
                if (c.setup, c.term) == usual(prices)
            ]
    return found


def _groups(summary: Summary, experiment: str, names: tuple[str, str]) -> list[Group]:
    return [g for name in names for kills in (1, 2) if (g := summary.attempted(experiment, name, kills)) is not None]


def claims(summary: Summary, prices: PriceTable, experiment: str, one: str, other: str) -> list[Claim]:
    """Of all runs with kills."""
    sides = [
        [run for g in summary.of(experiment, control=False) if g.configuration == name and g.kills for run in g.runs]
        for name in (one, other)
    ]
    return compare_costs(sides[0], sides[1], prices)

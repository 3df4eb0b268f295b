"""The paper's claim about money, confirmed or refuted; and every verdict of a study in order. Pure."""

from __future__ import annotations

from outlast_bench.study.analysis.cost import Claim, PriceTable, compare_costs, usual
from outlast_bench.study.analysis.summary import Summary
from outlast_bench.study.verdicts.backlog import backlog_kept
from outlast_bench.study.verdicts.ordering import ordering
from outlast_bench.study.verdicts.verdict import (
    Row,
    Verdict,
    ahead_of_checkpointing,
    close_to_control,
    share,
)
from outlast_operator.reporting import words

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
    question = "The stateless server costs no more than checkpointing (the paper's claim about cost)."
    target = summary.data.target(experiment)
    decided: list[bool | None] = []
    rows = []
    for one, other, whose in PAIRS:
        lost = _lacking(summary, experiment, (one, other))
        found = claims(summary, prices, experiment, one, other)
        if lost and not found:
            decided.append(None)
            rows.append(Row(whose, f"not measured; {lost} runs of the two failed or are not made yet"))
        for claim in found:
            holds = None if lost else claim.holds
            decided.append(holds)
            label = f"{whose}, {claim.setup}, {claim.term} (an hour costs {claim.hourly_ratio:.2f} times as much)"
            sides = zip(claim.censored, ("stateless", "checkpointing"), strict=True)
            late = "".join(f"; {words.count(count, 'run')} of {side} never got there" for count, side in sides if count)
            late += f"; {lost} runs of the two failed or are not made yet" if lost else ""
            rows.append(Row(label, share(claim.ratio) + late, holds))
    if not rows:
        return Verdict(question, None, "Runs of Stateless or Checkpoint with a kill are missing.")
    rows += _without_a_kill(summary, prices, experiment)
    less, more = sum(d is True for d in decided), sum(d is False for d in decided)
    open_ = len(decided) - less - more
    holds = True if less == len(decided) else False if more else None
    undecided = f", and {open_} cannot be decided by these seeds" if open_ else ""
    answer = (
        f"To reach {target:.2f} with a kill, stateless costs no more than checkpointing in {less} of {len(decided)} "
        f"comparisons (prices and terms of the same runs, not so many experiments); it costs more in "
        f"{more or 'none'}{undecided}."
    )
    return Verdict(
        question,
        holds,
        answer,
        f"money to reach {target:.2f}, stateless over checkpointing, of runs with kills (below 1: cheaper); the "
        "Redis of "
        "Stateless is paid for as one more machine",
        tuple(rows),
    )


def _without_a_kill(summary: Summary, prices: PriceTable, experiment: str) -> list[Row]:
    """What the log costs while nothing fails: beside the claim, which is about failures."""
    found = []
    for one, other, whose in PAIRS:
        sides = [summary.group(experiment, name, 0) for name in (one, other)]
        if sides[0] is not None and sides[1] is not None:
            claims_ = compare_costs(sides[0].runs, sides[1].runs, prices)
            told = [c for c in claims_ if (c.setup, c.term) == usual(prices)]
            label = f"{whose}, {', '.join(usual(prices))}, without a kill"
            found += [Row(label, share(c.ratio), decides=False) for c in told]
    return found


def _lacking(summary: Summary, experiment: str, names: tuple[str, str]) -> int:
    groups = [summary.attempted(experiment, name, kills) for name in names for kills in (1, 2)]
    return sum(g.failed + g.missing for g in groups if g is not None)


def claims(summary: Summary, prices: PriceTable, experiment: str, one: str, other: str) -> list[Claim]:
    """Of all runs with kills."""
    sides = [
        [run for g in summary.of(experiment, control=False) if g.configuration == name and g.kills for run in g.runs]
        for name in (one, other)
    ]
    return compare_costs(sides[0], sides[1], prices)

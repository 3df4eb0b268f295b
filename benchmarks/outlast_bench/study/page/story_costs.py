"""What an experiment's runs cost, as tables: the hour, the workers' seconds, the target; control included. Pure."""

from __future__ import annotations

from outlast_bench.study.analysis import target
from outlast_bench.study.analysis.cost import PriceTable, cost_rows, usual
from outlast_bench.study.analysis.summary import Group, Summary
from outlast_bench.study.page.cells import NOTHING, Cell, Grid, Line, by_kills, cell, kills_title


def costs(summary: Summary, experiment: str, prices: PriceTable) -> list[Grid]:
    """One for each number of kills; empty where no run with an hourly price is there."""
    setup, usual_term = usual(prices)
    reached = f"cents to {summary.data.target(experiment):.2f}"
    columns = (
        "configuration", f"{prices.currency} an hour ({setup}, {usual_term})", "worker seconds useful", "idle",
        "recomputed or lost", *(f"{reached}, {term}" for term in prices.terms),
    )  # fmt: skip
    grids = []
    for kills, groups in by_kills(summary, experiment):
        timed = target.is_told(summary, experiment, kills)
        lines = tuple(_line(group, prices, timed) for group in groups if group.runs)
        if lines:
            grids.append(Grid(f"{kills_title(kills)}: what it cost", columns, lines).filled)
    return grids


def _line(group: Group, prices: PriceTable, timed: bool) -> Line:
    setup, usual_term = usual(prices)
    by_term = {row.term: row for row in cost_rows(group.runs, prices, group.failed) if row.setup == setup}
    to_target: list[Cell] = [cell(by_term[term].to_target, 2, 100.0) if timed else NOTHING for term in prices.terms]
    cells = (
        (f"{by_term[usual_term].hourly:.2f}", ""),
        cell(group.estimate(lambda run: run.useful_s), 1),
        cell(group.estimate(lambda run: run.idle_s), 1),
        cell(group.estimate(lambda run: run.recomputed_s), 1),
        *to_target,
    )
    return Line(group.label, cells)

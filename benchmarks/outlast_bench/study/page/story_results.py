"""An experiment's results as tables, one for each number of kills, the control's line on top of each. Pure."""

from __future__ import annotations

from outlast_bench.study.analysis import target
from outlast_bench.study.analysis.load import is_control
from outlast_bench.study.analysis.summary import (
    Group,
    Summary,
    final_accuracy,
    goodput,
    gradients,
    late_accuracy,
    outage_s,
)
from outlast_bench.study.page.cells import NOTHING, Grid, Line, by_kills, cell, kills_title, seeds_of
from outlast_bench.study.verdicts.ordering import fallen

COLUMNS = (
    "configuration", "late accuracy (%)", "against the control (points)", "change at the kill (points)",
    "progress kept", "time to {target} (s)", "goodput", "without an update (s)", "lost", "n", "failed",
    "final accuracy (%)",
)  # fmt: skip


def results(summary: Summary, experiment: str) -> list[Grid]:
    """What no run of a table has is no column of it."""
    columns = tuple(column.format(target=f"{summary.data.target(experiment):.2f}") for column in COLUMNS)
    grids = []
    for kills, groups in by_kills(summary, experiment):
        timed = target.is_told(summary, experiment, kills)
        lines = tuple(_line(summary, group, timed) for group in groups)
        grids.append(Grid(kills_title(kills), columns, lines).filled)
    return grids


def _line(summary: Summary, group: Group, timed: bool) -> Line:
    control = is_control(group.configuration)
    lost = group.estimate(gradients("lost"))
    cells = (
        cell(group.estimate(late_accuracy), 1, 100.0),
        NOTHING if control else cell(summary.against_control(group, late_accuracy), 1, 100.0, signed=True),
        cell(group.estimate(fallen), 1, 100.0, signed=True),
        cell(group.kept, 2, of=group.n),
        cell(group.time_to_target, 1) if timed else NOTHING,
        NOTHING if control else cell(group.estimate(goodput), 2),
        cell(group.estimate(outage_s), 2),
        NOTHING if lost is None else (f"{lost.mean:,.0f}", ""),
        seeds_of(group),
        (str(group.failed), "") if group.failed else NOTHING,
        cell(group.estimate(final_accuracy), 1, 100.0),
    )
    return Line(group.label, cells, failed=bool(group.failed))

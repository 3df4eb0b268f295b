"""Every figure's numbers as CSV: one row a configuration and number of kills, with seeds, mean, interval, n, failed."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from outlast_bench.study.analysis.backlog import cells
from outlast_bench.study.analysis.cost import PriceTable, cost_rows
from outlast_bench.study.analysis.load import is_control
from outlast_bench.study.analysis.statistics import Estimate
from outlast_bench.study.analysis.summary import (
    Group,
    Summary,
    drop,
    final_accuracy,
    goodput,
    gradients,
    late_accuracy,
    later_than_control,
    outage_s,
    target_is_told,
)
from outlast_bench.study.backlog.records import MEASURES

AROUND = ("mean", "low", "high", "kind", "n", "failed", "censored")


@dataclass(frozen=True)
class Table:
    """`name`: the file's stem. Cells are text, numbers with as many digits as they deserve; empty: not measured."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def text(table: Table) -> str:
    """As CSV."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(table.rows)
    return file.getvalue()


def write(table: Table, directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{table.name}.csv"
    path.write_text(text(table), encoding="utf-8")
    return path


def all_tables(summary: Summary, prices: PriceTable) -> list[Table]:
    """Those with at least one row."""
    made = [
        measures(summary),
        costs(summary, prices),
        backlog(summary),
        runs(summary),
        failed(summary),
        retried(summary),
    ]
    return [table for table in made if table.rows]


def measures(summary: Summary) -> Table:
    """Long form: a row a measure, so that each has its own interval."""
    rows = []
    for group in summary.groups:
        place = (group.experiment, group.configuration, str(group.kills))
        for name, unit, digits, found in _measured(summary, group):
            if found is not None:
                seeds = " ".join(str(run.run.seed) for run in group.runs)
                rows.append((*place, name, unit, seeds, *_around(found, digits)))
        if not group.runs:
            empty = ("", "", "", "none", "0", str(group.failed), "0")
            rows.append((*place, "(no run succeeded)", "", "", *empty))
    columns = ("experiment", "configuration", "kills", "measure", "unit", "seeds", *AROUND)
    return Table("measures", "Every measure", columns, tuple(rows))


def _measured(summary: Summary, group: Group) -> Iterable[tuple[str, str, int, Estimate | None]]:
    yield "final accuracy", "share", 4, group.estimate(final_accuracy)
    yield "late accuracy", "share", 4, group.estimate(late_accuracy)
    if not is_control(group.configuration):
        yield "late accuracy less the control's", "share", 4, summary.against_control(group, late_accuracy)
        yield "final accuracy less the control's", "share", 4, summary.against_control(group, final_accuracy)
    for index in range(group.kills):
        yield f"drop at kill {index + 1}", "share", 4, group.estimate(drop(index))
    yield "progress kept", "ratio", 3, group.kept
    if target_is_told(summary, group.experiment, group.kills):
        yield f"time to {group.target:.2f}", "s", 2, group.time_to_target
        yield f"time to {group.target:.2f} less the control's", "s", 2, later_than_control(summary, group)
    yield "goodput", "ratio", 3, group.estimate(goodput)
    yield "without an update", "s", 3, group.estimate(outage_s)
    yield "useful worker seconds", "s", 2, group.estimate(lambda run: run.useful_s)
    yield "idle worker seconds", "s", 2, group.estimate(lambda run: run.idle_s)
    yield "recomputed worker seconds", "s", 2, group.estimate(lambda run: run.recomputed_s)
    yield "trained for", "s", 2, group.estimate(lambda run: run.trained_s)
    for name in ("computed", "applied", "lost", "duplicates", "unapplied_at_end"):
        yield f"gradients {name.replace('_', ' ')}", "", 1, group.estimate(gradients(name))
    yield "largest server", "MB", 1, group.estimate(lambda run: _mega(run.peak_server_bytes))
    yield "largest log in Redis", "MB", 1, group.estimate(lambda run: _mega(run.peak_buffer_bytes))


def _mega(value: float | None) -> float | None:
    return None if value is None else value / 1e6


def _around(found: Estimate, digits: int) -> tuple[str, ...]:
    numbers = (f"{v:.{digits}f}" for v in (found.mean, found.low, found.high))
    return (*numbers, found.kind, str(found.n), str(found.failed), str(found.censored))


def costs(summary: Summary, prices: PriceTable) -> Table:
    rows = []
    for group in summary.groups:
        place = (group.experiment, group.configuration, str(group.kills))
        timed = target_is_told(summary, group.experiment, group.kills)
        for row in cost_rows(group.runs, prices, group.failed):
            for name, found in (
                (f"to reach {group.target:.2f}", row.to_target if timed else None),
                ("whole run", row.whole),
                ("idle workers", row.of_idle),
                ("recomputed or lost", row.of_recomputed),
            ):
                if found is not None:
                    rows.append((*place, row.setup, row.term, f"{row.hourly:.2f}", name, *_around(found, 6)))
    columns = ("experiment", "configuration", "kills", "machines", "term", f"{prices.currency}/h", "cost of", *AROUND)
    return Table("cost", f"Cost in {prices.currency}", columns, tuple(rows))


def backlog(summary: Summary) -> Table:
    """In accuracy, then in loss: policies should come in the same order by both."""
    rows = []
    for measure in MEASURES:
        for cell in cells(summary.data.backlog, measure):
            around = _around(cell.kept, 3) if cell.kept is not None else ("", "", "", "none", "0", "0", "0")
            place = (cell.policy, str(cell.workers), str(cell.outage), measure)
            rows.append((*place, *around[:5], str(cell.n), str(cell.diverged)))
    columns = ("policy", "workers", "outage", "by", "mean", "low", "high", "kind", "n used", "n", "ruined")
    return Table("backlog", "Backlog policies: progress kept", columns, tuple(rows))


def runs(summary: Summary) -> Table:
    """Every run that succeeded, with what it came to."""
    rows = []
    for group in summary.groups:
        for m in group.runs:
            gains = m.gains
            rows.append(
                (
                    group.experiment, group.configuration, str(group.kills), str(m.run.seed), _text(m.final_accuracy,
                    4), _text(m.outages[0].drop if m.outages else None, 4), _text(m.time_to_target_s, 2),
                    _text(gains[0] if gains else None, 4), _text(gains[1] if gains else None, 4), _text(m.goodput, 3),
                    *(str(m.gradients.get(name, "")) for name in ("computed", "applied", "lost", "duplicates")),
                    _text(m.useful_s, 2), _text(m.idle_s, 2), _text(m.recomputed_s, 2),
                )
            )  # fmt: skip
    columns = (
        "experiment", "configuration", "kills", "seed", "final accuracy", "drop at kill 1", "time to target (s)",
        "gained", "control gained", "goodput", "computed", "applied", "lost", "duplicates", "useful (s)", "idle (s)",
    "recomputed (s)", )  # fmt: skip
    return Table("runs", "Every run", columns, tuple(rows))


def failed(summary: Summary) -> Table:
    rows = [(r.experiment, r.configuration, str(r.kills), str(r.seed), r.error, r.command) for r in summary.failures]
    return Table(
        "failed", "Runs that failed", ("experiment", "configuration", "kills", "seed", "reason", "command"), tuple(rows)
    )


def retried(summary: Summary) -> Table:
    """A row a failed attempt of a run that was made again."""
    rows = [
        (r.experiment, r.configuration, str(r.kills), str(r.seed), str(i), error, r.status)
        for r in summary.data.retried
        for i, error in enumerate(r.earlier_errors, start=1)
    ]
    columns = ("experiment", "configuration", "kills", "seed", "attempt", "reason", "in the end")
    return Table("retried", "Earlier failures of runs that were made again", columns, tuple(rows))


def _text(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"

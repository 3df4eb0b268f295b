"""Every figure's numbers as CSV: one row a configuration and number of kills, with seeds, mean, interval, n, failed."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from outlast_bench.study.analysis import target
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
    outage_s,
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


def write(table: Table, directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{table.name}.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(table.columns)
        writer.writerows(table.rows)
    return path


def all_tables(summary: Summary, prices: PriceTable) -> list[Table]:
    """Those with at least one row."""
    made = [
        *(table for e in summary.experiments for table in _of_experiment(summary, e, prices)),
        backlog(summary),
        runs(summary),
        failed(summary),
        retried(summary),
    ]
    return [table for table in made if table.rows]


def _of_experiment(summary: Summary, experiment: str, prices: PriceTable) -> Iterable[Table]:
    groups = [g for g in summary.groups if g.experiment == experiment]
    yield measures(summary, experiment, groups)
    yield costs(summary, experiment, [g for g in groups if g.runs], prices)


def measures(summary: Summary, experiment: str, groups: Sequence[Group]) -> Table:
    """Long form: a row a measure, so that each has its own interval."""
    rows = []
    for group in groups:
        for name, unit, digits, found in _measured(summary, group):
            if found is not None:
                seeds = " ".join(str(run.run.seed) for run in group.runs)
                rows.append((group.configuration, str(group.kills), name, unit, seeds, *_around(found, digits)))
        if not group.runs:
            empty = ("", "", "", "none", "0", str(group.failed), "0")
            rows.append((group.configuration, str(group.kills), "(no run succeeded)", "", "", *empty))
    columns = ("configuration", "kills", "measure", "unit", "seeds", *AROUND)
    return Table(f"{experiment}-measures", f"{summary.data.title(experiment)}: every measure", columns, tuple(rows))


def _measured(summary: Summary, group: Group) -> Iterable[tuple[str, str, int, Estimate | None]]:
    yield "final accuracy", "share", 4, group.estimate(final_accuracy)
    yield "late accuracy", "share", 4, group.estimate(late_accuracy)
    if not is_control(group.configuration):
        yield "late accuracy less the control's", "share", 4, summary.against_control(group, late_accuracy)
        yield "final accuracy less the control's", "share", 4, summary.against_control(group, final_accuracy)
    for index in range(group.kills):
        yield f"drop at kill {index + 1}", "share", 4, group.estimate(drop(index))
    yield "progress kept", "ratio", 3, group.kept
    if target.is_told(summary, group.experiment, group.kills):
        yield f"time to {group.target:.2f}", "s", 2, group.time_to_target
        yield f"time to {group.target:.2f} less the control's", "s", 2, target.later_than_control(summary, group)
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


def costs(summary: Summary, experiment: str, groups: Sequence[Group], prices: PriceTable) -> Table:
    rows = []
    for group in groups:
        timed = target.is_told(summary, experiment, group.kills)
        for row in cost_rows(group.runs, prices, group.failed):
            for name, found in (
                (f"to reach {group.target:.2f}", row.to_target if timed else None),
                ("whole run", row.whole),
                ("idle workers", row.of_idle),
                ("recomputed or lost", row.of_recomputed),
            ):
                if found is not None:
                    rows.append(
                        (group.configuration, str(group.kills), row.setup, row.term, f"{row.hourly:.2f}", name,
                    *_around(found, 6)) )  # fmt: skip
    columns = ("configuration", "kills", "machines", "term", f"{prices.currency}/h", "cost of", *AROUND)
    return Table(f"{experiment}-cost", f"{experiment}: cost in {prices.currency}", columns, tuple(rows))


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

"""The tables of a study's page: experiments, results, costs, where policies break, prices. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from outlast_bench.study.analysis import backlog
from outlast_bench.study.analysis.backlog import IDLE, LABELS
from outlast_bench.study.analysis.cells import NOTHING, Cell, Grid, Line, by_kills, cell, kills_title, points, seeds_of
from outlast_bench.study.analysis.cost import PriceTable, cost_rows, usual
from outlast_bench.study.analysis.load import StudyData, is_control
from outlast_bench.study.analysis.summary import (
    Group,
    Summary,
    final_accuracy,
    goodput,
    gradients,
    late_accuracy,
    outage_s,
    passed_before_kill,
    target_is_told,
)
from outlast_bench.study.backlog.records import BacklogRecord
from outlast_bench.study.run.calibrate import PHASE
from outlast_bench.study.verdicts.backlog import KEPT_ENOUGH
from outlast_bench.study.verdicts.ordering import fallen
from outlast_bench.study.verdicts.verdict import Verdict
from outlast_operator.reporting import words

RESULTS = (
    "configuration", "late accuracy (%)", "against the control (points)", "change at the kill (points)",
    "progress kept", "time to {target} (s)", "goodput", "without an update (s)", "lost", "n", "failed",
    "final accuracy (%)",
)  # fmt: skip
EXPERIMENTS = (
    "experiment", "task", "optimizer", "workers", "seeds", "first kill", "server held back (s)",
    "gradients of the control in it", "second kill after the first (s)", "a run trains (s)", "target accuracy",
    "control at the target in calibration (s)", "seeds whose control passed the target before the kill",
)  # fmt: skip


def expected(verdicts: Sequence[Verdict]) -> Grid:
    """Every expectation with its verdict; `met`: how many of its comparisons are."""
    lines = tuple(Line(v.question, ((v.word, ""), (v.count, "") if v.rows else NOTHING)) for v in verdicts)
    return Grid("", ("expected", "verdict", "met"), lines)


def counts(data: StudyData) -> list[tuple[str, int]]:
    """(what, how many) of what there is, and of what there is not."""
    ok = sum(run.ok for run in data.runs)
    found = (
        ("runs", ok), ("failed", len(data.runs) - ok), ("made again after a failure", len(data.retried)),
        ("experiments not calibrated", len(data.uncalibrated)), ("planned runs not made yet", len(data.missing)),
        ("backlogs", len(data.backlog)),
    )  # fmt: skip
    return [(what, count) for what, count in found if count]


def experiments(summary: Summary) -> Grid:
    """How each was run, from its plan and calibration."""
    return Grid("", EXPERIMENTS, tuple(_experiment(summary, name) for name in summary.experiments)).filled


def _experiment(summary: Summary, experiment: str) -> Line:
    data = summary.data
    planned, scale = data.planned(experiment), data.calibrations.get(experiment)
    passed, known = passed_before_kill(summary, experiment)
    plan, times = [""] * 4, [""] * 7
    if planned is not None:
        rest = [f"{k} {v}" for k, v in planned.optimizer.items() if k != "name"]
        optimizer = ", ".join([str(planned.optimizer.get("name", "SGD")), *rest])
        plan = [planned.task, optimizer, str(planned.workers), ", ".join(str(seed) for seed in planned.seeds)]
    if scale is not None:
        first, again = scale.kill_update, any(r.kills > 1 for r in data.of(experiment))
        times = [
            f"after {scale.kill_s:g} s" if first is None else f"at update {first:,} to {first + PHASE - 1:,}",
            f"{scale.outage_s:.1f}",
            f"{scale.outage_gradients:,.0f}" if scale.outage_gradients else "",
            f"{scale.second_kill_after_s:.1f}" if again else "",
            f"{scale.seconds:g}",
            f"{data.target(experiment):.2f}",
            f"{scale.control_to_target_s:.1f}" if scale.control_to_target_s is not None else "",
        ]
    told = [*plan, *times, f"{passed} of {known}" if known else ""]
    return Line(data.title(experiment), tuple((text, "") for text in told))


def results(summary: Summary, experiment: str) -> list[Grid]:
    """One for each number of kills, the control's line on top. What no run of a table has is no column of it."""
    columns = tuple(column.format(target=f"{summary.data.target(experiment):.2f}") for column in RESULTS)
    grids = []
    for kills, groups in by_kills(summary, experiment):
        timed = target_is_told(summary, experiment, kills)
        lines = tuple(_result(summary, group, timed) for group in groups)
        grids.append(Grid(kills_title(kills), columns, lines).filled)
    return grids


def _result(summary: Summary, group: Group, timed: bool) -> Line:
    control = is_control(group.configuration)
    lost = group.estimate(gradients("lost"))
    cells = (
        cell(group.estimate(late_accuracy), 1, 100.0),
        NOTHING if control else points(summary.against_control(group, late_accuracy)),
        points(group.estimate(fallen)),
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


def costs(summary: Summary, experiment: str, prices: PriceTable) -> list[Grid]:
    """One for each number of kills; empty where no run with an hourly price is there."""
    reached = f"cents to {summary.data.target(experiment):.2f}"
    columns = (
        "configuration", f"{prices.currency} an hour ({', '.join(usual(prices))})", "worker seconds useful", "idle",
        "recomputed or lost", *(f"{reached}, {term}" for term in prices.terms),
    )  # fmt: skip
    grids = []
    for kills, groups in by_kills(summary, experiment):
        timed = target_is_told(summary, experiment, kills)
        lines = tuple(_cost(group, prices, timed) for group in groups if group.runs)
        if lines:
            grids.append(Grid(f"{kills_title(kills)}: what it cost", columns, lines).filled)
    return grids


def _cost(group: Group, prices: PriceTable, timed: bool) -> Line:
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


def hourly(prices: PriceTable) -> Grid:
    """What each kind of machine costs, and who says so."""
    lines = tuple(
        Line(
            i.name, ((i.what, ""), *((f"{i.hourly[t]:.2f}", "") for t in prices.terms), (f"{i.source}; {i.as_of}", ""))
        )
        for i in prices.instances.values()
    )
    terms = (f"{prices.currency} an hour, {term}" for term in prices.terms)
    return Grid("", ("machine", "what it is", *terms, "source"), lines)


# --- where each policy for a backlog breaks ---


def limits(records: Sequence[BacklogRecord]) -> Grid | None:
    """Policy by workers: the longest outage at which it keeps enough, and the first at which it ruined a training."""
    found = [c for c in backlog.cells(records) if c.policy != IDLE]
    if not found:
        return None
    workers = sorted({c.workers for c in found})
    columns = ["policy"]
    for w in workers:
        columns += [f"{words.count(w, 'worker')}: keeps {KEPT_ENOUGH:g} up to", "ruined first at"]
    lines = []
    for policy in dict.fromkeys(c.policy for c in found):
        mine = [[c for c in found if c.policy == policy and c.workers == w] for w in workers]
        told = [pair for some in mine for pair in (longest_kept(some), first_ruined(some))]
        lines.append(Line(LABELS.get(policy, policy), tuple(told)))
    return Grid("Where each policy breaks (outage in gradients)", tuple(columns), tuple(lines))


def longest_kept(mine: Sequence[backlog.Cell]) -> Cell:
    """Of one policy and number of workers: `375`, `(n = 5)`, and which shorter ones are not kept; by the means."""
    known = {c.outage: c for c in mine if c.kept is not None}
    enough = [n for n, c in known.items() if c.kept is not None and c.kept.mean >= KEPT_ENOUGH]
    if not known:
        return NOTHING
    if not enough:
        return "none", ""
    longest = max(enough)
    short = [f"{n:,}" for n in sorted(known) if n < longest and n not in enough]
    gaps = f"; not at {words.listing(short)}" if short else ""
    return f"{longest:,}", f"(n = {known[longest].n}{gaps})"


def first_ruined(mine: Sequence[backlog.Cell]) -> Cell:
    """`1,000`, `(3 of 5 seeds)`, or up to where none was."""
    if not mine:
        return NOTHING
    ruined = min((c for c in mine if c.diverged), key=lambda c: c.outage, default=None)
    if ruined is None:
        return f"none up to {max(c.outage for c in mine):,}", ""
    return f"{ruined.outage:,}", f"({ruined.diverged} of {words.count(ruined.n, 'seed')})"

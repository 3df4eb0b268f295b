"""What the study was to show, decided from its data: each line holds, does not hold, or cannot be told. Pure.

Rules. (1) A verdict is computed; it is a mark and a table of the figures it rests on. (2) The mean decides; where what
surrounds it does not exclude the contrary, the mark of the row stands in brackets, and the verdict is by the means
alone. (3) Where a comparison lacks its runs the verdict is None.
Ordering, backlog, cost and models have files of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from outlast_bench.study.analysis.cells import NOTHING, Cell, Grid, Line, cell, points, seeds_in
from outlast_bench.study.analysis.measures import RunMeasures
from outlast_bench.study.analysis.measures_outage import AROUND_S
from outlast_bench.study.analysis.run_curves import RunCurves
from outlast_bench.study.analysis.statistics import Estimate, paired
from outlast_bench.study.analysis.summary import Summary, goodput, kills_label, late_accuracy
from outlast_bench.study.design.experiments import ONE_WORKER

CLOSE = 0.01  # of the control
POINTS_AHEAD = 0.10
RELAXED = {  # with what each is compared: checkpointing as synchronous as it is, and of the same family
    "paper-sync-chain": "paper-sync-checkpoint",
    "paper-async-chain": "paper-async-checkpoint",
    "paper-stateless": "paper-async-checkpoint",
    "chain": "checkpoint",
    "stateless": "checkpoint",
    "hybrid": "checkpoint",
}
OTHERWISE = ("checkpoint", "paper-async-checkpoint")  # where a study has not that one


@dataclass(frozen=True)
class Row:
    """One comparison. `met` None: it decides nothing, or was not decided."""

    label: str
    cells: tuple[Cell, ...]
    met: bool | None = None
    decides: bool = True  # False: stands beside the others
    sure: bool = True  # what surrounds the mean excludes the contrary

    @property
    def mark(self) -> str:
        """✓ or ✗, in brackets where the mean alone says so; · where nothing is decided."""
        mark = {True: "✓", False: "✗", None: "·"}[self.met]
        return mark if self.sure or self.met is None else f"({mark})"


@dataclass(frozen=True)
class Verdict:
    """`holds` None: cannot be told from this study. `columns`: of the rows' cells."""

    question: str
    holds: bool | None
    columns: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()

    @property
    def sure(self) -> bool:
        """Whether it rests on more than means: all that is met surely is, or something surely is not."""
        rows = [row for row in self.rows if row.decides and row.met is not None]
        return any(row.sure for row in rows if not row.met) if self.holds is False else all(row.sure for row in rows)

    @property
    def word(self) -> str:
        word = {True: "holds", False: "does not hold", None: "cannot be told"}[self.holds]
        return word if self.holds is None or self.sure else f"{word}, by the means alone"

    @property
    def count(self) -> str:
        """`2 of 4`: how many of the comparisons that decide are met."""
        rows = [row for row in self.rows if row.decides]
        return f"{sum(row.met is True for row in rows)} of {len(rows)}"

    @property
    def grid(self) -> Grid:
        lines = tuple(Line(row.label, ((row.mark, ""), *row.cells)) for row in self.rows)
        return Grid("", ("", "met", *self.columns), lines).filled


@dataclass(frozen=True)
class Bound:
    """What a mean is held against: to be at least `value` (`sign` 1), or below it (-1)."""

    value: float
    sign: int = 1

    def met(self, mean: float) -> bool:
        return mean >= self.value if self.sign > 0 else mean < self.value

    def doubted(self, found: Estimate) -> bool:
        """Whether the interval or range has the bound inside; a single seed has none."""
        return found.n > 1 and found.low <= self.value <= found.high

    def row(self, label: str, cells: tuple[Cell, ...], found: Estimate | None, wanted: int) -> Row:
        """The comparison of `found`, of which `wanted` seeds were to be."""
        if found is None:
            return Row(label, cells)
        return Row(label, cells, decided(found, self.met(found.mean), wanted), sure=not self.doubted(found))


def decided(found: Estimate, met: bool | None, wanted: int) -> bool | None:
    """One seed decides nothing; nor do those that are left of the `wanted` ones."""
    return met if 1 < found.n >= wanted else None


def all_of(rows: Sequence[Row]) -> bool | None:
    """False if one is not met, True if all are, else None; None without any."""
    met = [row.met for row in rows]
    return False if False in met else None if None in met or not met else True


# --- Hybrid and Chain against the control ---


def close_to_control(summary: Summary, experiment: str) -> Verdict:
    """The question asks for four comparisons: with fewer it is answered by a counter-example alone."""
    planned = [k for k in (1, 2) if summary.planned_kills(experiment, k)]
    rows = [_against_control(summary, experiment, name, kills) for name in ("hybrid", "chain") for kills in planned]
    found = [row for row in rows if row is not None]
    holds = all_of(found)
    beside = _with_a_core_to_spare(summary) if found else []
    return Verdict(
        "Hybrid and Chain as recommended end within 1 point of the control, or above it, at equal wall time.",
        holds if len(found) == 4 or holds is False else None,
        (
            "late accuracy against the control (points)", "less its own without a kill (points)",
            "goodput without a kill", "seeds",
        ),
        (*found, *beside),
    )  # fmt: skip


def _against_control(summary: Summary, experiment: str, name: str, kills: int) -> Row | None:
    """Beside it what separates the kill from what the strategy costs anyway."""
    group = summary.attempted(experiment, name, kills)
    if group is None:
        return None
    found, clean = summary.against_control(group, late_accuracy), summary.group(experiment, name, 0)
    itself = None if clean is None else paired(group.values(late_accuracy), clean.values(late_accuracy))
    kept = None if clean is None else clean.estimate(goodput)
    cells = (points(found), points(itself), cell(kept, 2), seeds_in(found, [group]))
    return Bound(-CLOSE).row(f"{group.label}, {kills_label(kills)}", cells, found, group.wanted)


def _with_a_core_to_spare(summary: Summary) -> list[Row]:
    """The same where servers take nothing from the worker: beside the verdict, for it is another training."""
    found = []
    for name, kills in product(("hybrid", "chain"), (1, 2)):
        group = summary.attempted(ONE_WORKER, name, kills)
        if group is not None:
            ended = summary.against_control(group, late_accuracy)
            label = f"{group.label}, {kills_label(kills)}, one worker and a core for the servers"
            cells = (points(ended), NOTHING, NOTHING, seeds_in(ended, [group]))
            found.append(Row(label, cells, decides=False))
    return found


# --- the abstract's ten points ---


def ahead_of_checkpointing(summary: Summary, experiment: str) -> Verdict:
    """Beside each lead stands the control's: about as much as a strategy can win in the same second."""
    pairs = [(name, like, kills) for kills in (1, 2) for name, like in RELAXED.items()]
    found = [_over_checkpointing(summary, experiment, *pair) for pair in pairs]
    rows = tuple(row for row in found if row is not None)
    return Verdict(
        "Just after an outage on the steep part, the relaxed strategies are 10 points or more ahead of checkpointing.",
        all_of(rows),
        ("just after the outage (points)", "the control by then (points)", "at the end (points)", "seeds"),
        rows,
    )


def _over_checkpointing(summary: Summary, experiment: str, name: str, like: str, kills: int) -> Row | None:
    group = summary.attempted(experiment, name, kills)
    bases = (summary.attempted(experiment, other, kills) for other in (like, *OTHERWISE))
    base = next((b for b in bases if b is not None), None)
    if group is None or base is None:
        return None
    moments = right_after(group.runs, base.runs)
    early = paired(*(accuracies(g.runs, moments) for g in (group, base)))
    late = paired(group.values(late_accuracy), base.values(late_accuracy))
    control = summary.control(experiment, group)
    most = None if control is None else paired(*(accuracies(g.runs, moments) for g in (control, base)))
    seeds = seeds_in(early, (group, base), 2 * early.n if early else 0)
    cells = (points(early), points(most), points(late), seeds)
    label = f"{group.label} over {base.label}, {kills_label(kills)}"
    return Bound(POINTS_AHEAD).row(label, cells, early, max(group.wanted, base.wanted))


def right_after(runs: Sequence[RunMeasures], base: Sequence[RunMeasures]) -> dict[int, float]:
    """Seed -> the second after the first update at which the later one of the two is evaluated again."""
    ends = [{run.run.seed: evaluated_again(run.curves) for run in side} for side in (runs, base)]
    both = ((seed, ends[0][seed], ends[1][seed]) for seed in ends[0].keys() & ends[1].keys())
    return {seed: max(a, b) for seed, a, b in both if a is not None and b is not None}


def accuracies(runs: Sequence[RunMeasures], moments: Mapping[int, float]) -> dict[int, float]:
    """Seed -> the mean of the evaluations of the second after its moment, or what lies between the nearest."""
    found = {}
    for run in runs:
        t = moments.get(run.run.seed)
        value = None if t is None else run.curves.mean_between(t, t + AROUND_S) or run.curves.accuracy_at(t)
        if value is not None:
            found[run.run.seed] = value
    return found


def evaluated_again(curves: RunCurves) -> float | None:
    """When parameters from after the last outage, and from after its drain, were evaluated first."""
    if not curves.outages or curves.outages[-1].back is None or curves.outages[-1].cut_off:
        return None
    last = curves.outages[-1]
    over = max(t for t in (last.back, last.drained) if t is not None)
    return next((e.t for e in curves.evaluations if e.t >= over), None)

"""What the study was to show, decided from its data: each line holds, does not hold, or cannot be told. Pure.

Rules. (1) A verdict is computed; it carries the figures it rests on, a row each. (2) The mean decides; where what
surrounds it does not exclude the contrary, row and verdict say that it is by the means alone. (3) Where a comparison
lacks its runs the verdict is None, and says what is missing.
The ordering, the backlog, cost and models have files of their own (ordering.py, backlog.py, cost.py,
models.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from outlast_bench.study.analysis.machine_speed import at_the_controls_speed, moved_to_the_control
from outlast_bench.study.analysis.measures import RunMeasures
from outlast_bench.study.analysis.measures_outage import AROUND_S
from outlast_bench.study.analysis.run_curves import RunCurves
from outlast_bench.study.analysis.statistics import Estimate, estimate, paired
from outlast_bench.study.analysis.summary import Group, Summary, goodput, kills_in_words, late_accuracy
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
    figure: str
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
    """`holds` None: cannot be told from this study. `measure`: what the rows' figures are."""

    question: str
    holds: bool | None
    answer: str
    measure: str = ""
    rows: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def sure(self) -> bool:
        """Whether it rests on more than means: all that is met surely is, or something surely is not."""
        rows = [row for row in self.rows if row.decides and row.met is not None]
        return any(row.sure for row in rows if not row.met) if self.holds is False else all(row.sure for row in rows)

    @property
    def word(self) -> str:
        word = {True: "holds", False: "does not hold", None: "cannot be told"}[self.holds]
        return word if self.holds is None or self.sure else f"{word}, by the means alone"


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

    def row(self, label: str, figure: str, found: Estimate | None, wanted: int) -> Row:
        """The comparison of `found`, of which `wanted` seeds were to be, and in words where it is in doubt."""
        if found is None:
            return Row(label, figure)
        doubted = self.doubted(found)
        words = f"; the {found.kind} does not exclude the contrary" if doubted else ""
        return Row(label, figure + words, decided(found, self.met(found.mean), wanted), sure=not doubted)


def decided(found: Estimate, met: bool | None, wanted: int) -> bool | None:
    """One seed decides nothing; nor do those that are left of the `wanted` ones."""
    return met if 1 < found.n >= wanted else None


def wanted(group: Group) -> int:
    """How many seeds a comparison should have."""
    return group.n + group.failed + group.missing


def lacking(group: Group, found: Estimate | None) -> str:
    """`; 2 of 5 runs failed`, `; 1 of 5 not measured`: the planned runs that are not in an estimate, or nothing."""
    unmeasured = group.n - (0 if found is None else found.n)
    failed = f"runs failed ({group.diverged} diverged)" if group.diverged else "runs failed"
    parts = ((group.failed, failed), (group.missing, "not made yet"), (unmeasured, "not measured"))
    return "".join(f"; {count} of {wanted(group)} {what}" for count, what in parts if count > 0)


def all_of(rows: Sequence[Row]) -> bool | None:
    """False if one is not met, True if all are, else None."""
    met = [row.met for row in rows]
    return False if False in met else None if None in met else True


def points(around: Estimate | None) -> str:
    """`+1.2 points (+0.4 to +2.0, n = 5)`."""
    if around is None:
        return "not measured"
    low, high, mean = (_signed(100 * v) for v in (around.low, around.high, around.mean))
    return f"{mean} points ({low} to {high}, n = {around.n})" if around.n > 1 else f"{mean} points (one seed)"


def _signed(value: float) -> str:
    text = f"{value:+.1f}"
    return "+0.0" if text == "-0.0" else text.replace("-", "−")


def share(around: Estimate | None) -> str:
    """`0.85 (0.72 to 0.97, n = 5)`."""
    if around is None:
        return "not measured"
    extent = f" ({around.low:.2f} to {around.high:.2f}, n = {around.n})" if around.n > 1 else " (one seed)"
    return f"{around.mean:.2f}{extent}".replace("-", "−").replace("inf", "∞")


# --- Hybrid and Chain against the control ---


def close_to_control(summary: Summary, experiment: str) -> Verdict:
    question = (
        "Hybrid and Chain as recommended end within 1 point of the control (or above it) at equal wall time, after "
        "one and after two kills."
    )
    planned = [k for k in (1, 2) if summary.planned_kills(experiment, k)]
    rows = [_against_control(summary, experiment, name, kills) for name in ("hybrid", "chain") for kills in planned]
    found = [row for row in rows if row is not None]
    if not found:
        return Verdict(question, None, "Runs of Hybrid, Chain or the control are missing.")
    complete = len(found) == 4
    measure = (
        "mean of the evaluations of the last 5 s less the control's, paired by seed; less that of its own runs without "
        "a kill, which the strategy's replicas and logs slow as much; goodput without a kill: what these leave the "
        "workers of the cores they share"
    )
    met = [row for row in found if row.met]
    answer = (
        f"{len(met)} of {len(found)} means are within 1 point or above, {sum(row.sure for row in met)} of the "
        "intervals or ranges as a whole."
    )
    notes = () if complete else ("Not all four comparisons are in this study.",)
    holds = all_of(found)
    holds = holds if complete or holds is False else None
    return Verdict(
        question,
        holds,
        answer,
        measure,
        (*found, *_at_equal_speed(summary, experiment), *_with_a_core_to_spare(summary)),
        notes,
    )


def _against_control(summary: Summary, experiment: str, name: str, kills: int) -> Row | None:
    """Beside it what separates the kill from what the strategy costs anyway."""
    group = summary.attempted(experiment, name, kills)
    if group is None:
        return None
    found, clean = summary.against_control(group, late_accuracy), summary.group(experiment, name, 0)
    figure = points(found)
    if clean is not None:
        itself = paired(group.values(late_accuracy), clean.values(late_accuracy))
        figure += f"; less its own without a kill {points(itself)}; goodput without a kill "
        figure += share(clean.estimate(goodput))
    label = f"{group.label}, {kills_in_words(kills)}"
    return Bound(-CLOSE).row(label, figure + lacking(group, found), found, wanted(group))


def _at_equal_speed(summary: Summary, experiment: str) -> list[Row]:
    """The same without what the machine's own speed did: beside the verdict."""
    found = []
    for name, kills in product(("hybrid", "chain"), (1, 2)):
        group = summary.group(experiment, name, kills)
        moved = None if group is None else at_the_controls_speed(summary, group, late_accuracy)
        if group is None or moved is None:
            continue
        clean = summary.group(experiment, name, 0)
        figure = points(moved)
        if clean is not None:
            mine, own = (moved_to_the_control(summary, g, late_accuracy) for g in (group, clean))
            figure += f"; less its own without a kill {points(paired(mine, own))}"
            figure += f"; goodput without a kill {_goodput_at_equal_speed(summary, clean)}"
        found.append(
            Row(f"{group.label}, {kills_in_words(kills)}, at the control's machine speed", figure, decides=False)
        )
    return found


def _goodput_at_equal_speed(summary: Summary, group: Group) -> str:
    return share(estimate(list(moved_to_the_control(summary, group, goodput).values())))


def _with_a_core_to_spare(summary: Summary) -> list[Row]:
    """The same where servers take nothing from the worker: beside the verdict, for it is another training."""
    found = []
    for name, kills in product(("hybrid", "chain"), (1, 2)):
        group = summary.attempted(ONE_WORKER, name, kills)
        if group is not None:
            ended = summary.against_control(group, late_accuracy)
            figure = f"{points(ended)}; goodput {share(group.estimate(goodput))}"
            moved = at_the_controls_speed(summary, group, late_accuracy)
            if moved is not None:
                figure += f"; at the control's machine speed {points(moved)}"
                figure += f"; goodput {_goodput_at_equal_speed(summary, group)}"
            figure += lacking(group, ended)
            label = f"{group.label}, {kills_in_words(kills)}, one worker and a core for the servers"
            found.append(Row(label, figure, decides=False))
    return found


# --- the abstract's ten points ---


def ahead_of_checkpointing(summary: Summary, experiment: str) -> Verdict:
    question = (
        "At equal wall time, just after an outage on the steep part, the relaxed strategies are ahead of checkpointing "
        "by 10 points or more."
    )
    pairs = [(name, like, kills) for kills in (1, 2) for name, like in RELAXED.items()]
    found = [_over_checkpointing(summary, experiment, *pair) for pair in pairs]
    rows = [row for row in found if row is not None]
    if not rows:
        return Verdict(question, None, "Runs of checkpointing or of the relaxed strategies are missing.")
    ahead = sum(bool(row.met) for row in rows)
    return Verdict(
        question,
        all_of(rows),
        f"{ahead} of {len(rows)} comparisons reach 10 points when the outage is just over. In brackets stands how far "
        "training without any failure is ahead of checkpointing in the same second, which is about as much as a "
        "strategy can win; what is left at the end of the runs stands beside it.",
        "accuracy less checkpointing's, paired by seed, as soon as both are past their last outage and its drain",
        tuple(rows),
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
    figure = points(early)
    control = summary.control(experiment, group)
    if control is not None:
        most = paired(accuracies(control.runs, moments), accuracies(base.runs, moments))
        figure += f" [the control {points(most)}]"
    figure += f"; at the end {points(late)}{lacking(group, early)}"
    figure += f"; of {base.label} {base.failed} failed" if base.failed else ""
    label = f"{group.label} over {base.label}, {kills_in_words(kills)}"
    return Bound(POINTS_AHEAD).row(label, figure, early, max(wanted(group), wanted(base)))


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

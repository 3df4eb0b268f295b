"""What the study was to show, decided from its data: each line holds, does not hold, or cannot be told. Pure.

Rules. (1) A verdict is computed; it carries the figures it rests on, a row each. (2) The mean decides, and the verdict
says whether the interval agrees. (3) Where a comparison lacks its runs the verdict is None, and says what is missing.
The ordering, the backlog, cost and models have files of their own (verdict_ordering.py, verdict_backlog.py,
verdict_cost.py, verdict_models.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from outlast_operator.study.experiments import ONE_WORKER
from outlast_operator.study.measures import AROUND_S, RunMeasures
from outlast_operator.study.run_curves import RunCurves
from outlast_operator.study.statistics import Estimate, paired
from outlast_operator.study.summary import Group, Summary, final_accuracy, goodput, late_accuracy

NOISE = 0.02  # accuracy: what an evaluation of some 500 images may be off
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
    def word(self) -> str:
        return {True: "holds", False: "does not hold", None: "cannot be told"}[self.holds]


def decided(found: Estimate, met: bool | None, wanted: int) -> bool | None:
    """One seed decides nothing; nor do those that are left of the `wanted` ones."""
    return met if 1 < found.n >= wanted else None


def wanted(group: Group) -> int:
    """How many seeds a comparison should have."""
    return group.n + group.failed + group.missing


def lacking(group: Group, found: Estimate | None) -> str:
    """`; 2 of 5 runs failed`, `; 1 of 5 not measured`: the planned runs that are not in an estimate, or nothing."""
    unmeasured = group.n - (0 if found is None else found.n)
    parts = ((group.failed, "runs failed"), (group.missing, "not made yet"), (unmeasured, "not measured"))
    return "".join(f"; {count} of {wanted(group)} {what}" for count, what in parts if count > 0)


def all_of(rows: Sequence[Row]) -> bool | None:
    """False if one is not met, True if all are, else None."""
    met = [row.met for row in rows]
    return False if False in met else None if None in met else True


def points(around: Estimate | None) -> str:
    """`+1.2 points (+0.4 to +2.0, n = 5)`."""
    if around is None:
        return "not measured"
    low, high, mean = (f"{100 * v:+.1f}".replace("-", "−") for v in (around.low, around.high, around.mean))
    return f"{mean} points ({low} to {high}, n = {around.n})" if around.n > 1 else f"{mean} points (one seed)"


def share(around: Estimate | None) -> str:
    """`0.85 (0.72 to 0.97, n = 5)`."""
    if around is None:
        return "not measured"
    extent = f" ({around.low:.2f} to {around.high:.2f}, n = {around.n})" if around.n > 1 else " (one seed)"
    return f"{around.mean:.2f}{extent}".replace("-", "−").replace("inf", "∞")


def kills_in_words(kills: int) -> str:
    return {0: "no kill", 1: "one kill", 2: "two kills"}.get(kills, f"{kills} kills")


# --- Hybrid and Chain against the control ---


def close_to_control(summary: Summary, experiment: str) -> Verdict:
    question = (
        "Hybrid and Chain as recommended end within 1 point of the control at equal wall time, after one and "
        "after two kills."
    )
    rows, sure, planned = [], [], [k for k in (1, 2) if summary.planned_kills(experiment, k)]
    for name in ("hybrid", "chain"):
        for kills in planned:
            group = summary.attempted(experiment, name, kills)
            if group is None:
                continue
            found = summary.against_control(group, late_accuracy)
            final = points(summary.against_control(group, final_accuracy))
            met = None if found is None else decided(found, found.mean >= -CLOSE, wanted(group))
            figure = f"{points(found)}; final {final}{lacking(group, found)}"
            rows.append(Row(f"{group.label}, {kills_in_words(kills)}", figure, met))
            sure.append(found is not None and found.low >= -CLOSE)
    if not rows:
        return Verdict(question, None, "Runs of Hybrid, Chain or the control are missing.")
    complete = len(rows) == 4
    measure = "mean of the evaluations of the last 5 s less the control's, paired by seed; final: on all test images"
    answer = (
        f"{sum(bool(row.met) for row in rows)} of {len(rows)} means are within 1 point, {sum(sure)} of the "
        "intervals or ranges as a whole."
    )
    notes = () if complete else ("Not all four comparisons are in this study.",)
    holds = all_of(rows)
    holds = holds if complete or holds is False else None
    return Verdict(question, holds, answer, measure, (*rows, *_with_a_core_to_spare(summary)), notes)


def _with_a_core_to_spare(summary: Summary) -> list[Row]:
    """The same where servers take nothing from the worker: beside the verdict, for it is another training."""
    found = []
    for name in ("hybrid", "chain"):
        group = summary.attempted(ONE_WORKER, name, 1)
        if group is not None:
            ended = summary.against_control(group, late_accuracy)
            figure = f"{points(ended)}; goodput {share(group.estimate(goodput))}{lacking(group, ended)}"
            found.append(Row(f"{group.label}, one kill, one worker and a core for the servers", figure, decides=False))
    return found


# --- the abstract's ten points ---


def ahead_of_checkpointing(summary: Summary, experiment: str) -> Verdict:
    question = (
        "At equal wall time, just after an outage on the steep part, the relaxed strategies are ahead of checkpointing "
        "by 10 points or more."
    )
    rows = []
    for kills in (1, 2):
        for name, like in RELAXED.items():
            group = summary.attempted(experiment, name, kills)
            bases = (summary.attempted(experiment, other, kills) for other in (like, *OTHERWISE))
            base = next((b for b in bases if b is not None), None)
            if group is None or base is None:
                continue
            early = paired(*right_after(group.runs, base.runs))
            late = paired(group.values(late_accuracy), base.values(late_accuracy))
            figure = f"{points(early)}; at the end {points(late)}{lacking(group, early)}"
            if base.failed:
                figure += f"; of {base.label} {base.failed} failed"
            seeds = max(wanted(group), wanted(base))
            met = None if early is None else decided(early, early.mean >= POINTS_AHEAD, seeds)
            rows.append(Row(f"{group.label} over {base.label}, {kills_in_words(kills)}", figure, met))
    if not rows:
        return Verdict(question, None, "Runs of checkpointing or of the relaxed strategies are missing.")
    ahead = sum(bool(row.met) for row in rows)
    return Verdict(
        question,
        all_of(rows),
        f"{ahead} of {len(rows)} comparisons reach 10 points when the outage is just over; what is left of it at the "
        "end of the runs stands beside it.",
        "accuracy less checkpointing's, paired by seed, as soon as both are past their last outage and its drain",
        tuple(rows),
    )


def right_after(runs: Sequence[RunMeasures], base: Sequence[RunMeasures]) -> tuple[dict[int, float], dict[int, float]]:
    """Seed -> accuracy, of both at the same second after the first update: when the later one is evaluated again."""
    others = {run.run.seed: run for run in base}
    one: dict[int, float] = {}
    two: dict[int, float] = {}
    for run in runs:
        other = others.get(run.run.seed)
        ends = [None if r is None else evaluated_again(r.curves) for r in (run, other)]
        if other is None or ends[0] is None or ends[1] is None:
            continue
        t = max(ends[0], ends[1])
        a, b = (c.mean_between(t, t + AROUND_S) or c.accuracy_at(t) for c in (run.curves, other.curves))
        if a is not None and b is not None:
            one[run.run.seed], two[run.run.seed] = a, b
    return one, two


def evaluated_again(curves: RunCurves) -> float | None:
    """When parameters from after the last outage, and from after its drain, were evaluated first."""
    if not curves.outages or curves.outages[-1].back is None or curves.outages[-1].cut_off:
        return None
    last = curves.outages[-1]
    over = max(t for t in (last.back, last.drained) if t is not None)
    return next((e.t for e in curves.evaluations if e.t >= over), None)

"""What the study was to show, decided from its data: each line holds, does not hold, or cannot be told. Pure.

Rules. (1) A verdict is computed; its sentence carries the figures it rests on. (2) Interval and mean are both given: a
line that asks for a mean is decided by the mean, and its sentence says whether the whole interval agrees. (3) Where a
comparison lacks its runs the verdict is `None`, with what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from outlast_operator.report_words import listing
from outlast_operator.study.cost import Claim, PriceTable, compare_costs
from outlast_operator.study.figures_backlog import IDLE, PAPERS_RULE, Cell, cells
from outlast_operator.study.run_curves import RunCurves
from outlast_operator.study.statistics import Estimate, paired
from outlast_operator.study.summary import Group, Summary, drop, final_accuracy

NOISE = 0.01  # accuracy: what an evaluation of some 1,000 to 2,000 images may be off
CLOSE = 0.01  # of the control
KEPT_ENOUGH = 0.7
POINTS_AHEAD = 0.10
PAPERS_OUTAGE = 375  # gradients: 15 s at the paper's 25 a second
PRODUCT_POLICIES = (
    "Sum", PAPERS_RULE, "SumClipped", "Mean", "InverseStaleness", "DelayCompensation", "DelayCompensationCopies",
    "LocalSteps",
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """`holds` None: cannot be told from this study."""

    question: str
    holds: bool | None
    sentences: tuple[str, ...]

    @property
    def word(self) -> str:
        return {True: "holds", False: "does not hold", None: "cannot be told"}[self.holds]


def verdicts(summary: Summary, prices: PriceTable, experiment: str = "steep") -> list[Verdict]:
    return [
        ordering(summary, experiment),
        close_to_control(summary, experiment),
        backlog_kept(summary, experiment),
        ahead_of_checkpointing(summary, experiment),
        cost_claim(summary, prices, experiment),
    ]


def points(around: Estimate | None, signed: bool = True) -> str:
    """`+1.2 points (0.4 to 2.0, n = 5)`."""
    if around is None:
        return "not measured"
    form = "{:+.1f}" if signed else "{:.1f}"
    low, high, mean = (form.format(100 * v).replace("-", "−") for v in (around.low, around.high, around.mean))
    return f"{mean} points ({low} to {high}, n = {around.n})" if around.n > 1 else f"{mean} points (one seed)"


# --- 1: the ordering the paper reports ---


def ordering(summary: Summary, experiment: str) -> Verdict:
    """Checkpointing falls at a kill, chain and stateless do not, stateless has risen when its outage is over."""
    question = "Checkpointing falls after a kill, chain and stateless do not; stateless rises through its outage."
    falls: list[bool] = []
    sentences: list[str] = []
    for names, expected in (
        (("paper-sync-checkpoint", "paper-async-checkpoint", "checkpoint"), "falls"),
        (("paper-sync-chain", "paper-async-chain", "chain", "hybrid"), "stays"),
        (("paper-stateless", "stateless"), "rises"),
    ):
        for name in names:
            group = summary.group(experiment, name, 1)
            found = None if group is None else group.estimate(drop(0))
            if group is None or found is None:
                continue
            met = {"falls": found.low > 0.0, "stays": found.mean <= NOISE, "rises": found.high < 0.0}[expected]
            falls.append(met)
            sentences.append(f"{group.label}: {points(_negated(found))}{'' if met else _instead(expected, found)}")
    if not sentences:
        return Verdict(question, None, ("There are no runs with one kill in this study.",))
    lead = "Accuracy from the last evaluation before the kill to the first after the next update, mean over seeds: "
    return Verdict(question, all(falls), (lead + "; ".join(sentences) + ".", *_none_yet(summary, experiment)))


def _negated(found: Estimate) -> Estimate:
    return Estimate(-found.mean, -found.high, -found.low, found.n, found.kind)


def _instead(expected: str, found: Estimate) -> str:
    if expected == "falls":
        return " (no fall that the seeds agree on)" if found.mean > 0 else " (no fall)"
    if expected == "stays":
        return " (it falls)"
    return " (no rise that the seeds agree on)" if found.mean < 0 else " (no rise)"


def _none_yet(summary: Summary, experiment: str) -> list[str]:
    """What the paper's accident (no checkpoint by the time of the kill) does."""
    extra = summary.group(experiment, "paper-async-checkpoint-none-yet", 1)
    usual = summary.group(experiment, "paper-async-checkpoint", 1)
    if extra is None or usual is None:
        return []
    a, b = extra.estimate(drop(0)), usual.estimate(drop(0))
    if a is None or b is None:
        return []
    return [
        f"Killed before its first checkpoint, as the paper's runs in fact were, checkpointing changes by {points(_negated(a))} "
        f"instead of {points(_negated(b))}: most of the fall in the paper's figures is that accident."
        if a.mean > 2 * max(b.mean, NOISE)
        else f"Killed before its first checkpoint it changes by {points(_negated(a))} instead of {points(_negated(b))}."
    ]


# --- 2: Hybrid and Chain against the control ---


def close_to_control(summary: Summary, experiment: str) -> Verdict:
    question = (
        "Hybrid and Chain as recommended end within 1 point of the control at equal wall time, after one and two kills."
    )
    parts, met, whole = [], [], []
    for name in ("hybrid", "chain"):
        for kills in (1, 2):
            group = summary.group(experiment, name, kills)
            found = None if group is None else summary.against_control(group, final_accuracy)
            if group is not None and found is not None:
                met.append(found.mean >= -CLOSE)
                whole.append(found.low >= -CLOSE)
                parts.append(f"{group.label} after {_kills(kills)}: {points(found)}")
    if not parts:
        return Verdict(question, None, ("Runs of Hybrid, Chain or the control are missing.",))
    sure = (
        "Every interval lies within that as well."
        if all(whole)
        else "Not every interval lies within that: more seeds would be needed to be sure of it."
        if all(met)
        else ""
    )
    complete = len(parts) == 4
    missing = "" if complete else "Some of the four comparisons are missing."
    sentences = ("Against the control, paired by seed: " + "; ".join(parts) + ".", sure, missing)
    return Verdict(question, False if not all(met) else True if complete else None, tuple(s for s in sentences if s))


def _kills(kills: int) -> str:
    return {0: "no kill", 1: "one kill", 2: "two kills"}.get(kills, f"{kills} kills")


# --- 3: the best backlog policy ---


def backlog_kept(summary: Summary, experiment: str) -> Verdict:
    question = "With the best backlog policy a Stateless worker keeps 0.7 or more of the control's progress through an outage as long as the paper's."
    live = _live(summary, experiment)
    chosen = best_policies(cells(summary.data.backlog), workers=2)
    if not chosen:
        return Verdict(question, None, ("The backlog experiment is not in this study.", *live))
    best = chosen[0]
    assert best.kept is not None
    paper = next((c for c in chosen if c.policy == PAPERS_RULE), None)
    first = f"After {best.outage:,} gradients of outage with two workers, {best.label} keeps {_ratio(best.kept)}"
    second = f"the paper's own rule keeps {_ratio(paper.kept)}" if paper is not None else "the paper's rule was not run"
    others = listing(
        [f"{c.label} {c.kept.mean:.2f}" for c in chosen[1:] if c.kept is not None and c is not paper] or ["none"]
    )
    holds = best.kept.mean >= KEPT_ENOUGH
    sure = "" if best.kept.low >= KEPT_ENOUGH or not holds else "The interval reaches below 0.7."
    return Verdict(question, holds, tuple(s for s in (f"{first}; {second}. The others: {others}.", sure, *live) if s))


def best_policies(found: Sequence[Cell], workers: int, outage: int = PAPERS_OUTAGE) -> list[Cell]:
    """The product's policies after the outage nearest to the paper's, the best first."""
    mine = [c for c in found if c.workers == workers] or list(found)
    if not mine:
        return []
    nearest = min({c.outage for c in mine}, key=lambda n: abs(n - outage))
    known = [c for c in mine if c.outage == nearest and c.kept is not None and c.policy in PRODUCT_POLICIES]
    return sorted((c for c in known if c.policy != IDLE), key=lambda c: -(c.kept.mean if c.kept is not None else 0.0))


def _ratio(around: Estimate | None) -> str:
    if around is None:
        return "an unknown share"
    extent = f" ({around.low:.2f} to {around.high:.2f}, n = {around.n})" if around.n > 1 else " (one seed)"
    return f"{around.mean:.2f}{extent}".replace("-", "−")


def _live(summary: Summary, experiment: str) -> list[str]:
    """The same in whole runs, in which evaluation and drain take their time."""
    groups = [summary.group(experiment, name, 1) for name in ("stateless", "paper-stateless", "hybrid")]
    known = [(g.label, g.kept) for g in groups if g is not None and g.kept is not None]
    if not known:
        return []
    return ["In whole runs with one kill, drain included: " + "; ".join(f"{n} {_ratio(k)}" for n, k in known) + "."]


# --- 4: the abstract's ten points ---


def ahead_of_checkpointing(summary: Summary, experiment: str) -> Verdict:
    question = "At equal wall time the relaxed strategies beat checkpointing by 10 points or more where the outage falls on the steep part."
    reached, parts = [], []
    for kills in (1, 2):
        base = summary.group(experiment, "paper-async-checkpoint", kills) or summary.group(
            experiment, "checkpoint", kills
        )
        if base is None:
            continue
        for name in ("paper-async-chain", "paper-stateless", "chain", "stateless", "hybrid"):
            group = summary.group(experiment, name, kills)
            if group is None:
                continue
            early = paired(*_right_after(group, base))
            late = paired(group.values(final_accuracy), base.values(final_accuracy))
            if early is None:
                continue
            reached.append((early.mean >= POINTS_AHEAD, group.configuration))
            end = f", {points(late)} at the end" if late is not None else ""
            parts.append(f"{group.label}, {_kills(kills)}: {points(early)} when both are past the last outage{end}")
    if not parts:
        return Verdict(question, None, ("Runs of checkpointing or of the relaxed strategies are missing.",))
    relaxed = [met for met, _ in reached]
    count = f"{sum(relaxed)} of {len(relaxed)} comparisons reach 10 points when the outage is just over"
    return Verdict(
        question,
        all(relaxed),
        (count + ".", "Against checkpointing every 100 updates, paired by seed: " + "; ".join(parts) + "."),
    )


def _right_after(group: Group, base: Group) -> tuple[dict[int, float], dict[int, float]]:
    """Accuracies of both at the same second after the first update: when the later of the two is evaluated again."""
    others = {run.run.seed: run for run in base.runs}
    one: dict[int, float] = {}
    two: dict[int, float] = {}
    for run in group.runs:
        other = others.get(run.run.seed)
        ends = [None if r is None else _evaluated_again(r.curves) for r in (run, other)]
        if other is None or ends[0] is None or ends[1] is None:
            continue
        t = max(ends[0], ends[1])
        a, b = run.curves.accuracy_at(t), other.curves.accuracy_at(t)
        if a is not None and b is not None:
            one[run.run.seed], two[run.run.seed] = a, b
    return one, two


def _evaluated_again(curves: RunCurves) -> float | None:
    """When parameters from after the last outage, and from after its drain, were evaluated first."""
    if not curves.outages or curves.outages[-1].back is None:
        return None
    last = curves.outages[-1]
    over = max(t for t in (last.back, last.drained) if t is not None)
    return next((e.t for e in curves.evaluations if e.t >= over), None)


# --- 5: cost ---


def cost_claim(summary: Summary, prices: PriceTable, experiment: str) -> Verdict:
    question = (
        "The stateless server costs no more than checkpointing (the paper's claim): money to reach the target accuracy."
    )
    parts, decided = [], []
    for one, other, whose in (
        ("paper-stateless", "paper-async-checkpoint", "As the paper ran them"),
        ("stateless", "checkpoint", "As recommended"),
    ):
        found = _claims(summary, prices, experiment, one, other)
        if found:
            decided += [c.holds for c in found]
            parts.append(f"{whose}: {'; '.join(_claim(c) for c in found)}.")
    if not parts:
        return Verdict(question, None, ("Runs of Stateless or Checkpoint with a kill are missing.",))
    holds = True if all(d is True for d in decided) else False if any(d is False for d in decided) else None
    lead = (
        f"What it costs to reach {summary.data.target(experiment):.2f}, stateless over checkpointing, runs with one and two "
        "kills together (below 1: cheaper; the Redis of Stateless is paid for as one more machine):"
    )
    return Verdict(question, holds, (lead, *parts))


def _claims(summary: Summary, prices: PriceTable, experiment: str, one: str, other: str) -> list[Claim]:
    sides = [
        [run for g in summary.of(experiment, control=False) if g.configuration == name and g.kills for run in g.runs]
        for name in (one, other)
    ]
    return compare_costs(sides[0], sides[1], prices)


def _claim(claim: Claim) -> str:
    word = {True: "no more", False: "more", None: "undecided"}[claim.holds]
    late = f", {claim.censored} runs never got there and count with their whole time" if claim.censored else ""
    return f"{claim.setup}, {claim.term}: {_ratio(claim.ratio)}, {word} (an hour costs {claim.hourly_ratio:.2f} times as much{late})"

"""How to apply a backlog: progress kept per policy, by length of the outage and number of workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from outlast_bench.study.analysis.statistics import LEAST_FOR_INTERVAL, Estimate, estimate, ratio
from outlast_bench.study.backlog.policies import BY_NAME, CAP
from outlast_bench.study.backlog.records import BacklogRecord, Measure

LEAST_GAIN: dict[Measure, float] = {"accuracy": 0.02, "loss": 0.05}  # of the control: a share of less is noise
LEAST_IN_WORDS: dict[Measure, str] = {"accuracy": "2 points", "loss": "0.05"}
IDLE = "Idle"
PAPERS_RULE = "SumReducedRate"
LABELS = {
    "Sum": "Sum",
    PAPERS_RULE: "Sum, reduced rate (paper)",
    "SumClipped": "Sum, clipped",
    "DelayCompensation": "DelayCompensation, no copies",
    "DelayCompensationCopies": "DelayCompensation",
    "LocalSteps": "LocalSteps (default)",
    "LocalStepsUnscaled": "LocalSteps, rate not scaled",
    IDLE: "Idle (nothing applied)",
    "SumCapped": f"Sum, capped at {CAP}",
    "InverseSqrt": "Sum, the k-th weighs 1/√k",
    "LocalStepsSum": "LocalSteps, added up",
}
CANDIDATE = " *"
CANDIDATE_IN_WORDS = "*: no option of a job, tried here alone"


@dataclass(frozen=True)
class Cell:
    """One policy after outages of one length, with so many workers. `kept` None: the control gained too little.

    All in one measure, accuracy or loss (of which less is gained).
    """

    policy: str
    workers: int
    outage: int
    kept: Estimate | None
    gained: Estimate | None  # by applying the backlog
    control_gained: Estimate | None  # by as many gradients without an outage
    diverged: int  # seeds in which the training was ruined
    n: int

    @property
    def label(self) -> str:
        return label_of(self.policy)


def label_of(policy: str) -> str:
    """For rows and lines, with a mark where it is no option of a job."""
    known = BY_NAME.get(policy)
    label = LABELS.get(policy) or (known.title if known is not None else policy)
    return label + (CANDIDATE if known is not None and known.candidate else "")


def candidates_in_words(found: Sequence[Cell]) -> str:
    """What the mark means, with a blank before it; `` where nothing has it."""
    return f" {CANDIDATE_IN_WORDS}." if any(c.label.endswith(CANDIDATE) for c in found) else ""


def cells(records: Sequence[BacklogRecord], measure: Measure = "accuracy") -> list[Cell]:
    """Every (policy, workers, outage) over its seeds."""
    by_place: dict[tuple[int, int, str], list[BacklogRecord]] = {}
    for record in sorted(records, key=lambda r: (r.workers, r.outage, r.seed)):
        for policy in record.policies:
            by_place.setdefault((record.workers, record.outage, policy), []).append(record)
    return [_cell(policy, workers, outage, mine, measure) for (workers, outage, policy), mine in by_place.items()]


def _cell(policy: str, workers: int, outage: int, records: Sequence[BacklogRecord], measure: Measure) -> Cell:
    gained = [record.gained(policy, measure) for record in records]
    controls = [record.control_gained(measure) for record in records]
    diverged = sum(record.policies[policy].diverged for record in records)
    control_gained = estimate(controls)
    told = control_gained is not None and control_gained.mean >= LEAST_GAIN[measure]
    kept = ratio(gained, controls) if told else None
    return Cell(policy, workers, outage, kept, estimate(gained), control_gained, diverged, len(records))


def around_in_words(found: Sequence[Cell]) -> str:
    """What surrounds the means: intervals, and of which outages ranges, where there are too few seeds."""
    intervals, few = "95 % bootstrap intervals", f"ranges (fewer than {LEAST_FOR_INTERVAL} seeds)"
    kinds: dict[int, set[bool]] = {}
    for cell in found:
        if cell.gained is not None:
            kinds.setdefault(cell.outage, set()).add(cell.gained.kind == "interval")
    lengths = [f"{n:,}" for n in sorted(kinds) if False in kinds[n]]
    if not lengths:
        return intervals
    if not any(True in kind for kind in kinds.values()):
        return few
    listed = " and ".join([", ".join(lengths[:-1]), lengths[-1]] if len(lengths) > 1 else lengths)
    partly = " in part" if any(len(kind) == 2 for kind in kinds.values()) else ""
    return f"{intervals}; of outages of {listed}{partly} {few}"


def seeds_in_words(found: Sequence[Cell]) -> str:
    """`n = 5 seeds`; `n = 5 seeds, 1 to 2 for outages of 3,000 and more`, where the longest have fewer."""
    most = max(c.n for c in found)
    fewer = [c for c in found if c.n < most]
    if not fewer:
        return f"n = {most} seeds"
    sizes = sorted({c.n for c in fewer})
    extent = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    shortest = min(c.outage for c in fewer)
    if all(c in fewer for c in found if c.outage >= shortest):
        return f"n = {most} seeds, {extent} for outages of {shortest:,} and more"
    return f"n = {sizes[0]} to {most} seeds"

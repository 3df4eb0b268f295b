"""How to apply a backlog: progress kept per policy, by length of the outage and number of workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from outlast_bench.study.analysis.statistics import Estimate, estimate, ratio
from outlast_bench.study.backlog.policies import BY_NAME, CAP
from outlast_bench.study.backlog.records import BacklogRecord, Measure

LEAST_GAIN: dict[Measure, float] = {"accuracy": 0.02, "loss": 0.05}  # of the control: a share of less is noise
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
CANDIDATE_LEGEND = "*: no option of a job, tried here alone"


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

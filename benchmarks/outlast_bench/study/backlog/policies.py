"""The ways to apply a backlog that are compared: the product's own, the paper's rule, and candidates. Free of torch.

What a backlog is made of, `computed`:
    frozen   gradients at the last weights each worker has (`outage.mode: StaleGradients`), through `staleness.policy`
    local    local steps, one pseudo-gradient a worker (`outage.mode: LocalSteps`)
    nothing  workers that wait
A candidate is no field of a job; it is put into what the same arithmetic takes: the reduced rate, the scale that a
worker's scheduler would send, the size of a pseudo-gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from outlast.chain.settings import ReplicaSettings
from outlast.chain.staleness import ReducedRate

LR = 0.01  # the paper's
PAPERS_RULE = ReducedRate(above=50, lr=0.001)
CLIP_NORM = 1.0
CAP = 50  # gradients: a larger backlog counts as this many

Computed = Literal["frozen", "local", "nothing"]


@dataclass(frozen=True)
class Policy:
    """One of them. `title` for legends; `candidate`: not (yet) a field of a job."""

    name: str
    title: str
    computed: Computed = "frozen"
    policy: str = "Sum"
    strategy: str = "Stateless"
    reduced: ReducedRate | None = None
    clip_norm: float | None = None
    cap: int | None = None  # count a backlog as at most this many gradients
    inverse_sqrt: bool = False  # the k-th gradient of the backlog weighs 1/sqrt(k)
    copies: bool = False  # the head lives, and with it the copies of what workers pulled
    scale_rate: bool = True  # local steps at the rate times the number of workers
    add_deltas: bool = False  # pseudo-gradients are added up, not averaged
    candidate: bool = False

    def settings(self, workers: int, outage: int) -> ReplicaSettings:
        """What the server that applies it is started with."""
        reduced = self.reduced
        if self.cap is not None and outage > self.cap:
            reduced = ReducedRate(self.cap, LR * self.cap / outage)
        return ReplicaSettings(
            strategy=self.strategy, slots=workers, policy=self.policy, reduced_rate=reduced, base_lr=LR
        )

    def scale(self, index: int) -> float:
        """The factor that the `index`-th gradient (from 0) of the backlog is sent with."""
        return 1.0 / math.sqrt(1 + index) if self.inverse_sqrt else 1.0

    def times(self, workers: int) -> int:
        """What multiplies the learning rate of local steps."""
        return workers if self.scale_rate else 1


POLICIES = (
    Policy("Idle", "workers wait", computed="nothing"),
    Policy("Sum", "Sum"),
    Policy("SumReducedRate", "Sum, reduced rate (paper)", reduced=PAPERS_RULE),
    Policy("SumClipped", f"Sum, each clipped to norm {CLIP_NORM:g}", clip_norm=CLIP_NORM),
    Policy("Mean", "Mean", policy="Mean"),
    Policy("InverseStaleness", "InverseStaleness", policy="InverseStaleness"),
    Policy("DelayCompensation", "DelayCompensation, after a failover", policy="DelayCompensation", strategy="Hybrid"),
    Policy(
        "DelayCompensationCopies",
        "DelayCompensation, the head lives",
        policy="DelayCompensation",
        strategy="Hybrid",
        copies=True,
    ),
    Policy("SumCapped", f"Sum, at most {CAP} gradients' worth", cap=CAP, candidate=True),
    Policy("InverseSqrt", "1/√k for the k-th", inverse_sqrt=True, candidate=True),
    Policy("LocalSteps", "LocalSteps", computed="local"),
    Policy("LocalStepsUnscaled", "LocalSteps, scaleRate: false", computed="local", scale_rate=False),
    Policy(
        "LocalStepsSum",
        "LocalSteps, unscaled, added up",
        computed="local",
        scale_rate=False,
        add_deltas=True,
        candidate=True,
    ),
)
BY_NAME = {policy.name: policy for policy in POLICIES}

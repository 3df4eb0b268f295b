"""What a stale gradient is worth: pure policies, from (version before, contributions) to weights and a rate.

The i-th contribution of a group is as stale as if the ones before it had been applied one by one:
`version_before + i − pulled version`, never below 0 (a rollback takes the version back). An update's gradient is the
sum of weight × payload; its learning rate is spec × rate.

- `Sum`: weight 1 each, the paper's; with `reducedRate` (lr where more than `above` are pending) its cure.
- `Mean`: 1/n in a group of n: a backlog counts as one gradient.
- `InverseStaleness`: (1 + usual) / (1 + staleness), at most 1. Usual is what asynchrony itself brings: every other slot
  has an update between a pull and its push, and one push of each is under way (with Stateless one pull, too). Without
  that allowance two healthy workers would train at a quarter of their learning rate; and it is a ratio, because a push
  that is late by one or two (a worker waits for a core) is as good as another: were it halved, training without failure
  would lose a tenth.
- `DelayCompensation` (DC-ASGD, ICML 2017): the gradient is corrected for how far the weights moved since the pull, to
  first order. What it cannot correct is the movement within its own group, applied at once: there the i-th weighs
  1/(1 + i). A lone push weighs 1. Without its pull copy a contribution falls back to InverseStaleness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from outlast.chain.events import Contribution

POLICIES = ("Sum", "Mean", "InverseStaleness", "DelayCompensation")


@dataclass(frozen=True)
class ReducedRate:
    """`recovery.staleness.reducedRate`: learning rate `lr` where more than `above` gradients are pending."""

    above: int
    lr: float


@dataclass(frozen=True)
class Share:
    """One contribution's weight; `compensate_from` is the version whose pull copy DC-ASGD needs, or None."""

    weight: float
    compensate_from: int | None = None


def staleness(version_before: int, index: int, pulled: int) -> int:
    """Of the `index`-th contribution in a group that is applied to `version_before`; at least 0."""
    return max(0, version_before + index - pulled)


def usual_staleness(slots: int, asks_ahead: bool = False) -> int:
    """What a gradient's staleness comes to with `slots` healthy workers that overlap one push with computing.

    Weights come with the answer to a push, or (Stateless, Async: `asks_ahead`) are asked for one gradient ahead.
    """
    return (3 if asks_ahead else 2) * slots - 1


def inverse(version_before: int, index: int, pulled: int, usual: int = 0) -> float:
    """InverseStaleness's weight; also what DelayCompensation falls back to without its pull copy."""
    return (1 + usual) / (1 + max(usual, staleness(version_before, index, pulled)))


def weights(
    policy: str,
    version_before: int,
    contributions: Sequence[Contribution],
    history: int,
    *,
    usual: int = 0,
    compensate: bool = True,
) -> list[Share]:
    """Weigh a group, in order. `history` is the parameters' own; `usual` staleness (see above) costs no weight.

    `compensate=False` forbids DelayCompensation its pull copies (a replay must come to the same weights without them).
    Raises `ValueError` for an unknown policy.
    """
    n = len(contributions)
    if policy == "Sum":
        return [Share(1.0)] * n
    if policy == "Mean":
        return [Share(1.0 / n)] * n
    if policy not in POLICIES:
        raise ValueError(f"staleness policy {policy!r} is unknown; use one of {', '.join(POLICIES)}")
    shares = []
    for i, c in enumerate(contributions):
        if policy == "DelayCompensation" and compensate and c.history == history:
            shares.append(Share(1.0 / (1 + i), c.version))
        else:
            shares.append(Share(inverse(version_before, i, c.version, usual)))
    return shares


def rate(scheduled: float, pending: int, reduced: ReducedRate | None, base_lr: float) -> float:
    """The multiplier of the spec's learning rate: the schedule's, or the reduced one if that is lower.

    `pending`: how many gradients wait, the ones in this update included.
    """
    if reduced is None or pending <= reduced.above:
        return scheduled
    return min(scheduled, reduced.lr / base_lr)


def scales(contributions: Sequence[Contribution]) -> tuple[float, list[float]]:
    """Split the workers' own learning-rate scales into one for the update and a factor on each weight.

    Workers in step with each other share one scale, and every factor is exactly 1.
    """
    first = contributions[0].lr_scale
    if all(c.lr_scale == first for c in contributions):
        return first, [1.0] * len(contributions)
    mean = sum(c.lr_scale for c in contributions) / len(contributions)
    if mean == 0.0:
        return 0.0, [1.0] * len(contributions)
    return mean, [c.lr_scale / mean for c in contributions]

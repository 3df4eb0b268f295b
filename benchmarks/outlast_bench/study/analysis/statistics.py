"""Means over seeds and how sure one can be of them. Pure, and the same on every machine.

Rules. (1) Differences are paired by seed: what a seed does to both sides falls out. (2) An interval is the bootstrap's,
95 %, over 10,000 resamples of the seeds from a fixed generator, its percentiles expanded for few seeds (Hesterberg,
What Teachers Should Know About the Bootstrap, 2015, 5.3): plain percentiles of five values hold the mean in some 83 %
of cases, not in 95 %. It cannot reach beyond the values seen. (3) Fewer than five seeds have no interval: what is given
is their range, and it is called so; of four or three, the expanded percentiles are that range anyway. (4) No value is
left out.
What was not reached by the end of a run counts as its end, is counted as `censored`, and makes the mean a lower bound.
What could not be measured (an outage that was not over when the next began or the run ended) has no value: n is smaller
then, and a verdict says of how many.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
GENERATOR_SEED = 20240546
LEVEL = 0.95
LEAST_FOR_INTERVAL = 5
# Student's t, two-sided 95 %, by degrees of freedom; beyond: close enough to the normal's.
STUDENT_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with what surrounds it. `kind`: interval (bootstrap, 95 %), range (least to greatest), none."""

    mean: float
    low: float
    high: float
    n: int
    kind: str
    failed: int = 0
    censored: int = 0


def estimate(values: Sequence[float], failed: int = 0, censored: int = 0) -> Estimate | None:
    """The mean over seeds; None for no values. Raises `ValueError` for one that is no number."""
    if not values:
        return None
    found = np.asarray(values, dtype=np.float64)
    _finite(found)
    low, high, kind = _around(found)
    return Estimate(_mean(found), low, high, len(found), kind, failed, censored)


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> Estimate | None:
    """The mean over the seeds of both of `one` less `other`; None when they share no seed."""
    seeds = sorted(one.keys() & other.keys())
    return estimate([one[seed] - other[seed] for seed in seeds])


def ratio(above: Sequence[float], below: Sequence[float], least: float = 0.0) -> Estimate | None:
    """The ratio of the means, with pairs resampled together. None without pairs, or where the lower mean is not above
    `least`: of next to nothing no share can be told.

    Not the mean of ratios: one seed whose `below` happens to be near 0 would decide that alone. Its bounds may be
    infinite: where the lower side of a resample is not above 0, nothing bounds the ratio to the side of the upper one.
    """
    if not above or len(above) != len(below):
        return None
    pairs = np.stack([np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)], axis=1)
    _finite(pairs)
    if pairs[:, 1].mean() <= least:
        return None
    mean = _mean(pairs[:, 0]) / _mean(pairs[:, 1])
    if len(pairs) < LEAST_FOR_INTERVAL:
        each = _quotients(pairs)
        bounds = (min(float(each.min()), mean), max(float(each.max()), mean))
        return Estimate(mean, *bounds, len(pairs), "range" if len(pairs) > 1 else "none")
    low, high = _percentiles(_quotients(_resampled(pairs).mean(axis=1)), len(pairs))
    return Estimate(mean, low, high, len(pairs), "interval")


def _quotients(pairs: Floats) -> Floats:
    """[n, 2] -> [n]: the first by the second; infinite, with the first's sign, where the second is not above 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        unbounded = np.where(pairs[:, 0] < 0.0, -np.inf, np.inf)
        return np.where(pairs[:, 1] > 0.0, pairs[:, 0] / pairs[:, 1], unbounded)


def _around(found: Floats) -> tuple[float, float, str]:
    if len(found) == 1:
        return float(found[0]), float(found[0]), "none"
    if len(found) < LEAST_FOR_INTERVAL:
        return float(found.min()), float(found.max()), "range"
    low, high = _percentiles(_resampled(found).mean(axis=1), len(found))
    return low, high, "interval"


def _resampled(found: Floats) -> Floats:
    """[RESAMPLES, n, ...]: rows of `found` drawn with replacement, the same rows for every statistic of the same n."""
    generator = np.random.default_rng(GENERATOR_SEED)
    return found[generator.integers(0, len(found), size=(RESAMPLES, len(found)))]


def _percentiles(statistics: Floats, n: int) -> tuple[float, float]:
    tail = expanded_tail(n)
    ordered = np.sort(statistics)
    low = ordered[max(0, math.floor(tail * len(ordered)))]
    high = ordered[min(len(ordered) - 1, math.ceil((1.0 - tail) * len(ordered)) - 1)]
    return float(low), float(high)


def expanded_tail(n: int) -> float:
    """The share left out at each end: that of the normal beyond t·√(n/(n−1)), instead of 2.5 %."""
    t = STUDENT_T[n - 2] if n - 2 < len(STUDENT_T) else NormalDist().inv_cdf(0.5 + LEVEL / 2) * (1 + 1.0 / n)
    return NormalDist().cdf(-t * math.sqrt(n / (n - 1)))


def _mean(found: Floats) -> float:
    return float(math.fsum(found.tolist()) / len(found))


def _finite(found: Floats) -> None:
    if not np.isfinite(found).all():
        raise ValueError(
            f"{found.tolist()}: a value over seeds must be a finite number; leave out what was not measured"
        )

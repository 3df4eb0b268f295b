"""Means over seeds and their intervals: known answers, and how often an interval holds the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from outlast_bench.study.analysis.statistics import estimate, expanded_tail, paired, ratio


def test_the_interval_of_a_constant_difference_is_that_constant() -> None:
    one = {seed: 0.5 + 0.1 * seed for seed in range(5)}
    found = paired(one, {seed: value - 0.25 for seed, value in one.items()})
    assert found is not None
    assert found.kind == "interval"
    assert (found.mean, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))


def test_pairs_are_seeds_that_both_sides_have() -> None:
    found = paired({1: 10.0, 2: 20.0, 3: 99.0}, {1: 1.0, 2: 2.0, 4: 50.0})
    assert found is not None
    assert (found.n, found.mean, found.kind) == (2, 13.5, "range")
    assert paired({1: 1.0}, {2: 1.0}) is None


@pytest.mark.parametrize(
    ("values", "low", "high", "kind"),
    [
        ([3.0, 1.0, 4.0, 1.5], 1.0, 4.0, "range"),
        ([3.0, 1.0, 2.0], 1.0, 3.0, "range"),
        ([3.0, 1.0], 1.0, 3.0, "range"),
        ([2.0], 2.0, 2.0, "none"),
    ],
)
def test_fewer_than_five_seeds_have_a_range_and_one_has_nothing(
    values: list[float], low: float, high: float, kind: str
) -> None:
    found = estimate(values)
    assert found is not None
    assert (found.low, found.high, found.kind) == (low, high, kind)
    assert found.mean == pytest.approx(sum(values) / len(values))
    assert estimate([]) is None
    five = estimate([3.0, 1.0, 4.0, 1.5, 2.0])
    assert five is not None
    assert five.kind == "interval"
    assert 1.0 < five.low < five.high < 4.0


def test_failed_and_censored_runs_are_named_and_no_value_is_dropped() -> None:
    found = estimate([1.0, 2.0, 30.0], failed=2, censored=1)
    assert found is not None
    assert (found.mean, found.n, found.failed, found.censored) == (11.0, 3, 2, 1)


def test_a_value_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        estimate([1.0, math.nan])


def test_the_same_data_give_the_same_interval() -> None:
    assert estimate([0.1, 0.5, 0.2, 0.9, 0.4]) == estimate([0.1, 0.5, 0.2, 0.9, 0.4])


def test_the_ratio_is_of_means_not_the_mean_of_ratios() -> None:
    found = ratio([0.1, 0.1, 0.1, 0.1, 0.1], [0.001, 0.199, 0.1, 0.1, 0.1])
    assert found is not None
    assert found.mean == pytest.approx(1.0)  # the mean of the ratios would be 20.7
    assert ratio([1.0, 1.0], [0.5, -0.5]) is None
    assert ratio([], []) is None


def test_of_next_to_nothing_no_share_is_told() -> None:
    assert ratio([0.01, 0.03], [0.01, 0.02], least=0.02) is None
    assert ratio([0.01, 0.03], [0.01, 0.05], least=0.02) is not None


def test_a_constant_ratio_has_no_width() -> None:
    found = ratio([0.3, 0.6, 0.9, 1.2, 1.5], [0.1, 0.2, 0.3, 0.4, 0.5])
    assert found is not None
    assert (found.low, found.mean, found.high) == pytest.approx((3.0, 3.0, 3.0))


def test_two_pairs_have_the_range_of_their_ratios() -> None:
    found = ratio([1.0, 3.0], [1.0, 1.0])
    assert found is not None
    assert (found.mean, found.low, found.high, found.kind) == (2.0, 1.0, 3.0, "range")


def test_a_ratio_is_unbounded_to_the_side_of_its_numerator() -> None:
    """Where a control gained nothing, who lost accuracy has not kept infinitely much of it."""
    lost = ratio([-0.1, 0.02, 0.03], [-0.01, 0.1, 0.1])
    assert lost is not None
    assert (lost.low, lost.high) == (-math.inf, pytest.approx(0.3))
    won = ratio([0.1, 0.02, 0.03, 0.02, 0.02], [-0.2, 0.1, 0.1, 0.1, 0.1])
    assert won is not None
    assert (won.kind, won.high) == ("interval", math.inf)
    assert won.low > 0
    many = ratio([-0.1, 0.02, 0.03, 0.02, 0.02], [-0.2, 0.1, 0.1, 0.1, 0.1])
    assert many is not None
    assert many.low == -math.inf
    assert many.high < 1


@pytest.mark.parametrize(("n", "least"), [(5, 0.88), (10, 0.88), (20, 0.88)])
def test_an_interval_holds_the_truth_about_as_often_as_it_says(n: int, least: float) -> None:
    dice = np.random.default_rng(7)
    held = 0
    for _ in range(200):
        found = estimate(dice.normal(3.0, 1.0, size=n).tolist())
        assert found is not None
        held += found.low <= 3.0 <= found.high
    assert held / 200 >= least  # plain percentiles would come to 0.83 for five


def test_the_expansion_vanishes_with_many_seeds() -> None:
    assert expanded_tail(5) < 0.002
    assert expanded_tail(1000) == pytest.approx(0.025, abs=0.001)

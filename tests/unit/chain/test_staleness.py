"""What stale gradients weigh: tables."""

from __future__ import annotations

import pytest

from outlast.chain.events import Contribution, Identity
from outlast.chain.staleness import ReducedRate, Share, inverse, rate, scales, staleness, usual_staleness, weights


def group(*pulled: int, history: int = 1, lr_scale: float = 1.0) -> list[Contribution]:
    return [Contribution(Identity(0, i + 1, i + 1), v, history, None, lr_scale=lr_scale) for i, v in enumerate(pulled)]


@pytest.mark.parametrize(
    ("policy", "version", "pulled", "expected"),
    [
        pytest.param("Sum", 10, (0, 0, 9), [1.0, 1.0, 1.0], id="Sum weighs each fully"),
        pytest.param("Mean", 10, (0, 0, 9, 9), [0.25] * 4, id="Mean counts a group as one"),
        pytest.param("InverseStaleness", 10, (10,), [1.0], id="inverse: fresh"),
        pytest.param("InverseStaleness", 10, (7,), [0.25], id="inverse: three updates behind"),
        pytest.param("InverseStaleness", 10, (10, 10, 10), [1.0, 1 / 2, 1 / 3], id="inverse: a backlog of one point"),
        pytest.param("InverseStaleness", 10, (12,), [1.0], id="inverse: from a version that a relaxed head lost"),
    ],
)
def test_weights(policy: str, version: int, pulled: tuple[int, ...], expected: list[float]) -> None:
    assert weights(policy, version, group(*pulled), 1) == [Share(w) for w in expected]


def test_across_a_rollback_staleness_is_0() -> None:
    assert weights("InverseStaleness", 100, group(130, 140, history=1), 2) == [Share(1.0), Share(1.0)]


def test_a_backlog_from_before_a_rollback_is_no_single_enormous_step() -> None:
    shares = weights("InverseStaleness", 100, group(*[130] * 2000, history=1), 2)
    assert sum(share.weight for share in shares) < 31 + 8


@pytest.mark.parametrize(
    ("slots", "asks_ahead", "pulled", "expected"),
    [
        (2, False, 97, 1.0),
        (2, False, 96, 4 / 5),
        (8, False, 85, 1.0),
        (1, False, 98, 2 / 3),
        (2, True, 95, 1.0),
        (2, True, 94, 6 / 7),
    ],
)
def test_usual_staleness_costs_no_weight(slots: int, asks_ahead: bool, pulled: int, expected: float) -> None:
    usual = usual_staleness(slots, asks_ahead)
    assert weights("InverseStaleness", 100, group(pulled), 1, usual=usual) == [Share(expected)]


def test_delay_compensation_names_the_pulled_version() -> None:
    assert weights("DelayCompensation", 10, group(4), 1) == [Share(1.0, 4)]


def test_delay_compensation_in_a_group_discounts_what_it_cannot_correct() -> None:
    assert weights("DelayCompensation", 10, group(4, 4, 9), 1) == [Share(1.0, 4), Share(1 / 2, 4), Share(1 / 3, 9)]


def test_delay_compensation_without_copies_is_inverse_staleness() -> None:
    without = weights("DelayCompensation", 10, group(4, 9), 1, compensate=False)
    assert without == weights("InverseStaleness", 10, group(4, 9), 1) == [Share(1 / 7), Share(1 / 3)]
    assert weights("DelayCompensation", 10, group(4, history=1), 2) == [Share(1 / 7)], "its copy is of another history"


def test_unknown_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="InverseStaleness"):
        weights("Median", 0, group(0), 1)


@pytest.mark.parametrize(
    ("scheduled", "pending", "expected"),
    [
        pytest.param(1.0, 50, 1.0, id="not above"),
        pytest.param(1.0, 51, 0.1, id="above: lr 0.001 of 0.01"),
        pytest.param(0.05, 51, 0.05, id="the schedule is lower already"),
    ],
)
def test_reduced_rate(scheduled: float, pending: int, expected: float) -> None:
    assert rate(scheduled, pending, ReducedRate(50, 0.001), 0.01) == pytest.approx(expected)
    assert rate(scheduled, pending, None, 0.01) == scheduled


def test_equal_worker_scales_leave_weights_exact() -> None:
    assert scales(group(0, 0, 0, lr_scale=0.1)) == (0.1, [1.0, 1.0, 1.0])


def test_unequal_worker_scales_go_into_the_weights() -> None:
    scale, factors = scales([*group(0, lr_scale=1.0), *group(0, lr_scale=0.5)])
    assert [scale * f for f in factors] == [1.0, 0.5]


def test_scales_of_zero_apply_nothing() -> None:
    assert scales([*group(0, lr_scale=1.0), *group(0, lr_scale=-1.0)])[0] == 0.0


def test_staleness_is_never_negative() -> None:
    assert staleness(5, 0, 9) == 0
    assert inverse(5, 2, 3) == 1 / 5

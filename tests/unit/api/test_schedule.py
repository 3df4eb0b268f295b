"""Learning-rate schedules: values by hand, and what every schedule promises."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlast.api.schedule import Schedule, rate_at

CASES = [
    ("no schedule", None, {0: 1.0, 10**9: 1.0}),
    ("constant", {"name": "Constant"}, {0: 1.0, 7: 1.0}),
    ("warm-up", {"name": "Constant", "warm_up_updates": 4}, {0: 0.2, 1: 0.4, 3: 0.8, 4: 1.0, 5: 1.0}),
    ("step", {"name": "Step", "every_updates": 10}, {0: 1.0, 9: 1.0, 10: 0.1, 19: 0.1, 20: 0.01}),
    ("step, half", {"name": "Step", "every_updates": 2, "factor": 0.5}, {1: 1.0, 2: 0.5, 4: 0.25, 5: 0.25}),
    ("milestones", {"name": "Step", "milestones": [3, 5]}, {2: 1.0, 3: 0.1, 4: 0.1, 5: 0.01, 99: 0.01}),
    ("linear", {"name": "Linear", "updates": 10}, {0: 1.0, 5: 0.5, 10: 0.0, 11: 0.0}),
    ("linear to a tenth", {"name": "Linear", "updates": 9, "final": 0.1}, {0: 1.0, 9: 0.1, 10: 0.1}),
    ("cosine", {"name": "Cosine", "updates": 8}, {0: 1.0, 2: (1 + math.sqrt(0.5)) / 2, 4: 0.5, 8: 0.0, 9: 0.0}),
    ("cosine to a half", {"name": "Cosine", "updates": 8, "final": 0.5}, {0: 1.0, 4: 0.75, 8: 0.5}),
    (
        "the clock starts after the warm-up",
        {"name": "Linear", "updates": 10, "warm_up_updates": 3},
        {0: 0.25, 2: 0.75, 3: 1.0, 8: 0.5, 13: 0.0},
    ),
]


@pytest.mark.parametrize(("fields", "rates"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_rate_by_hand(fields: dict[str, Any] | None, rates: dict[int, float]) -> None:
    schedule = None if fields is None else Schedule(**fields)
    assert {v: rate_at(schedule, v) for v in rates} == pytest.approx(rates)


schedules = st.one_of(
    st.builds(Schedule, name=st.just("Constant"), warm_up_updates=st.integers(0, 50)),
    st.builds(
        Schedule,
        name=st.just("Step"),
        warm_up_updates=st.integers(0, 50),
        every_updates=st.integers(1, 50),
        factor=st.floats(0.01, 1),
    ),
    st.builds(
        Schedule,
        name=st.sampled_from(["Linear", "Cosine"]),
        warm_up_updates=st.integers(0, 50),
        updates=st.integers(1, 200),
        final=st.floats(0, 1),
    ),
)


@given(schedules, st.integers(0, 500))
def test_rises_to_one_and_never_after(schedule: Schedule, version: int) -> None:
    rate, following = rate_at(schedule, version), rate_at(schedule, version + 1)
    assert 0 <= rate <= 1
    if version < schedule.warm_up_updates:
        assert 0 < rate < following
    else:
        assert following <= rate + 1e-12
    assert rate_at(schedule, schedule.warm_up_updates) == 1


@given(schedules)
def test_json_round_trip(schedule: Schedule) -> None:
    assert Schedule.model_validate(schedule.to_json()) == schedule


def test_negative_version_is_a_bug_of_the_caller() -> None:
    with pytest.raises(AssertionError, match="version -1 is negative"):
        rate_at(Schedule(name="Constant"), -1)

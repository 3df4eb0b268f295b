"""Learning-rate schedules: a pure function of the version.

Rules. (1) A schedule depends on nothing but the version of the parameters an update is applied to, so that a replayed
or re-elected head arrives at the rate the first one used. (2) It multiplies `optimizer.lr`: 1 means the spec's rate.
(3) In Async and BoundedStaleness the version counts gradients, in Sync rounds; the lengths here count the same.

With warm-up over W updates the multiplier of version v is (v + 1) / (W + 1) while v < W: it starts above zero, for a
first update at rate zero would be a gradient thrown away. After that the schedule's own clock starts at v - W.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import Annotated, Literal

from pydantic import Field

from outlast.api.base import Count, FieldsModel

ScheduleName = Literal["Constant", "Step", "Cosine", "Linear"]


class Schedule(FieldsModel):
    """How the learning rate changes with the version of the parameters; it multiplies optimizer.lr."""

    name: ScheduleName = Field(
        description="Constant (after the warm-up), Step (times factor at every step), Cosine or Linear (from 1 to "
        "`final` over `updates`, then constant).",
    )
    warm_up_updates: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(
        default=0,
        description="Updates over which the rate first rises linearly to optimizer.lr; 0 for none.",
    )
    every_updates: Count | None = Field(
        default=None,
        description="Step: multiply the rate by `factor` whenever this many updates have passed.",
    )
    milestones: Annotated[list[Count], Field(min_length=1, max_length=64)] | None = Field(
        default=None,
        description="Step: multiply the rate by `factor` at each of these numbers of updates (not with everyUpdates).",
    )
    factor: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.1, description="Step: what the rate is multiplied by at each step."
    )
    updates: Count | None = Field(
        default=None, description="Cosine and Linear: updates from the end of the warm-up until `final` is reached."
    )
    final: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="Cosine and Linear: the multiplier from the end of the schedule on."
    )


def rate_at(schedule: Schedule | None, version: int) -> float:
    """The multiplier of `optimizer.lr` for an update applied to parameters of this version. No schedule: 1.

    Pure; `version` is at least 0. The schedule is a validated one, see `rules.RULES` for what each name needs.
    """
    assert version >= 0, f"version {version} is negative"
    if schedule is None:
        return 1.0
    if version < schedule.warm_up_updates:
        return (version + 1) / (schedule.warm_up_updates + 1)
    clock = version - schedule.warm_up_updates
    match schedule.name:
        case "Constant":
            return 1.0
        case "Step":
            return float(schedule.factor ** _steps(schedule, clock))
        case "Linear":
            return 1.0 + (schedule.final - 1.0) * _progress(schedule, clock)
        case "Cosine":
            wave = (1.0 + math.cos(math.pi * _progress(schedule, clock))) / 2.0
            return schedule.final + (1.0 - schedule.final) * wave


def _steps(schedule: Schedule, clock: int) -> int:
    if schedule.milestones is not None:
        return bisect_right(schedule.milestones, clock)
    assert schedule.every_updates is not None, "Step without everyUpdates and milestones passed the validation"
    return clock // schedule.every_updates


def _progress(schedule: Schedule, clock: int) -> float:
    """How much of the schedule has passed: 0 to 1."""
    assert schedule.updates is not None, f"{schedule.name} without updates passed the validation"
    return min(clock / schedule.updates, 1.0)

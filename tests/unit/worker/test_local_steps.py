"""LocalSteps: what a cut-off worker sends, and at which rate it steps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from outlast.api.job import read_spec
from outlast.model.flat import FlatModel
from outlast.worker.local_steps import LocalSteps


def worker(lr: float = 0.1, momentum: float = 0.0) -> tuple[FlatModel, torch.optim.SGD, LocalSteps]:
    p = nn.Parameter(torch.tensor([1.0, 2.0]))
    flat = FlatModel([[("p", p)]])
    inner = torch.optim.SGD([p], lr=lr, momentum=momentum)
    p.grad = torch.tensor([1.0, -1.0])
    return flat, inner, LocalSteps(flat, inner)


def delta_of(local: LocalSteps) -> tuple[list[float], tuple[int, int]]:
    out = torch.zeros(2)
    interval = local.take_delta(out)
    return [round(v, 6) for v in out.tolist()], interval


def test_a_pseudo_gradient_is_weights_before_less_weights_after() -> None:
    flat, _, local = worker()
    for step in (7, 8, 9):
        local.step(step)
    assert (local.active, local.taken) == (True, 3)
    assert [round(v, 6) for v in flat.flat.tolist()] == [0.7, 2.3]
    assert delta_of(local) == ([0.3, -0.3], (7, 9))
    assert (local.active, local.cut_off, local.taken) == (False, True, 3)
    local.rejoin()
    assert (local.cut_off, local.taken) == (False, 0)


def test_two_pseudo_gradients_of_one_outage_add_up_to_the_one_of_all() -> None:
    _, _, whole = worker(momentum=0.9)
    _, _, parted = worker(momentum=0.9)
    for step in (1, 2, 3, 4):
        whole.step(step)
    parted.step(1)
    first = delta_of(parted)
    for step in (2, 3, 4):
        parted.step(step)
    second = delta_of(parted)
    assert (first[1], second[1], parted.taken) == ((1, 1), (2, 4), 4)
    added = [round(a + b, 6) for a, b in zip(first[0], second[0], strict=True)]
    assert added == pytest.approx(delta_of(whole)[0], abs=2e-6), "momentum goes on from one to the next"


def test_steps_are_taken_at_a_multiple_of_the_rate_which_stays_the_jobs_own() -> None:
    _, inner, local = worker(lr=0.1)
    local.step(1, times=8)
    assert inner.param_groups[0]["lr"] == 0.1
    assert delta_of(local)[0] == [0.8, -0.8]


def test_averaged_over_the_workers_it_goes_as_far_as_all_their_gradients() -> None:
    """Four workers, three steps each along one gradient: 12 gradients at rate 0.1."""
    moved = 0.0
    for _ in range(4):
        _, _, local = worker(lr=0.1)
        for step in (1, 2, 3):
            local.step(step, times=4)
        moved += delta_of(local)[0][0] / 4
    assert math.isclose(moved, 12 * 0.1, rel_tol=1e-6)


def test_momentum_of_an_earlier_outage_is_forgotten() -> None:
    _, _, local = worker(momentum=0.9)
    local.step(1)
    local.step(2)
    first = delta_of(local)[0]
    local.rejoin()
    local.step(3)
    assert (first, delta_of(local)[0]) == ([0.29, -0.29], [0.1, -0.1])


@pytest.mark.parametrize(
    ("strategy", "consistency", "mode", "expected"),
    [
        ("Stateless", "Async", None, True),
        ("Hybrid", "BoundedStaleness", None, True),
        ("Hybrid", "Sync", None, False),
        ("Chain", "Async", None, False),
        ("Checkpoint", "Async", None, False),
        ("Hybrid", "Async", "StaleGradients", False),
        ("Hybrid", "Async", "LocalSteps", True),
    ],
)
def test_who_takes_local_steps(strategy: str, consistency: str, mode: str | None, expected: bool) -> None:
    spec = read_spec(
        {
            "training": {"task": "a.b", "consistency": consistency, "stopAfter": {"updates": 1}},
            "recovery": {"strategy": strategy, "staleness": {"outage": {"mode": mode}}},
        }
    )
    assert spec.local_steps is expected

"""`outlast.Optimizer` as a drop-in, against a real server in this process: what torch promises, it keeps."""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from one_server import Job
from torch import nn

import outlast
from outlast.api.config import ENVIRONMENT_VARIABLE
from outlast.model.optimizers import OptimizerMismatch
from outlast.worker.errors import TrainingError, TrainingFinished

pytestmark = pytest.mark.timeout(60)


MakeJob = Callable[..., Job]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeJob]:
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    directory = Path(tempfile.mkdtemp(prefix="olsdk-", dir="/tmp"))
    jobs: list[Job] = []

    def make_one(
        consistency: str = "Sync",
        workers: int = 1,
        optimizer: dict[str, Any] | None = None,
        updates: int = 1000,
        transport: str = "unix",
    ) -> Job:
        chosen = optimizer or {"name": "SGD", "lr": 0.1, "momentum": 0.9}
        jobs.append(Job(directory, consistency, workers, chosen, updates, transport))
        return jobs[-1]

    yield make_one
    for job in jobs:
        job.close()
    shutil.rmtree(directory)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    # No bias before the BatchNorm: its gradient is 0 but for rounding, which Adam would blow up.
    return nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2))


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(16, 6, generator=generator), torch.randn(16, 2, generator=generator)


def backward(model: nn.Module, step: int) -> torch.Tensor:
    inputs, targets = batch(step)
    loss: torch.Tensor = (model(inputs) - targets).square().mean()
    torch.autograd.backward(loss)
    return loss


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, scheduler: Any = None) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def assert_same(one: nn.Module, other: nn.Module) -> None:
    torch.testing.assert_close(dict(one.state_dict()), dict(other.state_dict()), rtol=1e-5, atol=1e-6)


OPTIMIZERS: list[tuple[dict[str, Any], type[torch.optim.Optimizer], dict[str, Any]]] = [
    ({"name": "SGD", "lr": 0.1, "momentum": 0.9}, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    ({"name": "Adam", "lr": 0.01}, torch.optim.Adam, {"lr": 0.01}),
    ({"name": "AdamW", "lr": 0.01, "weightDecay": 0.1}, torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
]


@pytest.mark.parametrize("transport", ["unix", "tcp"])
@pytest.mark.parametrize(("spec", "cls", "kwargs"), OPTIMIZERS, ids=["SGD", "Adam", "AdamW"])
def test_one_synchronous_worker_trains_as_plain_torch_does(
    make: MakeJob, transport: str, spec: dict[str, Any], cls: Any, kwargs: dict[str, Any]
) -> None:
    ours, plain = network(), network()
    train(ours, make(optimizer=spec, transport=transport).join(ours, cls, **kwargs), 12)
    train(plain, cls(plain.parameters(), **kwargs), 12)
    assert_same(ours, plain)


def test_param_groups_keep_their_own_settings(make: MakeJob) -> None:
    def groups(model: nn.Sequential) -> list[dict[str, Any]]:
        return [
            {"params": list(model[0].parameters())},
            {"params": [*model[1].parameters(), *model[3].parameters()], "lr": 0.01, "momentum": 0.5},
        ]

    ours, plain = network(), network()
    optimizer = make().join(groups(ours), lr=0.1, momentum=0.9)
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.01]
    train(ours, optimizer, 8)
    train(plain, torch.optim.SGD(groups(plain), lr=0.1, momentum=0.9), 8)
    assert_same(ours, plain)


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda o: torch.optim.lr_scheduler.StepLR(o, 3, 0.5),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 12),
    ],
    ids=["StepLR", "Cosine"],
)
def test_a_schedulers_rates_reach_the_servers(make: MakeJob, scheduler: Callable[[Any], Any]) -> None:
    ours, plain = network(), network()
    optimizer = make().join(ours, lr=0.1, momentum=0.9)
    train(ours, optimizer, 10, scheduler(optimizer))
    reference = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    train(plain, reference, 10, scheduler(reference))
    assert optimizer.param_groups[0]["lr"] == reference.param_groups[0]["lr"]
    assert_same(ours, plain)


def test_rates_that_drift_apart_between_groups_are_refused(make: MakeJob) -> None:
    model = network()
    optimizer = make().join(
        [{"params": list(model[0].parameters())}, {"params": list(model[3].parameters()), "lr": 0.01}],
        lr=0.1,
        momentum=0.9,
    )
    optimizer.param_groups[1]["lr"] = 0.02
    backward(model, 0)
    with pytest.raises(TrainingError, match=r"different factors \(1.0, 2.0\).*scales them alike"):
        optimizer.step()


def test_state_dict_goes_round(make: MakeJob) -> None:
    model = network()
    optimizer = make().join(model, lr=0.1, momentum=0.9)
    train(model, optimizer, 3)
    optimizer.param_groups[0]["lr"] = 0.05
    state = optimizer.state_dict()
    assert state["outlast"] == {"next_step": 4}
    optimizer.param_groups[0]["lr"] = 0.2
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == 0.05
    plain = torch.optim.SGD(network().parameters(), lr=0.1, momentum=0.9)
    plain.load_state_dict({key: value for key, value in state.items() if key != "outlast"})
    before = copy.deepcopy(model.state_dict())["3.weight"]
    backward(model, 3)
    optimizer.step()
    assert not torch.equal(before, model.state_dict()["3.weight"])


def test_a_closure_is_called_once_and_its_loss_returned(make: MakeJob) -> None:
    model = network()
    optimizer = make().join(model, lr=0.1, momentum=0.9)
    calls: list[torch.Tensor] = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        calls.append(backward(model, 0))
        return calls[-1]

    assert optimizer.step(closure) is calls[0]
    assert len(calls) == 1


def test_batchnorms_buffers_travel_to_the_next_worker(make: MakeJob) -> None:
    job, ours, other = make(), network(), network(seed=7)
    train(ours, job.join(ours, lr=0.1, momentum=0.9), 5)
    joined = job.join(other, again=2, lr=0.1, momentum=0.9)
    assert joined.next_step == 6
    for (name, a), (_, b) in zip(ours.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    counted = other.state_dict()["1.num_batches_tracked"]
    assert counted.dtype == torch.int64
    assert int(counted) == 5


def test_parameters_alone_leave_the_buffers_at_home(make: MakeJob) -> None:
    job, ours, other = make(), network(), network(seed=7)
    train(ours, job.join(ours.parameters(), lr=0.1, momentum=0.9), 5)
    job.join(other.parameters(), again=2, lr=0.1, momentum=0.9)
    assert job.server.state.parameters is not None
    assert job.server.state.parameters.numel == sum(p.numel() for p in ours.parameters())
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), other.parameters(), strict=True))
    assert float(other.state_dict()["1.running_mean"].abs().sum()) == 0.0
    assert int(other.state_dict()["1.num_batches_tracked"]) == 0


def test_frozen_parameters_stay_as_they_are(make: MakeJob) -> None:
    model = network()
    frozen = next(model.parameters()).requires_grad_(False)
    before = frozen.detach().clone()
    job = make()
    train(model, job.join(model, lr=0.1, momentum=0.9), 3)
    assert torch.equal(frozen, before)
    assert job.server.state.parameters is not None
    assert job.server.state.parameters.version == 3


def test_a_parameter_without_a_gradient_does_not_stop_the_others(make: MakeJob) -> None:
    model = network()
    unused = nn.Parameter(torch.ones(3))
    optimizer = make().join([*model.parameters(), unused], lr=0.1, momentum=0.9)
    train(model, optimizer, 2)
    assert torch.equal(unused, torch.ones(3))


def test_clipping_between_backward_and_step_counts(make: MakeJob) -> None:
    ours, plain = network(), network()
    optimizer: torch.optim.Optimizer
    for model, optimizer in (
        (ours, make().join(ours, lr=0.1, momentum=0.9)),
        (plain, torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)),
    ):
        for step in range(3):
            optimizer.zero_grad()
            backward(model, step)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
    assert_same(ours, plain)


def test_code_and_spec_must_agree(make: MakeJob) -> None:
    job = make()
    with pytest.raises(OptimizerMismatch, match=r"asks for SGD\(lr=0.1, momentum=0.9.*the code builds SGD\(lr=0.2"):
        job.join(network(), lr=0.2, momentum=0.9)
    with pytest.raises(OptimizerMismatch, match=r"servers cannot run.*RMSprop"):
        job.join(network(), torch.optim.RMSprop, lr=0.1)
    with pytest.raises(OptimizerMismatch, match="negate the loss"):
        job.join(network(), lr=0.1, momentum=0.9, maximize=True)


def test_the_jobs_goal_ends_the_loop(make: MakeJob) -> None:
    model = network()
    optimizer = make(updates=4).join(model, lr=0.1, momentum=0.9)
    with pytest.raises(TrainingFinished) as finished:
        train(model, optimizer, 100)
    assert finished.value.code == 0, "a script that does not catch it ends well"
    assert optimizer.finished
    assert 5 <= optimizer.next_step <= 6


def test_what_is_not_finite_is_never_sent(make: MakeJob) -> None:
    job, model = make(), network()
    optimizer = job.join(model, lr=0.1, momentum=0.9)
    train(model, optimizer, 2)
    backward(model, 2)
    *_, bias = model.parameters()
    assert bias.grad is not None
    bias.grad[0] = float("inf")
    with pytest.raises(TrainingError, match=r"step 3.*not finite.*clipNorm"):
        optimizer.step()
    assert job.server.state.parameters is not None
    assert job.server.state.parameters.version == 2


def test_a_group_cannot_be_added_to_a_running_job(make: MakeJob) -> None:
    optimizer = make().join(network(), lr=0.1, momentum=0.9)
    with pytest.raises(TrainingError, match="when it is built"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})


def test_outside_a_job_it_is_the_plain_optimizer() -> None:
    assert ENVIRONMENT_VARIABLE not in os.environ
    ours, plain = network(), network()
    optimizer = outlast.Optimizer(ours, torch.optim.Adam, lr=0.01)
    assert isinstance(optimizer, torch.optim.Optimizer)
    train(ours, optimizer, 5, torch.optim.lr_scheduler.StepLR(optimizer, 2))
    reference = torch.optim.Adam(plain.parameters(), lr=0.01)
    train(plain, reference, 5, torch.optim.lr_scheduler.StepLR(reference, 2))
    assert_same(ours, plain)
    assert optimizer.drain()
    assert optimizer.next_step == 0
    with contextlib.closing(optimizer):
        optimizer.seed_step()

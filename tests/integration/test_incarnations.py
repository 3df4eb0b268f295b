"""A slot's older process that lives on, cut off from the control plane alone: fenced before the newer one computes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from one_server import Job
from redis_fixture import RedisServer

from outlast.buffer.log import GradientLog
from outlast.worker.errors import Superseded
from outlast.worker.optimizer import Optimizer

pytestmark = pytest.mark.timeout(60)
SGD = {"name": "SGD", "lr": 0.1}


@pytest.fixture(params=["Checkpoint", "Stateless"])
def job(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Job]:
    url = request.getfixturevalue("redis").url if request.param == "Stateless" else None
    made = Job(tmp_path, "Async", 1, SGD, 1000, redis_url=url)
    yield made
    made.close()


def train(optimizer: Optimizer, model: torch.nn.Module, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()


def test_the_older_process_ends_before_the_newer_one_has_computed(job: Job) -> None:
    old_model, new_model = torch.nn.Linear(4, 1), torch.nn.Linear(4, 1)
    old = job.join(old_model, lr=0.1)
    train(old, old_model, 5)
    new = job.join(new_model, again=2, lr=0.1)
    first = new.next_step
    with pytest.raises(Superseded):
        train(old, old_model, 100)
    train(new, new_model, 3)
    assert new.next_step == first + 3


def test_a_process_that_comes_later_than_its_successor_computes_nothing(job: Job) -> None:
    model = torch.nn.Linear(4, 1)
    train(job.join(model, again=2, lr=0.1), model, 1)
    with pytest.raises(Superseded):
        job.join(torch.nn.Linear(4, 1), again=1, lr=0.1)


def test_the_log_takes_nothing_of_the_older_process_once_the_newer_one_knows_where_to_go_on(
    redis: RedisServer, tmp_path: Path
) -> None:
    """What it appended after that would hold steps that the newer one takes, too."""
    job = Job(tmp_path, "Async", 1, SGD, 1000, redis_url=redis.url)
    model = torch.nn.Linear(4, 1)
    train(job.join(model, lr=0.1), model, 3)
    job.join(torch.nn.Linear(4, 1), again=2, lr=0.1)
    log = GradientLog(redis.url, "uid", 1, 1 << 30)
    assert log.fence(0, 1) == 2
    log.disconnect()
    job.close()

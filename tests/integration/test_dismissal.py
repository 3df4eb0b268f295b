"""The servers of a job that was deleted: all are to go at once, and no view without them will come."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from one_server import Job

from outlast.wire.control import ServerControl

pytestmark = pytest.mark.timeout(60)
REPLICAS = 3


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Job]:
    job = Job(tmp_path, "Async", 1, {"name": "SGD", "lr": 0.1}, updates=1000, replicas=REPLICAS)
    yield job
    job.close()


def test_servers_that_are_dismissed_do_not_wait_for_successors(chain: Job) -> None:
    model = torch.nn.Linear(4, 1)
    optimizer = chain.join(model, lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
    with ThreadPoolExecutor(REPLICAS) as pool:
        for server in chain.servers:
            server.leaving.set()  # as SIGTERM does
        ends = [pool.submit(server.run_until_left) for server in chain.servers]
        with pytest.raises(TimeoutError):
            ends[0].result(timeout=1)
        for server in chain.servers:
            control = ServerControl(server.config.listen or "", "uid", "secret")
            control.finish()
            control.close()
            server.not_replaced.set()  # as LEAVE does, which sends SIGTERM to the process
        assert [end.result(timeout=10) for end in ends] == [0] * REPLICAS

"""What a real server tells of workers that are connected no more."""

from __future__ import annotations

import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from one_server import Job

from outlast.server.presence import LOST_S

pytestmark = pytest.mark.timeout(60)
PATIENCE_S = 20.0


@pytest.fixture
def job() -> Iterator[Job]:
    directory = Path(tempfile.mkdtemp(prefix="olpre-", dir="/tmp"))
    job = Job(directory, "Async", 2, {"name": "SGD", "lr": 0.1}, 10_000, "tcp")
    yield job
    job.close()
    shutil.rmtree(directory)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)


def step(job: Job, again: int) -> None:
    """Worker 0 joins and makes one step."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    optimizer = job.join(model, lr=0.1, again=again)
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_slot_is_absent_from_its_last_connection_to_the_next(job: Job) -> None:
    absent = job.server.workers.presence.absent
    assert job.server.status.now().connected == ()
    step(job, again=1)
    assert (job.server.status.now().absent, job.server.status.now().connected) == ({}, (0,))
    t_end = time.monotonic()
    job.optimizers[0].close()
    wait_until(absent)
    assert (list(job.server.status.now().absent), job.server.status.now().connected) == ([0], ())
    assert absent()[0] >= t_end
    step(job, again=2)
    wait_until(lambda: not absent())


def test_a_worker_whose_host_is_lost_is_given_up(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """That no host answers cannot be made here; that the kernel is told to look for it can be seen."""
    seen: list[int] = []
    accept = job.server.workers.serve

    def look(reader: object, *more: object) -> None:
        sock: socket.socket = reader.connection.sock  # type: ignore[attr-defined]
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        seen.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))
        accept(reader, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(job.server.workers, "serve", look)
    step(job, again=1)
    assert set(seen) == {int(LOST_S * 1000)}

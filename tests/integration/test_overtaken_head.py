"""A head that nobody tells of the next view: the operator does not reach it, and its process lives on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from one_server import PATIENCE_S, Job, wait_until

from outlast.api.view import Member, View
from outlast.server import link

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    made = Job(tmp_path, "Async", 1, {"name": "SGD", "lr": 0.1}, 1000, replicas=3)
    yield made
    made.close()


def test_a_worker_that_waits_for_an_overtaken_head_is_let_go(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it sent is applied by the head and by the next one; the last one's acknowledgement comes in another view."""
    head, middle, tail = job.servers
    dial = link.connect

    def dial_for_others(address: str, job_uid: str, token: str, hello: dict[str, Any], timeout_s: float) -> Any:
        if hello["boot"] == head.core.boot and middle.core.replica.epoch > 1:
            raise ConnectionRefusedError("a network policy lets a deleted pod dial nobody")
        return dial(address, job_uid, token, hello, timeout_s)

    monkeypatch.setattr(link, "connect", dial_for_others)
    model = torch.nn.Linear(4, 1)
    optimizer = job.join(model, lr=0.1)
    members = tuple(Member(s.config.name, s.core.boot, s.config.listen or "") for s in (middle, tail))
    with tail.core.lock:
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
        wait_until(lambda: middle.core.replica.version == 1, "the update in the middle of the chain")
        for server in (middle, tail):
            server.core.install(View(0, 2, 0, members, (), None))
    assert optimizer.drain(PATIENCE_S), "the worker still waits for the head that was overtaken"
    wait_until(lambda: tail.core.replica.version == 1, "the update at the new tail")
    assert head.core.replica.epoch == 1, "nobody has told it"

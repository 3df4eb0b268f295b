"""A node with a DNS server of the cluster is lost: for many seconds no name is found, and the job goes on."""

from __future__ import annotations

import queue
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from one_server import Job

pytestmark = pytest.mark.timeout(60)
AWAY_S = 30.0


def test_a_worker_finds_the_servers_that_it_knows_without_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, back = threading.Event(), threading.Event()
    found.set()

    def look_up(host: str, port: int, *_: Any) -> list[Any]:
        assert host.startswith("server-")
        if not found.is_set():
            back.wait(AWAY_S)  # as a resolver waits for an answer that never comes
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    job = Job(tmp_path, "Async", 1, {"name": "SGD", "lr": 0.1}, 1000, "names", replicas=2)
    model = torch.nn.Linear(4, 1)
    optimizer = job.join(model, lr=0.1)
    client = optimizer._client
    assert client is not None
    found.clear()
    with client.condition:
        client.session.lost(0, time.monotonic())
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert optimizer.drain(AWAY_S / 2), "the gradient was not acknowledged"
    assert not client.session.outage()
    client._answers.append(queue.SimpleQueue())
    client._ask_one(1, job.server.listener.address, 0.0)
    assert client._answers[1].get().view is None, "what a server of shard 0 tells is no view of shard 1"
    back.set()
    job.close()

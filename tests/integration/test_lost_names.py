"""A node with a DNS server of the cluster is lost: for many seconds no name is found, and the job goes on."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from one_server import Job

from outlast.api.config import ServerAddress
from outlast.worker.view_poll import ViewPoll

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
    assert optimizer._remote is not None
    client = optimizer._remote._client
    found.clear()
    with client.outbox.condition:
        client.session.lost(0, time.monotonic())
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert optimizer.drain(AWAY_S / 2), "the gradient was not acknowledged"
    assert not client.session.outage()
    place = (ServerAddress("server-0", job.server.listener.address),)
    config = replace(optimizer._remote._config, servers=(place, place))
    assert len(ViewPoll(config, 0, AWAY_S).ask(None)) == 1
    assert ViewPoll(config, 1, AWAY_S).ask(None) == {}, "what a server of shard 0 tells is no view of shard 1"
    back.set()
    job.close()

"""A real server in this process, and workers' optimizers that join it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jobs import make_job

from outlast.api.config import ProcessConfig, ServerAddress
from outlast.api.job import read_spec
from outlast.api.view import Member, View
from outlast.server.main import Server
from outlast.worker.optimizer import Optimizer

PATIENCE_S = 20.0


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"it did not come to: {what}"
        time.sleep(0.02)  # between two looks; what ends the wait is the condition


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Job:
    """One server in this process, or a chain of some, and workers' optimizers that join it. `of_servers`: more fields
    of the servers' configuration."""

    def __init__(
        self,
        directory: Path,
        consistency: str,
        workers: int,
        optimizer: dict[str, Any],
        updates: int,
        transport: str = "unix",
        replicas: int = 1,
        redis_url: str | None = None,
        **of_servers: Any,
    ) -> None:
        """`redis_url`: the strategy is Stateless, with its log there. `transport` "names": TCP, and workers are given
        host names, each that of its server, under which `getaddrinfo` must find 127.0.0.1."""
        strategy = "Stateless" if redis_url is not None else "Checkpoint" if replicas == 1 else "Chain"
        job = make_job(strategy, consistency, updates=updates, workers={"replicas": workers})
        job["spec"]["training"]["optimizer"] = optimizer
        spec = read_spec(job["spec"])
        addresses = {
            f"server-{i}": f"unix:{directory}/server-{i}.sock"
            if transport == "unix"
            else f"tcp:127.0.0.1:{free_port()}"
            for i in range(replicas)
        }
        self.address = addresses["server-0"]
        self.common: dict[str, Any] = {
            "job": "sdk",
            "job_uid": "uid",
            "token": "secret",
            "spec": spec.to_json(),
            "servers": (
                tuple(
                    ServerAddress(name, address.replace("127.0.0.1", name) if transport == "names" else address)
                    for name, address in addresses.items()
                ),
            ),
            "redis_url": redis_url,
        }
        self.servers = [
            Server(ProcessConfig(**self.common, role="server", name=name, listen=address, **of_servers))
            for name, address in addresses.items()
        ]
        self.server = self.servers[0]
        members = tuple(Member(s.config.name, s.core.boot, s.config.listen or "") for s in self.servers)
        for server in self.servers:
            server.start()
            server.core.install(View(0, 1, 0, members, (), None))
        self.optimizers: list[Optimizer] = []

    def join(
        self, model: Any, cls: type[torch.optim.Optimizer] = torch.optim.SGD, again: int = 1, **kwargs: Any
    ) -> Optimizer:
        """As worker 0, in its incarnation `again`."""
        config = ProcessConfig(**self.common, role="worker", name="worker-0", incarnation=again)
        self.optimizers.append(Optimizer(model, cls, config=config, **kwargs))
        return self.optimizers[-1]

    def close(self) -> None:
        for optimizer in self.optimizers:
            optimizer.close()
        for server in self.servers:
            server.listener.close()

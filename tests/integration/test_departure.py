"""A server that leaves without a replacement: its state goes through the volume to its successor, and to no other.

Those of a job that was deleted are dismissed: all are to go at once, and no view without them will come.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from one_server import Job, wait_until

from outlast.api.view import Member, View, last_state_name
from outlast.server.main import Server
from outlast.wire.control import ServerControl

GRACE_S = 4.5  # its last third is for the last state: time enough on a busy machine
REPLICAS = 3


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    made = Job(
        tmp_path, "Async", 1, {"name": "SGD", "lr": 0.1, "momentum": 0.9}, updates=1000,
        checkpoint_dir=str(tmp_path / "checkpoints"), extras={"grace_s": GRACE_S},
    )  # fmt: skip
    yield made
    made.close()


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Job]:
    job = Job(tmp_path, "Async", 1, {"name": "SGD", "lr": 0.1}, updates=1000, replicas=REPLICAS)
    yield job
    job.close()


def train(job: Job, steps: int) -> None:
    model = torch.nn.Linear(4, 1)
    optimizer = job.join(model, lr=0.1, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
    wait_until(lambda: job.server.status.now().version >= steps, "updates")
    optimizer.close()


def test_a_successor_goes_on_from_what_the_last_server_left(job: Job) -> None:
    train(job, 7)
    old = job.server
    before, began = old.status.table(), time.monotonic()
    old.leaving.set()  # as SIGTERM does
    assert old.run_until_left() == 0
    assert time.monotonic() - began <= GRACE_S
    assert not old.status.now().serving, "what it acknowledged after it saved would be lost"
    old.listener.close()

    new = Server(replace(old.config, listen=f"{old.config.listen}.new"))
    new.start()
    try:
        name = last_state_name(0, old.core.boot)
        assert new.status.now().last_states == (name,)
        new.core.install(View(0, 2, 0, (Member("server-0", new.core.boot, new.config.listen or ""),), (), name))
        wait_until(lambda: new.status.now().serving, "it serves")
        after = new.status.table()
        assert {key: after[key] for key in ("applied", "version", "history", "digest")} == {
            key: before[key] for key in ("applied", "version", "history", "digest")
        }
        new.leaving.set()
        assert new.run_until_left() == 0
        left = {path.name for path in Path(str(new.config.checkpoint_dir)).glob("uid/last-*")}
        assert left == {last_state_name(0, new.core.boot)}, "one a shard is kept"
    finally:
        new.listener.close()


def test_a_last_state_that_was_altered_is_not_offered(job: Job) -> None:
    train(job, 3)
    job.server.leaving.set()
    job.server.run_until_left()
    (part,) = Path(str(job.server.config.checkpoint_dir)).glob("uid/last-*/part-*")
    part.write_bytes(part.read_bytes()[:-1])
    new = Server(replace(job.server.config, listen=f"{job.server.config.listen}.new"))
    new.start()
    try:
        assert new.status.now().last_states == ()
    finally:
        new.listener.close()


def test_a_server_that_is_told_that_nobody_follows_writes_a_checkpoint_of_all(job: Job) -> None:
    train(job, 3)
    grace_s = 100.0  # so long that only a server that waits for it can miss the bound
    job.server.config = replace(job.server.config, extras={"grace_s": grace_s})
    began = time.monotonic()
    job.server.not_replaced.set()
    job.server.leaving.set()
    job.server.run_until_left()
    assert time.monotonic() - began < grace_s / 2
    assert job.server.durability.available[0].version == job.server.status.table()["version"] > 0
    assert not list(Path(str(job.server.config.checkpoint_dir)).glob("uid/last-*"))


@pytest.mark.timeout(60)
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

"""Stateless: a server that rebuilds from a Redis that does not hold what it held, and where its state is then."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from one_server import Job, wait_until
from redis_fixture import RedisServer

from outlast.api.view import EMPTY, Member, View
from outlast.buffer.log import GradientLog
from outlast.buffer.types import BufferUnavailable, EntryMissing
from outlast.server.log_reader import LogReader
from outlast.server.main import Server

pytestmark = pytest.mark.timeout(60)
SGD = {"name": "SGD", "lr": 0.1}


@pytest.fixture
def job(redis: RedisServer, tmp_path: Path) -> Iterator[Job]:
    made = Job(tmp_path, "Async", 1, SGD, 1000, redis_url=redis.url, checkpoint_dir=str(tmp_path / "checkpoints"))
    yield made
    made.close()


@pytest.fixture
def successor(job: Job) -> Iterator[Server]:
    config = job.server.config
    server = Server(replace(config, listen=f"{config.listen}.new"))
    server.start()
    yield server
    server.listener.close()


def log_of(job: Job) -> GradientLog:
    assert isinstance(job.server.log, LogReader)
    return job.server.log.shard_log.log


def install(server: Server, epoch: int, history: int, restore: str | None, otherwise: str | None = None) -> None:
    member = Member(server.config.name, server.core.boot, server.config.listen or "")
    server.core.install(View(0, epoch, history, (member,), (), restore, otherwise))


def test_a_later_view_that_finds_redis_empty_is_no_new_beginning(job: Job, successor: Server) -> None:
    """No worker may give it initial weights in the same history: the job held a state, and what it lost is counted."""
    install(successor, 2, 0, "buffer")
    wait_until(lambda: successor.status.now().restore_error, "an error")
    assert "holds no snapshot" in successor.status.now().restore_error
    assert successor.status.now().restoring == "buffer"


def test_a_rollback_to_the_initial_weights_ends_the_restore_before(job: Job, successor: Server) -> None:
    install(successor, 2, 0, "buffer")
    wait_until(lambda: successor.status.now().restore_error, "an error")
    install(successor, 3, 1, None)
    assert successor.status.now().restoring is None


def test_the_error_of_one_restore_is_not_told_of_the_next(job: Job, successor: Server) -> None:
    install(successor, 2, 0, "ckpt-h0000-v00000001")
    wait_until(lambda: successor.status.now().restore_error, "an error")
    install(successor, 3, 1, "buffer")
    assert "ckpt" not in str(successor.status.now().restore_error)


def test_a_server_tells_which_run_of_redis_holds_its_state(job: Job, redis: RedisServer) -> None:
    model = torch.nn.Linear(4, 1)
    optimizer = job.join(model, lr=0.1)
    log = log_of(job)
    wait_until(lambda: job.server.status.now().initialised, "initial weights")
    first = log.run_id()
    assert job.server.status.now().buffer_run == first
    redis.kill()
    redis.start()
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    wait_until(lambda: job.server.status.now().buffer_run not in ("", first), "a snapshot in the next run")
    assert job.server.status.now().buffer_run == log.run_id()


def train(job: Job, steps: int = 1) -> None:
    model = torch.nn.Linear(4, 1)
    optimizer = job.join(model, lr=0.1)
    for _ in range(steps):
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
    wait_until(lambda: job.server.status.now().version >= steps, "updates")


def test_a_rollback_to_the_initial_weights_takes_a_survivor_along(job: Job) -> None:
    """Redis has a snapshot of it, of the history that was given up."""
    train(job)
    install(job.server, 2, 1, None)
    status = job.server.status.now()
    assert (status.initialised, status.restoring, status.history) == (False, None, 1)
    assert job.server.status.now().restore_error is None


def test_a_snapshot_of_another_history_is_none(job: Job, successor: Server) -> None:
    train(job)
    install(successor, 2, 1, "buffer")
    wait_until(lambda: successor.status.now().restore_error, "an error")
    assert "no snapshot of history 1" in successor.status.now().restore_error
    assert (successor.status.now().initialised, successor.status.now().buffer_run) == (False, "")


def test_before_the_first_snapshot_a_server_holds_the_checkpoint_that_its_history_began_from(
    job: Job, successor: Server
) -> None:
    train(job, steps=3)
    job.server.durability.save_and_wait("for the test")
    (newest, *_) = job.server.status.now().checkpoints
    install(successor, 2, 1, "buffer", newest.name)
    wait_until(lambda: successor.status.now().serving, "the checkpoint")
    status = successor.status.now()
    assert (status.version, status.history) == (newest.version, 1)
    assert (status.restore_error, status.buffer_run) == (None, "")


def test_before_the_first_weights_a_later_view_begins_empty(job: Job, successor: Server) -> None:
    install(successor, 2, 0, "buffer", EMPTY)
    wait_until(lambda: successor.status.now().restoring is None, "an end of the restore")
    assert (successor.status.now().initialised, successor.status.now().restore_error) == (False, None)


def test_who_began_empty_and_wrote_a_checkpoint_held_state(job: Job, successor: Server) -> None:
    """Redis is said to have lost it before the planner heard of it."""
    train(job)
    log = log_of(job)
    wait_until(lambda: successor.status.now().checkpoints, "the first checkpoint")
    log.store.control.use(lambda client, _: client.flushall())
    install(successor, 2, 0, "buffer", EMPTY)
    wait_until(lambda: successor.status.now().restore_error, "an error")
    assert "no snapshot" in successor.status.now().restore_error


def test_nothing_is_published_before_a_new_run_of_redis_has_a_snapshot(
    job: Job, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = torch.nn.Linear(4, 1)
    optimizer = job.join(model, lr=0.1)
    log = log_of(job)
    wait_until(lambda: job.server.status.now().initialised, "initial weights")
    save, refused = log.save_snapshot, 0

    def save_at_the_fourth_time(*args: Any) -> bool:
        nonlocal refused
        refused += 1
        if refused < 4:
            raise BufferUnavailable("Redis does not answer")
        return save(*args)

    monkeypatch.setattr(log, "save_snapshot", save_at_the_fourth_time)
    redis.kill()
    redis.start()
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    wait_until(lambda: job.server.status.now().version == 1, "the update")
    assert job.server.status.now().buffer_run == log.run_id()
    assert refused >= 4


def test_a_first_state_that_a_successor_has_fenced_holds_nobody_up(job: Job, redis: RedisServer) -> None:
    successors = GradientLog(redis.url, "uid", 1, 1 << 30)
    assert successors.claim(0, 9, 0, 0)
    worker = Thread(target=train, args=(job,), daemon=True)
    worker.start()
    wait_until(lambda: job.server.state.parameters, "the initial weights to arrive")
    later = Thread(target=install, args=(job.server, 10, 0, None, EMPTY), daemon=True)
    later.start()
    later.join(10.0)
    assert not later.is_alive(), "the server's lock is held for ever"
    worker.join(20.0)
    assert job.server.status.now().version >= 1
    successors.disconnect()


def test_a_replay_that_fails_is_told(job: Job, successor: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    train(job)

    def gone() -> None:
        raise EntryMissing("an entry that a record names is not in the log")

    monkeypatch.setattr(successor.durability._rebuild, "_replay", gone)
    install(successor, 2, 0, "buffer")
    wait_until(lambda: successor.status.now().restore_error, "an error")
    assert "not in the log" in successor.status.now().restore_error


def test_a_history_that_began_from_a_checkpoint_is_soon_in_redis(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first record asks for it. Were there none and Redis were lost, what the history began from would be taken."""
    monkeypatch.setattr(job.server.log, "_make_room", lambda idle: None)  # as if workers never paused
    train(job, steps=3)
    job.server.durability.save_and_wait("for the test")
    (newest, *_) = job.server.status.now().checkpoints
    install(job.server, 2, 1, newest.name, newest.name)
    wait_until(lambda: job.server.status.now().serving, "the checkpoint")
    model, before = torch.nn.Linear(4, 1), job.server.status.now().version
    optimizer = job.join(model, lr=0.1, again=2)
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    wait_until(lambda: job.server.status.now().version > before, "an update")
    wait_until(lambda: job.server.status.now().buffer_run, "a snapshot")


def test_a_restore_that_a_later_claim_has_fenced_ends(job: Job, redis: RedisServer, successor: Server) -> None:
    train(job)
    later = GradientLog(redis.url, "uid", 1, 1 << 30)
    assert later.claim(0, 9, 0, 0)
    install(successor, 2, 0, "buffer")
    wait_until(lambda: successor.status.now().restore_error, "an end of the restore")
    assert "a higher epoch than 2" in successor.status.now().restore_error
    assert not successor.core.rebuilding
    later.disconnect()

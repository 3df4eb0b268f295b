"""A directory a server, as node-local claims are: whatever is lost, the newest checkpoint that is left whole counts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from jobs import Lab, Running, make_job

from outlast.checkpoint.own import OwnParts

pytestmark = pytest.mark.timeout(120)

EVERY = 50


def start(lab: Lab, shards: int, consistency: str = "Async") -> Running:
    checkpoint = {"everyUpdates": EVERY, "claim": {"accessModes": ["ReadWriteOnce"]}}
    servers = {"shards": shards, "replicas": 2}
    return lab.start(
        make_job("Chain", consistency, updates=100_000, servers=servers, recovery={"checkpoint": checkpoint})
    )


def directory_of(running: Running, server: str) -> Path:
    return running.directory.root / "checkpoints" / server


def sets_in(running: Running, server: str, shard: int) -> set[tuple[int, int]]:
    """(history, version) of each set of which the server's directory has a whole part."""
    store = OwnParts(directory_of(running, server), running.config().job_uid)
    return {(part.history, part.version) for part in store.held(shard)}


def newest_on_disk(running: Running) -> tuple[int, int]:
    """The newest set of which the directories together have a part of each shard."""
    shards = [[s.name for s in shard] for shard in running.config().servers]
    held = [set().union(*(sets_in(running, name, n) for name in names)) for n, names in enumerate(shards)]
    return max(set.intersection(*held))


def kill_all(running: Running) -> None:
    for shard in running.config().servers:
        for server in shard:
            if running.running(server.name) is not None:
                running.kill(server.name)


@pytest.mark.parametrize("shards", [1, 2])
def test_the_tails_directory_is_lost_then_all_servers(lab: Lab, shards: int) -> None:
    running = start(lab, shards)
    running.wait_until(lambda: running.version() > 2 * EVERY, "two checkpoints")
    servers = [s.name for s in running.config().servers[0]]
    for name in servers:
        running.wait_until(lambda name=name: max(sets_in(running, name, 0))[1] >= EVERY, f"{name} writes too")

    view = running.status().views[0]
    assert view.tail is not None
    tail, epoch = view.tail.name, view.epoch
    running.kill(tail)
    shutil.rmtree(directory_of(running, tail))
    running.wait_until(lambda: len(running.status().views[0].members) == 2, "a replacement in the chain")
    running.wait_until(lambda: running.status().views[0].epoch > epoch, "another view")
    running.wait_until(lambda: sets_in(running, tail, 0), "the replacement copies or writes what it lacks")

    version = running.version()
    kill_all(running)
    shutil.rmtree(directory_of(running, tail))
    newest = newest_on_disk(running)
    assert newest[0] == 0
    assert newest[1] >= version - 2 * EVERY
    running.wait_until(lambda: running.status().views[0].history == 1, "a rollback")
    restored = {view.restore for view in running.status().views.values()}
    assert restored == {f"ckpt-h{newest[0]:04d}-v{newest[1]:08d}"}, "the newest one, nothing older, the same for all"
    running.wait_until(lambda: running.version() > newest[1] + EVERY, "training goes on from there")
    running.wait_until(lambda: len(running.status().views[0].members) == 2, "the chain is whole again")


def test_a_synchronous_job_never_mixes_versions(lab: Lab) -> None:
    """A tail that comes between two checkpoints writes no part of the one before, and the loss of a shard then takes
    both to one version: with parts of two, no worker could ever pull again."""
    running = start(lab, 2, "Sync")
    running.wait_until(lambda: running.version() > EVERY, "a checkpoint")
    view = running.status().views[0]
    assert view.tail is not None
    running.kill(view.tail.name)
    running.wait_until(lambda: running.status().views[0].epoch > view.epoch, "another view")
    for server in running.config().servers[1]:
        running.kill(server.name)
    running.wait_until(lambda: running.status().views[1].history == 1, "a rollback")
    restored = {view.restore for view in running.status().views.values()}
    assert len(restored) == 1
    reached = int(str(restored.pop())[-8:])
    running.wait_until(lambda: min(running.version(0), running.version(1)) > reached + EVERY, "both shards go on")

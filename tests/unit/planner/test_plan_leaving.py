"""What leaves in order is followed first: no update is lost, and nobody waits for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from plan_steps import of, running
from plan_world import LEAVE_WAIT_S

from outlast.api.view import last_state_name
from outlast_operator.planner.actions import InstallView, KillProcess, StartProcess
from outlast_operator.planner.checkpoint_sets import CHECKPOINT_NEWS_S


def test_a_leaving_head_is_planned_around_then_told_and_ends_by_itself() -> None:
    world = running()
    world.servers["server-0"].leaving = True
    world.turn()
    assert world.members() == ["server-1", "server-2"]
    world.turn()
    assert "server-0" in [a.to.name for a in of(world, InstallView)]
    assert not of(world, KillProcess)
    world.run(1.0)
    assert world.status.failovers[0].cause == "Planned"
    assert world.members() == ["server-1", "server-2", "server-0"]
    assert not of(world, KillProcess)


@pytest.mark.parametrize(("code", "cause"), [(0, "Planned"), (1, "Exited")])
def test_a_server_that_leaves_before_it_is_heard_is_known_by_its_exit_code(code: int, cause: str) -> None:
    world = running()
    world.end("server-0", code)
    world.run(1.0)
    assert world.status.failovers[0].cause == cause


def test_when_all_leave_the_head_stays_until_another_has_the_state() -> None:
    world = running()
    for server in world.servers.values():
        server.leaving = True
    world.run(3.0)
    view = world.status.views[0]
    assert view.history == 0
    assert len(view.members) == 3
    assert world.head().version > 0
    assert {f.cause for f in world.status.failovers} == {"Planned"}
    assert not world.wrongs


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("strategy", ["Checkpoint", "Stateless"])
def test_the_only_server_of_a_shard_hands_over_to_its_second_name_and_back(strategy: str, shards: int) -> None:
    world = running(strategy, servers__shards=shards)
    second = f"server-{shards}"
    for old, new in (("server-0", second), (second, "server-0")):
        before = world.acknowledged[0, 0]
        others = {shard: view for shard, view in world.status.views.items() if shard}
        world.servers[old].leaving = True
        world.run(1.0)
        assert world.members() == [new]
        assert not world.servers[old].process.alive, "it ends by itself"
        assert world.status.views[0].history == 0
        assert {shard: view for shard, view in world.status.views.items() if shard} == others, "no other shard"
        world.run(2.0)
        assert world.members() == [new]
        assert not world.servers[old].process.alive, "one server a shard"
        assert world.head().version > before
    assert {f.cause for f in world.status.failovers} == {"Planned"}
    assert not of(world, KillProcess)
    assert not world.wrongs


def test_while_no_replacement_starts_the_only_server_serves_then_it_saves() -> None:
    world = running("Checkpoint")
    world.held["server-1"] = world.now + 60.0
    world.servers["server-0"].leaving = True
    world.run(LEAVE_WAIT_S - 1.0)
    assert world.members() == ["server-0"]
    before = world.acknowledged[0, 0]
    world.run(3.0)
    assert world.head().version > before
    assert (world.status.views[0].history, world.members()) == (0, ["server-0"])
    assert {f.cause for f in world.status.failovers} == {"Planned"}
    assert not world.wrongs


def test_what_the_last_server_left_concerns_no_other_shard() -> None:
    world = running("Checkpoint", servers__shards=2)
    world.held["server-2"] = world.now + 60.0
    world.servers["server-0"].leaving = True
    other = world.status.views[1]
    world.run(LEAVE_WAIT_S + 3.0)
    assert world.status.views[1] == other
    assert world.status.views[0].history == 0
    assert world.head().version > 0


def test_a_last_state_that_cannot_be_read_falls_back_to_the_newest_checkpoint() -> None:
    world = running("Checkpoint")
    world.held["server-1"] = world.now + 60.0
    world.servers["server-0"].leaving = True
    world.unreadable.add(last_state_name(0, world.servers["server-0"].boot))
    world.run(LEAVE_WAIT_S + 8.0)
    view = world.status.views[0]
    assert view.history == 1
    assert world.status.rejected_checkpoints == tuple(world.unreadable)
    assert world.head().initialised


def test_a_server_killed_in_its_handover_is_followed_by_the_replacement_that_runs() -> None:
    world = running("Checkpoint")
    world.servers["server-0"].leaving = True
    world.turn()
    world.turn()
    assert [a.name for a in of(world, StartProcess)] == ["server-1"]
    world.kill("server-0")
    world.run(CHECKPOINT_NEWS_S + 2.0)
    assert world.members() == ["server-1"]
    assert not world.servers["server-0"].process.alive, "one server a shard"


@pytest.mark.parametrize("strategy", ["Hybrid", "Stateless"])
def test_a_redis_that_leaves_takes_no_more_and_ends_when_its_log_is_applied(strategy: str) -> None:
    world = running(strategy)
    old = world.others["redis"]
    world.others["redis"] = replace(old, leaving=True)
    world.log[0] = 3
    held_up = world.head()
    held_up.paused = True  # so that nothing is applied
    world.turn()
    world.turn()
    assert world.redis_paused
    world.run(0.3)
    assert world.others["redis"].instance == old.instance, "its log is not applied yet"
    held_up.paused = False
    world.run(3.0)
    assert world.log.get(0, 0) == 0
    assert world.others["redis"].instance != old.instance, "another one runs"
    assert not world.redis_paused
    assert not world.wrongs
    line = next(f for f in world.status.failovers if f.kind == "redis")
    assert (line.cause, world.status.views[0].history) == ("Planned", 0)


def test_a_redis_that_leaves_while_a_shard_has_no_head_waits_for_one() -> None:
    world = running("Stateless")
    world.others["redis"] = replace(world.others["redis"], leaving=True)
    world.held["server-0"] = world.now + 5.0
    world.kill("server-0")
    world.run(3.0)
    assert world.others["redis"].leaving, "the next server rebuilds from it"
    world.run(8.0)
    assert not world.others["redis"].leaving
    assert not world.wrongs

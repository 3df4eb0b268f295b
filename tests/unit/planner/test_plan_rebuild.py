"""Stateless: what a server that is rebuilt takes for its shard's state, and what the planner notes of Redis."""

from __future__ import annotations

from plan_world import World, make_spec

from outlast.api.view import BUFFER, EMPTY
from outlast_operator.planner.actions import Emit


def started(**changes: object) -> World:
    """No worker has come yet."""
    world = World(make_spec("Stateless", **changes))
    world.held["worker-0"] = world.now + 1000.0
    world.run(0.5)
    return world


def running(**changes: object) -> World:
    world = World(make_spec("Stateless", **changes))
    world.run(1.5)
    assert world.status.state == "Running", world.plans[-1].reason
    return world


def without_workers(world: World) -> None:
    world.held["worker-0"] = world.now + 1000.0
    world.kill("worker-0")


def rolled_back(**changes: object) -> World:
    """Shard 1 and Redis were lost together. All shards hold the checkpoint, and no update has come since."""
    world = running(servers__shards=2, **changes)
    without_workers(world)
    world.redis_keeps = False
    world.kill("server-1")
    world.run(1.0)
    assert {(view.history, view.restore) for view in world.status.views.values()} == {(1, world.checkpoints[-1].name)}
    assert all(world.head(shard).initialised for shard in (0, 1))
    world.redis_keeps = True
    return world


def rollbacks(world: World) -> int:
    return sum(isinstance(a, Emit) and a.reason == "RolledBack" for a in world.executed)


def test_a_server_lost_before_the_first_weights_costs_nothing() -> None:
    world = started(servers__shards=2)
    world.kill("server-0")
    world.run(1.0)
    view = world.status.views[0]
    assert (view.history, view.restore, view.otherwise) == (0, BUFFER, EMPTY)
    assert rollbacks(world) == 0
    world.held.clear()
    world.run(1.0)
    assert world.status.state == "Running"
    assert not world.wrongs


def test_no_shard_begins_anew_alone_once_another_one_has_its_weights() -> None:
    world = started(servers__shards=2)
    world.servers["server-1"].initialised = True
    world.servers["server-1"].buffer_run = world.redis_run or ""
    world.run(0.5)
    world.kill("server-0")
    world.run(1.0)
    assert {view.history for view in world.status.views.values()} == {1}


def test_a_snapshot_that_was_told_of_and_is_gone_takes_all_shards_back() -> None:
    world = running(servers__shards=2)
    world.redis_keeps = False
    world.kill("server-0")
    world.run(1.0)
    assert {view.history for view in world.status.views.values()} == {1}


def test_before_its_first_snapshot_a_shard_is_what_its_history_began_from_however_often_its_server_dies() -> None:
    world = rolled_back()
    newest = world.checkpoints[-1]
    world.log[0] = 8  # shard 0 goes on, with what Redis holds for it
    world.run(0.5)
    ahead = world.head(0).version
    assert ahead > newest.version
    for _ in range(3):
        world.kill(world.head(1).process.name)
        world.run(40.0)
        view = world.status.views[1]
        assert (view.history, view.restore, view.otherwise) == (1, BUFFER, newest.name)
        assert world.head(1).version == newest.version
    assert (world.status.views[0].history, world.head(0).version) == (1, ahead)
    assert not world.wrongs


def test_a_rollback_forgets_which_run_of_redis_held_a_state_of_every_shard() -> None:
    world = rolled_back()
    assert any(set(s.buffer_runs) == {0, 1} for s in world.history)
    after = [s for s in world.history if s.views and s.views[0].history == 1]
    assert after
    assert all(s.buffer_runs == {} for s in after), "the healthy head's word is of the former history"
    world.held.clear()
    world.run(1.0)
    assert set(world.status.buffer_runs) == {0, 1}


def test_the_last_word_of_a_head_that_is_lost_counts() -> None:
    world = running()
    world.observe()
    world.servers["server-0"].buffer_run = "the next run"
    world.observe()
    world.kill("server-0")
    world.turn()
    assert world.status.buffer_runs == {0: "the next run"}


def test_a_head_that_redis_refused_and_that_cannot_rebuild_takes_all_shards_back() -> None:
    """The view names nothing to restore from: the head holds the state, as far as the planner knows."""
    world = running(servers__shards=2)
    world.checkpoints.clear()
    world.redis_keeps = False
    world.kill("server-0")
    world.run(1.0)
    assert world.status.views[1].restore is None
    history = world.status.views[1].history
    head = world.head(1)
    head.initialised, head.restore_error = False, "Redis holds no snapshot"
    world.run(1.0)
    assert {view.history for view in world.status.views.values()} == {history + 1}
    assert world.status.state == "Running"

"""How a job ends: its goal, its deadline, a failure, or a pause."""

from __future__ import annotations

import pytest
from plan_steps import condition, of, running
from plan_world import TICK_S, World, make_spec

from outlast.api.server_status import Evaluation
from outlast_operator.planner.actions import FinishJob, RequestCheckpoint
from outlast_operator.planner.finish import DRAIN_PATIENCE_S


def finish_workers(world: World) -> None:
    for name, process in list(world.others.items()):
        if process.role in ("worker", "evaluator") and process.alive:
            world.end(name, code=0)


@pytest.mark.parametrize("goal", ["updates", "seconds", "accuracy", "epochs"])
def test_a_goal_is_recorded_heads_finish_workers_leave_and_the_job_succeeds(goal: str) -> None:
    values = {"updates": 30, "seconds": 3, "accuracy": 0.5, "epochs": 2}
    world = World(make_spec(training__stopAfter={goal: values[goal]}, training__evaluate__everySeconds=2))
    world.run(1.0)
    if goal == "accuracy":
        world.evaluation = Evaluation(20, 0.6, 1.0)
    if goal == "epochs":
        finish_workers(world)
    world.run(4.0)
    assert world.status.goal == goal
    assert world.status.state == "Finishing"
    if goal != "updates":
        assert of(world, FinishJob)
    finish_workers(world)
    world.run(1.0)
    assert world.status.outcome == "Succeeded"
    assert condition(world, "Complete").status == "True"
    world.run(3.0)
    assert not any(s.process.alive for s in world.servers.values())


@pytest.mark.parametrize("shards", [1, 2])
def test_fewer_updates_than_the_servers_were_started_with_are_followed(shards: int) -> None:
    world = running(servers__shards=shards)
    versions = [world.head(shard).version for shard in range(shards)]
    world.spec = make_spec(servers__shards=shards, training__stopAfter={"updates": max(versions) + 10})
    world.turn()
    assert world.status.goal is None
    assert not of(world, FinishJob)
    world.run(1.0)
    assert world.status.goal == "updates"
    assert {world.servers[a.to.name].shard for a in of(world, FinishJob)} == set(range(shards))
    world.end("worker-0", code=0)
    world.run(2.0)
    assert world.status.outcome == "Succeeded"


def test_success_waits_for_a_checkpoint_of_the_result() -> None:
    world = World(make_spec(training__stopAfter={"seconds": 1}))
    world.run(2.0)
    world.checkpoints.clear()
    finish_workers(world)
    world.turn()
    assert world.status.outcome is None
    assert of(world, RequestCheckpoint)
    world.turn()
    assert world.status.outcome == "Succeeded"


def test_a_lost_evaluator_is_restarted_while_finishing() -> None:
    world = World(make_spec(training__stopAfter={"seconds": 1}, training__evaluate__everySeconds=2))
    world.run(2.0)
    world.end("worker-0", code=0)
    world.kill("evaluator")
    world.run(0.5)
    assert world.others["evaluator"].alive
    assert world.status.outcome is None
    world.end("evaluator", code=0)
    world.run(0.5)
    assert world.status.outcome == "Succeeded"


def test_a_server_lost_while_finishing_is_planned_around() -> None:
    world = World(make_spec(training__stopAfter={"seconds": 1}))
    world.run(2.0)
    world.kill(world.members()[0])
    finish_workers(world)
    world.run(2.0)
    assert world.status.outcome == "Succeeded"


def test_the_deadline_fails_the_job() -> None:
    world = running(runPolicy__activeDeadlineSeconds=3)
    world.run(3.0)
    assert (world.status.outcome, world.status.reason) == ("Failed", "DeadlineExceeded")
    assert condition(world, "Failed").status == "True"


def test_the_deadline_counts_anew_from_the_end_of_a_suspension() -> None:
    world = running(runPolicy__activeDeadlineSeconds=60)
    world.spec = make_spec(suspend=True, runPolicy__activeDeadlineSeconds=60)
    world.run(4.0)
    assert world.status.state == "Suspended"
    world.advance(100.0)
    world.spec = make_spec(runPolicy__activeDeadlineSeconds=60)
    world.run(2.0)
    assert (world.status.outcome, world.status.state) == (None, "Running")
    world.advance(60.0)
    world.turn()
    assert world.status.reason == "DeadlineExceeded"


@pytest.mark.parametrize("strategy", ["Chain", "Checkpoint", "Stateless", "Hybrid"])
def test_suspend_saves_stops_everything_and_resumes_without_loss(strategy: str) -> None:
    world = running(strategy)
    world.spec = make_spec(strategy, suspend=True)
    world.run(4.0)
    assert world.status.state == "Suspended"
    assert not any(s.process.alive for s in world.servers.values())
    assert not any(p.alive for p in world.others.values())
    version = max(world.acknowledged.values())
    world.spec = make_spec(strategy)
    world.run(2.0)
    assert world.status.state == "Running"
    assert world.head().version > version
    assert world.status.failovers == ()
    assert world.status.incarnations == {0: 2}


def test_suspending_does_not_wait_for_a_shard_that_got_no_weights_yet() -> None:
    world = running("Stateless", servers__shards=2)
    world.spec = make_spec("Stateless", servers__shards=2, suspend=True)
    while any(p.role == "worker" and p.alive for p in world.others.values()):
        world.turn()
    late = world.servers["server-1"]  # the worker ended between two messages
    late.initialised, late.version, late.log_end_t = False, 0, None
    world.run(10.0)
    assert world.status.state == "Suspended", world.plans[-1].reason


def suspended_with_a_backlog(strategy: str, gradients: int) -> World:
    """A job that is told to pause while Redis holds what workers were acknowledged and no head has applied."""
    world = running(strategy)
    world.log[0] = gradients
    world.spec = make_spec(strategy, suspend=True)
    return world


@pytest.mark.parametrize("strategy", ["Stateless", "Hybrid"])
def test_suspending_applies_what_redis_holds_before_anything_but_workers_ends(strategy: str) -> None:
    world = suspended_with_a_backlog(strategy, 40)
    while world.log[0] > 0:
        world.run(TICK_S)
        assert world.others["redis"].alive
        assert world.head().process.alive
        assert condition(world, "Suspended").reason == "Suspending"
    assert not world.others["worker-0"].alive
    assert condition(world, "Suspended").message == "waiting until Redis's log is applied"
    version = world.head().version
    world.run(6.0)
    assert world.status.state == "Suspended"
    assert not any(p.alive for p in world.others.values())
    assert world.checkpoints[-1].version == version


@pytest.mark.parametrize("also", [(), ("redis", "worker-0")])
@pytest.mark.parametrize("strategy", ["Stateless", "Hybrid"])
def test_suspending_without_a_server_waits_for_one_that_applies_what_redis_holds(
    strategy: str, also: tuple[str, ...]
) -> None:
    world = suspended_with_a_backlog(strategy, 40)
    for name in (*world.servers, *also):
        world.kill(name)
        world.held[name] = world.now + 3.0
    world.run(2.0)
    assert world.log[0] == 40
    assert not world.others["worker-0"].alive
    assert world.others["redis"].alive != bool(also)
    assert condition(world, "Suspended").message == "waiting for a server that holds the state of each shard"
    world.run(8.0)
    assert world.log[0] == 0
    assert world.status.state == "Suspended"
    assert not any(p.alive for p in world.others.values())


def test_suspending_waits_for_a_redis_that_is_away() -> None:
    world = suspended_with_a_backlog("Hybrid", 40)
    world.kill("redis")
    world.held["redis"] = world.now + 5.0
    world.run(4.0)
    assert condition(world, "Suspended").message == "waiting for Redis to answer: it may hold acknowledged gradients"
    assert world.head().process.alive
    world.run(8.0)
    assert (world.log[0], world.status.state) == (0, "Suspended")


def test_a_server_that_still_restores_is_not_taken_for_one_that_holds_nothing() -> None:
    world = suspended_with_a_backlog("Stateless", 40)
    world.head().initialised, world.head().restore_error = False, "Redis is loading"
    world.end("worker-0", code=0)
    world.run(1.0)
    assert world.head().process.alive
    assert world.others["redis"].alive


def test_a_backlog_that_is_applied_at_the_end_is_no_news_with_each_version() -> None:
    world = running("Hybrid", training__stopAfter={"epochs": 1})
    world.log[0] = 100
    finish_workers(world)
    world.turn()
    assert world.status.goal == "epochs"
    writes = len(world.history)
    world.run(100 * TICK_S)
    assert world.log[0] == 0
    assert len(world.history) <= writes + 3
    assert not of(world, FinishJob), "what Redis holds is applied first"
    world.run(3.0)
    assert world.status.outcome == "Succeeded"


def test_a_redis_that_does_not_come_back_holds_the_end_up_for_a_while_only() -> None:
    world = running("Hybrid", training__stopAfter={"epochs": 1})
    world.log[0] = 100
    world.kill("redis")
    world.held["redis"] = world.now + 1000.0
    finish_workers(world)
    world.run(DRAIN_PATIENCE_S - 1.0)
    assert not of(world, FinishJob)
    world.run(5.0)
    assert of(world, FinishJob)

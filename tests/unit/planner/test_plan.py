"""The planner in short stories: what is observed, and what is recorded and done about it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from plan_steps import condition, of, running
from plan_world import World, make_spec

from outlast_operator.planner.actions import InstallView, StartProcess, StartRedis
from outlast_operator.planner.status import JobStatus
from outlast_operator.runtime.reconcile import Conflict, Runtime, run_turn


def test_the_fake_is_a_runtime() -> None:
    runtime: Runtime = World(make_spec())
    assert runtime.observe().status == JobStatus()


# --- start ------------------------------------------------------------------------------------------------------------


def test_everything_is_started_in_the_first_turn_servers_workers_evaluator_redis() -> None:
    world = World(make_spec("Hybrid", workers__replicas=2, training__evaluate__everySeconds=2))
    world.turn()
    names = [a.name for a in of(world, StartProcess)]
    assert names == ["server-0", "server-1", "server-2", "worker-0", "worker-1", "evaluator"]
    assert len(of(world, StartRedis)) == 1


@pytest.mark.parametrize(
    ("strategy", "changes", "redis"),
    [
        ("Chain", {}, 0),
        ("Checkpoint", {}, 0),
        ("Stateless", {}, 1),
        ("Hybrid", {}, 1),
        ("Hybrid", {"recovery__buffer__url": "redis://elsewhere:6379/0"}, 0),
        ("Hybrid", {"training__consistency": "Sync"}, 0),
    ],
)
def test_redis_runs_only_for_strategies_that_buffer_without_a_url(
    strategy: str, changes: dict[str, Any], redis: int
) -> None:
    world = World(make_spec(strategy, **changes))
    world.turn()
    assert len(of(world, StartRedis)) == redis


def test_epoch_1_is_recorded_when_all_are_ready_and_installed_a_turn_later() -> None:
    world = World(make_spec())
    world.turn()
    recorded = world.turn()
    assert recorded.status.views[0].epoch == 1
    assert [m.name for m in recorded.status.views[0].members] == ["server-0", "server-1", "server-2"]
    assert not of(world, InstallView)
    world.turn()
    assert [a.to.name for a in of(world, InstallView)] == ["server-0", "server-1", "server-2"]


def test_a_recorded_view_is_installed_though_nothing_can_be_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(make_spec())
    world.turn()
    world.advance()
    world.turn()
    assert world.status.views[0].epoch == 1
    world.executed.clear()
    world.kill("worker-0")  # so that there is something to record

    def away(*_: Any) -> str:
        raise OSError("no answer")

    monkeypatch.setattr(world, "write_status", away)
    with pytest.raises(OSError, match="no answer"):
        run_turn(world, world.spec, world.now)
    assert [a.to.name for a in of(world, InstallView)] == ["server-0", "server-1", "server-2"]
    assert len(world.executed) == 3, "all else is recorded first"


def test_the_first_view_waits_for_missing_servers_no_longer_than_the_timeout_and_they_join_later() -> None:
    world = World(make_spec(recovery__failover__timeoutSeconds=2))
    world.turn()
    world.servers["server-1"].paused = True
    waits = world.turn()
    assert not waits.status.views
    assert waits.wake_at == pytest.approx(world.now + 2, abs=0.01)
    world.advance(2.0)
    world.turn()
    assert world.members() == ["server-0", "server-2"]
    world.servers["server-1"].paused = False
    world.run(1.0)
    assert world.members() == ["server-0", "server-2", "server-1"]


@pytest.mark.parametrize(
    ("strategy", "changes", "restore"),
    [
        ("Chain", {}, None),
        ("Stateless", {}, "buffer"),
        ("Chain", {"recovery__checkpoint__restoreFrom": "/old"}, "/old"),
        ("Stateless", {"recovery__checkpoint__restoreFrom": "/old"}, "/old"),
    ],
)
def test_the_first_view_restores_from(strategy: str, changes: dict[str, Any], restore: str | None) -> None:
    world = World(make_spec(strategy, **changes))
    world.turn()
    world.turn()
    assert world.status.views[0].restore == restore
    assert world.status.views[0].history == 0


def test_restore_from_that_cannot_be_restored_fails_the_job() -> None:
    world = World(make_spec("Chain", recovery__checkpoint__restoreFrom="/old"))
    world.unreadable.add("/old")
    world.run(0.5)
    assert world.status.outcome == "Failed"
    assert world.status.reason == "RestoreFailed"
    assert "restoreFrom /old" in world.status.message


def test_incarnations_are_recorded_with_the_start() -> None:
    world = World(make_spec(workers__replicas=2))
    first = world.turn(actions=0)  # the operator dies before it starts anybody
    assert first.status.incarnations == {0: 1, 1: 1}
    world.turn()
    assert {a.name: a.incarnation for a in of(world, StartProcess) if a.role == "worker"} == {
        "worker-0": 1,
        "worker-1": 1,
    }


# --- redis ------------------------------------------------------------------------------------------------------------


def test_redis_is_started_again_unless_held() -> None:
    world = running("Stateless")
    world.held["redis"] = world.now + 2
    world.kill("redis")
    world.run(1.9)
    assert not of(world, StartRedis)
    assert condition(world, "BufferHealthy").status == "False"
    world.run(0.3)
    assert len(of(world, StartRedis)) == 1
    assert condition(world, "BufferHealthy").status == "True"


# --- the whole --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["Checkpoint", "Stateless"])
def test_one_of_a_servers_two_names_is_enough(strategy: str) -> None:
    world = running(strategy)
    world.run(0.5)
    assert condition(world, "PodsReady").status == "True"


def test_conditions_of_a_running_job() -> None:
    world = running("Hybrid")
    world.run(0.5)
    shown = {c.type: c.status for c in world.status.conditions}
    assert shown == {
        "Ready": "True",
        "Suspended": "False",
        "Complete": "False",
        "Failed": "False",
        "PrimaryAvailable": "True",
        "ReplicationHealthy": "True",
        "FailoverInProgress": "False",
        "BufferHealthy": "True",
        "CheckpointAvailable": "True",
        "CheckpointStorage": "True",
        "PodsReady": "True",
        "EvaluationHealthy": "Unknown",
        "NetworkOpen": "True",
    }
    assert all(c.reason for c in world.status.conditions)


@pytest.mark.parametrize("strategy", ["Chain", "Checkpoint", "Stateless", "Hybrid"])
def test_a_calm_job_is_not_written_between_progress_notes(strategy: str) -> None:
    world = running(strategy)
    world.run(6.0)
    writes = len(world.history)
    world.run(4.0)
    assert len(world.history) <= writes + 1


def test_planning_twice_changes_nothing_more() -> None:
    world = running()
    world.kill("server-1")
    for _ in range(6):
        world.turn()
    writes = len(world.history)
    done = len(world.executed)
    world.turn()
    world.turn()
    assert len(world.history) == writes
    assert len(world.executed) == done


def test_what_a_newer_release_recorded_is_passed_over() -> None:
    world = running()
    world.kill("server-0")
    world.run(1.0)
    raw = world.status.to_json()
    nested = [raw["failovers"][0], raw["conditions"][0], raw["progress"], next(iter(raw["attempts"].values()))]
    for record in (raw, *nested):
        record["fromTheFuture"] = 1
    assert replace(JobStatus.from_json(raw), resource_version=None) == replace(world.status, resource_version=None)


def test_the_status_survives_json() -> None:
    world = running("Hybrid", servers__shards=2, workers__replicas=2)
    world.kill("server-0")
    world.kill("worker-1")
    world.run(0.2)
    status = world.status
    assert JobStatus.from_json(json.loads(json.dumps(status.to_json())), status.resource_version) == status


def test_a_stale_operator_meets_a_conflict() -> None:
    world = running()
    observed = world.observe()
    world.kill("server-0")
    world.turn()
    with pytest.raises(Conflict):
        world.write_status(observed.status, observed.status.resource_version)


def test_a_server_with_a_higher_epoch_than_the_record_is_overtaken() -> None:
    world = running()
    world.servers["server-0"].view = world.status.views[0].with_(epoch=7)
    world.run(0.3)
    assert world.status.views[0].epoch == 8
    assert world.head().view == world.status.views[0]

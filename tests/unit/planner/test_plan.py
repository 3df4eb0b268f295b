"""The planner in short stories: what is observed, and what is recorded and done about it."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from plan_world import LEAVE_WAIT_S, TICK_S, World, make_spec

from outlast.api.server_status import CheckpointRef, Evaluation
from outlast.api.view import last_state_name
from outlast_operator.planner.actions import (
    AssignSlot,
    FinishJob,
    InstallView,
    KillProcess,
    RequestCheckpoint,
    SetSlots,
    StartProcess,
    StartRedis,
    TermProcess,
)
from outlast_operator.planner.backoff import LONGEST_DELAY_S, count_exit
from outlast_operator.planner.checkpoint_sets import CHECKPOINT_NEWS_S
from outlast_operator.planner.finish import DRAIN_PATIENCE_S
from outlast_operator.planner.observed import ObservedJob, Process
from outlast_operator.planner.status import Attempt, JobStatus
from outlast_operator.planner.turn import Turn
from outlast_operator.runtime.reconcile import Conflict, Runtime, run_turn


def running(strategy: str = "Chain", **changes: Any) -> World:
    """A world in which the job trains."""
    world = World(make_spec(strategy, **changes))
    world.run(1.0)
    assert world.status.state == "Running", world.plans[-1].reason
    world.executed.clear()
    world.plans.clear()
    return world


def of(world: World, kind: type) -> list[Any]:
    return [a for a in world.executed if isinstance(a, kind)]


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


# --- losses that leave a member ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", ["server-0", "server-1", "server-2"])
def test_an_exited_member_is_dropped_by_the_very_next_plan_in_order(lost: str) -> None:
    world = running()
    world.kill(lost)
    result = world.turn()
    kept = [n for n in ("server-0", "server-1", "server-2") if n != lost]
    view = result.status.views[0]
    assert ([m.name for m in view.members], view.epoch, view.history, view.restore) == (kept, 2, 0, None)
    assert [a.name for a in of(world, StartProcess)] == [lost]
    world.turn()
    assert [a.to.name for a in of(world, InstallView) if a.view.epoch == 2] == kept


def test_two_members_that_exit_together_are_dropped_together() -> None:
    world = running()
    world.kill("server-0")
    world.kill("server-2")
    world.turn()
    assert world.members() == ["server-1"]


def test_a_paused_member_is_dropped_after_the_timeout_killed_and_replaced() -> None:
    world = running(recovery__failover__timeoutSeconds=2)
    world.servers["server-0"].paused = True
    world.run(1.9)
    assert world.members() == ["server-0", "server-1", "server-2"]
    world.run(0.3)
    assert world.members()[0] == "server-1"
    assert next((a.name, a.why) for a in of(world, KillProcess)) == ("server-0", "lost: Silent")
    world.run(1.0)
    assert world.members() == ["server-1", "server-2", "server-0"]
    assert world.status.failovers[0].cause == "Silent"


def test_the_plan_sleeps_exactly_until_silence_becomes_a_loss() -> None:
    world = running(recovery__failover__timeoutSeconds=2)
    world.servers["server-0"].paused = True
    heard = world.heard["server-0"].t_heard
    assert world.turn().wake_at == pytest.approx(heard + 2)


def test_a_link_that_stays_broken_is_planned_around() -> None:
    world = running(recovery__failover__timeoutSeconds=2)
    ends = world.servers["server-0"], world.servers["server-1"]
    ends[0].broken, ends[1].broken = (ends[1].boot,), (ends[0].boot,)
    world.run(1.8)
    assert len(world.members()) == 3
    ends[0].broken = ends[1].broken = (ends[1].boot,)
    world.run(0.4)
    assert world.status.failovers[0].cause == "Unreachable"
    assert world.status.failovers[0].target == "server-1"
    ends[0].broken = ()
    world.run(1.0)
    assert world.members() == ["server-0", "server-2", "server-1"]


def test_an_old_word_of_a_broken_link_drops_no_member_after_the_operator_was_held_up() -> None:
    world = running(recovery__failover__timeoutSeconds=2)
    ends = world.servers["server-0"], world.servers["server-1"]
    ends[0].broken = (ends[1].boot,)
    world.run(1.0)
    for s in ends:
        s.broken, s.paused = (), True
    world.advance(3.0)
    world.t_operator_start = world.now
    world.turn()
    assert len(world.members()) == 3
    for s in ends:
        s.paused = False
    world.run(1.0)
    assert (world.members(), world.status.failover_count) == (["server-0", "server-1", "server-2"], 0)


@pytest.mark.parametrize(("ends", "cause"), [(True, "Killed"), (False, "Unreachable")])
def test_a_refused_connection_is_a_loss_at_once_and_its_cause_is_learnt_later(ends: bool, cause: str) -> None:
    world = running()
    lost = world.servers["server-1"]
    world.heard["server-1"] = replace(world.heard["server-1"], refused=True)
    lost.paused = True
    world.turn()
    assert world.members() == ["server-0", "server-2"]
    assert not of(world, KillProcess)
    if ends:
        world.kill("server-1")
    world.run(1.9)
    assert world.status.failovers[0].cause == cause
    world.run(1.0)
    assert world.members() == ["server-0", "server-2", "server-1"]


def test_a_server_restarted_under_its_name_is_not_the_member() -> None:
    world = running()
    world.kill("server-0")
    world.execute(StartProcess("server-0", "server", replaces=None))  # somebody else was quicker
    result = world.turn()
    assert [m.name for m in result.status.views[0].members] == ["server-1", "server-2"]
    assert not [j for j in result.status.views[0].joining if j.boot == world.status.views[0].members[0].boot]


@pytest.mark.parametrize("strategy", ["Stateless", "Chain"])
def test_the_last_words_of_one_that_was_removed_do_not_end_its_replacement(strategy: str) -> None:
    world = running(strategy)
    old = world.heard["server-0"]
    world.kill("server-0")  # its pod is gone at once, its process a moment later
    world.turn()
    new = world.servers["server-0"]
    assert new.process.alive
    new.paused = True  # it starts, and has said nothing yet
    world.advance(1.0)
    world.heard["server-0"] = replace(old, t_heard=world.now, leaving=True, left=True)
    world.run(1.0)
    assert not of(world, KillProcess)
    new.paused = False
    world.run(2.0)
    assert world.status.views[0].members[-1].boot == new.boot


def test_an_operators_start_counts_as_the_last_heartbeat() -> None:
    world = running(recovery__failover__timeoutSeconds=2)
    world.servers["server-0"].paused = True
    world.advance(10.0)  # nobody listened
    world.restart_operator()
    world.run(1.9)
    assert world.status.views[0].epoch == 1
    world.servers["server-0"].paused = False
    world.run(3.0)
    assert world.status.views[0].epoch == 1


@pytest.mark.parametrize("comes_back", [False, True])
def test_a_dropped_server_that_was_not_killed_yet_is_killed_later_and_not_taken_in(comes_back: bool) -> None:
    world = running(recovery__failover__timeoutSeconds=2)
    first = world.servers["server-0"]
    first.paused = True
    world.advance(2.1)
    world.turn(actions=0)  # the view without it is recorded; the operator dies before it acts
    assert world.members() == ["server-1", "server-2"]
    first.paused = not comes_back
    world.restart_operator()
    world.turn(actions=2)  # installs only, then the next operator dies too
    assert first.process.alive
    world.run(1.0)
    assert not first.process.alive
    assert world.members() == ["server-1", "server-2", "server-0"]
    assert not world.wrongs


# --- replacement ------------------------------------------------------------------------------------------------------


def test_a_replacement_joins_then_is_appended_at_the_tail() -> None:
    world = running()
    world.kill("server-0")
    epochs = {}
    for _ in range(12):
        world.turn()
        view = world.status.views[0]
        epochs[view.epoch] = ([m.name for m in view.members], [j.name for j in view.joining])
        world.advance()
    assert epochs == {
        2: (["server-1", "server-2"], []),
        3: (["server-1", "server-2"], ["server-0"]),
        4: (["server-1", "server-2", "server-0"], []),
    }


def test_growth_waits_until_the_repair_is_installed() -> None:
    world = running()
    world.kill("server-0")
    world.turn()  # recorded, and the replacement is ready at once
    world.turn(actions=0)  # nothing of this turn is done
    world.turn(actions=0)
    assert world.status.views[0].epoch == 2
    assert not world.status.views[0].joining


def test_a_joining_server_that_dies_is_dropped_and_another_joins() -> None:
    world = running()
    world.kill("server-0")
    while not (world.status.views[0].joining):
        world.turn()
        world.turn()
        if not world.status.views[0].joining:
            world.advance()
    world.kill("server-0")
    result = world.turn()
    assert result.status.views[0].joining == ()
    world.run(3.0)
    assert sorted(world.members()) == ["server-0", "server-1", "server-2"]


def test_a_held_replacement_is_not_started_but_promotion_happens() -> None:
    world = running()
    world.held["server-0"] = world.now + 5
    world.kill("server-0")
    result = world.turn()
    assert world.members() == ["server-1", "server-2"]
    assert not of(world, StartProcess)
    assert world.turn().wake_at is not None
    assert result.wake_at is not None
    assert result.wake_at <= world.now + 5
    world.run(5.5)
    assert world.members() == ["server-1", "server-2", "server-0"]


def test_delay_seconds_holds_replacements_back() -> None:
    world = running(recovery__failover__delaySeconds=3)
    world.kill("server-2")
    world.run(2.8)
    assert not of(world, StartProcess)
    world.run(0.5)
    assert [a.name for a in of(world, StartProcess)] == ["server-2"]


# --- planned loss -----------------------------------------------------------------------------------------------------


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


# --- total loss -------------------------------------------------------------------------------------------------------


def test_checkpoint_restores_the_newest_in_a_new_history_when_death_is_proved() -> None:
    world = running("Checkpoint")
    newest = world.checkpoints[-1]
    world.kill("server-0")
    world.turn()
    world.turn()
    view = world.status.views[0]
    assert (view.epoch, view.history, view.restore) == (2, 1, newest.name)
    line = world.status.failovers[0]
    assert line.gradients["lost"] == line.version - newest.version


def test_a_paused_single_server_is_killed_and_replaced_only_after_its_death_is_proved() -> None:
    world = running("Checkpoint", recovery__failover__timeoutSeconds=2)
    world.servers["server-0"].paused = True
    world.advance(2.1)
    world.turn()
    assert [a.name for a in of(world, KillProcess)] == ["server-0"]
    assert world.status.views[0].epoch == 1
    world.run(1.0)
    assert (world.status.views[0].epoch, world.status.views[0].history) == (2, 1)


def test_without_proof_it_waits_for_assume_dead_seconds() -> None:
    world = running("Checkpoint", recovery__failover__timeoutSeconds=2, recovery__failover__assumeDeadSeconds=30)
    world.cut_off("server-0")
    world.run(29.9)
    assert world.status.views[0].epoch == 1
    world.run(1.0)
    assert world.status.views[0].history == 1
    assert world.status.state == "Running"


def test_a_chain_rolls_back_without_proof_only_after_assume_dead_seconds() -> None:
    world = running(recovery__failover__timeoutSeconds=2, recovery__failover__assumeDeadSeconds=30)
    world.cut_off("server-0")
    world.held["server-0"] = world.now + 1000
    world.kill("server-1")
    world.kill("server-2")
    world.run(29.9)
    assert world.status.views[0].history == 0
    assert world.members() == ["server-0"]
    assert "server-0" in {a.name for a in of(world, KillProcess)}
    world.run(1.0)
    assert world.status.views[0].history == 1
    assert world.members() == ["server-1", "server-2"]
    assert not world.wrongs


def test_chain_total_loss_rolls_back_all_three_at_once() -> None:
    world = running()
    newest = world.checkpoints[-1].name
    for name in list(world.servers):
        world.kill(name)
    world.run(1.0)
    views = [s.views[0] for s in world.history if s.views]
    first = next(v for v in views if v.history == 1)
    assert len(first.members) == 3
    assert first.restore == newest
    assert world.status.state == "Running"


def test_a_chain_whose_members_are_all_silent_is_waited_for() -> None:
    world = running(recovery__failover__timeoutSeconds=2)
    for server in world.servers.values():
        server.paused = True
    world.run(10.0)
    for server in world.servers.values():
        server.paused = False
    world.run(1.0)
    assert world.status.views[0].history == 0
    assert not of(world, KillProcess)
    assert not world.wrongs


@pytest.mark.parametrize(("strategy", "waits"), [("Chain", True), ("Checkpoint", False)])
def test_a_firewall_that_refuses_does_not_end_a_chain_that_runs(strategy: str, waits: bool) -> None:
    world = running(strategy, recovery__failover__timeoutSeconds=2)
    for name, server in world.servers.items():
        server.paused = True  # nothing is heard from it; its process runs
        world.heard[name] = replace(world.heard[name], refused=True)
    world.run(10.0)
    assert bool(of(world, KillProcess)) is not waits
    assert (world.status.views[0].history == 0) is waits
    for server in world.servers.values():
        server.paused = False
    world.run(1.0)
    assert not world.wrongs


def test_the_last_member_of_a_chain_that_is_silent_keeps_the_others_exit_from_being_a_rollback() -> None:
    world = running(recovery__failover__timeoutSeconds=2)
    world.servers["server-1"].paused = True
    for name in ("server-0", "server-2"):
        world.held[name] = world.now + 60
        world.kill(name)
    world.run(5.0)
    assert world.members() == ["server-1"]
    world.servers["server-1"].paused = False
    before = world.acknowledged[0, 0]
    world.run(1.0)
    assert world.status.views[0].history == 0
    assert world.acknowledged[0, 0] > before


def test_a_silent_last_member_has_not_come_back_because_the_operator_began_anew() -> None:
    """A later rollback is told in the line of its loss."""
    world = running(recovery__failover__timeoutSeconds=2)
    world.servers["server-1"].cut_off = True
    for name in ("server-0", "server-2"):
        world.kill(name)
    world.run(5.0)
    world.restart_operator()  # of server-1's silence it knows nothing yet
    world.run(1.0)
    (line,) = [f for f in world.status.failovers if f.target == "server-1"]
    assert (line.t_decided, line.message) == (None, "")
    world.run(60.0)
    assert world.status.views[0].history == 1
    (line,) = [f for f in world.status.failovers if f.target == "server-1"]
    assert line.restore is not None


def test_a_last_member_that_came_back_and_is_lost_again_has_a_line_for_each() -> None:
    world = running(recovery__failover__timeoutSeconds=2)
    for server in world.servers.values():
        server.paused = True
    world.run(5.0)
    for server in world.servers.values():
        server.paused = False
    world.run(1.0)
    assert {f.message for f in world.status.failovers} == {"it came back before it was replaced"}
    assert all(2.0 <= (f.t_first_update or 0.0) - f.t_detected <= 4.0 for f in world.status.failovers)
    for server in world.servers.values():
        server.cut_off = True
    world.run(60.0)
    assert world.status.views[0].history == 1
    assert [f.restore is None for f in world.status.failovers] == [True] * 3 + [False] * 3


def test_stateless_rebuilds_from_redis_in_the_same_history_without_proof() -> None:
    world = running("Stateless")
    world.kill("server-0")
    world.turn()
    world.turn()
    view = world.status.views[0]
    assert (view.epoch, view.history, view.restore) == (2, 0, "buffer")


def test_stateless_whose_redis_lost_its_data_falls_back_to_a_checkpoint() -> None:
    world = running("Stateless")
    world.redis_keeps = False
    world.kill("server-0")
    world.run(1.0)
    view = world.status.views[0]
    assert view.history == 1
    assert world.status.state == "Running"


def test_a_checkpoint_that_cannot_be_restored_is_passed_over() -> None:
    world = running("Checkpoint")
    second, newest = world.checkpoints[-2:]
    world.unreadable.add(newest.name)
    world.kill("server-0")
    world.run(1.0)
    assert world.status.rejected_checkpoints == (newest.name,)
    assert next(s.views[0].restore for s in world.history if s.views and s.views[0].history == 2) == second.name
    assert world.status.state == "Running"
    assert world.status.views[0].history == 2


def test_no_checkpoint_means_the_initial_weights_again() -> None:
    world = running("Checkpoint")
    world.checkpoints.clear()
    world.kill("server-0")
    world.turn()
    world.turn()
    assert (world.status.views[0].history, world.status.views[0].restore) == (1, None)


def test_a_head_lost_before_it_could_restore_leaves_the_others_to_restore() -> None:
    world = running()
    for name in list(world.servers):
        world.kill(name)
    while world.status.views[0].history == 0:
        world.turn()
    restore = world.status.views[0].restore
    world.kill("server-0")
    world.turn()
    assert world.members() == ["server-1", "server-2"]
    assert world.status.views[0].restore == restore
    assert restore is not None
    world.run(2.0)
    assert world.status.views[0].restore is None, "once all have restored, it is named no more"
    assert not world.wrongs


def test_a_rollback_takes_all_shards_in_one_write() -> None:
    world = running("Chain", servers__shards=2, servers__replicas=2)
    before = world.status.views[1]
    for name in ("server-0", "server-1"):
        world.kill(name)
    world.run(0.5)
    at = next(i for i, s in enumerate(world.history) if s.views.get(0) and s.views[0].history == 1)
    views = world.history[at].views
    assert views[0].restore == views[1].restore
    assert views[1].history == 1
    assert views[1].epoch == before.epoch + 1
    assert views[1].members == before.members


# --- the ledger -------------------------------------------------------------------------------------------------------


def test_the_ledger_tells_each_step_in_order() -> None:
    world = running()
    t_killed = world.now
    world.kill("server-0")
    world.run(1.0)
    (line,) = world.status.failovers
    assert (line.target, line.cause, line.signal, line.role, line.epoch) == ("server-0", "Killed", 9, "head", 2)
    times = (t_killed, line.t_detected, line.t_decided, line.t_promoted, line.t_first_update)
    assert all(a is not None and b is not None and a <= b for a, b in pairwise(times)), times
    assert world.status.failover_count == 1


def test_a_total_loss_is_one_line_for_each_server() -> None:
    world = running()
    for name in list(world.servers):
        world.kill(name)
    world.run(1.0)
    assert sorted(f.target for f in world.status.failovers) == ["server-0", "server-1", "server-2"]
    assert all(f.closed and f.restore for f in world.status.failovers)


@pytest.mark.parametrize("strategy", ["Checkpoint", "Chain", "Hybrid", "Stateless"])
def test_what_a_total_loss_cost_is_counted_once(strategy: str) -> None:
    """Stateless: with Redis's data. The view that answers the loss would rebuild from there; the next rolls back."""
    world = running(strategy)
    newest, version = world.checkpoints[-1], world.heard["server-0"].version
    assert newest.version < version
    world.redis_keeps = False
    for name in (*world.servers, "redis"):
        world.kill(name)
    world.run(8.0)
    assert world.status.views[0].history == 1
    heads = [f for f in world.status.failovers if f.role in ("head", "single")]
    assert sum(f.gradients["lost"] for f in heads) == version - newest.version
    assert world.status.progress.gradients["lost"] == version - newest.version


def test_a_checkpoint_that_cannot_be_read_costs_the_way_back_to_the_one_before() -> None:
    world = running("Checkpoint")
    *_, older, newest = world.checkpoints
    version = world.heard["server-0"].version
    world.unreadable.add(newest.name)
    world.kill("server-0")
    world.run(8.0)
    first, second = world.status.failovers
    assert (first.restore, second.restore, second.cause) == (newest.name, older.name, "RestoreFailed")
    assert (first.gradients["lost"], second.gradients["lost"]) == (
        version - newest.version,
        newest.version - older.version,
    )
    assert world.status.progress.gradients["lost"] == version - older.version


def test_an_operator_that_never_heard_the_lost_server_counts_from_what_was_recorded() -> None:
    world = running("Checkpoint")
    world.run(6.0)
    recorded = world.status.progress.version
    world.kill("server-0")
    world.restart_operator()
    world.run(1.0)
    (line,) = world.status.failovers
    restored = next(c.version for c in world.checkpoints if c.name == line.restore)
    assert line.version == max(recorded, restored) > 0
    assert line.gradients["lost"] == max(0, recorded - restored)


def test_what_a_cut_off_server_went_on_to_apply_is_lost_too_once_workers_tell_of_it() -> None:
    world = running("Checkpoint")
    newest, heard = world.checkpoints[-1], world.heard["server-0"].version
    world.kill("server-0")
    world.run(3.0)
    (line,) = world.status.failovers
    assert line.gradients["lost"] == heard - newest.version
    (server,) = [s for s in world.servers.values() if s.is_member]
    for told in (heard + 30, heard + 10, heard + 40):  # by one worker's gradient after another's
        server.former_version = max(server.former_version, told)
        world.run(1.0)
        (line,) = world.status.failovers
        assert line.gradients["lost"] == server.former_version - newest.version
    assert world.status.progress.gradients["lost"] == heard + 40 - newest.version

    last, version = world.checkpoints[-1], server.version
    world.kill(server.process.name)  # in the next history, what workers tell is of the one before it
    world.run(3.0)
    (server,) = [s for s in world.servers.values() if s.is_member]
    server.former_version = version + 1000
    world.run(1.0)
    first, second = world.status.failovers
    assert first.gradients["lost"] == heard + 40 - newest.version
    assert second.gradients["lost"] == version + 1000 - last.version


def test_a_server_that_is_lost_before_it_holds_anything_takes_nothing_more() -> None:
    world = running("Checkpoint")
    newest, version = world.checkpoints[-1], world.heard["server-0"].version
    world.kill("server-0")
    while world.status.views[0].history == 0:
        world.turn()
    world.kill("server-0")
    world.run(3.0)
    assert world.status.views[0].history == 2
    assert [f.gradients["lost"] for f in world.status.failovers] == [version - newest.version, 0]


def outage_with_a_backlog(strategy: str) -> World:
    """The head is killed; while nobody leads, workers buffer 20 gradients. The successor had applied 7 from Redis."""
    world = running(strategy)
    for server in world.servers.values():
        server.replayed = 7
    world.kill("server-0")
    world.log[0] = 20
    return world


def test_what_the_new_head_applied_from_the_buffer_is_told_once() -> None:
    world = outage_with_a_backlog("Hybrid")
    world.run(0.6)
    (line,) = world.status.failovers
    assert line.closed
    assert "replayed" not in line.gradients, "there is more to come"
    world.run(1.0)
    (line,) = world.status.failovers
    assert (line.gradients["lost"], line.gradients["replayed"]) == (0, 20)
    assert (line.successor, line.replayed_before) == ("", 0), "nothing of it is kept in the record"
    world.log[0] = 5  # one worker was cut off for a moment, later
    world.run(2.0)
    assert world.status.failovers == (line,)
    told = {f.gradients.get("replayed") for s in world.history for f in s.failovers}
    assert told == {None, 20}


def test_a_head_that_is_lost_before_it_caught_up_tells_nothing_of_the_backlog() -> None:
    world = outage_with_a_backlog("Hybrid")
    world.run(0.4)
    world.kill("server-1")
    world.run(3.0)
    first, second = world.status.failovers
    assert "replayed" not in first.gradients
    assert first.successor == ""
    assert 0 < second.gradients["replayed"] < 20


@pytest.mark.parametrize("strategy", ["Chain", "Stateless"])
def test_where_no_outage_leaves_a_backlog_of_its_own_none_is_told(strategy: str) -> None:
    world = outage_with_a_backlog(strategy)
    world.run(3.0)
    assert all("replayed" not in f.gradients and f.successor == "" for f in world.status.failovers)


def test_what_a_rollback_took_is_paid_for_twice() -> None:
    price = {"cost__hourly__worker": 3600.0, "workers__replicas": 2}
    world = running("Checkpoint", **price)
    world.run(6.0)
    assert world.status.progress.cost["recomputed"] == 0.0
    world.kill("server-0")
    world.run(8.0)
    cost, lost = world.status.progress.cost, world.status.failovers[0].gradients["lost"]
    assert lost > 0
    assert world.status.t_running is not None
    assert cost["workers"] == pytest.approx(2 * (world.status.progress.t - world.status.t_running), rel=0.05)
    busy = cost["workers"] - cost["idle"]
    assert cost["recomputed"] == pytest.approx(busy * lost / (world.status.progress.version + lost))
    assert 0 < cost["recomputed"] + cost["idle"] < cost["total"]


def test_a_suspended_job_costs_nothing_and_goes_on_counting() -> None:
    world = running("Chain", cost__hourly__worker=3600.0, cost__hourly__server=0.0, workers__replicas=2)
    world.run(6.0)
    world.spec = make_spec("Chain", suspend=True, cost__hourly__worker=3600.0, cost__hourly__server=0.0)
    world.run(6.0)
    assert world.status.state == "Suspended"
    paid = world.status.progress.cost["total"]
    assert world.status.progress.cost["idle"] == 0.0
    assert paid == pytest.approx(2 * world.status.trained_s, rel=0.5)
    world.run(60.0)
    world.spec = make_spec("Chain", cost__hourly__worker=3600.0, cost__hourly__server=0.0)
    world.run(11.0)
    assert 10.0 < world.status.progress.cost["total"] - paid < 25.0, "two workers for some ten seconds"


def test_an_outage_costs_what_the_workers_of_that_time_cost() -> None:
    price = {"cost__hourly__worker": 3600.0, "cost__hourly__server": 0.0}
    world = running("Checkpoint", workers__replicas=2, **price)
    world.kill("server-0")
    world.run(6.0)
    (line,) = world.status.failovers
    assert line.t_first_update is not None
    idle = world.status.progress.cost["idle"]
    assert idle == pytest.approx(2 * (line.t_first_update - line.t_detected), abs=1.0)
    world.spec = make_spec("Checkpoint", workers__replicas=8, **price)
    world.run(20.0)
    assert world.status.progress.cost["idle"] == idle, "that there are more of them now"
    world.kill("server-0")
    world.run(0.1)
    world.spec = make_spec("Checkpoint", workers__replicas=8, suspend=True, **price)
    world.run(120.0)
    assert world.status.progress.cost["idle"] < world.status.progress.cost["workers"] / 2, (
        "nobody waits while suspended"
    )


def test_what_was_recomputed_is_not_told_where_it_is_not_known() -> None:
    """The version of a job that goes on from another one's checkpoint counts that one's updates too."""
    world = World(make_spec("Checkpoint", recovery__checkpoint__restoreFrom="/old"))
    world.checkpoints.append(CheckpointRef("/old", 0, 1000))
    world.run(7.0)
    assert world.status.progress.cost["recomputed"] == 0.0
    world.kill("server-0")
    world.run(8.0)
    assert world.status.progress.gradients["lost"] > 0
    assert "recomputed" not in world.status.progress.cost


def test_lost_workers_and_redis_stand_in_the_ledger_too() -> None:
    world = running("Hybrid")
    world.kill("worker-0")
    world.kill("redis")
    world.run(1.0)
    lines = {f.target: f for f in world.status.failovers}
    assert set(lines) == {"worker-0", "redis"}
    assert all(f.closed for f in lines.values()), lines


def test_a_worker_that_left_in_order_after_a_rollback_is_no_loss() -> None:
    """Its head told it of the end, which the operator has not heard of; or that end was rolled back."""
    world = running("Checkpoint")
    world.kill("server-0")
    world.run(1.0)
    assert world.status.t_rolled_back is not None
    world.end("worker-0", code=0)
    world.turn()
    assert ("worker-0", 2) in [(a.name, a.incarnation) for a in of(world, StartProcess)]
    assert [f.target for f in world.status.failovers] == ["server-0"]


# --- workers ----------------------------------------------------------------------------------------------------------


def test_a_killed_worker_comes_back_at_once_with_the_next_incarnation() -> None:
    world = running()
    world.kill("worker-0")
    result = world.turn()
    assert result.status.incarnations == {0: 2}
    assert [(a.name, a.incarnation) for a in of(world, StartProcess)] == [("worker-0", 2)]


def test_a_worker_that_fails_without_progress_is_backed_off_then_fails_the_job() -> None:
    world = running(runPolicy__backoffLimit=3)
    for server in world.servers.values():
        server.paused = True  # nothing moves
    patient = {"timeoutSeconds": 1000, "assumeDeadSeconds": 1000}
    world.spec = make_spec(runPolicy__backoffLimit=3, recovery__failover=patient)
    starts = []
    for _ in range(200):
        if world.others["worker-0"].alive:
            starts.append(world.now)
            world.end("worker-0", code=1)
        world.turn()
        world.advance(0.1)
    assert world.status.outcome == "Failed"
    assert world.status.reason == "BackoffLimitExceeded"
    gaps = [round(b - a) for a, b in pairwise(starts)]
    assert gaps == [0, 1, 2]


@pytest.mark.parametrize(("lived_s", "exits"), [(1.0, 4), (None, 1)], ids=["it waited", "it lived"])
def test_a_start_that_waited_long_and_failed_at_once_is_backed_off(lived_s: float | None, exits: int) -> None:
    before = JobStatus(attempts={"worker-0": Attempt(failures=3, exits=3, instance="a")})
    turn = Turn.begin(make_spec(), ObservedJob(before), 500.0)
    ended = Process("worker-0", "worker", "b", "exited", exit_code=1, proven_dead=True, t_started=380.0)
    attempt = count_exit(turn, replace(ended, t_exited=500.0, lived_s=lived_s))
    assert attempt.exits == exits


def test_an_operator_whose_clock_was_ahead_holds_nothing_back_for_long() -> None:
    world = running(recovery__failover__timeoutSeconds=2)
    ahead_s = 3600.0
    world.kill("worker-0")
    world.turn(actions=0)
    version, text = world.store
    status = world.status
    later = replace(status.attempts["worker-0"], until=world.now + ahead_s)
    text = json.dumps(replace(status, attempts={"worker-0": later}, since={"x": world.now + ahead_s}).to_json())
    world.store = (version, text)
    world.run(LONGEST_DELAY_S - 1)
    assert not world.others["worker-0"].alive
    world.run(2.0)
    assert world.others["worker-0"].alive
    turn = Turn.begin(world.spec, ObservedJob(replace(status, since={"x": world.now + ahead_s})), world.now)
    assert turn.lasted("x", True, 5.0) is False
    assert turn.wake_at == world.now + 5.0


def test_kills_are_no_failures() -> None:
    world = running(runPolicy__backoffLimit=0)
    world.kill("worker-0")
    world.run(1.0)
    assert world.status.state == "Running"


@pytest.mark.parametrize("name", ["worker-0", "server-1"])
def test_exit_code_3_fails_the_job_at_once_with_its_message(name: str) -> None:
    world = running()
    world.end(name, code=3)
    owner = world.servers.get(name)
    if owner is not None:
        owner.process = replace(owner.process, reason="shapes differ")
    else:
        world.others[name] = replace(world.others[name], reason="shapes differ")
    world.turn()
    assert world.status.outcome == "Failed"
    assert world.status.message == f"{name}: shapes differ"
    world.run(5.0)
    assert not any(s.process.alive for s in world.servers.values())


def test_an_operator_that_dies_after_recording_an_incarnation_starts_the_same_one_later() -> None:
    world = running()
    world.kill("worker-0")
    world.turn(actions=0)
    world.turn()
    assert world.status.incarnations == {0: 2}
    assert world.others["worker-0"].incarnation == 2


def test_an_incarnation_that_was_ever_seen_is_not_used_again() -> None:
    """Its pod was removed by force while no operator ran: the process may live on, and must be fenced."""
    world = running()
    assert world.status.incarnations == {0: 1}
    del world.others["worker-0"]
    world.restart_operator()
    world.turn()
    assert world.status.incarnations == {0: 2}
    assert of(world, StartProcess)[-1].incarnation == 2
    world.turn()
    assert world.status.incarnations == {0: 2}, "what was started is not started again"


def test_sync_lends_a_slot_without_a_worker_after_grace_seconds() -> None:
    world = running(training__consistency="Sync", workers__replicas=2, workers__graceSeconds=5)
    world.held["worker-1"] = world.now + 1000
    world.kill("worker-1")
    world.run(4.8)
    assert not of(world, AssignSlot)
    world.run(0.5)
    assert of(world, AssignSlot)[0] == AssignSlot(1, 2, "worker-0")
    world.held.clear()
    world.run(0.3)
    assert world.others["worker-1"].incarnation == 3
    assert world.status.adopted == {}


@pytest.mark.parametrize(("lost", "adopter"), [((1,), "worker-0"), ((0,), "worker-1"), ((0, 1), "worker-2")])
def test_sync_lends_the_slot_of_a_worker_whose_node_is_lost(lost: tuple[int, ...], adopter: str) -> None:
    """Its pod runs by the API server's word for minutes; that it is not connected any more the head knows."""
    world = running(training__consistency="Sync", workers__replicas=3, workers__graceSeconds=5)
    for slot in lost:
        world.head().absent[slot] = world.now
    world.run(4.8)
    assert not of(world, AssignSlot)
    world.run(0.5)
    assert {a.slot: a.worker for a in of(world, AssignSlot)} == dict.fromkeys(lost, adopter)


@pytest.mark.parametrize("back", ["connected again", "started anew"])
def test_a_worker_that_comes_back_keeps_its_slot(back: str) -> None:
    world = running(training__consistency="Sync", workers__replicas=2, workers__graceSeconds=5)
    world.head().absent[1] = world.now
    world.run(2.0)
    if back == "connected again":
        world.head().absent.clear()
    else:  # and loads its data before it connects
        world.kill("worker-1")
    world.run(10.0)
    assert not of(world, AssignSlot)


def test_more_workers_are_started_and_the_heads_told() -> None:
    world = running()
    world.spec = make_spec(workers__replicas=3)
    world.run(0.2)
    assert [a.name for a in of(world, StartProcess)] == ["worker-1", "worker-2"]
    assert {a.slots for a in of(world, SetSlots)} == {3}
    world.spec = make_spec(workers__replicas=1)
    world.run(0.2)
    assert {a.name for a in of(world, TermProcess)} == {"worker-1", "worker-2"}


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


# --- the end ----------------------------------------------------------------------------------------------------------


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


# --- the whole --------------------------------------------------------------------------------------------------------


def condition(world: World, type_: str) -> Any:
    return next(c for c in world.status.conditions if c.type == type_)


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

"""Nobody is left who holds a shard's state: proof of death, what is restored, and in which history."""

from __future__ import annotations

from dataclasses import replace

import pytest
from plan_steps import of, running

from outlast_operator.planner.actions import KillProcess


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

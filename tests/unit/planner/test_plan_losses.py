"""A server is lost and another member is left: it is planned around, then replaced."""

from __future__ import annotations

from dataclasses import replace

import pytest
from plan_steps import of, running

from outlast_operator.planner.actions import InstallView, KillProcess, StartProcess

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

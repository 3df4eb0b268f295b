"""The ledger of failovers: what each loss cost, told once."""

from __future__ import annotations

from itertools import pairwise

import pytest
from plan_steps import of, running
from plan_world import World, make_spec

from outlast.api.server_status import CheckpointRef
from outlast_operator.planner.actions import StartProcess


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

"""A claim a server: when one is given up, and what a rollback waits for that may lie on one alone."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from plan_steps import own
from plan_steps import running_apart as running
from plan_world import LEAVE_WAIT_S, World, make_spec

from outlast.api.server_status import CheckpointRef
from outlast.api.view import View, last_state_name
from outlast_operator.planner.actions import KillProcess, StartProcess
from outlast_operator.planner.checkpoint_sets import CHECKPOINT_NEWS_S
from outlast_operator.planner.checkpoints import ServerClaim
from outlast_operator.planner.conditions import PRIMARY

OUT_OF_REACH = "no node with access to its volume takes it: 1 node(s) had volume node affinity conflict"
NOT_MOUNTED = "its volume is not mounted"
ASSUME_DEAD_S = make_spec().recovery.failover.assume_dead_seconds


def alive(world: World) -> set[str]:
    return {name for name, s in world.servers.items() if s.process.alive}


def generations(world: World, name: str) -> list[int]:
    """Of the claims that a server was started with."""
    return [a.claim for a in world.executed if isinstance(a, StartProcess) and a.name == name]


def first_of(world: World, history: int, shard: int = 0) -> View:
    return next(s.views[shard] for s in world.history if s.views and s.views[shard].history == history)


def why_no_head(world: World) -> str:
    return next(c.message for c in world.status.conditions if c.type == PRIMARY)


def lost(world: World) -> int:
    return world.status.progress.gradients["lost"]


# --- given up ---


def test_a_claim_that_holds_a_replacement_back_is_given_up() -> None:
    world = running()
    world.kill("server-1")
    world.claim_troubles["server-1"] = OUT_OF_REACH
    world.run(3.0)
    assert generations(world, "server-1")[:2] == [0, 1]
    assert world.status.claims["server-1"] == ServerClaim(1, used=True)
    assert world.status.claims["server-0"] == ServerClaim(0, used=True)
    assert len(world.members()) == 3


def test_a_claim_that_holds_the_only_state_is_waited_for() -> None:
    world = running()
    for name in list(world.servers):
        world.kill(name)
    world.claim_troubles = dict.fromkeys(world.servers, OUT_OF_REACH)
    world.run(5.0)
    assert {claim.generation for claim in world.status.claims.values()} == {0}
    assert "waiting until servers are ready" in why_no_head(world)
    world.claim_troubles.clear()
    world.run(1.0)
    assert world.status.views[0].history == 1


def a_lost_server_that_took_over() -> World:
    """Both names were used; server-1, which took over from server-0, is lost with its node, and server-0 is started."""
    world = running("Checkpoint")
    world.servers["server-0"].leaving = True
    world.run(2.0)
    assert world.members() == ["server-1"]
    world.cut_off("server-1")
    return world


def test_a_member_that_is_not_heard_since_the_operator_was_held_up_holds_no_state() -> None:
    """Its pod seems to run. The claim of the other name is the only one that is left."""
    world = a_lost_server_that_took_over()
    world.claim_troubles["server-0"] = OUT_OF_REACH
    world.run(3.0)
    assert world.servers["server-0"].process.alive
    world.t_operator_start = world.now
    world.run(0.2)
    assert world.status.claims["server-0"] == ServerClaim(0, used=True)


def test_a_head_that_is_not_heard_since_the_operator_was_held_up_serves_nothing() -> None:
    """The server that is to take its place lives on, and no condition tells of a head."""
    world = a_lost_server_that_took_over()
    world.run(3.0)
    assert "server-0" in alive(world)
    started = world.servers["server-0"].boot
    world.t_operator_start = world.now
    for _ in range(4):
        world.run(0.1)
        assert next(c.status for c in world.status.conditions if c.type == PRIMARY) == "False"
    assert world.servers["server-0"].boot == started
    assert "server-0" not in {a.name for a in world.executed if isinstance(a, KillProcess)}


def test_a_member_that_has_not_restored_yet_holds_no_state() -> None:
    """A rollback is recorded without a server that its claim holds back: until it has succeeded, that claim may be
    needed."""
    world = running()
    for name in list(world.servers):
        world.kill(name)
        world.heard[name] = replace(world.heard[name], refused=True)
    world.claim_troubles["server-2"] = OUT_OF_REACH
    while world.status.views[0].history == 0:
        world.turn()
        world.advance()
    world.turn()
    assert world.members() == ["server-0", "server-1"]
    assert world.status.claims["server-2"].generation == 0
    world.run(3.0)
    assert (world.status.claims["server-2"].generation, len(world.members())) == (1, 3)


@pytest.mark.parametrize(("trouble", "generation"), [(NOT_MOUNTED, 0), (OUT_OF_REACH, 1)])
def test_a_claim_that_no_server_has_run_with_is_given_up_only_when_its_volume_is_elsewhere(
    trouble: str, generation: int
) -> None:
    """The first volume of a claim takes its time, and a second claim would take as long. One that has a place holds a
    server back like any other, with or without a former word from there."""
    world = running()
    world.kill("server-1")
    world.claim_troubles["server-1"] = trouble
    version, _ = world.store
    raw = world.status.to_json()
    raw["claims"]["server-1"] = {"generation": 0, "used": False}
    world.store = (version, json.dumps(raw))
    world.run(4.0)
    assert world.status.claims["server-1"].generation == generation
    assert len(world.members()) == (3 if generation else 2)


def test_claims_that_are_out_of_reach_one_after_another_are_made_ever_more_slowly() -> None:
    """A class that binds at once may choose a place that no pod reaches, again and again."""
    world = running()
    world.troubled_generations = 1000
    world.kill("server-1")
    world.claim_troubles["server-1"] = OUT_OF_REACH
    world.run(60.0)
    claim = world.status.claims["server-1"]
    assert 3 <= claim.generation <= 8
    assert claim.skipped == claim.generation - 1, "all but the first one, which it ran with, and the one that it has"
    world.claim_troubles.clear()
    world.run(60.0)
    assert world.status.claims["server-1"] == replace(claim, used=True)


@pytest.mark.parametrize("redis_is_lost", [False, True])
def test_where_state_is_rebuilt_from_redis_a_claim_is_given_up_only_for_the_run_that_held_it(
    redis_is_lost: bool,
) -> None:
    """The node of the server and of Redis: the next Redis answers, and is empty."""
    world = running("Stateless")
    world.restart_operator()  # what is known is recorded
    world.run(0.5)
    newest, version = own(world)["server-0"][-1], world.heard["server-0"].version
    world.claim_troubles["server-0"] = OUT_OF_REACH
    world.kill("server-0")
    if redis_is_lost:
        world.redis_keeps = False
        world.kill("redis")
    world.run(10.0)
    assert world.others["redis"].alive
    assert world.status.claims["server-0"].generation == (0 if redis_is_lost else 1)
    if redis_is_lost:
        assert "waiting for a server to start" in why_no_head(world)
        world.claim_troubles.clear()
        world.run(3.0)
        assert first_of(world, 1).restore == newest.name
        assert lost(world) == version - newest.version
    else:
        assert (world.status.views[0].history, lost(world)) == (0, 0)
    assert world.status.state == "Running"
    assert not world.wrongs


def test_where_an_older_server_did_not_tell_which_run_held_it_any_redis_that_answers_will_do() -> None:
    world = World(make_spec("Stateless"))
    world.own, world.older_trainer = {}, True
    world.run(1.5)
    world.claim_troubles["server-0"] = OUT_OF_REACH
    world.kill("server-0")
    world.run(10.0)
    assert world.status.claims["server-0"].generation == 1
    assert (world.status.state, world.status.views[0].history) == ("Running", 0)


def test_what_was_lost_with_redis_and_every_checkpoint_is_counted() -> None:
    world = running("Stateless", node_local=True)
    version = world.heard["server-0"].version
    world.redis_keeps = False
    world.kill("server-0")
    world.kill("redis")
    world.run(8.0)
    assert first_of(world, 1).restore is None
    assert lost(world) == version
    assert world.status.state == "Running"


# --- what the last member left ---


def left_by_the_last_member(world: World) -> str:
    """The others are lost and their replacements come late; the last member leaves meanwhile, and saves. Every
    directory holds the newest set, which is older than that."""
    for name in ("server-1", "server-2"):
        world.held[name] = world.now + LEAVE_WAIT_S + 2.0
        world.kill(name)
    world.run(0.5)
    assert world.members() == ["server-0"]
    boot = world.servers["server-0"].boot
    world.servers["server-0"].leaving = True
    world.claim_troubles["server-0"] = NOT_MOUNTED
    world.run(LEAVE_WAIT_S + 1.0)
    world.own = {server: own(world)["server-0"] for server in ("server-0", "server-1", "server-2")}
    name = last_state_name(0, boot)
    assert name in world.last_states
    return name


def test_what_the_last_member_left_on_its_own_claim_is_waited_for() -> None:
    """Its volume takes longer to be attached than those of other servers."""
    world = running()
    name = left_by_the_last_member(world)
    world.run(3 * CHECKPOINT_NEWS_S)
    assert "waiting for server-0, which may hold newer state than is known" in why_no_head(world)
    world.claim_troubles.clear()
    world.run(3.0)
    assert name in {s.views[0].restore for s in world.history if s.views}
    assert (world.status.views[0].history, lost(world)) == (0, 0)
    assert len(world.members()) == 3
    assert not world.wrongs


def test_a_last_member_that_does_not_come_back_is_not_waited_for_for_ever() -> None:
    world = running()
    left_by_the_last_member(world)
    world.run(ASSUME_DEAD_S - 1.0)
    assert world.status.views[0].history == 0
    world.run(5.0)
    assert world.status.views[0].history == 1
    assert lost(world) > 0


def test_a_last_member_is_given_its_time_anew_by_an_operator_that_has_just_begun() -> None:
    world = running()
    left_by_the_last_member(world)
    world.run(ASSUME_DEAD_S - 2.0)
    world.restart_operator()
    world.run(ASSUME_DEAD_S - 1.0)
    assert world.status.views[0].history == 0
    world.run(4.0)
    assert world.status.views[0].history == 1


def test_a_last_member_whose_state_is_gone_is_not_waited_for() -> None:
    world = running()
    name = left_by_the_last_member(world)
    del world.last_states[name]
    world.claim_troubles.clear()
    world.run(1.0)
    assert world.status.views[0].history == 1


# --- what lies on the claim of a name that has no process ---


def test_the_server_that_is_waited_for_is_started_though_another_one_runs() -> None:
    """server-1 hands over to server-0 while Redis loses its data: server-0 cannot restore, and server-1 has the newest
    set."""
    world = running("Stateless")
    for leaving in ("server-0", "server-1"):
        if leaving == "server-1":
            newest = own(world)[leaving][-1]
            world.redis_keeps = False
            world.kill("redis")
            world.claim_troubles["server-1"] = NOT_MOUNTED
        world.servers[leaving].leaving = True
        world.run(3.0)
    assert world.servers["server-0"].restore_error
    assert f"{newest.name} is newer than any available checkpoint; waiting for server-1" in why_no_head(world)
    world.claim_troubles.clear()
    world.run(3.0)
    first = first_of(world, 1)
    assert ([m.name for m in first.members], first.restore) == (["server-1"], newest.name)
    assert world.status.state == "Running"
    assert alive(world) == {"server-1"}


def test_a_shard_that_serves_starts_the_server_that_anothers_rollback_waits_for() -> None:
    """And keeps it until the rollback, which waits for a server of the other shard, too."""
    world = running("Checkpoint", servers__shards=2)
    newest = CheckpointRef("newest", 0, 10_000, epoch=9)
    world.own = {"server-0": [newest], "server-1": [newest]}
    world.run(0.1)
    for name in ("server-0", "server-1"):
        world.servers[name].leaving = True
    world.run(3.0)
    assert (world.members(0), world.members(1)) == (["server-2"], ["server-3"])
    world.own = {"server-0": [newest], "server-1": [newest], "server-2": [], "server-3": []}
    world.claim_troubles["server-0"] = NOT_MOUNTED
    world.executed.clear()
    world.kill("server-2")
    world.run(CHECKPOINT_NEWS_S + 1.0)
    assert alive(world) == {"server-0", "server-1", "server-2", "server-3"}
    assert "newest is newer than any available checkpoint; waiting for server-0, which may hold it" in why_no_head(
        world
    )
    world.claim_troubles.clear()
    world.run(2.0)
    views = [first_of(world, 1, shard) for shard in (0, 1)]
    assert [[m.name for m in view.members] for view in views] == [["server-0"], ["server-1"]]
    assert [view.restore for view in views] == ["newest", "newest"]
    assert alive(world) == {"server-0", "server-1"}
    assert len(generations(world, "server-1")) == 1, "it is not ended in between"

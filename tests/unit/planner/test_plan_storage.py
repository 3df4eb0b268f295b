"""A directory a server: what a rollback goes back to, what it waits for, and when a claim is given up."""

from __future__ import annotations

from typing import Any

import pytest
from plan_steps import of, own
from plan_steps import running_apart as running
from plan_world import World, make_spec

from outlast.api.server_status import CheckpointRef
from outlast_operator.planner.actions import Emit, ExpandClaims, RequestCheckpoint, StartProcess, StartRedis
from outlast_operator.planner.checkpoint_sets import CHECKPOINT_NEWS_S
from outlast_operator.planner.rollback import newest_checkpoint
from outlast_operator.planner.status import Wait


def kill_all(world: World) -> None:
    for name in list(world.servers):
        world.kill(name)


def starts(world: World, name: str) -> list[StartProcess]:
    return [a for a in world.executed if isinstance(a, StartProcess) and a.name == name]


# --- which set ---


def part(name: str, epoch: int = 1, crc: int = 0) -> CheckpointRef:
    history, version = name.split("-")
    return CheckpointRef(name, int(history), int(version), epoch, crc)


@pytest.mark.parametrize(
    ("shards", "chosen", "epoch"),
    [
        pytest.param([[part("0-100")], [part("0-100")]], "0-100", 2, id="a part of each shard"),
        pytest.param([[part("0-100"), part("0-200")], [part("0-100")]], "0-100", 2, id="a shard lacks the newer one"),
        pytest.param([[part("0-300", 1), part("0-200", 2)]], "0-200", 2, id="a fenced server wrote on"),
        pytest.param([[part("0-300", 9), part("1-100", 10)]], "1-100", 10, id="the history counts first"),
        pytest.param([[part("0-100", 1), part("0-100", 3)], [part("0-100", 2)]], "0-100", 5, id="the best parts' sum"),
        pytest.param([[part("0-100")], []], None, 0, id="nothing of one shard"),
    ],
)
def test_sets_are_ordered_by_history_epoch_version(
    shards: list[list[CheckpointRef]], chosen: str | None, epoch: int
) -> None:
    found = newest_checkpoint(shards)
    assert (found.name if found else None, found.epoch if found else 0) == (chosen, epoch)


# --- rolling back ---


def test_the_choice_is_recorded_with_the_first_status_and_stays() -> None:
    world = running()
    assert world.history[0].storage == "PerServer"
    world.own = None  # whatever the cluster offers by now
    world.run(0.5)
    assert world.status.storage == "PerServer"


def test_nothing_starts_before_it_is_known_where_checkpoints_go() -> None:
    """However long that takes: a refusal is a wait, and costs the job no time of its deadline."""
    world = World(make_spec("Stateless", runPolicy__activeDeadlineSeconds=5, runPolicy__backoffLimit=0))
    world.own, world.storage_known = {}, False
    world.turn()
    assert not of(world, StartProcess)
    assert not of(world, StartRedis)
    assert world.plans[-1].wake_at == pytest.approx(world.now + 0.25)
    for _ in range(10):
        world.waits = {"PersistentVolumeClaim x": Wait("QuotaExceeded", "exceeded quota", world.now + 3.0, blocks=True)}
        world.turn()
        assert world.plans[-1].wake_at == world.now + 3.0
        world.now += 3.0
    assert (world.status.storage, world.status.outcome) == (None, None)
    conditions = {c.type: c for c in world.status.conditions}
    assert (conditions["PodsReady"].reason, conditions["CheckpointStorage"].reason) == ("QuotaExceeded", "NotChosen")
    assert {a.reason for a in of(world, Emit)} == {"QuotaExceeded"}
    world.storage_known, world.waits = True, {}
    world.run(3.0)
    assert (world.status.storage, world.status.state) == ("PerServer", "Running")


def test_members_restore_one_part_and_the_others_join() -> None:
    world = running()
    newest = own(world)["server-0"][-1]
    kill_all(world)
    own(world)["server-1"] = own(world)["server-1"][:-1]
    own(world)["server-2"] = []
    world.run(1.0)
    first = next(s.views[0] for s in world.history if s.views and s.views[0].history == 1)
    assert first.restore == newest.name
    assert [m.name for m in first.members] == ["server-0"]
    assert {m.name for m in first.joining} == {"server-1", "server-2"}
    assert not world.wrongs
    assert len(world.members()) == 3


def test_a_part_of_another_epoch_is_not_restored_beside_the_best_one() -> None:
    world = running()
    kill_all(world)
    newest = own(world)["server-0"][-1]
    own(world)["server-1"][-1] = CheckpointRef(newest.name, newest.history, newest.version, newest.epoch - 1, 7)
    world.run(1.0)
    first = next(s.views[0] for s in world.history if s.views and s.views[0].history == 1)
    assert {m.name for m in first.members} == {"server-0", "server-2"}


def test_an_older_set_waits_for_every_server_that_may_hold_the_newest() -> None:
    """Its claim alone holds it, and its volume takes long to be attached: longer than timeoutSeconds by far."""
    world = running(recovery__failover__timeoutSeconds=2)
    newest = own(world)["server-0"][-1]
    kill_all(world)
    for name in ("server-1", "server-2"):
        own(world)[name] = own(world)[name][:-1]
    world.claim_troubles["server-0"] = "still attached"
    world.run(30.0)
    assert world.status.views[0].history == 0
    assert f"{newest.name} is newer than any available checkpoint; waiting for server-0" in world.plans[-1].reason
    world.restart_operator()  # what is known is recorded
    world.run(5.0)
    assert world.status.views[0].history == 0
    world.claim_troubles.clear()
    world.run(1.0)
    assert next(s.views[0] for s in world.history if s.views and s.views[0].history == 1).restore == newest.name


def test_what_no_server_holds_any_more_is_not_waited_for() -> None:
    world = running()
    older = own(world)["server-0"][-2]
    kill_all(world)
    for name in own(world):
        own(world)[name] = [c for c in own(world)[name] if c.order <= older.order]
    world.run(1.0)
    assert next(s.views[0] for s in world.history if s.views and s.views[0].history == 1).restore == older.name


def test_suspending_leaves_the_result_with_every_member() -> None:
    world = running()
    world.spec = make_spec("Chain", suspend=True)
    world.run(1.0)
    asked = {a.to.name for a in world.executed if isinstance(a, RequestCheckpoint)}
    assert asked <= set(world.servers)
    assert len({parts[-1].name for parts in own(world).values()}) == 1


def test_suspending_waits_for_a_word_of_every_member() -> None:
    """The operator has just begun, and has not heard all of them: what a member holds is not known."""
    world = running()
    world.spec = make_spec("Chain", suspend=True)
    world.servers["server-2"].paused = True
    world.restart_operator()
    world.run(1.0)
    assert "suspending: waiting for a checkpoint" in world.plans[-1].reason
    world.servers["server-2"].paused = False
    world.run(4.0)
    assert world.status.state == "Suspended"
    assert len(world.members()) == 3


@pytest.mark.parametrize("holder", ["server-0", "server-1"])
def test_of_one_servers_two_names_the_one_that_holds_the_newest_set_restores_it(holder: str) -> None:
    """A planned loss leaves the shard to the server of the other name, whose directory has nothing before its first
    checkpoint."""
    world = running("Checkpoint")
    newest = own(world)["server-0"][-1]
    world.servers["server-0"].leaving = True
    world.run(2.0)
    assert world.members() == ["server-1"]
    world.own = {"server-0": [], "server-1": [], holder: [newest]}
    world.kill("server-1")
    world.run(3.0)
    first = next(s.views[0] for s in world.history if s.views and s.views[0].history == 1)
    assert (first.members[0].name, first.restore) == (holder, newest.name)
    assert [name for name, s in world.servers.items() if s.process.alive] == [holder], "the other one has no use"


def test_a_rollback_after_the_operators_restart_waits_for_a_word_of_every_server() -> None:
    """The server of the other shard lives, and is slow to speak: what it holds is not known yet."""
    world = World(make_spec("Checkpoint", servers__shards=2, recovery__failover__timeoutSeconds=10))
    world.run(1.5)
    newest = world.checkpoints[-1]
    world.servers["server-0"].paused = True
    world.kill("server-1")
    world.restart_operator()
    world.run(6.0)
    assert world.status.views[1].history == 0
    assert "waiting for a report from server-0" in world.plans[-1].reason
    world.servers["server-0"].paused = False
    world.run(1.0)
    assert {view.restore for view in world.status.views.values()} == {newest.name}
    assert world.members(0) == ["server-0"]
    assert not world.wrongs


def test_a_time_in_which_the_operator_was_held_up_brings_no_news_of_checkpoints() -> None:
    world = running("Checkpoint", servers__shards=2)
    own(world)["server-1"] = []
    world.kill("server-1")
    world.run(CHECKPOINT_NEWS_S - 1.0)
    world.advance(1.5)
    world.t_operator_start = world.now
    world.run(CHECKPOINT_NEWS_S - 0.5)
    assert world.status.views[1].history == 0
    assert "waiting until a checkpoint is known to all shards" in world.plans[-1].reason
    world.run(1.0)
    assert world.status.views[1].history == 1


def test_a_directory_that_went_with_its_pod_is_not_waited_for() -> None:
    """The node of one server is lost with all of them, and its replacement finds none."""
    world = running(node_local=True)
    kill_all(world)
    world.claim_troubles["server-2"] = "no node takes it"
    world.run(10.0)
    assert (world.status.views[0].history, world.members()) == (1, ["server-0", "server-1"])


def test_a_claim_that_no_server_has_run_with_is_not_waited_for() -> None:
    """server-2 got a fresh claim, which it could not start with, before the others were lost."""
    world = running()
    world.claim_troubles["server-2"] = "no node with access to its volume takes it"
    world.troubled_generations = 1000
    world.kill("server-2")
    world.run(3.0)
    assert world.status.claims["server-2"].generation > 0
    newest = own(world)["server-0"][-1]
    kill_all(world)
    world.run(6.0)
    assert world.status.views[0].history == 1
    assert next(s.views[0] for s in world.history if s.views and s.views[0].history == 1).restore == newest.name


# --- size ---


@pytest.mark.parametrize(
    ("parameters", "optimizer", "shards", "wanted_gib"),
    [
        pytest.param(100_000_000, {"name": "SGD", "lr": 0.1}, 1, 0, id="4 of 0.4 GB fit into 2 GiB"),
        pytest.param(100_000_000, {"name": "Adam", "lr": 0.1}, 1, 5, id="with two moments they do not"),
        pytest.param(300_000_000, {"name": "SGD", "lr": 0.1, "momentum": 0.9}, 2, 9, id="a claim holds one shard's"),
    ],
)
def test_a_claim_that_is_too_small_is_expanded(
    parameters: int, optimizer: dict[str, Any], shards: int, wanted_gib: int
) -> None:
    world = running(servers__shards=shards, recovery__checkpoint__claim={"size": "2Gi"}, training__optimizer=optimizer)
    world.parameters, world.claim_bytes = parameters, 2 << 30
    world.run(0.2)
    wanted = {ExpandClaims(wanted_gib << 30)} if wanted_gib else set()
    assert set(of(world, ExpandClaims)) == wanted
    storage = next(c for c in world.status.conditions if c.type == "CheckpointStorage")
    assert storage.reason == ("ClaimTooSmall" if wanted_gib else "ClaimPerServer")
    words = "only dynamically provisioned pvc can be resized"
    world.claim_refusal = Wait("Forbidden", words, retry_at=world.now + 3.0)
    world.executed.clear()
    world.run(0.2)
    assert not of(world, ExpandClaims)
    if wanted_gib:
        storage = next(c for c in world.status.conditions if c.type == "CheckpointStorage")
        assert words in storage.message
        world.run(3.0)
        assert set(of(world, ExpandClaims)) == wanted, "asked for again"
        world.claim_bytes, world.claim_refusal = wanted_gib << 30, None
        world.run(0.2)
        assert next(c for c in world.status.conditions if c.type == "CheckpointStorage").status == "True"

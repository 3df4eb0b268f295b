"""The replica: a test named after an invariant (docs/explanation/invariants.md) is an interleaving that it forbids."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from replica_world import World, applied, chain, crash, gradient, member, status, view

from outlast.chain.events import (
    Acknowledged,
    Acks,
    Entry,
    Forward,
    HigherEpoch,
    Identity,
    Install,
    Kind,
    Push,
    SetSlots,
)
from outlast.chain.replica import Replica, ReplicaSettings, restored

# --- the ordinary way -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("boots", ["a", "ab", "abc"])
def test_a_push_is_acknowledged_when_the_tail_has_it(boots: str) -> None:
    world = chain(boots)
    token = world.push("a", gradient(0, 1))
    assert world.acknowledged(token) == (len(boots) == 1)
    world.run()
    assert world.acknowledged(token)
    assert [status(world, b).version for b in boots] == [1] * len(boots)
    assert [world.replicas[b].pending for b in boots] == [0] * len(boots)


@pytest.mark.parametrize(
    ("boots", "boot", "role"),
    [("a", "a", "single"), ("ab", "a", "head"), ("ab", "b", "tail"), ("abc", "b", "middle"), ("abc", "c", "tail")],
)
def test_roles(boots: str, boot: str, role: str) -> None:
    assert chain(boots).replicas[boot].role == role


def test_roles_outside_a_chain() -> None:
    world = World("ab")
    assert world.replicas["a"].role == "empty"
    world.install(view(1, "a", "b"))
    assert world.replicas["b"].role == "joining"
    world.install(view(2, "a"), "ab")
    assert world.replicas["b"].role == "stopped"


def test_without_weights_pushes_and_pulls_are_refused() -> None:
    world = World("a")
    world.install(view(1, "a"))
    assert world.refused(world.push("a", gradient(0, 1))) == "empty"
    assert world.refused(world.pull("a")) == "empty"


def test_the_second_init_is_a_duplicate_acknowledged_when_the_first_is_stable() -> None:
    world = World("ab")
    world.install(view(1, "ab"))
    world.join_up()
    first, second = world.init("a"), world.init("a")
    assert world.answer(first) is None
    assert world.answer(second) is None
    world.run()
    answers = world.answer(first), world.answer(second)
    assert [a.duplicate for a in answers if isinstance(a, Acknowledged)] == [False, True]
    assert len(world.history["b"]) == 1


def test_an_entry_carries_every_decision() -> None:
    world = chain("a", slots=1, rate_at=lambda version: 0.5**version, policy="InverseStaleness")
    ready = world.step("a", Push("t", 1, 1, gradient(0, 1, 0, lr_scale=0.2)))
    (entry,) = ready.apply
    assert (entry.seq, entry.kind, entry.version, entry.rate) == (2, Kind.UPDATE, 1, 0.2)
    world.step("a", Push("u", 1, 1, gradient(0, 2, 0, lr_scale=0.2)))
    (entry,) = world.step("a", Push("v", 1, 1, gradient(0, 3, 0, lr_scale=0.2))).apply
    assert (entry.version, entry.rate, entry.parts[0].weight) == (3, 0.05, 2 / 3), "one update staler than usual"


def test_a_pseudo_gradient_counts_for_the_share_it_came_with_and_passes_the_optimizer() -> None:
    """Four workers took its steps; that there is one now must not make it four times as large."""
    world = chain("a", slots=1)
    (entry,) = world.step("a", Push("t", 1, 1, gradient(0, 3, last=7, kind=Kind.DELTA, lr_scale=0.25))).apply
    assert (entry.kind, entry.parts[0].weight, entry.rate, entry.version) == (Kind.DELTA, 0.25, 1.0, 1)
    assert status(world, "a").applied == 5


def test_a_pseudo_gradient_that_overlaps_applied_steps_is_refused_whole() -> None:
    world = chain("a")
    world.push("a", gradient(0, 3))
    assert world.refused(world.push("a", gradient(0, 3, last=7, kind=Kind.DELTA))) == "step"
    assert status(world, "a").applied == 1


@pytest.mark.parametrize(
    "bad",
    [gradient(-1, 1), gradient(0, 0), gradient(0, 5, last=4), gradient(0, 1, kind=Kind.CONFIG)],
    ids=["negative slot", "step 0", "backwards", "config"],
)
def test_what_is_no_contribution_is_refused(bad: Any) -> None:
    world = chain("a")
    assert world.refused(world.push("a", bad)) == "step"
    assert status(world, "a").version == 0


# --- membership -------------------------------------------------------------------------------------------------------


def test_boot_id_a_restarted_server_is_another_member() -> None:
    world = chain("ab")
    crash(world, "a")
    world.start("A")  # the same name would be another boot id
    world.step("A", Install(view(2, "ab")))
    assert world.replicas["A"].role == "stopped"
    assert world.refused(world.push("A", gradient(0, 1))) == "stopped"


def test_highest_epoch_a_higher_epoch_silences_until_it_is_installed() -> None:
    world = chain("ab")
    waiting = world.push("a", gradient(0, 1))
    world.step("a", HigherEpoch(2))
    assert world.refused(world.push("a", gradient(1, 1))) == "stopped"
    world.run()
    assert world.answer(waiting) is None, "an acknowledgement of the old epoch is not believed"
    world.install(view(2, "ab"))
    world.join_up()
    assert world.acknowledged(waiting), "its entry survived"


def test_highest_epoch_installs_repeat_and_come_late() -> None:
    world = chain("ab")
    world.install(view(2, "a"), "a")
    for old in (view(1, "ab"), view(2, "ba"), view(2, "a")):
        world.step("a", Install(old))
    assert world.replicas["a"].view == view(2, "a")


def test_a_view_of_another_shard_is_refused() -> None:
    with pytest.raises(ValueError, match="shard 1"):
        World("a").step("a", Install(view(1, "a").with_(shard=1)))


@pytest.mark.parametrize(("epoch", "reason"), [(1, "epoch"), (3, "epoch")], ids=["lower", "higher"])
def test_fence_a_push_of_another_epoch_is_refused_with_the_view(epoch: int, reason: str) -> None:
    world = chain("ab")
    world.install(view(2, "ab"))
    world.join_up()
    token = world.push("a", gradient(0, 1), epoch=epoch)
    assert world.refused(token) == reason
    assert world.answer(token).view == view(2, "ab")  # type: ignore[union-attr]
    assert status(world, "a").serving == (epoch < 2)


def test_fence_entries_and_acknowledgements_of_another_epoch_are_not_heeded() -> None:
    world = chain("abc")
    token = world.push("a", gradient(0, 1))
    world.step("a", Acks("b", 0, 2, 2))
    assert world.answer(token) is None
    world.step("b", Forward("a", 0, Entry(2, Kind.UPDATE, 1, (Identity(0, 1, 1),)), 1))
    world.step("c", Forward("a", 1, Entry(2, Kind.UPDATE, 1, (Identity(0, 1, 1),)), 1))  # not its predecessor
    assert [len(world.history[b]) for b in "abc"] == [2, 1, 1]


def test_a_head_that_leaves_refuses_all_who_wait() -> None:
    world = chain("ab")
    token = world.push("a", gradient(0, 1))
    ready = world.step("a", Install(view(2, "b")))
    assert ready.stop
    assert world.refused(token) == "epoch"


def test_a_head_that_becomes_another_member_refuses_all_who_wait() -> None:
    world = chain("ab")
    token = world.push("a", gradient(0, 1))
    world.install(view(2, "ba"))
    assert world.refused(token) == "not-head"
    world.join_up()
    world.check()
    assert applied(world, "a") == [], "what b never had is given up"


def test_a_former_member_joins_as_if_empty() -> None:
    world = chain("ab")
    world.push("a", gradient(0, 1))  # b never gets it
    world.install(view(2, "b"), "ab")
    world.push("b", gradient(1, 1))
    world.install(view(3, "b", "a"))
    assert world.replicas["a"].last_seq == 0
    world.join_up()
    assert applied(world, "a") == [(1, 1)]


# --- identity ---------------------------------------------------------------------------------------------------------


def test_incarnation_fences_a_newer_incarnation_fences_the_older() -> None:
    world = chain("a")
    world.push("a", gradient(0, 1), incarnation=2)
    assert world.refused(world.push("a", gradient(0, 2), incarnation=1)) == "fenced"
    assert world.acknowledged(world.push("a", gradient(1, 1), incarnation=1)), "another slot's is its own"


def test_incarnation_fences_a_pull_fences_too_for_it_comes_before_anything_is_computed() -> None:
    world = chain("a")
    world.push("a", gradient(0, 1), incarnation=1)
    world.run()
    assert world.shown(world.pull("a", incarnation=2)) == 1
    assert world.refused(world.push("a", gradient(0, 2), incarnation=1)) == "fenced"
    assert world.refused(world.pull("a", incarnation=1)) == "fenced"
    assert world.acknowledged(world.push("a", gradient(1, 1), incarnation=1)), "another slot's is its own"
    assert world.shown(world.pull("a", slot=None)) == 2, "a reader that fills no slot is no process of one"


def test_incarnation_fences_the_fence_travels_with_the_state() -> None:
    world = chain("a")
    world.push("a", gradient(0, 1), incarnation=2)
    exported = json.loads(json.dumps(world.replicas["a"].export_state()))
    assert restored(exported).extra["incarnations"] == {"0": 2}


def test_history_async_takes_a_gradient_of_an_older_history_at_staleness_0() -> None:
    world = chain("a", policy="InverseStaleness")
    checkpoint = world.snapshot("a")
    world.install(view(2, "a", history=2, restore="ckpt"))
    world.load("a", *checkpoint)
    (entry,) = world.step("a", Push("t", 2, 1, gradient(0, 9, 500, history=1))).apply
    assert entry.parts[0].weight == 1.0
    assert status(world, "a").former_version == 500


def test_a_head_tells_what_its_shard_held_before_its_own_rollback_and_no_earlier_one() -> None:
    world = chain("a")
    checkpoint = world.snapshot("a")
    for history, step, version, told in ((2, 1, 90, 90), (2, 2, 70, 90), (3, 3, 40, 40)):
        if world.replicas["a"].view.history < history:  # type: ignore[union-attr]
            world.install(view(history, "a", history=history, restore="ckpt"))
            world.load("a", *checkpoint)
            assert status(world, "a").former_version == 0
        world.push("a", gradient(0, step, version, history=history - 1))
        assert status(world, "a").former_version == told


@pytest.mark.parametrize("kind", ["fenced", "pseudo-gradient", "synchronous"])
def test_what_a_gradient_tells_of_the_history_before_counts_whether_it_is_applied_or_not(kind: str) -> None:
    world = chain("a", **({"consistency": "Sync"} if kind == "synchronous" else {}))
    checkpoint = world.snapshot("a")
    world.install(view(2, "a", history=2, restore="ckpt"))
    world.load("a", *checkpoint)
    if kind == "fenced":  # its slot was given to another process while it was cut off together with its server
        world.pull("a", incarnation=2)
        assert world.refused(world.push("a", gradient(0, 9, 500, history=1), incarnation=1)) == "fenced"
    elif kind == "pseudo-gradient":
        delta = replace(gradient(0, 9, 500, history=1), kind=Kind.DELTA)
        assert world.acknowledged(world.push("a", delta))
    else:
        assert world.refused(world.push("a", gradient(0, 9, 500, history=1))) == "history"
    assert status(world, "a").former_version == 500


def test_ordered_n_the_data_plan_is_replicated_and_goes_on_where_no_slot_has_been() -> None:
    world = chain("ab")
    world.push("a", gradient(0, 1))
    world.push("a", gradient(1, 1))
    world.push("a", gradient(1, 2))
    world.step("a", SetSlots(3))
    world.run()
    plan = world.replicas["b"].data
    assert plan == world.replicas["a"].data
    assert (plan.step0, plan.slots, plan.batch(0, plan.step0)) == (3, 3, 4)


def test_ordered_n_init_fixes_the_number_of_slots() -> None:
    world = World("ab", ReplicaSettings(slots=2))
    world.install(view(1, "ab"))
    world.join_up()
    world.step("a", SetSlots(5))
    world.init("a")
    world.run()
    assert status(world, "b").slots == 5


# --- the end ----------------------------------------------------------------------------------------------------------


def test_updates_stop_at_the_goal_and_finished_waits_for_the_tail() -> None:
    world = chain("ab", stop_updates=2)
    tokens = [world.push("a", gradient(0, step)) for step in (1, 2, 3)]
    assert world.refused(tokens[2]) == "finished"
    assert not status(world, "a").finished
    world.run()
    assert status(world, "a").finished
    assert status(world, "b").finished
    assert all(map(world.acknowledged, tokens[:2]))


def test_member_objects_to_dial() -> None:
    world = chain("ab")
    world.start("c")
    world.install(view(2, "ab", "c"))
    a: Replica = world.replicas["a"]
    assert (a.successor, a.joiners) == (member("b"), ())
    assert (world.replicas["b"].successor, world.replicas["b"].joiners) == (None, (member("c"),))
    assert world.replicas["c"].upstream == "b"

"""The replica: a test named after an invariant (docs/explanation/invariants.md) is an interleaving that it forbids."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from replica_world import World, chain, gradient, member, view

from outlast.api.server_status import ServerStatus
from outlast.chain.events import (
    Acknowledged,
    Acks,
    Connected,
    Entry,
    Finish,
    Forward,
    FromLog,
    HigherEpoch,
    Identity,
    Install,
    Kind,
    Push,
    Replay,
    Restored,
    SendState,
    SetSlots,
)
from outlast.chain.replica import Replica, ReplicaSettings, restored
from outlast.chain.staleness import ReducedRate


def applied(world: World, boot: str) -> list[tuple[int, int]]:
    return [(i.slot, i.first) for i in world.replicas[boot].applied.identities()]


def status(world: World, boot: str) -> ServerStatus:
    return world.replicas[boot].status()


def crash(world: World, *boots: str) -> None:
    for boot in boots:
        for a, b in list(world.up):
            if boot in (a, b):
                world.cut(a, b)
        del world.replicas[boot], world.history[boot]


# --- the ordinary way -----------------------------------------------------------------------------------------------


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


# --- membership (1–4) -----------------------------------------------------------------------------------------------


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


# --- chain (5–9) ----------------------------------------------------------------------------------------------------


def test_duplicate_is_a_promise_a_duplicate_waits_for_its_original() -> None:
    world = chain("ab")
    first = world.push("a", gradient(0, 1))
    again = world.push("a", gradient(0, 1))
    assert world.answer(first) is None
    assert world.answer(again) is None
    world.run()
    answer = world.answer(again)
    assert isinstance(answer, Acknowledged)
    assert answer.duplicate
    assert status(world, "a").duplicates == 1


def test_duplicate_is_a_promise_a_new_head_forwards_what_its_successor_lacks_first() -> None:
    world = chain("abc")
    world.push("a", gradient(0, 1))
    world.deliver("a", "b")  # c has not got it
    crash(world, "a")
    world.install(view(2, "bc"))
    again = world.push("b", gradient(0, 1))
    assert world.answer(again) is None
    world.join_up()
    assert world.acknowledged(again)
    assert applied(world, "c") == [(0, 1)]


def test_duplicate_is_a_promise_an_old_duplicate_does_not_wait_for_a_newer_step() -> None:
    world = chain("ab")
    world.push("a", gradient(0, 1))
    world.run()
    world.push("a", gradient(1, 1))
    assert world.acknowledged(world.push("a", gradient(0, 1)))


def test_a_removed_middle_is_bridged_from_the_log() -> None:
    world = chain("abc")
    tokens = [world.push("a", gradient(0, step)) for step in (1, 2, 3)]
    world.deliver("a", "b")
    world.deliver("b", "c")
    crash(world, "b")
    world.install(view(2, "ac"))
    assert world.connect("a", "c")
    assert [m[1].entry.seq for m in world.flight["a", "c"]] == [3, 4]
    world.run()
    assert all(map(world.acknowledged, tokens))


def test_a_new_tail_acknowledges_all_it_has() -> None:
    world = chain("abc")
    token = world.push("a", gradient(0, 1))
    world.deliver("a", "b")
    crash(world, "c")
    world.install(view(2, "ab"))
    world.join_up()
    assert world.acknowledged(token), "b has it, and was asked although nothing is left to send"


def test_a_handshake_that_says_what_is_stable_needs_no_probe() -> None:
    world = chain("ab")
    token = world.push("a", gradient(0, 1))
    world.deliver("a", "b")
    world.cut("a", "b")  # the acknowledgement is lost
    ready = world.step("a", Connected("b", 1, 2, stable=2))
    assert ready.send == []
    assert world.acknowledged(token)


def test_an_acknowledgement_lost_with_a_link_is_said_again() -> None:
    world = chain("ab")
    token = world.push("a", gradient(0, 1))
    world.deliver("a", "b")
    world.cut("a", "b")
    world.join_up()
    assert world.acknowledged(token)


def test_only_the_next_entry_is_taken() -> None:
    world = chain("ab")
    gap = Entry(4, Kind.UPDATE, 3, (Identity(0, 3, 3),))
    assert world.step("b", Forward("a", 1, gap, 1)).apply == []


def test_sealed_joiner_a_joiner_gets_the_state_and_then_the_log() -> None:
    world = chain("ab")
    world.push("a", gradient(0, 1))
    world.run()
    world.start("c")
    world.install(view(2, "ab", "c"))
    assert world.connect("a", "b")
    assert world.connect("b", "c")
    world.push("a", gradient(1, 1))
    world.run()
    assert applied(world, "c") == [(0, 1), (1, 1)]
    assert status(world, "b").caught_up == ("c",)
    assert status(world, "a").caught_up == ()


def test_sealed_joiner_a_sealed_tail_vouches_for_nothing_that_the_joiner_lacks() -> None:
    world = chain("a")
    world.start("c")
    world.install(view(2, "a", "c"))
    world.join_up()
    assert status(world, "a").caught_up == ("c",)
    world.cut("a", "c")
    token = world.push("a", gradient(0, 1))
    assert world.answer(token) is None, "the operator may be recording c as the tail"
    crash(world, "a")
    world.install(view(3, "c"))
    world.check()


def test_sealed_joiner_a_view_takes_a_sealed_joiner_in_or_drops_it() -> None:
    for members in ("ac", "a"):
        world = chain("a")
        world.start("c")
        world.install(view(2, "a", "c"))
        world.join_up()
        world.cut("a", "c")
        token = world.push("a", gradient(0, 1))
        world.install(view(3, members))
        world.join_up()
        assert world.acknowledged(token)
        assert applied(world, "c") == ([(0, 1)] if members == "ac" else [])


def test_sealed_joiner_a_joiner_far_behind_holds_up_nobody() -> None:
    world = chain("a")
    world.start("c")
    world.install(view(2, "a", "c"))
    world.connect("a", "c")
    assert world.acknowledged(world.push("a", gradient(0, 1)))
    assert status(world, "a").caught_up == ()


def test_sealed_joiner_a_joiner_that_keeps_pace_is_sealed_under_load() -> None:
    world = chain("a")
    world.start("c")
    world.install(view(2, "a", "c"))
    world.connect("a", "c")
    world.deliver("a", "c")
    for step in range(1, 20):  # the joiner is always an entry behind
        world.push("a", gradient(0, step))
        world.push("a", gradient(1, step))
        for _ in range(2):
            world.deliver("a", "c")
            world.deliver("c", "a")
    assert status(world, "a").caught_up == ("c",)


def test_sealed_joiner_a_reconnected_joiner_gets_the_state_when_the_log_no_longer_reaches_back() -> None:
    world = chain("a")
    world.start("c")
    world.install(view(2, "a", "c"))
    world.connect("a", "c")
    world.deliver("a", "c")
    world.cut("a", "c")  # it holds seq 1, but was never sealed
    for step in range(1, 4):
        assert world.acknowledged(world.push("a", gradient(0, step)))
    ready = world.step("a", Connected("c", 2, 1))
    assert ready.send == [SendState("c")]


def test_entry_holds_decisions_replicas_decide_nothing() -> None:
    world = World("b", ReplicaSettings(slots=2, stop_updates=1, policy="Mean", rate_at=lambda version: 0.0))
    world.install(view(1, "ab"), "b")
    world.step("b", Forward("a", 1, Entry(1, Kind.INIT, 0), 0))
    for seq in (2, 3):
        sent = Entry(seq, Kind.UPDATE, seq - 1, (Identity(0, seq, seq),), rate=0.7, payload="final")
        (entry,) = world.step("b", Forward("a", 1, sent, 0)).apply
        assert (entry.rate, entry.payload, entry.version) == (0.7, "final", seq - 1)


def test_ack_tail_is_refused_with_batches() -> None:
    with pytest.raises(ValueError, match="replicateEveryUpdates 4"):
        ReplicaSettings(replicate_every=4, ack="Tail")


def test_batches_are_states_and_the_updates_between_are_acknowledged_at_the_head() -> None:
    world = chain("abc", replicate_every=3, ack="Successor")
    tokens = [world.push("a", gradient(0, step)) for step in (1, 2, 3)]
    assert [world.acknowledged(t) for t in tokens] == [True, True, False]
    later = world.push("a", gradient(1, 1))
    assert world.answer(later) is None, "a batch that is not confirmed holds up what follows"
    world.deliver("a", "b")
    world.deliver("b", "a")
    assert world.acknowledged(tokens[2])
    assert world.acknowledged(later)
    world.run()
    assert [len(applied(world, b)) for b in "abc"] == [2, 1, 1], "c got it from b"
    world.check()


def test_what_was_not_replicated_is_lost_with_the_head_and_can_be_sent_again() -> None:
    world = chain("ab", replicate_every=3, ack="Head")
    for step in range(1, 6):
        assert world.acknowledged(world.push("a", gradient(0, step)))
    world.run()
    crash(world, "a")
    world.install(view(2, "b"))
    assert status(world, "b").version == 3
    assert world.acknowledged(world.push("b", gradient(0, 6, version=5)))
    assert status(world, "b").applied == 4


def test_the_end_of_the_job_is_replicated() -> None:
    world = chain("ab", replicate_every=100, ack="Head")
    world.push("a", gradient(0, 1))
    world.step("a", Finish())
    assert not status(world, "a").finished
    world.run()
    assert status(world, "a").finished
    assert status(world, "b").version == 1


@pytest.mark.parametrize(
    ("ack", "after_head", "after_successor"), [("Head", True, True), ("Successor", False, True), ("Tail", False, False)]
)
def test_relaxed_acknowledgements(ack: str, after_head: bool, after_successor: bool) -> None:
    world = chain("abc", ack=ack)
    token = world.push("a", gradient(0, 1))
    assert world.acknowledged(token) == after_head
    world.deliver("a", "b")
    world.deliver("b", "a")
    assert world.acknowledged(token) == after_successor
    world.run()
    assert world.acknowledged(token)


def test_relaxed_acknowledgements_do_not_run_far_ahead_of_the_tail() -> None:
    world = chain("ab", ack="Head", window=3)
    tokens = [world.push("a", gradient(0, step)) for step in range(1, 6)]
    assert [world.acknowledged(t) for t in tokens] == [True, True, True, False, False]
    world.run()
    assert all(map(world.acknowledged, tokens))


# --- Sync (10–12) ---------------------------------------------------------------------------------------------------


def sync(boots: str = "ab", **settings: Any) -> World:
    return chain(boots, consistency="Sync", **settings)


def test_slot_order_the_barrier_is_n_slots_in_slot_order() -> None:
    world = sync()
    second = world.push("a", gradient(1, 1))
    assert len(world.history["a"]) == 1
    ready = world.step("a", Push("first", 1, 1, gradient(0, 1)))
    (entry,) = ready.apply
    assert [(p.identity.slot, p.weight) for p in entry.parts] == [(0, 0.5), (1, 0.5)]
    assert entry.version == 1
    assert world.answer(second) is None
    world.run()
    assert [world.answer(t).version for t in (second, "first")] == [1, 1]  # type: ignore[union-attr]


def test_slots_not_pods_a_newer_process_of_a_slot_replaces_the_older_ones_contribution() -> None:
    world = sync()
    old = world.push("a", gradient(0, 1), incarnation=1)
    new = world.push("a", gradient(0, 1), incarnation=2)
    assert world.refused(old) == "fenced"
    world.push("a", gradient(1, 1))
    world.run()
    assert world.acknowledged(new)
    assert status(world, "a").applied_total == 2


def test_slots_not_pods_the_same_process_may_ask_twice() -> None:
    world = sync()
    tokens = [world.push("a", gradient(0, 1)) for _ in range(2)]
    world.push("a", gradient(1, 1))
    world.run()
    assert all(map(world.acknowledged, tokens))


@pytest.mark.parametrize(
    ("contribution", "reason"),
    [
        pytest.param(gradient(0, 2), "step", id="a step ahead"),
        pytest.param(gradient(0, 1, history=0), "history", id="of another history"),
        pytest.param(gradient(0, 1, last=3), "step", id="an interval"),
        pytest.param(gradient(0, 1, kind=Kind.DELTA), "step", id="a pseudo-gradient"),
        pytest.param(gradient(2, 1), "step", id="no such slot"),
    ],
)
def test_slots_not_pods_the_barrier_refuses(contribution: Any, reason: str) -> None:
    world = sync()
    assert world.refused(world.push("a", contribution)) == reason


def test_slots_not_pods_a_round_in_the_chain_is_a_duplicate_at_the_new_head() -> None:
    world = sync("abc")
    world.push("a", gradient(0, 1))
    world.push("a", gradient(1, 1))
    world.deliver("a", "b")
    crash(world, "a")
    world.install(view(2, "bc"))
    again = world.push("b", gradient(0, 1))
    assert world.answer(again) is None
    world.join_up()
    answer = world.answer(again)
    assert isinstance(answer, Acknowledged)
    assert (answer.duplicate, answer.version) == (True, 1)


def test_ordered_n_changes_by_an_entry_and_the_open_round_starts_anew() -> None:
    world = sync()
    open_round = world.push("a", gradient(0, 1))
    world.step("a", SetSlots(3))
    assert world.refused(open_round) == "step"
    world.run()
    assert [status(world, b).slots for b in "ab"] == [3, 3]
    for slot in range(3):
        world.push("a", gradient(slot, 1))
    world.run()
    assert [status(world, b).version for b in "ab"] == [1, 1]


def test_one_version_pulls_name_an_exact_version() -> None:
    world = sync()
    for step in (1, 2):
        for slot in (0, 1):
            world.push("a", gradient(slot, step))
        world.run()
    assert world.shown(world.pull("a", version=2)) == 2
    assert world.shown(world.pull("a", version=1)) == 1, "other shards may not have got there"
    assert [world.refused(world.pull("a", version=v)) for v in (0, 3)] == ["version", "version"]


def test_one_version_a_rollback_refuses_all_who_wait_and_takes_every_member_back() -> None:
    world = sync()
    checkpoint = world.snapshot("b")
    for slot in (0, 1):
        world.push("a", gradient(slot, 1))
    world.run()
    waiting = world.push("a", gradient(0, 2))
    world.install(view(2, "ab", history=2, restore="ckpt"))
    assert world.refused(waiting) == "history"
    assert world.refused(world.push("a", gradient(0, 2))) == "stopped"
    for boot in "ab":
        world.load(boot, *checkpoint)
    world.join_up()
    assert world.refused(world.push("a", gradient(0, 1, history=1))) == "history"
    tokens = [world.push("a", gradient(slot, 1, history=2)) for slot in (0, 1)]
    world.run()
    assert all(map(world.acknowledged, tokens))
    assert status(world, "b").history == 2


def test_shown_is_safe_a_pull_waits_for_the_tail() -> None:
    world = sync()
    for slot in (0, 1):
        world.push("a", gradient(slot, 1))
    newest, exact, before = world.pull("a"), world.pull("a", version=1), world.pull("a", version=0)
    assert world.answer(newest) is None
    assert world.answer(exact) is None
    assert world.shown(before) == 0
    world.run()
    assert world.shown(newest) == world.shown(exact) == 1


def test_shown_is_safe_async_pulls_need_not_wait() -> None:
    world = chain("ab")
    world.push("a", gradient(0, 1))
    assert world.shown(world.pull("a")) == 1


def test_shown_is_safe_a_reader_at_a_member_waits_for_the_tail_as_well() -> None:
    world = sync()
    for slot in (0, 1):
        world.push("a", gradient(slot, 1))
    world.deliver("a", "b")
    assert world.shown(world.pull("b", slot=None)) == 1
    assert world.refused(world.pull("b", slot=0)) == "not-head"


# --- identity (13–15) -----------------------------------------------------------------------------------------------


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


# --- the buffer (16–21) ---------------------------------------------------------------------------------------------


def log(*contributions: Any, start: int = 1) -> tuple[tuple[int, int, Any], ...]:
    return tuple((start + i, 1, c) for i, c in enumerate(contributions))


def test_a_backlog_is_grouped_into_one_update() -> None:
    world = chain("a", strategy="Hybrid", policy="Mean", group_max=3)
    ready = world.step("a", from_log(log(*(gradient(0, s) for s in range(1, 6)))))
    assert [len(e.parts) for e in ready.apply] == [3, 2]
    assert [e.version for e in ready.apply] == [3, 5]
    assert [e.offset for e in ready.apply] == [3, 5]
    assert ready.trim == 5


def from_log(items: Any, epoch: int = 1, pending: int = 0) -> FromLog:
    return FromLog(epoch, items, pending)


def test_a_pseudo_gradient_in_the_log_stands_alone() -> None:
    world = chain("a", strategy="Hybrid")
    delta = gradient(1, 1, last=4, kind=Kind.DELTA)
    ready = world.step("a", from_log(log(gradient(0, 1), delta, gradient(0, 2), gradient(0, 3))))
    assert [(e.kind, len(e.parts)) for e in ready.apply] == [("update", 1), ("delta", 1), ("update", 2)]


@pytest.mark.parametrize(("pending", "rate"), [(0, 1.0), (51, 0.1)], ids=["few", "more than above"])
def test_the_reduced_rate_counts_what_is_pending(pending: int, rate: float) -> None:
    world = chain("a", strategy="Hybrid", policy="Sum", reduced_rate=ReducedRate(50, 0.001), base_lr=0.01)
    ready = world.step("a", from_log(log(gradient(0, 1), gradient(0, 2)), pending=pending))
    assert ready.apply[0].rate == pytest.approx(rate)


def test_record_before_publish_a_replay_obeys_the_record() -> None:
    def stateless() -> World:
        return chain("a", slots=1, strategy="Stateless", policy="InverseStaleness")

    world = stateless()
    items = log(gradient(0, 1), gradient(0, 1), gradient(0, 2), gradient(0, 3), gradient(0, 4))
    first = world.step("a", from_log(items))
    world.step("a", from_log(log(gradient(0, 5), start=6)))
    (record,) = first.records
    assert record.parts == ((1, 1.0), (3, 1.0), (4, 1.0), (5, 3 / 4)), "as stale as a pull ahead makes it, and one more"
    assert (record.skipped, record.last_offset) == ((2,), 5)
    again = stateless()
    (entry,) = again.step("a", Replay(record, items)).apply
    (before,) = first.apply
    assert (entry.seq, entry.version, entry.rate, entry.parts) == (
        before.seq,
        before.version,
        before.rate,
        before.parts,
    )
    assert again.step("a", Replay(record, items)).apply == [], "once"
    with pytest.raises(ValueError, match="trimmed"):
        stateless().step("a", Replay(record, items[:1]))


def test_record_before_publish_without_reproducible_copies_nothing_is_compensated() -> None:
    world = chain("a", slots=1, strategy="Stateless", policy="DelayCompensation")
    (entry,) = world.step("a", from_log(log(*(gradient(0, step) for step in range(1, 5))))).apply
    assert [(p.weight, p.compensate_from) for p in entry.parts] == [(1.0, None)] * 3 + [(3 / 4, None)]


def test_record_before_publish_a_refused_record_taints_the_state() -> None:
    world = chain("a", strategy="Stateless")
    world.step("a", from_log(log(gradient(0, 1))))  # Redis: fenced. The shell drops the rest and says so.
    world.step("a", HigherEpoch(2))
    ready = world.step("a", Install(view(2, "a")))
    assert ready.restore == "buffer"
    assert not world.replicas["a"].initialised


@pytest.mark.parametrize("fenced", [False, True])
def test_a_rollback_to_the_initial_weights_takes_a_survivor_along(fenced: bool) -> None:
    """What Redis has is of the history that was given up: no shard may go on with it while another one begins anew."""
    world = chain("a", strategy="Stateless")
    world.step("a", from_log(log(gradient(0, 1))))
    if fenced:
        world.step("a", HigherEpoch(2))
    ready = world.step("a", Install(view(2, "a", history=2)))
    assert ready.restore == "empty"
    assert (world.replicas["a"].initialised, world.replicas["a"].restoring) == (False, None)
    assert world.refused(world.push("a", gradient(0, 1))) == "empty"


def test_table_not_offset_the_log_is_skipped_by_the_table_and_never_by_offset() -> None:
    world = chain("a", strategy="Hybrid")
    world.step("a", from_log(log(gradient(0, 1), start=100)))
    ready = world.step("a", from_log(log(gradient(0, 1), gradient(0, 2))))  # another run of Redis: offsets start again
    assert [e.identities for e in ready.apply] == [(Identity(0, 2, 2),)]
    assert status(world, "a").duplicates == 1


def test_at_the_end_what_is_left_in_the_log_stays_there() -> None:
    world = chain("a", strategy="Hybrid", stop_updates=3)
    ready = world.step("a", from_log(log(*(gradient(0, s) for s in range(1, 9)))))
    assert [e.version for e in ready.apply] == [3]
    assert (ready.trim, world.replicas["a"].offset) == (3, 3)
    assert world.step("a", from_log(log(gradient(0, 9)))).apply == []
    assert world.refused(world.push("a", gradient(1, 1))) == "finished"
    assert world.acknowledged(world.push("a", gradient(0, 3))), "what was applied is still acknowledged"


def test_leave_when_safe_an_entry_leaves_redis_when_its_update_is_stable() -> None:
    world = chain("ab", strategy="Hybrid")
    ready = world.step("a", from_log(log(gradient(0, 1))))
    assert ready.trim is None
    world.deliver("a", "b")
    _, acks = world.flight["b", "a"].popleft()
    assert world.step("a", Acks("b", 1, acks.received, acks.stable)).trim == 1


def test_leave_when_safe_a_skipped_duplicate_leaves_redis_when_its_original_is_stable() -> None:
    world = chain("ab", strategy="Hybrid")
    world.push("a", gradient(0, 1))
    ready = world.step("a", from_log(log(gradient(0, 1))))
    assert (ready.apply, ready.trim) == ([], None)
    assert world.step("a", Acks("b", 1, 2, 2)).trim == 1


def test_stateless_takes_no_direct_gradient() -> None:
    world = chain("a", strategy="Stateless")
    token = world.push("a", gradient(0, 1))
    assert world.refused(token) == "not-head"
    assert "buffer" in world.answer(token).detail  # type: ignore[union-attr]


def test_stateless_with_nothing_in_redis_waits_for_initial_weights() -> None:
    world = World("a", ReplicaSettings(strategy="Stateless"))
    world.install(view(1, "a", restore="buffer"))
    assert world.refused(world.push("a", gradient(0, 1))) == "stopped"
    data = world.replicas["a"].data
    world.step("a", Restored(0, 0, 0, {}, data, source="ckpt-h0000-v00000001"))  # of a view that this one followed
    assert world.refused(world.push("a", gradient(0, 1))) == "stopped"
    world.step("a", Restored(0, 0, 0, {}, data, source="buffer"))
    assert world.refused(world.push("a", gradient(0, 1))) == "empty"


# --- SSP (24) -------------------------------------------------------------------------------------------------------


def test_the_fast_wait_for_the_slowest_recorded_slot() -> None:
    world = chain("ab", consistency="BoundedStaleness", max_staleness=2)
    tokens = []
    for step in range(1, 5):
        tokens.append(world.push("a", gradient(0, step)))
        world.run()
    assert [world.acknowledged(t) for t in tokens] == [True, True, False, False]
    world.push("a", gradient(1, 1))
    world.run()
    assert [world.acknowledged(t) for t in tokens] == [True, True, True, False]
    world.step("a", Finish())
    assert world.acknowledged(tokens[3]), "at the end nobody is waited for"


def test_a_reassigned_slot_keeps_its_clock_and_a_new_one_starts_at_the_change() -> None:
    world = chain("a", consistency="BoundedStaleness", max_staleness=2)
    for step in range(1, 6):
        world.push("a", gradient(1, step), incarnation=1)
        world.push("a", gradient(0, step))
    world.step("a", SetSlots(3))
    assert status(world, "a").clocks == {0: 5, 1: 5, 2: 5}
    assert world.acknowledged(world.push("a", gradient(1, 6), incarnation=2))


def test_stateless_holds_back_pulls() -> None:
    world = chain("a", strategy="Stateless", consistency="BoundedStaleness", max_staleness=2)
    world.step("a", from_log(log(*(gradient(0, s) for s in (1, 2, 3)))))
    fast, slow, reader = world.pull("a", slot=0), world.pull("a", slot=1), world.pull("a", slot=None)
    assert [world.shown(t) for t in (fast, slow, reader)] == [None, 3, 3]
    world.step("a", from_log(log(gradient(1, 1), start=4)))
    assert world.shown(fast) == 4


# --- restoring ------------------------------------------------------------------------------------------------------


def test_an_empty_member_loads_what_the_view_names_and_serves_then() -> None:
    source = chain("a")
    source.push("a", gradient(0, 1))
    world = World("b")
    ready = world.step("b", Install(view(7, "b", history=3, restore="ckpt-1")))
    assert ready.restore == "ckpt-1"
    assert not status(world, "b").serving
    world.load("b", *source.snapshot("a"))
    assert status(world, "b").serving
    assert (status(world, "b").version, status(world, "b").history) == (1, 3)


def test_a_member_that_holds_the_history_keeps_it() -> None:
    world = chain("ab")
    world.push("a", gradient(0, 1))
    world.run()
    for boot in "ab":
        ready = world.step(boot, Install(view(2, "ab", restore="ckpt-1")))
        assert ready.restore is None


def test_a_member_goes_on_loading_when_the_next_view_names_nothing() -> None:
    """Else an interrupted restore would be taken for a job without weights, and start it anew."""
    world = World("b")
    world.step("b", Install(view(2, "b", restore="ckpt-1")))
    world.step("b", Install(view(3, "b")))
    assert world.refused(world.init("b")) == "stopped"


def test_a_restore_ends_with_the_history_that_it_was_for() -> None:
    """Nothing could be restored, and the job begins with the initial weights anew."""
    world = World("b")
    world.step("b", Install(view(2, "b", restore="ckpt-1")))
    world.step("b", Install(view(3, "b", history=2)))
    assert world.replicas["b"].restoring is None
    world.init("b")
    assert world.replicas["b"].initialised


def test_an_overtaken_restore_is_not_believed() -> None:
    source = chain("a")
    world = World("b")
    world.step("b", Install(view(2, "b", history=2, restore="ckpt-9")))
    world.step("b", Install(view(3, "b", history=3, restore="ckpt-5")))
    late = restored(source.replicas["a"].export_state(), source="ckpt-9")
    assert not world.replicas["b"].takes(late)
    world.step("b", late)
    assert not world.replicas["b"].initialised


def test_a_state_of_another_epoch_is_not_taken() -> None:
    world = chain("ab")
    old = restored(world.replicas["a"].export_state(), epoch=1)
    world.install(view(2, "ab"))
    assert not world.replicas["b"].takes(old)


def test_members_that_restore_themselves_are_sent_no_state() -> None:
    source = chain("a")
    world = World("bc")
    world.install(view(2, "bc", history=2, restore="ckpt"))
    world.load("b", *source.snapshot("a"))
    world.connect("b", "c")
    token = world.push("b", gradient(0, 1))
    assert not world.flight["b", "c"]
    world.load("c", *source.snapshot("a"))
    world.run()
    assert world.acknowledged(token)
    world.check()


def test_two_joiners_taken_in_at_once_agree_in_the_end() -> None:
    world = chain("a")
    world.start("c")
    world.start("d")
    world.install(view(2, "a", "cd"))
    world.connect("a", "c")
    world.connect("a", "d")
    world.run()
    world.push("a", gradient(0, 1))
    world.deliver("a", "d")  # d has it, c has not
    crash(world, "a")
    world.install(view(3, "cd"))
    token = world.push("c", gradient(1, 1))
    world.join_up()
    assert world.acknowledged(token)
    assert applied(world, "d") == applied(world, "c") == [(1, 1)]
    world.check()


def test_a_suspect_keeps_its_state_until_its_predecessors_is_there() -> None:
    """c and d joined side by side; the view that puts d below c is late, and the next one needs d."""
    world = chain("a")
    world.start("c")
    world.start("d")
    world.install(view(2, "a", "cd"))
    world.join_up()
    token = world.push("a", gradient(0, 1))
    world.run()
    assert world.acknowledged(token)
    world.promise("a", Identity(0, 1, 1))
    crash(world, "a")
    world.record(view(3, "cd"))
    world.step("d", Install(view(3, "cd")))
    assert (world.replicas["d"].last_seq, world.replicas["d"].export_state()["seq"]) == (0, 2)
    crash(world, "c")
    world.install(view(4, "d"))
    world.check()
    assert status(world, "d").serving
    assert applied(world, "d") == [(0, 1)]


def test_a_suspect_tail_vouches_for_nothing() -> None:
    world = chain("abc")
    world.push("a", gradient(0, 1))  # nobody else has it
    world.install(view(2, "bca"))
    token = world.push("b", gradient(1, 1))
    world.connect("b", "c")
    world.run()
    assert world.answer(token) is None
    world.join_up()
    assert world.acknowledged(token)
    assert applied(world, "a") == [(1, 1)]


# --- the end --------------------------------------------------------------------------------------------------------


def test_updates_stop_at_the_goal_and_finished_waits_for_the_tail() -> None:
    world = chain("ab", stop_updates=2)
    tokens = [world.push("a", gradient(0, step)) for step in (1, 2, 3)]
    assert world.refused(tokens[2]) == "finished"
    assert not status(world, "a").finished
    world.run()
    assert status(world, "a").finished
    assert status(world, "b").finished
    assert all(map(world.acknowledged, tokens[:2]))


def test_a_sync_round_that_is_open_at_the_end_is_refused() -> None:
    world = sync("a")
    token = world.push("a", gradient(0, 1))
    world.step("a", Finish())
    assert world.refused(token) == "finished"


def test_member_objects_to_dial() -> None:
    world = chain("ab")
    world.start("c")
    world.install(view(2, "ab", "c"))
    a: Replica = world.replicas["a"]
    assert (a.successor, a.joiners) == (member("b"), ())
    assert (world.replicas["b"].successor, world.replicas["b"].joiners) == (None, (member("c"),))
    assert world.replicas["c"].upstream == "b"

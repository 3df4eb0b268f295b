"""Replicas in a chain: what a successor takes, who vouches for what, and how a member gets the state."""

from __future__ import annotations

import pytest
from replica_world import World, applied, chain, crash, gradient, status, view

from outlast.chain.events import Acknowledged, Connected, Entry, Finish, Forward, Identity, Install, Kind, SendState
from outlast.chain.replica import ReplicaSettings, restored

# --- chain ------------------------------------------------------------------------------------------------------------


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


# --- restoring --------------------------------------------------------------------------------------------------------


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

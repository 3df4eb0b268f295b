"""Who waits for whom: the barrier of Sync, the bound of SSP, and what a pull is shown."""

from __future__ import annotations

from typing import Any

import pytest
from replica_world import World, chain, crash, gradient, status, view

from outlast.chain.events import Acknowledged, Finish, Kind, Push, SetSlots

# --- Sync -------------------------------------------------------------------------------------------------------------


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


def test_a_sync_round_that_is_open_at_the_end_is_refused() -> None:
    world = sync("a")
    token = world.push("a", gradient(0, 1))
    world.step("a", Finish())
    assert world.refused(token) == "finished"


# --- SSP --------------------------------------------------------------------------------------------------------------


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

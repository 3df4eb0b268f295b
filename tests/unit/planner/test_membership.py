"""The next view: tables over small views, and what holds for every one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlast.api.server_status import CheckpointRef
from outlast.api.view import Member, View
from outlast_operator.planner.membership import fresh_view, next_view, worst_linked
from outlast_operator.planner.rollback import newest_checkpoint


def m(boot: str) -> Member:
    return Member(f"server-{boot[0]}", boot, f"unix:/{boot[0]}")


def view(members: str, joining: str = "", epoch: int = 4, restore: str | None = None) -> View:
    """view("abc", "d"): chain a, b, c with d joining."""
    return View(0, epoch, 2, tuple(map(m, members)), tuple(map(m, joining)), restore)


def boots(v: View | None) -> str | None:
    if v is None:
        return None
    text = "".join(x.boot for x in v.members)
    return text + ("+" + "".join(x.boot for x in v.joining) if v.joining else "")


@pytest.mark.parametrize(
    ("members", "joining", "given", "expected"),
    [
        pytest.param("abc", "", {"lost": "a"}, "bc", id="head lost: its successor leads"),
        pytest.param("abc", "", {"lost": "b"}, "ac", id="middle lost"),
        pytest.param("abc", "", {"lost": "c"}, "ab", id="tail lost"),
        pytest.param("abc", "", {"lost": "ac"}, "b", id="one is left"),
        pytest.param("abc", "", {"lost": "abc"}, None, id="nobody is left: not decided here"),
        pytest.param("a", "b", {"lost": "a"}, None, id="who only joins holds nothing for sure"),
        pytest.param("a", "b", {"lost": "a", "caught_up": "b"}, None, id="not even caught up, unless recorded"),
        pytest.param("ab", "", {"fresh": "c"}, "ab+c", id="a fresh one joins"),
        pytest.param("ab", "c", {"fresh": "d"}, "ab+c", id="no more than replicas"),
        pytest.param("ab", "c", {"caught_up": "c"}, "abc", id="who caught up becomes tail"),
        pytest.param("ab", "cd", {"caught_up": "d", "replicas": 4}, "abd+c", id="in the order of catching up"),
        pytest.param("ab", "c", {"lost": "c"}, "ab", id="a joining one is lost"),
        pytest.param("ab", "c", {"lost": "b", "caught_up": ""}, "a+c", id="tail lost, the joining one stays joining"),
        pytest.param("abc", "", {"leaving": "a"}, "bc", id="the head hands over"),
        pytest.param("abc", "", {"leaving": "abc"}, "a", id="all leave: the head stays until another joins"),
        pytest.param("ab", "c", {"leaving": "ab"}, "ab+c", id="all leave: wait for the joining one"),
        pytest.param("ab", "c", {"leaving": "ab", "caught_up": "c"}, "abc", id="all leave: it is taken in first"),
        pytest.param("abc", "", {"leaving": "c"}, "ab", id="then they go"),
        pytest.param("ab", "c", {"leaving": "c"}, "ab", id="a joining one leaves"),
        pytest.param("a", "", {"leaving": "a", "fresh": "c", "replicas": 1}, "a+c", id="the only one leaves"),
        pytest.param("a", "", {"fresh": "c", "replicas": 1}, "a", id="the only one stays: nobody joins"),
        pytest.param("a", "c", {"leaving": "a", "replicas": 1}, "a+c", id="the only one serves until the other has it"),
        pytest.param("a", "c", {"leaving": "a", "caught_up": "c", "replicas": 1}, "ac", id="the other one has it"),
        pytest.param("ac", "", {"leaving": "a", "replicas": 1}, "c", id="the only one goes"),
        pytest.param("a", "c", {"lost": "a", "leaving": "a", "replicas": 1}, None, id="the only one went too early"),
        pytest.param("ab", "", {"fresh": "a2"}, "ab", id="a second process under a member's name is no candidate"),
    ],
)
def test_next_view(members: str, joining: str, given: dict[str, Any], expected: str | None) -> None:
    before = view(members, joining)
    options = {"replicas": 3, **given}
    options["fresh"] = [Member(f"server-{b}", b + "2", "") for b in options.get("fresh", "") if b.isalpha()]
    after = next_view(before, **options)
    assert boots(after) == (expected.replace("+c", "+c2") if expected and "c" not in joining else expected)
    if after is not None and after is not before:
        assert (after.epoch, after.history) == (5, 2)


def test_nothing_changes_nothing_is_new() -> None:
    before = view("abc")
    assert next_view(before, replicas=3) is before


def test_an_epoch_seen_elsewhere_is_overtaken() -> None:
    after = next_view(view("abc"), replicas=3, epoch=9)
    assert after is not None
    assert (after.epoch, boots(after)) == (10, "abc")


@pytest.mark.parametrize(("restored", "restore"), [(True, None), (False, "checkpoint-7")])
def test_restore_is_named_until_all_have_restored(restored: bool, restore: str | None) -> None:
    after = next_view(view("abc", restore="checkpoint-7"), lost="a", replicas=3, restored=restored)
    assert after is not None
    assert after.restore == restore


letters = st.sets(st.sampled_from("abcdef"))


@given(st.permutations("abcd"), st.integers(1, 4), letters, letters, letters, st.sets(st.sampled_from("xyz")))
def test_every_next_view_keeps_order_and_appends_only_who_caught_up(
    order: list[str], size: int, lost: set[str], leaving: set[str], caught_up: set[str], fresh: set[str]
) -> None:
    before = view("".join(order[:size]), "".join(order[size:]))
    after = next_view(
        before, lost=lost, leaving=leaving, caught_up=caught_up, fresh=[m(f) for f in sorted(fresh)], replicas=4
    )
    if after is None:
        assert set(order[:size]) <= lost
        return
    members = [x.boot for x in after.members]
    kept = [b for b in members if b in order[:size]]
    assert kept, "somebody is kept"
    assert kept == [b for b in order[:size] if b in kept], "in their order"
    assert members[: len(kept)] == kept, "others are appended"
    assert set(members[len(kept) :]) <= caught_up & set(order[size:])
    assert not (set(members) | {j.boot for j in after.joining}) & lost
    assert len({x.name for x in (*after.members, *after.joining)}) == len(after.members) + len(after.joining)
    assert sum(b not in leaving for b in members) + len(after.joining) <= 4
    assert (after is before) == (after == before)
    assert after.epoch == before.epoch + (after is not before)


@pytest.mark.parametrize(
    ("broken", "worst"),
    [
        pytest.param([], None, id="no link is broken"),
        pytest.param([("a", "b")], "b", id="of two, the later one"),
        pytest.param([("a", "b"), ("b", "c")], "b", id="the one in the middle of two broken links"),
        pytest.param([("a", "d")], "d", id="a joining one before a member"),
        pytest.param([("x", "y")], None, id="strangers"),
    ],
)
def test_worst_linked(broken: list[tuple[str, str]], worst: str | None) -> None:
    assert worst_linked(view("abc", "d"), broken) == worst


def test_a_view_needs_a_member() -> None:
    with pytest.raises(AssertionError):
        fresh_view(0, 1, 0, [], [], None)


def refs(*names: str) -> list[CheckpointRef]:
    """ "1-20" is version 20 of history 1."""
    return [CheckpointRef(n, int(n.split("-")[0]), int(n.split("-")[1])) for n in names]


@pytest.mark.parametrize(
    ("available", "rejected", "chosen"),
    [
        pytest.param([refs("0-10", "0-20")], (), "0-20", id="the newest"),
        pytest.param([refs("0-90", "1-20")], (), "1-20", id="history before version"),
        pytest.param([refs("0-10", "0-20"), refs("0-10")], (), "0-10", id="one that all shards can read"),
        pytest.param([refs("0-10", "0-20")], ("0-20",), "0-10", id="not one that failed"),
        pytest.param([refs("0-10"), refs("0-20")], (), None, id="none in common"),
        pytest.param([], (), None, id="none at all"),
    ],
)
def test_newest_checkpoint(available: list[list[CheckpointRef]], rejected: tuple[str, ...], chosen: str | None) -> None:
    found = newest_checkpoint(available, rejected)
    assert (None if found is None else found.name) == chosen

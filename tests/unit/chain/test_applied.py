"""The table of applied steps: intervals against a plain set of (slot, step)."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlast.chain.applied import Applied
from outlast.chain.events import Identity

IDENTITIES = st.builds(
    lambda slot, first, more: Identity(slot, first, first + more),
    st.integers(0, 2),
    st.integers(1, 30),
    st.integers(0, 5),
)
Steps = set[tuple[int, int]]


def steps(identity: Identity) -> Steps:
    return {(identity.slot, s) for s in range(identity.first, identity.last + 1)}


def fill(identities: list[Identity]) -> tuple[Applied, Steps]:
    table, model = Applied(), set[tuple[int, int]]()
    for identity in identities:
        new = not steps(identity) & model
        assert table.held(identity) == len(steps(identity) & model)
        assert table.add(identity) == new
        if new:
            model |= steps(identity)
    return table, model


def held(table: Applied) -> Steps:
    return {step for identity in table.identities() for step in steps(identity)}


@given(st.lists(IDENTITIES, max_size=40), IDENTITIES)
def test_table_is_a_set_of_steps(identities: list[Identity], other: Identity) -> None:
    table, model = fill(identities)
    assert held(table) == model
    assert table.count == len(model)
    assert table.overlaps(other) == bool(steps(other) & model)
    assert table.contains(other) == (steps(other) <= model)
    assert table.highest(other.slot) == max((s for slot, s in model if slot == other.slot), default=0)


@given(st.lists(IDENTITIES, max_size=40))
def test_intervals_are_disjoint_and_not_adjacent(identities: list[Identity]) -> None:
    table, _ = fill(identities)
    for slot in table.slots:
        spans = table.intervals(slot)
        assert all(a[1] + 1 < b[0] for a, b in pairwise(spans)), spans


@given(st.lists(IDENTITIES, max_size=30), st.lists(IDENTITIES, max_size=30))
def test_set_operations(left: list[Identity], right: list[Identity]) -> None:
    (a, model_a), (b, model_b) = fill(left), fill(right)
    assert held(a.difference(b)) == model_a - model_b
    assert held(a.intersection(b)) == model_a & model_b
    assert held(a.union(b)) == model_a | model_b
    assert held(a) == model_a, "operands are left alone"


@given(st.lists(IDENTITIES, max_size=30))
def test_json_round_trip(identities: list[Identity]) -> None:
    table, _ = fill(identities)
    again = Applied.from_json(json.loads(json.dumps(table.to_json())))
    assert again == table
    assert again.count == table.count


def test_steps_in_order_are_one_interval() -> None:
    table = Applied()
    for step in range(1, 1001):
        assert table.add(Identity(3, step, step))
    assert table.to_json() == {"3": [1, 1000]}


def test_a_partial_overlap_is_refused_whole() -> None:
    table = Applied()
    assert table.add(Identity(0, 5, 6))
    assert not table.add(Identity(0, 6, 9))
    assert not table.contains(Identity(0, 7, 7)), "nothing of what was refused is in the table"
    assert table.held(Identity(0, 6, 9)) == 1


def test_an_older_buffered_step_is_no_duplicate() -> None:
    table = Applied()
    assert table.add(Identity(0, 1, 1))
    assert table.add(Identity(0, 5, 5))
    assert table.add(Identity(0, 3, 3))
    assert table.to_json() == {"0": [1, 1, 3, 3, 5, 5]}


def test_a_copy_is_independent() -> None:
    table = Applied()
    table.add(Identity(0, 1, 1))
    twin = table.copy()
    twin.add(Identity(0, 2, 2))
    assert table.count == 1


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param({"0": [1]}, id="odd"),
        pytest.param({"0": [2, 1]}, id="backwards"),
        pytest.param({"0": [1, 3, 3, 4]}, id="overlapping"),
        pytest.param({"0": [0, 1]}, id="step 0"),
    ],
)
def test_malformed_json_is_refused(raw: dict[str, list[int]]) -> None:
    with pytest.raises(ValueError, match="slot 0"):
        Applied.from_json(raw)

"""The table of applied steps: which (slot, step) the parameters hold. It is what makes resending safe.

Rules:
1. Per slot a sorted set of disjoint, non-adjacent intervals: a slot that misses no step costs two integers.
2. `add` is all or nothing. An identity of several steps that overlaps the table in part is refused whole: its payload
   is one sum that cannot be taken apart, and a step applied twice is worse than one never applied. Nothing that was
   refused enters the table, so a report counts the steps that fell out as not applied.
3. Steps count from 1. An older step may come after a newer one (it waited in the buffer), so "applied" is never
   decided by the highest step alone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from outlast.chain.events import Identity


class Applied:
    """A set of (slot, step), kept as intervals. `add` and `held` are O(1) in order, O(log n) out of order."""

    __slots__ = ("_slots", "count")

    def __init__(self) -> None:
        self._slots: dict[int, tuple[list[int], list[int]]] = {}  # slot -> (first steps, last steps) of its intervals
        self.count = 0  # steps in the table, over all slots

    def add(self, identity: Identity) -> bool:
        """Take every step of it in; False, changing nothing, if any of them is there already."""
        slot, first, last = identity.slot, identity.first, identity.last
        assert 1 <= first <= last, f"steps count from 1 and do not run backwards: {identity}"
        spans = self._slots.get(slot)
        if spans is None:
            self._slots[slot] = ([first], [last])
            self.count += last - first + 1
            return True
        firsts, lasts = spans
        if first == lasts[-1] + 1:  # the common case: the slot's next step
            lasts[-1] = last
        elif first > lasts[-1]:
            firsts.append(first)
            lasts.append(last)
        elif not _insert(firsts, lasts, first, last):
            return False
        self.count += last - first + 1
        return True

    def held(self, identity: Identity) -> int:
        """How many of its steps are in the table: 0: new; all: a duplicate; some: a partial overlap (rule 2 above)."""
        spans = self._slots.get(identity.slot)
        if spans is None or identity.first > spans[1][-1]:
            return 0
        firsts, lasts = spans
        i, found = bisect_left(lasts, identity.first), 0
        while i < len(firsts) and firsts[i] <= identity.last:
            found += min(lasts[i], identity.last) - max(firsts[i], identity.first) + 1
            i += 1
        return found

    def contains(self, identity: Identity) -> bool:
        """Whether every step of it is applied."""
        return self.held(identity) == identity.last - identity.first + 1

    def overlaps(self, identity: Identity) -> bool:
        """Whether any step of it is applied."""
        return self.held(identity) > 0

    def highest(self, slot: int) -> int:
        """The slot's highest applied step; 0 if it has none."""
        spans = self._slots.get(slot)
        return 0 if spans is None else spans[1][-1]

    @property
    def slots(self) -> list[int]:
        """Slots with at least one applied step, ascending."""
        return sorted(self._slots)

    def intervals(self, slot: int) -> list[tuple[int, int]]:
        """The slot's (first, last) intervals, ascending."""
        firsts, lasts = self._slots.get(slot, ((), ()))
        return list(zip(firsts, lasts, strict=True))

    def identities(self) -> Iterator[Identity]:
        """The whole table as intervals, by slot and step."""
        for slot in self.slots:
            for first, last in self.intervals(slot):
                yield Identity(slot, first, last)

    def intersection(self, other: Applied) -> Applied:
        """Steps that are in both."""
        both = Applied()
        for slot in self.slots:
            mine, theirs = self.intervals(slot), other.intervals(slot)
            i = j = 0
            while i < len(mine) and j < len(theirs):
                first, last = max(mine[i][0], theirs[j][0]), min(mine[i][1], theirs[j][1])
                if first <= last:
                    both.add(Identity(slot, first, last))
                if mine[i][1] < theirs[j][1]:
                    i += 1
                else:
                    j += 1
        return both

    def difference(self, other: Applied) -> Applied:
        """Steps of this table that the other lacks (what workers saw acknowledged less what survives: the loss)."""
        only = Applied()
        for slot in self.slots:
            theirs = other.intervals(slot)
            j = 0
            for first, last in self.intervals(slot):
                while j < len(theirs) and theirs[j][1] < first:
                    j += 1
                k = j
                while first <= last and k < len(theirs) and theirs[k][0] <= last:
                    if first < theirs[k][0]:
                        only.add(Identity(slot, first, theirs[k][0] - 1))
                    first = theirs[k][1] + 1
                    k += 1
                if first <= last:
                    only.add(Identity(slot, first, last))
        return only

    def union(self, other: Applied) -> Applied:
        """Steps that are in either."""
        either = self.copy()
        for identity in other.difference(self).identities():
            either.add(identity)
        return either

    def copy(self) -> Applied:
        """An independent table with the same steps."""
        twin = Applied()
        twin._slots = {slot: (firsts[:], lasts[:]) for slot, (firsts, lasts) in self._slots.items()}
        twin.count = self.count
        return twin

    def to_json(self) -> dict[str, list[int]]:
        """`{"slot": [first, last, first, last, …]}`."""
        return {str(slot): [x for span in self.intervals(slot) for x in span] for slot in self.slots}

    @staticmethod
    def from_json(raw: dict[str, Any]) -> Applied:
        """Raises `ValueError` if a slot's list is not ascending pairs."""
        table = Applied()
        for slot, flat in raw.items():
            ascending = all(a <= b if i % 2 == 0 else a < b for i, (a, b) in enumerate(pairwise(flat)))
            if len(flat) % 2 or not ascending or (flat and flat[0] < 1):
                raise ValueError(f"applied steps of slot {slot}: {flat[:8]}… are no ascending [first, last, …] pairs")
            for first, last in zip(flat[::2], flat[1::2], strict=True):
                table.add(Identity(int(slot), int(first), int(last)))
        return table

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Applied) and self._slots == other._slots

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"Applied({self.to_json()})"


def _insert(firsts: list[int], lasts: list[int], first: int, last: int) -> bool:
    """Insert below the highest interval, joining neighbours; False if it overlaps one."""
    i = bisect_left(lasts, first)  # the first interval that does not end before it
    if firsts[i] <= last:
        return False
    joins_left, joins_right = i > 0 and lasts[i - 1] + 1 == first, last + 1 == firsts[i]
    if joins_left and joins_right:
        lasts[i - 1] = lasts[i]
        del firsts[i], lasts[i]
    elif joins_left:
        lasts[i - 1] = last
    elif joins_right:
        firsts[i] = first
    else:
        firsts.insert(i, first)
        lasts.insert(i, last)
    return True

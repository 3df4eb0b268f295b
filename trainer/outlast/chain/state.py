"""What every replica of a chain agrees on, entry by entry; and the settings they are started with.

`ReplicatedState.apply` is the only place where order becomes state: the head's own entries, forwarded ones and
replayed ones all pass through it. It decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from outlast.chain.applied import Applied
from outlast.chain.events import DataPlan, Entry, Identity, Kind, Restored


@dataclass
class ReplicatedState:
    """Empty until INIT or `adopt`. `last_seq` 0 means empty: INIT has seq 1 and version 0."""

    data: DataPlan
    last_seq: int = 0
    version: int = 0
    history: int = 0
    applied: Applied = field(default_factory=Applied)
    applied_total: int = 0  # counted one by one: differs from applied.count only if a step was applied twice
    duplicates: int = 0  # recognised here
    offset: int = 0  # the buffer's log is consumed to here
    base_seq: int = 1  # duplicates of unknown age have their original at or below this
    version_seq: int = 0  # the entry that made `version`,
    previous_seq: int = 0  # and the one that made `version − 1`
    incarnations: dict[int, int] = field(default_factory=dict)  # slot -> newest seen
    _slot_seq: dict[int, int] = field(default_factory=dict)  # slot -> newest entry with a step of it

    @property
    def initialised(self) -> bool:
        return self.last_seq > 0

    def apply(self, entry: Entry) -> None:
        """Take the next entry, which holds everything that it changes [entry-holds-decisions]."""
        assert entry.seq == self.last_seq + 1, f"exactly the next entry: {self.last_seq} then {entry.seq}"
        assert (entry.kind is Kind.INIT) == (entry.seq == 1), f"INIT is the first entry and no other: {entry.seq}"
        assert entry.version >= self.version, f"version runs backwards: {self.version} then {entry.version}"
        self.last_seq = entry.seq
        if entry.version != self.version or entry.kind is Kind.INIT:
            self.previous_seq, self.version_seq = self.version_seq, entry.seq
            self.version = entry.version
        if entry.data is not None:
            self.data = entry.data
        if entry.offset:
            self.offset = entry.offset
        for identity in entry.identities:
            self.applied_total += identity.last - identity.first + 1
            self.applied.add(identity)
            self._slot_seq[identity.slot] = entry.seq

    def original_seq(self, identity: Identity) -> int:
        """A seq at or above that of the entry that applied this duplicate (exact for a slot's newest step)."""
        return self._slot_seq.get(identity.slot, self.base_seq)

    def clock(self, slot: int) -> int:
        """SSP: the highest applied step; a slot that a change of N added starts where the change was made."""
        return max(self.applied.highest(slot), self.data.step0 - 1)

    def slowest(self) -> int:
        """SSP: the clock of the slot that is furthest behind."""
        highest, floor = self.applied.highest, self.data.step0 - 1
        return max(floor, min(highest(slot) for slot in range(self.data.slots)))

    def drop(self, slots: int) -> None:
        """Forget what was agreed: an empty replica, as it started. Fences and counts are our own experience."""
        empty = ReplicatedState(DataPlan(slots=slots), duplicates=self.duplicates, incarnations=self.incarnations)
        self.__dict__.update(empty.__dict__)

    def initialise(self, history: int) -> None:
        """INIT is about to be applied: the state begins in this history."""
        assert not self.initialised
        self.history = history

    def adopt(self, state: Restored, history: int) -> None:
        """Hold what a checkpoint, a snapshot or a predecessor's state says."""
        extra = state.extra
        self.last_seq, self.version, self.history = state.seq, state.version, history
        self.applied = Applied.from_json(state.applied)
        self.applied_total = int(extra.get("applied_total", self.applied.count))
        self.data, self.offset = state.data, state.offset
        self.base_seq = self.version_seq = self.previous_seq = state.seq
        for slot, newest in extra.get("incarnations", {}).items():
            self.incarnations[int(slot)] = max(int(newest), self.incarnations.get(int(slot), 0))
        self._slot_seq.clear()

    def export(self) -> dict[str, Any]:
        """JSON-able; `restored` turns it back into the event. All that is not tensors."""
        return {
            "seq": self.last_seq,
            "version": self.version,
            "history": self.history,
            "applied": self.applied.to_json(),
            "data": {"base": self.data.base, "step0": self.data.step0, "slots": self.data.slots},
            "offset": self.offset,
            "extra": {
                "applied_total": self.applied_total,
                "incarnations": {str(slot): n for slot, n in sorted(self.incarnations.items())},
            },
        }


def restored(exported: dict[str, Any], epoch: int | None = None, source: str | None = None) -> Restored:
    """The event that gives a replica an exported state: a peer's (with the link's epoch) or a stored one.

    Raises `KeyError`, `TypeError`, `ValueError` if malformed.
    """
    return Restored(
        seq=int(exported["seq"]),
        version=int(exported["version"]),
        history=int(exported["history"]),
        applied=dict(exported["applied"]),
        data=DataPlan(**{key: int(exported["data"][key]) for key in ("base", "step0", "slots")}),
        offset=int(exported.get("offset", 0)),
        extra=dict(exported.get("extra", {})),
        epoch=epoch,
        source=source,
    )

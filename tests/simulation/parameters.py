"""Parameters that remember: a list of everything that was ever applied to them, and a digest of it.

A gradient's value depends on the weights it was computed on, and the digest on every value, weight and rate. So equal
digests mean equal training, bit for bit; and the list shows what was applied twice, lost, or in another order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from zlib import crc32

from outlast.chain.events import Entry, Kind


@dataclass(frozen=True)
class Gradient:
    """What a worker sends to one shard: steps first..last of its slot."""

    slot: int
    first: int
    last: int
    value: int


@dataclass(frozen=True)
class Record:
    """One applied entry."""

    seq: int
    version: int
    digest: int  # of the parameters after it
    steps: tuple[tuple[int, int], ...]  # (slot, step)


def value_of(*words: Any) -> int:
    return crc32(repr(words).encode())


class Parameters:
    """One shard's. `records[i]` is the entry of seq i + 1. `twice`: the first step that was applied a second time."""

    def __init__(self, initial: int, records: tuple[Record, ...] = ()) -> None:
        self.initial = initial
        self.records: list[Record] = list(records)
        self.steps = {step for record in records for step in record.steps}
        self.keeps_previous = False  # whether version - 1 can still be given

    @property
    def version(self) -> int:
        return self.records[-1].version if self.records else 0

    @property
    def digest(self) -> int:
        return self.records[-1].digest if self.records else self.initial

    def apply(self, entry: Entry) -> tuple[int, int] | None:
        """Returns a step that is there already, if there is one."""
        assert entry.seq == len(self.records) + 1, f"seq {entry.seq} after {len(self.records)} entries"
        gradients: tuple[tuple[Gradient, float], ...] = ()
        digest = self.digest
        if entry.kind in (Kind.UPDATE, Kind.DELTA):
            gradients = entry.payload
            final = [(g.slot, g.first, g.last, g.value, weight) for g, weight in gradients]
            digest = value_of(digest, entry.kind.value, entry.rate, final)
            self.keeps_previous = True
        steps = tuple((g.slot, step) for g, _ in gradients for step in range(g.first, g.last + 1))
        again = next((step for step in steps if step in self.steps), None)
        self.records.append(Record(entry.seq, entry.version, digest, steps))
        self.steps.update(steps)
        return again

    def at_version(self, version: int) -> int | None:
        """The digest at `version`: the newest, or the one before while it is kept."""
        if version == self.version:
            return self.digest
        if version != self.version - 1 or not self.keeps_previous:
            return None
        return next((r.digest for r in reversed(self.records) if r.version <= version), None)

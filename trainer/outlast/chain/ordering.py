"""What only the head does: admit contributions and turn them into entries, with every decision in them.

Rules:
1. An entry is made from what is new alone: the caller asks `duplicate_of` first, and the log is read by the table,
   never by offset (another run of Redis counts from 0 again).
2. Async and SSP: every contribution raises the version by one. Sync: one round of N slots does, in slot order.
3. A group of buffered gradients is one optimizer step, never more than `group_max`, never past `stop_updates`. A
   pseudo-gradient stands alone, times the share that it came with (one over the workers of its outage), past the
   optimizer.
4. The barrier counts slots, not processes: a newer process of a slot replaces what the older one sent.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from outlast.chain.applied import Applied
from outlast.chain.events import Contribution, DataPlan, Entry, Identity, Kind, Part, Record, Token
from outlast.chain.settings import ReplicaSettings
from outlast.chain.staleness import Share, rate, scales, staleness, usual_staleness, weights
from outlast.chain.state import ReplicatedState

LogItem = tuple[int, int, Contribution]  # offset, incarnation, contribution


@dataclass
class Place:
    """A slot's place in the Sync round."""

    incarnation: int
    contribution: Contribution
    tokens: list[Token] = field(default_factory=list)


@dataclass(frozen=True)
class Stretch:
    """A stretch of the log, `items[start:end]`: what it became (None: all were duplicates) and from which offsets."""

    entry: Entry | None
    end: int
    offsets: tuple[int, ...]  # of the entry's parts
    skipped: tuple[int, ...]
    last_offset: int

    def record(self) -> Record:
        """What a replay needs to come to the same update."""
        assert self.entry is not None
        parts = tuple((offset, part.weight) for offset, part in zip(self.offsets, self.entry.parts, strict=True))
        e = self.entry
        return Record(e.seq, e.version, e.kind, e.rate, parts, self.skipped, self.last_offset)


class Ordering:
    """Makes entries for `state`; the replica applies them before it asks for the next."""

    def __init__(self, state: ReplicatedState, settings: ReplicaSettings) -> None:
        self.state = state
        self.settings = settings
        self.round: dict[int, Place] = {}  # Sync: slot -> its contribution to version + 1
        self.staleness = (0, 0)  # (sum, number) of the contributions ordered here so far, for metrics

    @property
    def full(self) -> bool:
        """`stopAfter.updates` is reached."""
        return self.settings.stop_updates is not None and self.state.version >= self.settings.stop_updates

    def fenced(self, slot: int, incarnation: int) -> bool:
        """Whether a newer process of the slot was seen; notes a newer one."""
        newest = self.state.incarnations.get(slot, 0)
        if incarnation > newest:
            self.state.incarnations[slot] = incarnation
        return incarnation < newest

    def duplicate(self, identity: Identity) -> bool:
        """Whether any of its steps is applied already (in part: see applied.py, rule 2)."""
        return self.state.applied.overlaps(identity)

    # --- single entries -----------------------------------------------------------------------------------------------

    def initial(self, contribution: Contribution) -> Entry:
        """INIT: the whole state as payload, version 0; with the data plan, which settings no longer decide."""
        return Entry(seq=1, kind=Kind.INIT, version=0, payload=contribution.payload, data=self.state.data)

    def single(self, c: Contribution, offset: int = 0) -> Entry:
        """One pushed (or, for a pseudo-gradient, buffered) contribution as an entry of its own."""
        if c.kind is Kind.DELTA:
            s = self.state
            # Its share is the worker's word: the number of workers that its rate was meant for may have changed since.
            parts = (Part(c.payload, c.lr_scale, c.identity),)
            return Entry(s.last_seq + 1, Kind.DELTA, s.version + 1, (c.identity,), 1.0, parts, offset=offset)
        return self._update([c], 1, offset)

    def config(self, slots: int) -> Entry:
        """A new number of slots. Slots go on at the first step that none of them has taken."""
        s = self.state
        step0 = 1 + max((s.applied.highest(slot) for slot in s.applied.slots), default=0)
        step0 = max(step0, s.data.step0)
        data = DataPlan(s.data.batch(0, step0), step0, slots)
        return Entry(s.last_seq + 1, Kind.CONFIG, s.version, data=data)

    def _update(self, group: list[Contribution], pending: int, offset: int) -> Entry:
        s, settings = self.state, self.settings
        # A Stateless replay has no pull copies: the weights it must come to are chosen without them.
        compensate = not settings.traits.through_buffer
        usual = usual_staleness(s.data.slots, settings.traits.asks_ahead)
        shares = weights(settings.policy, s.version, group, s.history, usual=usual, compensate=compensate)
        scheduled = rate(settings.rate_at(s.version), pending, settings.reduced_rate, settings.base_lr)
        total, number = self.staleness
        total += sum(staleness(s.version, i, c.version) for i, c in enumerate(group) if c.history == s.history)
        self.staleness = (total, number + len(group))
        return self._entry(group, shares, scheduled, s.version + len(group), offset)

    def _entry(
        self, group: list[Contribution], shares: list[Share], scheduled: float, version: int, offset: int
    ) -> Entry:
        scale, factors = scales(group)
        parts = tuple(
            Part(c.payload, share.weight * factor, c.identity, share.compensate_from)
            for c, share, factor in zip(group, shares, factors, strict=True)
        )
        identities = tuple(c.identity for c in group)
        seq = self.state.last_seq + 1
        return Entry(seq, Kind.UPDATE, version, identities, scheduled * scale, parts, offset=offset)

    # --- Sync ---------------------------------------------------------------------------------------------------------

    def join_round(self, token: Token, incarnation: int, c: Contribution) -> list[Token]:
        """Put a contribution to version + 1 in its slot's place; returns tokens of an older process, to be fenced."""
        place = self.round.get(c.identity.slot)
        if place is None:
            self.round[c.identity.slot] = Place(incarnation, c, [token])
            return []
        if incarnation == place.incarnation:  # the same process asks again: it computed the same
            place.tokens.append(token)
            return []
        older, place.tokens = place.tokens, [token]
        place.incarnation, place.contribution = incarnation, c
        return older

    def close_round(self) -> tuple[Entry, list[Token]] | None:
        """The round's entry and everybody who waits for it, once all N slots are in."""
        n = self.state.data.slots
        if len(self.round) < n:
            return None
        places = [self.round[slot] for slot in range(n)]
        group = [place.contribution for place in places]
        version = self.state.version
        entry = self._entry(group, [Share(1.0 / n)] * n, self.settings.rate_at(version), version + 1, 0)
        self.round = {}
        return entry, [token for place in places for token in place.tokens]

    def abandon_round(self) -> list[Token]:
        """Forget the open round; returns whom to refuse."""
        tokens = [token for _, place in sorted(self.round.items()) for token in place.tokens]
        self.round = {}
        return tokens

    # --- the buffer's log ---------------------------------------------------------------------------------------------

    def next_stretch(self, items: tuple[LogItem, ...], start: int, pending: int) -> Stretch:
        """Read on from `start` until an entry is full, a pseudo-gradient comes, or the items end. Changes nothing but
        the fences and the count of duplicates; not to be asked when `full`."""
        s, room = self.state, self.settings.group_max
        if self.settings.stop_updates is not None:
            room = min(room, self.settings.stop_updates - s.version)
        assert room > 0, "asked for more updates than stopAfter.updates allows"
        group: list[Contribution] = []
        offsets: list[int] = []
        skipped: list[int] = []
        taken = Applied()  # by this group: the table learns of it when the entry is applied
        end, last_offset = start, s.offset
        while end < len(items) and len(group) < room:
            offset, incarnation, c = items[end]
            delta = c.kind is Kind.DELTA
            if delta and group:
                break
            end, last_offset = end + 1, offset
            # The buffer fenced it when it was appended; what stands there was acknowledged and must be applied.
            self.fenced(c.identity.slot, incarnation)
            if self.duplicate(c.identity) or c.kind not in (Kind.UPDATE, Kind.DELTA) or not taken.add(c.identity):
                skipped.append(offset)
                s.duplicates += 1
                continue
            offsets.append(offset)
            if delta:
                return Stretch(self.single(c, offset), end, (offset,), tuple(skipped), offset)
            group.append(c)
        entry = self._update(group, pending, last_offset) if group else None
        return Stretch(entry, end, tuple(offsets), tuple(skipped), last_offset)

    def replay(self, record: Record, items: tuple[LogItem, ...]) -> Entry:
        """The entry that a record describes. Raises `ValueError` if the log no longer holds a part of it."""
        by_offset = {offset: c for offset, _, c in items}
        missing = [offset for offset, _ in record.parts if offset not in by_offset]
        if missing:
            raise ValueError(
                f"record of entry {record.entry_seq} names log offsets {missing} that were not read with it; "
                "the log was trimmed past its snapshot: restore a newer snapshot or a checkpoint"
            )
        parts = tuple(Part(by_offset[o].payload, weight, by_offset[o].identity) for o, weight in record.parts)
        identities = tuple(part.identity for part in parts)
        return Entry(
            record.entry_seq, record.kind, record.version, identities, record.rate, parts, None, record.data,
            record.last_offset,
        )  # fmt: skip

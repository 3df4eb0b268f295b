"""What the head does with what workers and the buffer bring: answer, refuse, or hand to `Ordering` for an entry.

A push is checked in this order, and each check is a promise: epoch (a stale view must not act), headship, state being
restored, incarnation, initial weights, duplicates (before "finished": a resent gradient of the end is acknowledged),
end of the job; then Sync's history and step.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from outlast.api.view import View
from outlast.chain.downstream import Downstream
from outlast.chain.events import (
    Contribution,
    DataPlan,
    Entry,
    Finish,
    FromLog,
    Kind,
    Pull,
    Push,
    Ready,
    Record,
    Refusal,
    Refused,
    Replay,
    SetSlots,
    Token,
)
from outlast.chain.ordering import Ordering
from outlast.chain.settings import ReplicaSettings
from outlast.chain.state import ReplicatedState
from outlast.chain.waiting import Waiting


class Host(Protocol):
    """What admission must know of the replica it belongs to."""

    name: str
    view: View | None
    is_head: bool
    restoring: tuple[str, int] | None

    @property
    def epoch(self) -> int: ...
    @property
    def role(self) -> str: ...
    @property
    def serving(self) -> bool: ...
    def current(self, epoch: int) -> bool: ...
    def append(self, entry: Entry, ready: Ready) -> None: ...


class Admission:
    """The head's front door. It exists at every replica, and refuses where that is not the head."""

    def __init__(
        self, replica: Host, state: ReplicatedState, downstream: Downstream, settings: ReplicaSettings
    ) -> None:
        self._replica = replica
        self._state = state
        self._downstream = downstream
        self._settings = settings
        self._sync = self._settings.traits.barrier
        self._ordering = Ordering(state, settings)
        self._waiting = Waiting(sync=self._sync)
        self._ssp = self._settings.traits.bounded
        self._stateless = self._settings.traits.through_buffer
        self._trims: deque[tuple[int, int]] = deque()  # (this seq is stable: trim, to this offset)
        self._former = (0, 0)  # a history, the highest version that workers had pulled in the one before it
        self._finish_asked: int | None = None  # in which history: a rollback makes an end undone

    @property
    def finishing(self) -> bool:
        """Nothing new is applied any more."""
        return self._finish_asked == self._history or self._ordering.full

    @property
    def staleness(self) -> tuple[int, int]:
        """(sum, number) over the contributions that were put in order here."""
        return self._ordering.staleness

    @property
    def former_version(self) -> int:
        """What the shard held at least when its history was rolled back: gradients tell, which come from weights of
        before. 0 if none has come."""
        history, version = self._former
        return version if history == self._history else 0

    @property
    def _history(self) -> int:
        return 0 if self._replica.view is None else self._replica.view.history

    # --- workers ------------------------------------------------------------------------------------------------------

    def push(self, event: Push, ready: Ready) -> None:
        """Admit or refuse a contribution."""
        c, token, state = event.contribution, event.token, self._state
        identity = c.identity
        if not self._admits(token, event.epoch, ready):
            return
        self._note_former(c)
        if self._is_fenced(token, identity.slot, event.incarnation, ready):
            return
        if c.kind is Kind.INIT:
            self._init(token, c, ready)
        elif not state.initialised:
            self._refuse(token, Refusal.EMPTY, ready, "no initial weights yet: send them first")
        elif self._stateless:
            self._refuse(token, Refusal.NOT_HEAD, ready, "strategy Stateless takes gradients through the buffer alone")
        elif c.kind is Kind.CONFIG or identity.slot < 0 or not 1 <= identity.first <= identity.last:
            self._refuse(token, Refusal.STEP, ready, f"{c.kind} of {identity} is not a contribution")
        elif self._ordering.duplicate(identity):
            self._duplicate(token, c, ready)
        elif self.finishing:
            self._refuse(token, Refusal.FINISHED, ready, "the job's goal is reached")
        elif self._sync:
            self._join_round(event, ready)
        else:
            entry = self._ordering.single(c)
            self._replica.append(entry, ready)
            self._waiting.push(token, entry.seq, self._gate(identity.last))

    def _is_fenced(self, token: Token, slot: int, incarnation: int, ready: Ready) -> bool:
        """Refuse a process whose slot a newer one has (invariant incarnation-fences)."""
        if not self._ordering.fenced(slot, incarnation):
            return False
        newest = self._state.incarnations[slot]
        detail = f"incarnation {incarnation} of slot {slot} was replaced by incarnation {newest}"
        self._refuse(token, Refusal.FENCED, ready, detail)
        return True

    def _note_former(self, told: Contribution) -> None:
        """Learn what it tells of the history before, whether it is admitted or not: a process whose slot was given to
        another while both it and its server were cut off may be the only one that knows."""
        if told.history == self._history - 1:
            self._former = (self._history, max(self.former_version, told.version))

    def _admits(self, token: Token, epoch: int, ready: Ready, *, head_only: bool = True) -> bool:
        """Fence, headship, and whether there is a state to act on."""
        replica = self._replica
        if not replica.current(epoch):
            if epoch != replica.epoch:
                detail = f"worker has epoch {epoch}, server has epoch {replica.epoch}; refresh the view"
                self._refuse(token, Refusal.EPOCH, ready, detail)
            else:
                self._refuse(token, Refusal.STOPPED, ready, "waits for a newer view, or is in none")
        elif head_only and not replica.is_head:
            self._refuse(token, Refusal.NOT_HEAD, ready, f"is {replica.role}")
        elif replica.restoring is not None:
            self._refuse(token, Refusal.STOPPED, ready, f"state is being restored from {replica.restoring[0]}")
        else:
            return True
        return False

    def _init(self, token: Token, c: Contribution, ready: Ready) -> None:
        duplicate = self._state.initialised
        if not duplicate:
            self._replica.append(self._ordering.initial(c), ready)
        self._state.duplicates += duplicate
        self._waiting.push(token, self._state.base_seq, duplicate=duplicate)

    def _duplicate(self, token: Token, c: Contribution, ready: Ready) -> None:
        """Acknowledge a duplicate only when its original is safe [duplicate-is-a-promise]."""
        identity, state = c.identity, self._state
        state.duplicates += 1
        held, steps = state.applied.held(identity), identity.last - identity.first + 1
        if held == steps:
            self._waiting.push(token, state.original_seq(identity), self._gate(identity.last), duplicate=True)
            return
        detail = (
            f"{held} of the {steps} steps {identity.first}..{identity.last} of slot {identity.slot} are applied "
            "already and the sum of all cannot be taken apart: not applied"
        )
        self._refuse(token, Refusal.STEP, ready, detail)

    def _join_round(self, event: Push, ready: Ready) -> None:
        c, state = event.contribution, self._state
        identity, expected = c.identity, state.version + 1
        if c.history != state.history:
            detail = f"computed in history {c.history}, this is history {state.history}; pull and compute again"
            self._refuse(event.token, Refusal.HISTORY, ready, detail)
        elif c.kind is not Kind.UPDATE or identity.first != identity.last or identity.last != expected:
            detail = f"{c.kind} of steps {identity.first}..{identity.last}; the barrier waits for update {expected}"
            self._refuse(event.token, Refusal.STEP, ready, detail)
        elif identity.slot >= state.data.slots:
            detail = f"slot {identity.slot} has no place among {state.data.slots}"
            self._refuse(event.token, Refusal.STEP, ready, detail)
        else:
            for older in self._ordering.join_round(event.token, event.incarnation, c):
                self._refuse(older, Refusal.FENCED, ready, f"slot {identity.slot} was taken by a newer process")
            closed = self._ordering.close_round()
            if closed is not None:
                entry, tokens = closed
                self._replica.append(entry, ready)
                for token in tokens:
                    self._waiting.push(token, entry.seq)

    def pull(self, event: Pull, ready: Ready) -> None:
        """Admit or refuse a reader. One that is no worker (slot None) may read from any member."""
        state, token, wanted = self._state, event.token, event.version
        anybody = event.slot is None and state.initialised
        if not self._admits(token, event.epoch, ready, head_only=not anybody):
            return
        if event.slot is not None and self._is_fenced(token, event.slot, event.incarnation, ready):
            return
        if not state.initialised:
            self._refuse(token, Refusal.EMPTY, ready, "no initial weights yet: send them first")
        elif self._stateless and self.finishing and event.slot is not None:
            # Its workers push nothing here: one that waits for the slowest slot would not hear of the end.
            self._refuse(token, Refusal.FINISHED, ready, "the job's goal is reached")
        elif wanted is not None and not state.version - self._sync <= wanted <= state.version:
            self._refuse(token, Refusal.VERSION, ready, f"version {wanted} was asked for, {state.version} is here")
        else:
            # Stateless workers are acknowledged by the buffer, so SSP can hold them back only here.
            gated = self._stateless and event.slot is not None
            clock = self._gate(state.clock(event.slot)) if gated and event.slot is not None else None
            self._waiting.pull(event, clock)

    # --- the buffer ---------------------------------------------------------------------------------------------------

    def from_log(self, event: FromLog, ready: Ready) -> None:
        """Drain a stretch of the log. Read again what this leaves: its end is `Replica.offset`."""
        if not self._replica.current(event.epoch) or not self._replica.serving or self._sync:
            return
        items, start, state = event.items, 0, self._state
        for _, _, contribution in items:
            self._note_former(contribution)
        pending = max(event.pending, len(items))
        while start < len(items) and not self.finishing:
            stretch = self._ordering.next_stretch(items, start, pending)
            start = stretch.end
            if stretch.entry is not None:
                if self._stateless:
                    ready.records.append(stretch.record())
                self._replica.append(stretch.entry, ready)
            state.offset = stretch.last_offset
            # [leave-when-safe] a skipped duplicate too may have its original in an entry that is not safe yet.
            if not self._stateless:
                self._trims.append((state.last_seq, stretch.last_offset))

    def replay(self, event: Replay, ready: Ready) -> None:
        """Apply a record again, obeying it [record-before-publish]."""
        ahead = event.record.entry_seq - self._state.last_seq
        if not self._replica.serving or ahead < 1:
            return
        if ahead > 1:
            raise ValueError(
                f"record of entry {event.record.entry_seq} follows entry {self._state.last_seq}: "
                "records between are missing; replay all of them, in order"
            )
        self._replica.append(self._ordering.replay(event.record, event.items), ready)

    # --- the operator -------------------------------------------------------------------------------------------------

    def set_slots(self, event: SetSlots, ready: Ready) -> None:
        """Change N by an ordered entry [ordered-N]; before INIT it is part of INIT."""
        replica, state = self._replica, self._state
        if event.slots < 1 or event.slots == state.data.slots or not replica.is_head:
            return
        if not replica.current(replica.epoch) or replica.restoring is not None or self.finishing:
            return
        if not state.initialised:
            state.data = DataPlan(slots=event.slots)
            return
        # The open round was computed by the old plan's batches.
        for token in self._ordering.abandon_round():
            self._refuse(token, Refusal.STEP, ready, f"the number of slots became {event.slots}; pull again")
        entry = self._ordering.config(event.slots)
        if self._stateless:
            offset = state.offset
            record = Record(entry.seq, entry.version, entry.kind, entry.rate, (), (), offset, entry.data)
            ready.records.append(record)
        replica.append(entry, ready)

    def finish(self, event: Finish, ready: Ready) -> None:
        """Admit nothing more. Any replica remembers it: it may be the next head."""
        self._finish_asked = self._history

    # --- answers ------------------------------------------------------------------------------------------------------

    def settle(self, ready: Ready) -> None:
        """After every event: answer whom we can, trim what we may."""
        head = self._replica.is_head
        if head and self.finishing:
            for token in self._ordering.abandon_round():
                self._refuse(token, Refusal.FINISHED, ready, "the job's goal is reached")
            self._downstream.flush(ready)
        if len(self._waiting):
            slowest = self._state.slowest() if self._ssp and not self.finishing else None
            self._waiting.release(self.safe_seq(), self._state, slowest, ready.reply)
            for token in self._waiting.overtaken(self._state.version):
                self._refuse(token, Refusal.VERSION, ready, f"version {self._state.version} is here")
        while self._trims and self._trims[0][0] <= self._downstream.stable_seq:
            ready.trim = self._trims.popleft()[1]

    def safe_seq(self) -> int:
        """Everything to here may be acknowledged, and shown."""
        return self._downstream.safe_seq() if self._replica.is_head else self._downstream.stable_seq

    def refuse_all(self, reason: Refusal, ready: Ready, detail: str) -> None:
        """Nobody waits here any more."""
        for token in self._waiting.tokens() + self._ordering.abandon_round():
            self._refuse(token, reason, ready, detail)
        self._trims.clear()

    def _gate(self, clock: int) -> int | None:
        """SSP: how far the slowest slot must have come for one at `clock` to go on."""
        return clock - self._settings.max_staleness if self._ssp else None

    def _refuse(self, token: Token, reason: Refusal, ready: Ready, detail: str) -> None:
        replica = self._replica
        ready.reply.append(Refused(token, reason, replica.view, f"{replica.name}: {detail}", self._state.version))

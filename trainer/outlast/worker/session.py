"""A worker's dealings with its servers and the buffer: a pure state machine (no sockets, no threads, no clock).

Rules
    One push a shard is in flight at a time; what is not acknowledged is sent again, under the same identity.
    The highest epoch heard is believed; only its head is dialled. One that was lost is dialled again in that epoch
    only if it answers itself: its fellows know of the next view no sooner than of its loss, and a dial of a lost host
    takes as long as a time-out.
    All shards are rolled back together: a head of an older history than another shard's is not spoken to (`stale`).
    Silence for `timeout_s`, a closed connection or a refusal by view begins an *outage* of that shard; it ends when
    the head of a view answers again.
    Stateless: every gradient goes to the buffer. Hybrid: while any shard is in an outage, whole gradients go to the
    buffer (a shard that had it already recognises the duplicate). Otherwise they wait for the head.
    A shard that has reached the job's goal gets nothing more; the worker goes on until every shard has, for they count
    on their own: what one has applied may still be on its way to another. A rollback takes the goal back.

The shell asks `next_action(shard, now)`, does it, and reports with `heard`, `dialled`, `lost`, `answered`; for the
buffer `next_for_buffer` and `buffered`. What the worker must learn comes out of `take_notices`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from outlast.api.strategy import Traits
from outlast.api.view import Member, View
from outlast.chain.events import Refusal
from outlast.worker.events import Action, Ask, Dial, Idle, Notice, Outcome, Outgoing, SendPull, SendPush

_ASK_INTERVAL_S = 0.005  # grows to the maximum while nobody answers
_ASK_INTERVAL_MAX_S = 0.1


@dataclass
class _Shard:
    view: View | None = None
    up: Member | None = None  # the head we are connected to
    queue: deque[Outgoing] = field(default_factory=deque)
    init: Outgoing | None = None
    pull: list[int | None] = field(default_factory=list)  # at most one request
    ask_at: float = 0.0
    ask_pause: float = _ASK_INTERVAL_S
    outage_since: float | None = None
    needs_view: bool = True
    finished: bool = False  # it has reached the job's goal


class Session:
    """One worker's session with `shards` shards."""

    def __init__(self, shards: int, traits: Traits) -> None:
        self._shards = [_Shard() for _ in range(shards)]
        self._direct = not traits.through_buffer
        self._sync = traits.barrier
        self._diverts = traits.diverts
        self._buffer: deque[Outgoing] = deque()
        self._notices: list[Notice] = []
        self.history = 0  # the highest that any view told
        self.finished = False  # every shard has reached the job's goal
        self.unanswered = 0  # items without an outcome
        self.buffer_down = False  # Redis does not answer, or has no room: gradients wait in the worker's memory

    # --- the worker ---

    def submit(self, item: Outgoing) -> None:
        """Send this gradient; its `outcome` is set when it is safe, or will never be."""
        self.unanswered += 1
        item.pending = {index for index, shard in enumerate(self._shards) if not shard.finished}
        item.refused = len(item.pending) < len(self._shards)
        if self.finished:
            self._settle(item, Outcome.UNAPPLIED)
        elif not self._direct or (self._diverts and self.outage()):
            self._divert(item)
        else:
            self._to_heads(item)

    def submit_init(self, item: Outgoing, shard: int) -> None:
        """Offer the initial weights to a shard that has none."""
        self._shards[shard].init = item

    def request(self, shard: int, version: int | None = None) -> None:
        """Pull weights: exactly `version`, or the newest."""
        self._shards[shard].pull = [version]

    def drop_all(self) -> None:
        """Sync, after a rollback: what waits was computed on weights that are no more."""
        for shard in self._shards:
            for item in shard.queue:
                if item.outcome is None:
                    self._settle(item, Outcome.DROPPED)
            shard.queue.clear()

    def outage(self) -> bool:
        """Is any shard without a head that answers?"""
        return any(s.outage_since is not None for s in self._shards)

    def stale(self, index: int) -> bool:
        """Whether this shard's head has not heard of a rollback that we know of: break off, nothing it says counts.

        To be asked before every answer of it is heeded.
        """
        view = self._shards[index].view
        return view is not None and view.history < self.history

    def take_notices(self) -> list[Notice]:
        notices, self._notices = self._notices, []
        return notices

    def view(self, shard: int) -> View | None:
        """The newest that was heard."""
        return self._shards[shard].view

    def epoch(self, shard: int) -> int:
        view = self.view(shard)
        return 0 if view is None else view.epoch

    # --- the shell's thread of one shard ---

    def next_action(self, index: int, now: float) -> Action:
        shard = self._shards[index]
        if shard.needs_view or self.stale(index):
            return Ask() if now >= shard.ask_at else Idle(shard.ask_at)
        if shard.up is None:
            assert shard.view is not None
            assert shard.view.head is not None
            return Dial(shard.view.head) if now >= shard.ask_at else Idle(shard.ask_at)
        epoch = self.epoch(index)
        if shard.init is not None:
            return SendPush(shard.init, epoch, False)
        if shard.pull:
            return SendPull(epoch, shard.pull[0])
        while shard.queue and (shard.queue[0].outcome is not None or shard.queue[0].in_buffer):
            shard.queue.popleft()
        if shard.queue:
            return SendPush(shard.queue[0], epoch, want_weights=len(shard.queue) == 1)
        return Idle(None)

    def heard(self, index: int, told: Mapping[str, View], now: float) -> None:
        """The answers to Ask, by the boot of who told it. Believes the highest epoch, whoever told it."""
        shard = self._shards[index]
        best = max((v for v in told.values() if v.head is not None), key=lambda v: v.epoch, default=None)
        known = best is not None and best.history >= self.history
        if best is not None and known and self._is_worth_a_dial(shard.view, best, told):
            shard.view = best
            shard.needs_view = False
            shard.up = None
            self._learn_history(best.history, now)
        else:
            self._pause(shard, now)

    def _is_worth_a_dial(self, before: View | None, best: View, told: Mapping[str, View]) -> bool:
        if before is None or best.epoch != before.epoch:
            return before is None or best.epoch > before.epoch
        return best.head is not None and best.head.boot in told

    def dialled(self, index: int, member: Member) -> None:
        """Connected to the head of our view. The outage ends with its first answer, not here."""
        shard = self._shards[index]
        shard.up = member
        if shard.outage_since is not None and (self._diverts or not self._direct) and not shard.pull:
            shard.pull = [None]  # gradients go to the buffer now, so only this can show that the head answers

    def lost(self, index: int, now: float) -> None:
        """Refused, closed, or silent for too long: ask for the view again."""
        shard = self._shards[index]
        shard.up = None
        shard.needs_view = True
        if shard.outage_since is None:
            shard.outage_since = now
            shard.ask_at = now
        else:
            self._pause(shard, now)
        if self._diverts:
            self._divert_waiting()

    def acknowledged(self, index: int, item: Outgoing) -> None:
        """This shard has the gradient (or the initial weights), as safe as its strategy promises."""
        shard = self._shards[index]
        self._answering(shard)
        if item is shard.init:
            shard.init = None
            return
        if shard.queue and shard.queue[0] is item:
            shard.queue.popleft()
        item.pending.discard(index)
        self._settle_if_answered(item)

    def pulled(self, index: int) -> None:
        """The weights asked for have come."""
        shard = self._shards[index]
        self._answering(shard)
        shard.pull = []

    def refused(self, index: int, reason: Refusal, view: View | None, now: float) -> None:
        """The head said no to the last push or pull."""
        shard = self._shards[index]
        if reason in (Refusal.EPOCH, Refusal.NOT_HEAD, Refusal.STOPPED):
            self._refused_by_view(index, view, now)
            return
        self._answering(shard)
        if reason is Refusal.FINISHED:
            self._finish(index)
        elif reason is Refusal.FENCED:
            self._notices.append(Notice.FENCED)
        elif reason is Refusal.EMPTY:
            self._notices.append(Notice.EMPTY)
            shard.pull = []
        elif reason is Refusal.STEP and not self._sync:
            if shard.queue:  # it overlaps what is applied (a pseudo-gradient): it never will be
                item = shard.queue.popleft()
                if item.outcome is None:
                    self._settle(item, Outcome.DROPPED)
        else:  # HISTORY, STEP, VERSION
            shard.pull = []
            self.drop_all()
            self._notices.append(Notice.RESYNC)

    def _refused_by_view(self, index: int, view: View | None, now: float) -> None:
        shard = self._shards[index]
        known = 0 if shard.view is None else shard.view.epoch
        if view is not None and view.head is not None and view.epoch > known:
            shard.view, shard.up, shard.needs_view = view, None, False
            self._learn_history(view.history, now)
            if shard.outage_since is None:
                shard.outage_since = now
            shard.ask_at = now
        else:
            self.lost(index, now)

    def _learn_history(self, history: int, now: float) -> None:
        """A rollback: what shards of older histories still say is undone already."""
        if history <= self.history:
            return
        self.history = history
        for shard in self._shards:
            shard.finished = self.finished  # what it reached the goal with may be undone
        for index, shard in enumerate(self._shards):
            if self.stale(index) and shard.outage_since is None:
                shard.outage_since = shard.ask_at = now
        if self._diverts and self.outage():
            self._divert_waiting()

    def _pause(self, shard: _Shard, now: float) -> None:
        shard.ask_at = now + shard.ask_pause
        shard.ask_pause = min(shard.ask_pause * 1.5, _ASK_INTERVAL_MAX_S)

    def _answering(self, shard: _Shard) -> None:
        ended = shard.outage_since is not None
        shard.outage_since = None
        shard.ask_pause = _ASK_INTERVAL_S
        if ended and self._diverts and not self.outage():
            self._reclaim()

    def _reclaim(self) -> None:
        """Hybrid, the outage is over: the heads take what is not in Redis yet, all but the one on its way there."""
        waiting = list(self._buffer)[1:]
        while len(self._buffer) > 1:
            self._buffer.pop()
        for item in waiting:
            if item.outcome is None:
                self._to_heads(item)

    def _to_heads(self, item: Outgoing) -> None:
        item.in_buffer = False
        for index, shard in enumerate(self._shards):
            if index in item.pending and item not in shard.queue:
                shard.queue.append(item)

    def _finish(self, index: int) -> None:
        """This shard takes nothing more. With Stateless the others neither: all apply what one log holds."""
        shard = self._shards[index]
        shard.finished = True
        for item in shard.queue:
            item.pending.discard(index)
            item.refused = True
            if not item.in_buffer:
                self._settle_if_answered(item)
        shard.queue.clear()
        shard.pull = []
        self.finished = not self._direct or all(s.finished for s in self._shards)

    def _settle_if_answered(self, item: Outgoing) -> None:
        if not item.pending and item.outcome is None:
            self._settle(item, Outcome.UNAPPLIED if item.refused else Outcome.SERVER)

    def _settle(self, item: Outgoing, outcome: Outcome) -> None:
        item.outcome = outcome
        self.unanswered -= 1

    # --- the shell's thread of the buffer ---

    def _divert(self, item: Outgoing) -> None:
        item.in_buffer = True
        self._buffer.append(item)

    def _divert_waiting(self) -> None:
        seen: set[int] = set()
        for shard in self._shards:
            for item in shard.queue:
                if item.outcome is None and not item.in_buffer and id(item) not in seen:
                    seen.add(id(item))
                    self._divert(item)

    def next_for_buffer(self) -> Outgoing | None:
        """The gradient to append next; stays until `buffered` or `take_back`."""
        while self._buffer and self._buffer[0].outcome is not None:
            self._buffer.popleft()
        return self._buffer[0] if self._buffer else None

    def buffered(self, item: Outgoing, closed: bool = False) -> None:
        """Redis has it (or recognised it); `closed`: it refused, because some shard is at its end."""
        self.buffer_down = False
        if self._buffer and self._buffer[0] is item:
            self._buffer.popleft()
        if closed:
            self._refuse_diverted(item)
            while self._buffer:
                self._refuse_diverted(self._buffer.popleft())
            self.finished = self.finished or not self._direct
        elif item.outcome is None:
            self._settle(item, Outcome.BUFFER)

    def _refuse_diverted(self, item: Outgoing) -> None:
        """The log is closed: its gradients are for the shards that still take some, where these take them directly."""
        if item.outcome is not None:
            return
        if self._direct and item.pending:
            self._to_heads(item)
        else:
            self._settle(item, Outcome.UNAPPLIED)

    def dropped(self, item: Outgoing) -> None:
        """The buffer is full and the job says to drop (`buffer.whenFull: Drop`): it was never acknowledged."""
        if self._buffer and self._buffer[0] is item:
            self._buffer.popleft()
        if item.outcome is None:
            self._settle(item, Outcome.DROPPED)

    def take_back(self) -> None:
        """The buffer does not answer; where no shard is in an outage the heads take what waits (Hybrid)."""
        self.buffer_down = True
        if not self._direct or self.outage():
            return
        while self._buffer:
            item = self._buffer.popleft()
            if item.outcome is None:
                self._to_heads(item)
        self.buffer_down = False  # nobody needs it now

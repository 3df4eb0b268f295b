"""One replica of a chain, as a pure state machine: `step(event) -> Ready`. No I/O, no clock, no threads, no tensors.

Rules (in brackets the invariants of docs/explanation/invariants.md; tests of the same names forbid the interleavings):
- A process is its boot id. It acts only in a view that names it, only under that view's epoch, and falls silent when
  it hears of a higher one until that is installed [boot-id, highest-epoch].
- A replica takes exactly the next entry, from its predecessor in the present view alone (a joining one: from the tail),
  and decides nothing about it [exactly-next, entry-holds-decisions]. So its history is its predecessor's prefix.
- The head answers a push when its entry is safe, and a duplicate when the original is [duplicate-is-a-promise].
- Who cannot know that its new predecessor holds all it holds itself is *suspect*, lest equal seqs stand for different
  entries: one of several that joined side by side, or whose order was changed, a former head that joins again. It says
  that it is empty, heeds nothing but its predecessor's state, and keeps its own until that is there: the next view may
  make it the head, and it holds all that was acknowledged.
- Relied upon: a view keeps the order of those who stay, who joins comes after them, and `restore` is named again in
  later views of a history until its members hold a state.
- State of an older history is dropped before anything else is heard [one-version, history].

Where things are: this file holds views, roles and the fence; admission.py what the head does with what workers send,
ordering.py its decisions, waiting.py withheld answers; downstream.py the chain below, state.py what is agreed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from outlast.api.server_status import ServerStatus
from outlast.api.view import BUFFER, Member, View
from outlast.chain.admission import Admission
from outlast.chain.applied import Applied
from outlast.chain.downstream import Downstream
from outlast.chain.events import (
    Acks,
    Connected,
    DataPlan,
    Disconnected,
    Entry,
    Event,
    Finish,
    Forward,
    FromLog,
    HigherEpoch,
    Install,
    Kind,
    Pull,
    Push,
    Ready,
    Refusal,
    Replay,
    Restored,
    SendAcks,
    SetSlots,
)
from outlast.chain.settings import ReplicaSettings
from outlast.chain.state import ReplicatedState, restored

PREDECESSOR = "its predecessor"

__all__ = ["Replica", "ReplicaSettings", "restored"]


class Replica:
    """See the module. One event at a time; obey the `Ready` before the next.

    An event that is late, repeated or not for us changes nothing. Raises `ValueError` for another shard's view and for
    a record whose log entries are missing.
    """

    def __init__(self, name: str, boot: str, shard: int, settings: ReplicaSettings) -> None:
        self.name = name
        self.boot = boot
        self.shard = shard
        self.settings = settings
        self.view: View | None = None
        self._heard = 0  # the highest epoch anybody spoke of
        self._acting = False
        self.is_head = False
        self._upstream: str | None = None  # boot id of whom we take entries from
        self.restoring: tuple[str, int] | None = None  # (what from, of which history) until Restored
        self._tainted = False  # Stateless: holds what Redis may have refused; not to be kept in another view
        self._lineage: View | None = None  # the last view in which our state was a prefix of our predecessor's
        self.suspect = False
        self._acked_up: tuple[int, int] | None = None  # (received, stable) as last told
        self._vouches_only = False
        self._state = ReplicatedState(data=DataPlan(slots=settings.slots))
        self._downstream = Downstream(boot, self._state, settings)
        self._admission = Admission(self, self._state, self._downstream, settings)
        admit = self._admission
        self._handlers: dict[type[Any], Callable[[Any, Ready], None]] = {
            Push: admit.push, Pull: admit.pull, FromLog: admit.from_log, Replay: admit.replay,
            SetSlots: admit.set_slots, Finish: admit.finish,
            Forward: self._forward, Acks: self._acks, Connected: self._connected, Disconnected: self._disconnected,
            Install: self._install, Restored: self._restored, HigherEpoch: self._higher_epoch,
        }  # fmt: skip

    # --- what the shell asks ------------------------------------------------------------------------------------------

    def step(self, event: Event) -> Ready:
        """Take one event; say what is to be done now."""
        ready = Ready()
        self._handlers[type(event)](event, ready)
        if self._acting and self.restoring is None:
            self._downstream.advance(ready)
            self._admission.settle(ready)
            self._acknowledge(ready)
        return ready

    @property
    def epoch(self) -> int:
        """Of the installed view; 0 before the first."""
        return 0 if self.view is None else self.view.epoch

    @property
    def role(self) -> str:
        """empty (in no view yet) | joining | head | middle | tail | single | stopped (in no view any more)."""
        if self.view is None:
            return "empty"
        if self.view.is_joining(self.boot):
            return "joining"
        if self.view.position(self.boot) is None:
            return "stopped"
        if self.is_head:
            return "single" if self._downstream.is_tail else "head"
        return "tail" if self._downstream.is_tail else "middle"

    @property
    def successor(self) -> Member | None:
        """Whom to dial and keep connected, as a member."""
        return None if self.view is None else self.view.successor(self.boot)

    @property
    def joiners(self) -> tuple[Member, ...]:
        """Whom to dial as well, while we are the tail."""
        return self.view.joining if self.view is not None and self._downstream.is_tail else ()

    @property
    def upstream(self) -> str | None:
        """The boot id whose entries and states are taken (and where acknowledgements go); None for a head."""
        return self._upstream

    @property
    def applied(self) -> Applied:
        """The table of applied steps; not to be changed."""
        return self._state.applied

    @property
    def initialised(self) -> bool:
        """Whether it holds parameters."""
        return self._state.initialised

    @property
    def last_seq(self) -> int:
        """What a handshake says (`Connected.last_seq`): the newest applied entry; 0 to be given everything (empty, or
        suspect); −1 while it loads a state itself."""
        if self._state.initialised:
            return 0 if self.suspect else self._state.last_seq
        return -1 if self.restoring is not None and self.restoring[0] != PREDECESSOR else 0

    @property
    def stable_seq(self) -> int:
        """Everything to here is acknowledged by the tail, as far as known (`Connected.stable`)."""
        return self._downstream.stable_seq

    @property
    def version(self) -> int:
        """Of the parameters."""
        return self._state.version

    @property
    def history(self) -> int:
        """Of the state; without one, of the view."""
        state = self._state
        return state.history if state.initialised or self.view is None else self.view.history

    @property
    def clocks(self) -> dict[int, int]:
        """Slot -> its highest applied step (SSP)."""
        return {slot: self._state.clock(slot) for slot in range(self.data.slots)}

    @property
    def data(self) -> DataPlan:
        """Which batch a slot takes at a step."""
        return self._state.data

    @property
    def offset(self) -> int:
        """The buffer's log is consumed to here (duplicates that were passed over included)."""
        return self._state.offset

    @property
    def pending(self) -> int:
        """Entries in the unacknowledged log. Hold back `FromLog` while it is long."""
        return len(self._downstream.log)

    @property
    def serving(self) -> bool:
        """Whether pushes and pulls are answered with more than a refusal."""
        return self.is_head and self._acting and self._state.initialised and self.restoring is None

    @property
    def why_not_ready(self) -> str:
        """What it lacks to be counted among the members that hold the shard's state; "" if it lacks nothing."""
        if self.role in ("empty", "joining", "stopped"):
            return f"no member of a view: {self.role}"
        if not self._acting:
            return "a newer view exists and is not installed yet"
        if self.restoring is not None:
            return f"restoring from {self.restoring[0]}"
        return "the predecessor's state has not come" if self.suspect else ""

    @property
    def finished(self) -> bool:
        """The goal is reached and all that was applied is stable: nothing more will happen here."""
        state = self._state
        return self._admission.finishing and state.initialised and self._downstream.stable_seq == state.last_seq

    def status(self) -> ServerStatus:
        """As far as the replica knows it."""
        state = self._state
        restoring = None if self.restoring is None else self.restoring[0]
        caught_up = tuple(self._downstream.caught_up) if self._acting and restoring is None else ()
        return ServerStatus(
            self.name, self.boot, self.shard, role=self.role, epoch=self.epoch, history=self.history,
            serving=self.serving, initialised=state.initialised, why_not_ready=self.why_not_ready, restoring=restoring,
            finished=self.finished, caught_up=caught_up, version=state.version,
            former_version=self._admission.former_version, slots=state.data.slots, clocks=self.clocks,
            applied=state.applied.count, applied_total=state.applied_total, duplicates=state.duplicates,
            staleness=self._admission.staleness,
        )  # fmt: skip

    def export_state(self) -> dict[str, Any]:
        """All of the state that is not tensors, JSON-able; `restored(exported, epoch)` makes the event of it."""
        return self._state.export()

    # --- the fence ----------------------------------------------------------------------------------------------------

    def current(self, epoch: int) -> bool:
        """Whether a message of this epoch may be acted upon. A higher one silences us."""
        if epoch > self.epoch:
            self._hear(epoch)
        return self._acting and epoch == self.epoch

    def _from_upstream(self, sender: str, epoch: int) -> bool:
        """Whether to heed an entry or a state sent down the chain."""
        return self.current(epoch) and sender == self._upstream

    def _hear(self, epoch: int) -> None:
        self._heard = max(self._heard, epoch)
        if self._heard > self.epoch:
            self._acting = False
            # Redis may have refused a record of what is applied here already: Redis is right.
            self._tainted = self._tainted or self.settings.traits.through_buffer

    def _higher_epoch(self, event: HigherEpoch, ready: Ready) -> None:
        if event.epoch > self.epoch:
            self._hear(event.epoch)

    # --- views --------------------------------------------------------------------------------------------------------

    def _install(self, event: Install, ready: Ready) -> None:
        view, old, state = event.view, self.view, self._state
        if view.shard != self.shard:
            raise ValueError(f"view of shard {view.shard} was sent to {self.name}, a server of shard {self.shard}")
        if old is not None and view.epoch <= old.epoch:
            return  # installs repeat, and may be late; the first view of an epoch is its only one
        was_head = self.is_head
        member, joining = view.position(self.boot) is not None, view.is_joining(self.boot)
        self.view = view
        self.is_head = view.position(self.boot) == 0
        self._acting = view.epoch >= self._heard and (member or joining)
        above = view.predecessor(self.boot) if member else view.tail if joining else None
        self._upstream, self._acked_up = None if above is None else above.boot, None
        # With ack: Tail nobody asks a middle what it received: one message an entry, not two.
        self._vouches_only = self.settings.ack == "Tail" and view.successor(self.boot) is not None
        fitting = not self._tainted and view.history == state.history
        trusted = not state.initialised or self._is_prefix_of(above, self._lineage)
        self.suspect = fitting and (member or joining) and not trusted
        if (member or joining) and not self.suspect:
            self._lineage = view
        self._downstream.install(view, suspect=self.suspect)
        if not member and not joining:
            ready.stop, self.restoring = True, None
            self._admission.refuse_all(Refusal.EPOCH, ready, "this server left the chain")
            return
        if was_head and not self.is_head:
            self._admission.refuse_all(Refusal.NOT_HEAD, ready, "another server is the head now")
        rebuild = self._tainted and view.history == state.history  # what Redis has of this history is the state
        self._tainted = False
        if state.initialised and not fitting:
            self._drop(ready)
            # A head has nobody above it: with nothing named to restore from it waits for a worker's initial weights.
            self.restoring = (PREDECESSOR, view.history) if member and not self.is_head else None
        if member and not state.initialised:
            self._restore(view, ready, rebuild=rebuild)
        else:
            self.restoring = None

    def _is_prefix_of(self, above: Member | None, old: View | None) -> bool:
        """Whether what we hold since `old` is certain to be a prefix of what the member now above us holds."""
        if above is None:
            return True
        theirs = None if old is None else old.position(above.boot)
        if theirs is None or old is None:
            return False  # it joined beside us, or after us
        ours = old.position(self.boot)
        return old.is_joining(self.boot) if ours is None else theirs < ours

    def _drop(self, ready: Ready) -> None:
        """Forget the state: it belongs to another history, or may hold what nobody else does."""
        sync = self.settings.traits.barrier
        self._admission.refuse_all(Refusal.HISTORY if sync else Refusal.STOPPED, ready, "rolled back to a checkpoint")
        self._forget(ready)
        ready.restore = "empty"

    def _forget(self, ready: Ready) -> None:
        self._state.drop(self.settings.slots)
        self._downstream.forget()

    def _restore(self, view: View, ready: Ready, *, rebuild: bool) -> None:
        """An empty member: load what the view names; else go on with what we wait for, or wait for INIT."""
        name = view.restore if view.restore is not None or not rebuild else BUFFER
        if name is not None and self.restoring != (name, view.history):
            self.restoring = (name, view.history)
            ready.restore = name
        elif name is None and self.restoring is not None and self.restoring[1] != view.history:
            self.restoring = None  # given up with the history that it was for

    def takes(self, event: Restored) -> bool:
        """Whether `step(event)` would replace the state. To be asked before tensors are overwritten, under one lock."""
        view = self.view
        if view is None or self.role == "stopped":
            return False
        if event.epoch is None and self.restoring is not None and self.restoring[0] != PREDECESSOR:
            # What the view named; it counts in the view's history from here on. A newer view may name something else.
            return event.seq > 0 and event.source in (None, self.restoring[0])
        if self.is_head or event.history != view.history:
            return False
        if event.epoch is None:
            return event.seq > self._state.last_seq  # a peer's state of unknown age never takes us back
        return event.seq > 0 and self._acting and event.epoch == self.epoch

    def _restored(self, event: Restored, ready: Ready) -> None:
        if event.epoch is not None:
            self.current(event.epoch)
        if self.takes(event):
            assert self.view is not None
            self.restoring, self.suspect, self._lineage = None, False, self.view
            self._state.adopt(event, self.view.history)
            self._downstream.adopted(ready)
        elif event.seq == 0 and self.restoring is not None and event.source == self.restoring[0]:
            self.restoring = None  # there is nothing to load: empty after all
        else:
            return
        if self._acting:
            self._downstream.advance(ready)
            self._acknowledge(ready, force=True)

    # --- the chain ----------------------------------------------------------------------------------------------------

    def append(self, entry: Entry, ready: Ready) -> None:
        """Apply the next entry and send it on."""
        assert self.restoring is None
        if entry.kind is Kind.INIT:
            assert self.view is not None
            self._state.initialise(self.view.history)
        self._state.apply(entry)
        ready.apply.append(entry)
        self._downstream.replicate(entry, ready)

    def _forward(self, event: Forward, ready: Ready) -> None:
        if not self._from_upstream(event.sender, event.epoch):
            return
        if self.restoring is not None:
            if self.restoring[0] != PREDECESSOR or event.entry.seq != 1:
                return
            self.restoring = None  # its log reaches back to INIT: that is all there is
        if self.suspect:
            if event.entry.seq != 1:
                return
            self._forget(ready)  # the same: nothing was acknowledged yet
            self.suspect, self._lineage = False, self.view
        ahead = event.entry.seq - self._state.last_seq
        if ahead > 1:
            return  # an entry between was lost with a link; its sender starts again from our last seq
        if ahead == 1:
            self.append(event.entry, ready)
        self._downstream.learn_stable(event.stable)
        if ahead < 1:  # sent again: so is the acknowledgement
            self._downstream.advance(ready)
            self._acknowledge(ready, force=True)

    def _acks(self, event: Acks, ready: Ready) -> None:
        if self.current(event.epoch):
            self._downstream.acked(event, ready)

    def _connected(self, event: Connected, ready: Ready) -> None:
        if self.current(event.epoch):
            self._downstream.connected(event, ready)

    def _disconnected(self, event: Disconnected, ready: Ready) -> None:
        self._downstream.disconnected(event.peer)

    def _acknowledge(self, ready: Ready, *, force: bool = False) -> None:
        """Tell upstream what we hold and what is stable, when it is news."""
        if self._upstream is None or self.suspect:
            return
        news = (self._state.last_seq, self._downstream.stable_seq)
        old = self._acked_up
        if not force:
            if old == news:
                return
            if old is not None and old[1] == news[1] and self._vouches_only:
                return
        self._acked_up = news
        ready.send.append(SendAcks(self._upstream, *news))

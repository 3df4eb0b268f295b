"""The vocabulary of the chain: what can happen to a replica, and what it asks its shell to do.

`replica.step(event) -> Ready` (see replica.py) is a pure state machine: these are its inputs and outputs. Gradients
are opaque here (`payload` is whatever the shell likes: a pooled buffer in a server, a list of numbers in the
simulator). Peers are named by boot id, never by name: a restarted server is another peer.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from outlast.api.view import View

Token = Hashable  # the shell's handle for "whoever is waiting for this answer"


class Kind(StrEnum):
    INIT = "init"  # the initial weights, given by the first worker; payload is the whole state
    UPDATE = "update"  # one optimizer step with the payload as gradient
    DELTA = "delta"  # add the payload to the parameters, past the optimizer (LocalSteps)
    CONFIG = "config"  # the number of slots or the data base changes; no payload


@dataclass(frozen=True)
class Identity:
    """Who computed it: a slot and an interval of its steps; an ordinary gradient has first == last."""

    slot: int
    first: int
    last: int


@dataclass(frozen=True)
class Contribution:
    """A gradient (or pseudo-gradient) as a worker sent it."""

    identity: Identity
    version: int  # what the worker had pulled when it computed this
    history: int  # of that version
    payload: Any
    kind: Kind = Kind.UPDATE
    lr_scale: float = 1.0  # the worker's learning rate over the spec's (its scheduler, if it has one); DELTA: its share


@dataclass(frozen=True)
class DataPlan:
    """Which batch a slot takes at a step: `base + (step - step0) * slots + slot` (replicated state)."""

    base: int = 0
    step0: int = 1
    slots: int = 1

    def batch(self, slot: int, step: int) -> int:
        return self.base + (step - self.step0) * self.slots + slot


@dataclass(frozen=True)
class Part:
    """One contribution's share in an update: final gradient = sum of weight * payload, in order."""

    payload: Any
    weight: float
    identity: Identity
    compensate_from: int | None = None  # DC-ASGD: the version whose pull copy (of this slot) to compensate against


@dataclass(eq=False)
class Entry:
    """One place in the chain's order, with every decision taken: replicas decide nothing.

    At the head `parts` says how to make the final gradient; the shell combines them and sets `payload` once, before
    it applies and forwards. Elsewhere `payload` arrives final and `parts` is empty.
    """

    seq: int
    kind: Kind
    version: int  # of the parameters after this entry
    identities: tuple[Identity, ...] = ()
    rate: float = 1.0  # multiplies the optimizer's learning rate: schedule(version) and the workers' schedulers
    parts: tuple[Part, ...] = ()
    payload: Any = None
    data: DataPlan | None = None  # CONFIG
    offset: int = 0  # the buffer's log is consumed up to here, this entry included (0: it came from no log)
    checksum: int | None = None  # now and then: of the parameters after this entry, for replicas to compare


# --- events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Install:
    view: View


@dataclass(frozen=True)
class Push:
    """A worker's contribution (kind INIT: its initial weights), complete. Answered by exactly one Reply."""

    token: Token
    epoch: int
    incarnation: int
    contribution: Contribution


@dataclass(frozen=True)
class Pull:
    """A worker wants weights. `version`: exactly that one (Sync); None: the newest. Answered by one Reply.

    The first of a worker's requests, before it computes: it fences the slot's older processes, as a push does.
    """

    token: Token
    epoch: int
    slot: int | None = None
    version: int | None = None
    incarnation: int = 1


@dataclass(frozen=True)
class FromLog:
    """Contributions the head read from the buffer's log, in offset order: (offset, incarnation, contribution)."""

    epoch: int
    items: tuple[tuple[int, int, Contribution], ...]
    pending: int = 0  # how many wait in the log, these included (0: these are all); decides the reduced rate


@dataclass(frozen=True)
class Record:
    """Stateless: how a stretch of the log became one update; written to Redis before its result is published."""

    entry_seq: int
    version: int
    kind: Kind
    rate: float
    parts: tuple[tuple[int, float], ...]  # (offset, weight), in order; what is skipped stands in `skipped`
    skipped: tuple[int, ...]
    last_offset: int
    data: DataPlan | None = None  # CONFIG


@dataclass(frozen=True)
class Replay:
    """Stateless, while restoring: apply this record again, obeying it."""

    record: Record
    items: tuple[tuple[int, int, Contribution], ...]


@dataclass(frozen=True)
class Restored:
    """The shell holds state again (checkpoint, snapshot from a predecessor, or Redis). `applied`: Applied.to_json()."""

    seq: int
    version: int
    history: int
    applied: dict[str, Any]
    data: DataPlan
    offset: int = 0
    extra: dict[str, Any] = field(default_factory=dict)  # Replica.export_state()'s other keys, opaque to the shell
    epoch: int | None = None  # a peer's state: the epoch of the link it came over (None: what View.restore named)
    source: str | None = None  # the Ready.restore that this answers, so that an overtaken one is not believed


@dataclass(frozen=True)
class Forward:
    """An entry from the predecessor (or, to a joining replica, from the tail)."""

    sender: str
    epoch: int
    entry: Entry
    stable: int  # highest seq the sender knows to be acknowledged by the tail


@dataclass(frozen=True)
class Acks:
    """From the successor: it has applied `received`; the tail has acknowledged `stable`."""

    sender: str
    epoch: int
    received: int
    stable: int


@dataclass(frozen=True)
class Connected:
    """The link to a successor or joining replica is up; it holds everything to `last_seq` (0 or less: it is empty).

    `last_seq` and `stable` are the peer's `Replica.last_seq` and `.stable_seq` at the handshake.
    """

    peer: str
    epoch: int
    last_seq: int
    stable: int | None = None  # its own `stable_seq` (None: unknown, it is asked by sending an entry again)


@dataclass(frozen=True)
class Disconnected:
    peer: str


@dataclass(frozen=True)
class SetSlots:
    """`spec.workers.replicas` changed (an ordered entry follows)."""

    slots: int


@dataclass(frozen=True)
class Finish:
    """No more pushes: the job's goal is reached. What is already in the chain still becomes stable."""


@dataclass(frozen=True)
class HigherEpoch:
    """A peer or worker spoke of a view above ours: stop acting until the operator installs it."""

    epoch: int


Event = (
    Install | Push | Pull | FromLog | Replay | Restored | Forward | Acks | Connected | Disconnected
    | SetSlots | Finish | HigherEpoch
)  # fmt: skip


# --- what the shell must do -------------------------------------------------------------------------------------------


class Refusal(StrEnum):
    EPOCH = "epoch"  # the message's epoch is not ours; the current view is attached
    NOT_HEAD = "not-head"
    FENCED = "fenced"  # a newer incarnation of this slot exists
    HISTORY = "history"  # Sync: computed on weights that were rolled back; pull again
    EMPTY = "empty"  # no initial weights yet: send them (kind INIT)
    STEP = "step"  # Sync: not the step the barrier waits for
    FINISHED = "finished"
    VERSION = "version"  # the exact version asked for is not (or no longer) here
    STOPPED = "stopped"  # not serving: a higher epoch was heard, or state is being restored


@dataclass(frozen=True)
class Acknowledged:
    """The push is as safe as the strategy promises. The shell attaches weights of `version` if they were wanted."""

    token: Token
    version: int
    data: DataPlan
    duplicate: bool = False


@dataclass(frozen=True)
class Weights:
    """Answer to a Pull."""

    token: Token
    version: int
    data: DataPlan


@dataclass(frozen=True)
class Refused:
    token: Token
    reason: Refusal
    view: View | None
    detail: str = ""
    version: int = 0


Reply = Acknowledged | Weights | Refused


@dataclass(frozen=True)
class SendEntry:
    peer: str
    entry: Entry
    stable: int


@dataclass(frozen=True)
class SendState:
    """Give the peer everything at the current seq (a snapshot, taken before any later entry is applied)."""

    peer: str


@dataclass(frozen=True)
class SendAcks:
    peer: str
    received: int
    stable: int


Send = SendEntry | SendState | SendAcks


@dataclass
class Ready:
    """Obey in this order: restore, record, apply, send, reply, trim. All of it before the next step().

    restore: load this (View.restore), then step(Restored(...)); only refusals stand beside it.
             "empty": forget what you hold; no Restored follows (INIT or a predecessor's state will).
    record:  write to Redis first, under the epoch's fence; when fenced, drop the rest and step(HigherEpoch).
    apply:   combine parts into the payload, apply it; in order.
    send:    hand to the links (they deliver in order; a dead link swallows).
    trim:    log offsets up to this one may leave Redis.
    stop:    this process is in no view any more: serve nobody (views are still told).
    """

    restore: str | None = None
    records: list[Record] = field(default_factory=list)
    apply: list[Entry] = field(default_factory=list)
    send: list[Send] = field(default_factory=list)
    reply: list[Reply] = field(default_factory=list)
    trim: int | None = None
    stop: bool = False

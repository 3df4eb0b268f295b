"""What a worker's session asks its shell to do, and what becomes of a gradient: frozen data, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from outlast.api.view import Member
from outlast.chain.events import Kind


class Outcome(StrEnum):
    SERVER = "server"  # acknowledged by all shards
    BUFFER = "buffer"  # acknowledged by Redis
    UNAPPLIED = "unapplied"  # refused: the job has reached its goal
    DROPPED = "dropped"  # computed on weights that were rolled back (Sync), or no room in the buffer (whenFull: Drop)


@dataclass(eq=False)
class Outgoing:
    """A gradient on its way. `versions[shard]` is what it was computed on; `payload` is the shell's."""

    first: int
    last: int
    versions: tuple[int, ...]
    history: int
    payload: Any
    kind: Kind = Kind.UPDATE
    lr_scale: float = 1.0
    pending: set[int] = field(default_factory=set)
    outcome: Outcome | None = None
    in_buffer: bool = False  # handed to the buffer; the heads are not asked any more
    refused: bool = False  # some shard had reached the job's goal before it came


@dataclass(frozen=True)
class Ask:
    """Ask every server of the shard which view it knows; report with `heard`."""


@dataclass(frozen=True)
class Dial:
    member: Member


@dataclass(frozen=True)
class SendPush:
    item: Outgoing
    epoch: int
    want_weights: bool


@dataclass(frozen=True)
class SendPull:
    epoch: int
    version: int | None


@dataclass(frozen=True)
class Idle:
    """Nothing to do before `until` (None: before something is submitted)."""

    until: float | None


Action = Ask | Dial | SendPush | SendPull | Idle


class Notice(StrEnum):
    FENCED = "fenced"  # a newer process has this slot
    EMPTY = "empty"  # the servers have no weights: give them the initial ones
    RESYNC = "resync"  # Sync: pull, and go on from that version

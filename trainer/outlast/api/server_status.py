"""What a server tells of itself: its answer to a probe, and what a watch is sent.

Rules. (1) Server and reader may differ in age: unknown keys are ignored, and a key that is missing takes its default,
which says that the server does not tell. (2) Times are seconds of `time.monotonic()` on the server's host.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from outlast.api import codec

HEADS = ("head", "single")  # the roles that put updates in order, and whose loss is an outage


@dataclass(frozen=True)
class CheckpointRef:
    """A server's verified part of a checkpoint; of a whole set, `epoch` is the sum of its parts' (and `crc` is 0)."""

    name: str
    history: int
    version: int
    epoch: int = 0  # of the view in which it was written: which of the parts that may go by that set's name
    crc: int = 0  # of the part's file: two servers with the same one hold the same state

    @property
    def order(self) -> tuple[int, int, int]:
        return self.history, self.epoch, self.version


@dataclass(frozen=True)
class ViewTimes:
    """When a server installed a view and first applied an update in it."""

    installed_t: float | None = None
    first_update_t: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """What the evaluator found. None: the task knows no accuracy, or training has diverged; JSON knows no NaN."""

    version: int
    accuracy: float | None
    loss: float | None
    samples: int = 0
    t: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "accuracy", finite(self.accuracy))
        object.__setattr__(self, "loss", finite(self.loss))


def finite(value: float | None) -> float | None:
    """`value`, or None for one that JSON has no word for."""
    return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class ServerStatus:
    name: str
    boot: str
    shard: int = 0
    address: str = ""
    pid: int = 0
    t: float = 0.0  # when this was said
    role: str = "empty"  # empty | joining | head | middle | tail | single | stopped
    epoch: int = 0  # of the view it has installed; 0: none, it is fresh
    history: int = 0
    serving: bool = False
    initialised: bool = False
    why_not_ready: str = ""  # see Replica
    restoring: str | None = None  # what it loads its state from at this moment
    restore_error: str | None = None
    config_error: str | None = None
    leaving: bool = False
    left: bool = False
    finished: bool = False
    caught_up: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    views: dict[int, ViewTimes] = field(default_factory=dict)
    version: int = 0
    former_version: int = 0  # that the shard held at least when it was rolled back, as workers' gradients tell a head
    slots: int = 0
    clocks: dict[int, int] = field(default_factory=dict)
    absent: dict[int, float] = field(default_factory=dict)  # slot -> when its last connection ended
    connected: tuple[int, ...] | None = None  # slots that have a connection now; None: an older server does not tell
    applied: int = 0
    applied_total: int = 0
    applied_t: float | None = None  # when it last applied an entry
    replayed: int = 0  # gradients applied from the buffer since this process started
    duplicates: int = 0
    staleness: tuple[int, ...] = (0, 0)  # sum, and number of gradients
    parameters: int = 0  # of its shard, once it holds them
    pushed_bytes: int = 0
    pulled_bytes: int = 0
    checkpoints: tuple[CheckpointRef, ...] = ()  # complete, newest first
    last_states: tuple[str, ...] = ()  # what leaving last members of its shard left (outlast.api.view.last_state_name)
    evaluation: Evaluation | None = None
    backlog: int = 0  # gradients in the buffer's log that are not applied yet (with Stateless, some that are)
    buffer_bytes: int = 0
    # Stateless: the run of Redis that holds the state of this history, "" if none does; None: an older server does not
    # tell.
    buffer_run: str | None = None
    log_end_t: float | None = None  # all that the buffer's log held then has been applied
    redis_answered_t: float | None = None  # when Redis last did what this server asked (only heads ask)
    redis_silent_t: float | None = None  # since when it cannot reach Redis; None: it does, or does not ask
    tells_silence: bool = True  # False: an older server, whose document lacks `redis_silent_t`

    @property
    def is_head(self) -> bool:
        return self.role in HEADS

    def notable(self) -> tuple[Any, ...]:
        """What is sent to watches when it changes, not at the next heartbeat: all that a plan could act on at once."""
        return (
            self.boot, self.epoch, self.history, self.role, self.serving, self.initialised, self.slots, self.caught_up,
            self.absent, self.connected, self.broken, self.leaving, self.left, self.finished, self.checkpoints,
            self.last_states, self.restore_error, self.config_error, self.views, self.evaluation,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        return codec.to_json(self, without="tells_silence")

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> ServerStatus:
        return codec.from_json(ServerStatus, {**raw, "tells_silence": "redis_silent_t" in raw})

"""What the core asks of the rest of a server. The core calls all of it with its lock held, so none of it waits.

Redis may be out of reach: what needs it raises `BufferUnavailable`, and the core calls it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from outlast.api.view import Member, View
from outlast.chain.events import Entry, Record, Reply, SendAcks, SendEntry
from outlast.chain.replica import Replica


class Waiter(Protocol):
    """A worker's request that waits for its one answer: the replica's token."""

    slot: int | None
    wants_weights: bool

    def answer(self, reply: Reply, weights: Any, view: View | None) -> None: ...


class State(Protocol):
    """What the server holds of its shard of the model; empty until `apply` of INIT or `load`."""

    def apply(self, entry: Entry, replica: Replica) -> None: ...

    def clear(self) -> None: ...

    def load(self, initial: Any, tensors: dict[str, Any], version: int) -> None: ...

    def export(self) -> tuple[Any, dict[str, Any]]:
        """What `load` takes, without the version."""

    def weights(self, version: int | None, slot: int | None) -> Any:
        """Weights of `version` (None: the newest) for a worker of this slot; None: they are not here any more."""


class Links(Protocol):
    """The links down the chain, to the successor and to joining replicas."""

    def keep(self, member: Member, epoch: int) -> None:
        """Dial, unless there is a link to this boot id already."""

    def send_entry(self, send: SendEntry) -> None: ...

    def send_state(self, peer: str) -> None: ...

    def forget(self) -> None: ...


class Predecessors(Protocol):
    """Links from up the chain."""

    def send_acks(self, acks: SendAcks) -> None: ...

    def tell_later(self) -> None:
        """A newer view is installed: links of older epochs hear of it, if they last so long."""


class Log(Protocol):
    """The gradient log in Redis, where the job uses one."""

    def record(self, record: Record) -> bool:
        """Write the decision under the epoch's fence. False: fenced."""

    def publish(self) -> bool:
        """After apply, before anything is answered: save a snapshot where Redis asked for one. False: fenced."""

    def trim_to(self, offset: int) -> None: ...


class Checkpoints(Protocol):
    """State outside memory."""

    def applied(self, entry: Entry) -> None:
        """The newest entry is applied: this may be the time to save."""

    def took_over(self, version: int, from_peer: bool) -> None: ...

    def restore_later(self, source: str) -> None:
        """Load `source` ("buffer", or a checkpoint's name), then `take_over`."""

    def snapshot_now(self) -> None:
        """Save a snapshot in Redis, which lost its data or is new. Raises `Fenced`."""

    def snapshot_soon(self) -> bool:
        """Begin a snapshot in Redis. False: another is being written."""


@dataclass(frozen=True)
class Ports:
    links: Links
    predecessors: Predecessors
    log: Log
    checkpoints: Checkpoints

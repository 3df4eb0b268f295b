"""What the planner asks a runtime to do: frozen data, no behaviour.

Every action is safe to repeat, and says enough for a runtime to refuse it when it comes late. What is one call to a
server says which, and is the same in every runtime.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, get_args

from outlast.api.view import Member, View
from outlast_operator.planner.checkpoints import Storage
from outlast_operator.planner.observed import Role
from outlast_operator.planner.status import JobStatus


@dataclass(frozen=True)
class StartProcess:
    """Start a server, worker or evaluator. To be refused when the name has a living process other than `replaces`,
    or when a worker of this or a higher incarnation was already started in the slot."""

    name: str
    role: Role
    shard: int = 0
    index: int = 0
    slot: int = 0
    incarnation: int = 1
    replaces: str | None = None  # instance that had the name; if it is not known to be dead, remove it by force first
    storage: Storage = "Shared"  # servers: where their checkpoints go
    claim: int = 0  # and which generation of the server's own claim


@dataclass(frozen=True)
class KillProcess:
    """SIGKILL (delete the pod with this uid, without grace). To be ignored when the name has another instance."""

    name: str
    instance: str
    why: str = ""


@dataclass(frozen=True)
class TermProcess:
    """SIGTERM (delete the pod with this uid); a server is told that no replacement comes. To be ignored when the name
    has another instance."""

    name: str
    instance: str
    why: str = ""


class Control(Protocol):
    """What a server can be told: the methods of `outlast.wire.control.ServerControl`."""

    def install(self, view: View) -> object: ...
    def set_slots(self, slots: int) -> object: ...
    def checkpoint_now(self, label: int | None) -> object: ...
    def finish(self) -> object: ...
    def leave(self) -> object: ...


@dataclass(frozen=True)
class ServerCall(ABC):
    """One call to one start of a server."""

    to: Member

    @property
    def what(self) -> str:
        """While a call is under way to a server, no other of the same name is sent to it."""
        return type(self).__name__

    @abstractmethod
    def call(self, control: Control) -> object: ...


@dataclass(frozen=True)
class InstallView(ServerCall):
    """Hand a *recorded* view to one server. Repeated until its probe confirms the epoch."""

    view: View

    @property
    def what(self) -> str:
        return f"InstallView {self.view.epoch}"

    def call(self, control: Control) -> object:
        return control.install(self.view)


@dataclass(frozen=True)
class SetSlots(ServerCall):
    """To a head."""

    slots: int

    @property
    def what(self) -> str:
        return f"SetSlots {self.slots}"

    def call(self, control: Control) -> object:
        return control.set_slots(self.slots)


@dataclass(frozen=True)
class FinishJob(ServerCall):
    """To a head."""

    def call(self, control: Control) -> object:
        return control.finish()


@dataclass(frozen=True)
class RequestCheckpoint(ServerCall):
    label: int | None = None  # the version that names the set, the same for all shards

    def call(self, control: Control) -> object:
        return control.checkpoint_now(self.label)


@dataclass(frozen=True)
class AssignSlot:
    """A living worker fills another slot as well, as `incarnation` of it (Sync and bounded staleness wait for it)."""

    slot: int
    incarnation: int
    worker: str  # name of the one that takes it over


@dataclass(frozen=True)
class StartRedis:
    """Start the job's Redis under the name `redis`; to be refused while it has a living process."""

    replaces: str | None = None


@dataclass(frozen=True)
class PauseAppends:
    """Let the job's Redis take no gradient any more. Repeated until `RedisState.paused`."""


@dataclass(frozen=True)
class EndRedis:
    """End the job's own Redis, which is leaving and holds nothing that is needed. To be ignored when the name has
    another instance."""

    instance: str


@dataclass(frozen=True)
class ExpandClaims:
    """Have each claim of the job ask for so many bytes."""

    to_bytes: int


@dataclass(frozen=True)
class Emit:
    """An event for users: a Kubernetes Event, a line of the log."""

    type: str  # Normal | Warning
    reason: str
    message: str


Action = (  # in the order in which those of one plan are carried out
    InstallView | FinishJob | RequestCheckpoint | SetSlots | AssignSlot | PauseAppends | EndRedis | KillProcess
    | TermProcess | StartRedis | StartProcess | ExpandClaims | Emit
)  # fmt: skip
_ORDER = get_args(Action)


def in_order(actions: Iterable[Action]) -> tuple[Action, ...]:
    return tuple(sorted(actions, key=lambda action: _ORDER.index(type(action))))


@dataclass(frozen=True)
class Plan:
    """`status` is written first (if it differs), then `actions` are executed in order; then sleep until `wake_at`
    (runtime's clock; None: until something happens) or until anything is observed to change."""

    status: JobStatus
    actions: tuple[Action, ...]
    reason: str
    wake_at: float | None = None

"""What the planner asks a runtime to do: frozen data, no behaviour.

Every action is safe to repeat, and says enough for a runtime to refuse it when it comes late.
"""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True)
class InstallView:
    """Hand a *recorded* view to one server. Repeated until its probe confirms the epoch."""

    view: View
    to: Member


@dataclass(frozen=True)
class SetSlots:
    shard: int
    to: Member  # the head
    slots: int


@dataclass(frozen=True)
class FinishJob:
    shard: int
    to: Member  # the head


@dataclass(frozen=True)
class RequestCheckpoint:
    shard: int
    to: Member  # the head
    label: int | None = None  # the version that names the set, the same for all shards


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


Action = (
    StartProcess | KillProcess | TermProcess | InstallView | SetSlots | FinishJob | RequestCheckpoint | AssignSlot
    | StartRedis | PauseAppends | EndRedis | ExpandClaims | Emit
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """`status` is written first (if it differs), then `actions` are executed in order; then sleep until `wake_at`
    (runtime's clock; None: until something happens) or until anything is observed to change."""

    status: JobStatus
    actions: tuple[Action, ...]
    reason: str
    wake_at: float | None = None

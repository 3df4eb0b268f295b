"""One turn of the planner: what it observes, and the draft of its answer.

Rules:
 1. Nothing here outlives the turn: what must be remembered is in the draft status.
 2. A timer ("since when has this been so?") lives as long as each turn asks for it; else it is forgotten. So a
    condition that ends and begins again starts a new timer.
 3. Code that waits for a time calls `wake`, so that the loop can sleep exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from outlast_operator.planner.actions import Action, Emit
from outlast_operator.planner.observed import ObservedJob, Probe, Process
from outlast_operator.planner.status import JobStatus

if TYPE_CHECKING:
    from outlast.api.spec import JobSpec


@dataclass
class Turn:
    """The planner's working copy; `status` is the draft and starts as the recorded one."""

    spec: JobSpec
    observed: ObservedJob
    now: float
    status: JobStatus
    actions: list[Action] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    wake_at: float | None = None
    timers: dict[str, float] = field(default_factory=dict)
    exits_counted: set[str] = field(default_factory=set)  # instances whose exit this turn is the first to deal with
    out_of_reach: frozenset[str] = frozenset()  # processes that are not counted: see reach.py
    first_refused: dict[tuple[str, str], str] = field(default_factory=dict)  # (role, reason) -> name that asks for all

    @staticmethod
    def begin(spec: JobSpec, observed: ObservedJob, now: float) -> Turn:
        return Turn(spec, observed, now, observed.status)

    @property
    def recorded(self) -> JobStatus:
        return self.observed.status

    def record(self, **changes: Any) -> None:
        """Change the draft status."""
        self.status = replace(self.status, **changes)

    def do(self, action: Action) -> None:
        self.actions.append(action)

    def explain(self, reason: str) -> None:
        """Add to the plan's reason, which the loop logs."""
        self.reasons.append(reason)

    def tell(self, reason: str, message: str, warning: bool = False) -> None:
        """An event for users, and part of the plan's reason."""
        self.do(Emit("Warning" if warning else "Normal", reason, message))
        self.explain(message)

    def since(self, key: str, holds: bool = True, start: float | None = None) -> float | None:
        """Since when `key` has held without a gap, as far as turns can tell; None if it does not hold.

        `start`: since when it has, if this turn is the first to ask (now, if not given).
        """
        if not holds:
            return None
        # A recorded time in the future is that of another operator, whose clock was ahead.
        recorded = min(self.recorded.since.get(key, self.now if start is None else start), self.now)
        return self.timers.setdefault(key, recorded)

    def lasted(self, key: str, holds: bool, duration_s: float) -> bool:
        """Whether `key` has held for that long; if not yet, wakes the loop when it will have."""
        start = self.since(key, holds)
        return start is not None and self.due(start + duration_s)

    def unheard(self, key: str, holds: bool, duration_s: float) -> bool:
        """As `lasted`, of what this operator itself does not hear: an operator that has just started, or was held up,
        has not listened for as long as another one recorded."""
        start = self.since(key, holds)
        return start is not None and self.due(max(start, self.observed.t_operator_start) + duration_s)

    def due(self, t: float) -> bool:
        """Whether `t` has come; if not, wakes the loop then."""
        if t > self.now:
            self.wake(t)
            return False
        return True

    def wake(self, t: float) -> None:
        if self.wake_at is None or t < self.wake_at:
            self.wake_at = max(t, self.now)

    @property
    def own_directories(self) -> bool:
        """Whether each server has a directory of its own for its parts of checkpoints."""
        return self.status.storage in ("PerServer", "NodeLocal")

    def process(self, name: str) -> Process | None:
        return self.observed.processes.get(name)

    def probe(self, name: str, boot: str) -> Probe | None:
        """What this very start of a server last said."""
        probe = self.observed.probes.get(name)
        return probe if probe is not None and probe.boot == boot else None

    def held(self, name: str) -> bool:
        """Whether a drill holds this name's replacement back."""
        return not self.due(self.observed.held.get(name, self.now))


def server_name(spec: JobSpec, shard: int, index: int) -> str:
    """`index` = `servers.replicas`: the second name of a shard that has one server."""
    replicas, shards = spec.servers.replicas, spec.servers.shards
    return f"server-{shards * replicas + shard}" if index == replicas else f"server-{shard * replicas + index}"


def server_names(spec: JobSpec, shard: int) -> list[str]:
    """Names of the servers of a shard; the view says which of them is head.

    A shard with one server has two names: while the server leaves under one, its replacement starts under the other.
    """
    replicas = spec.servers.replicas
    return [server_name(spec, shard, index) for index in range(2 if replicas == 1 else replicas)]

"""What the planner remembers between turns: frozen data, no behaviour.

It is recorded, by compare-and-swap, before any action of the same plan is carried out. A server's boot id is known only
once the server has been probed; `JobStatus.boots` remembers which instance it was.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from outlast.api import codec
from outlast.api.server_status import CheckpointRef
from outlast.api.view import View
from outlast_operator.planner.checkpoints import ServerClaim, Storage

UNKNOWN_RUN = ""  # in `JobStatus.buffer_runs`: a server of an older trainer image does not tell which it is


@dataclass(frozen=True)
class Condition:
    """A metav1.Condition; `t_transition` becomes lastTransitionTime."""

    type: str
    status: str  # "True" | "False" | "Unknown"
    reason: str
    message: str
    t_transition: float


POD_REJECTED = "PodRejected"  # the reason of a wait: pods of this name end again and again before they run


@dataclass(frozen=True)
class Wait:
    """Why a process, or an object that the job needs, is not there yet, in the words of API server, scheduler or
    kubelet."""

    reason: str  # CamelCase, see docs/reference/refusals.md
    message: str
    retry_at: float | None = None  # of a request that was refused: when it may be sent again; None: it was not refused
    final: bool = False  # sent again as it is, the request would be refused again
    blocks: bool = False  # no process can start before it is there
    outdated: bool = False  # the pod has a template that was changed since: another one may start


@dataclass(frozen=True)
class Attempt:
    """How the starts of one name have gone, since it last made progress, and when the next may be."""

    failures: int = 0  # exits with an error of its own (not: killed, evicted, lost with its node)
    exits: int = 0  # of any cause: what the back-off grows with
    instance: str = ""  # the last exit that has been counted
    t_exited: float = 0.0
    until: float = 0.0  # not to be started again before
    clock: int = -1  # what progress is measured from: a worker's slot clock, a server's epoch


@dataclass(frozen=True)
class Failover:
    """One line of the ledger: a member, worker or Redis was lost, and what came of it. Times None until they happen."""

    target: str
    cause: str  # Killed | Exited | Silent | Unreachable | Restarted | Planned | RestoreFailed | Rollback
    t_detected: float
    kind: str = "server"  # server | worker | redis
    boot: str = ""  # of the lost server
    shard: int = 0
    role: str = ""  # what it was: head | middle | tail | single
    signal: int | None = None
    epoch: int | None = None  # of the view that answered it
    restore: str | None = None  # what that view restores from
    t_decided: float | None = None  # view recorded (worker: restart recorded)
    t_promoted: float | None = None  # view installed by its head (worker: running again)
    t_first_update: float | None = None
    version: int = 0  # of the shard when it was lost, as last heard, or as workers tell later
    history: int = 0  # that its rollback began; 0: there was none
    gradients: dict[str, int] = field(default_factory=dict)  # buffered, replayed, lost
    message: str = ""
    successor: str = ""  # boot of the head that answers it, until that has caught up with the buffer's log (Hybrid)
    replayed_before: int = 0  # what that one had applied from the buffer before

    @property
    def closed(self) -> bool:
        return self.t_first_update is not None


@dataclass(frozen=True)
class Progress:
    """For display; changes of it alone are written at most every few seconds."""

    version: int = 0
    accuracy: float | None = None
    loss: float | None = None
    percent: float | None = None
    eta_s: float | None = None
    workers_ready: int = 0
    workers_active: int = 0
    servers_ready: int = 0
    gradients: dict[str, int] = field(default_factory=dict)  # applied, duplicates, buffered, lost
    cost: dict[str, float] = field(default_factory=dict)  # total; of it workers, idle, recomputed
    t: float = 0.0


@dataclass(frozen=True)
class JobStatus:
    """Everything the planner remembers between turns. `resource_version` is the store's, and no part of the JSON."""

    state: str = "Pending"  # for display, see conditions.py
    conditions: tuple[Condition, ...] = ()
    views: dict[int, View] = field(default_factory=dict)  # shard -> newest recorded view
    boots: dict[str, str] = field(default_factory=dict)  # boot id -> instance, for all that stand in a view or did
    dead: tuple[str, ...] = ()  # instances proved dead, as long as `boots` knows them
    incarnations: dict[int, int] = field(default_factory=dict)  # slot -> newest
    seen: dict[int, str] = field(default_factory=dict)  # slot -> the instance that its newest incarnation was seen as
    adopted: dict[int, int] = field(default_factory=dict)  # slot without a worker -> slot of the worker that fills it
    attempts: dict[str, Attempt] = field(default_factory=dict)
    waits: dict[str, Wait] = field(default_factory=dict)  # process or object -> why it is not there yet
    waited_s: float = 0.0  # since t_start, not counting a wait that goes on
    evaluation_error: str = ""  # why the evaluator failed last, until it has evaluated since
    done: tuple[str, ...] = ()  # workers and evaluator that have left with 0
    since: dict[str, float] = field(default_factory=dict)  # timers: since when something has been so
    t_waiting: float | None = None  # since when something waits and the job does not train
    stopping: bool = False  # suspended: what the job holds is saved, and everything is ended
    failovers: tuple[Failover, ...] = ()  # the newest ones
    failover_count: int = 0  # all of them
    lost_before: int = 0  # updates that the losses lost which `failovers` no longer holds
    storage: Storage | None = None  # chosen once, before the first server starts
    claims: dict[str, ServerClaim] = field(default_factory=dict)  # server -> its claim, where each has one
    # Stateless: shard -> the run of Redis that last held its state of this history; no entry: none is known to have.
    buffer_runs: dict[int, str] = field(default_factory=dict)
    newest_set: CheckpointRef | None = None  # that was seen complete, where no directory shows it
    rejected_checkpoints: tuple[str, ...] = ()  # could not be restored from
    goal: str | None = None  # why the job is finishing: "updates", "epochs", "seconds", "accuracy"
    outcome: str | None = None  # Succeeded | Failed
    reason: str = ""  # CamelCase word for outcome or state
    message: str = ""
    progress: Progress = field(default_factory=Progress)
    t_start: float | None = None
    t_running: float | None = None  # all shards first served (since the job was last resumed)
    trained_s: float = 0.0  # training time before that
    t_rolled_back: float | None = None  # the newest rollback was recorded
    t_completed: float | None = None
    observed_generation: int | None = None
    resource_version: str | None = None

    def to_json(self) -> dict[str, Any]:
        return codec.to_json(self, without="resource_version")

    @staticmethod
    def from_json(raw: dict[str, Any], resource_version: str | None = None) -> JobStatus:
        return codec.from_json(JobStatus, {**raw, "resource_version": resource_version})

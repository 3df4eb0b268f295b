"""What the planner sees, remembers and asks for: frozen data, no behaviour.

Rules of this file:
 1. `ObservedJob` is what a runtime can see now; `JobStatus` is what the planner remembers (it is recorded, by
    compare-and-swap, before any action of the same plan is carried out); an `Action` is what a runtime must do.
 2. All times are floats in seconds on the runtime's own clock: `time.monotonic()` for local processes (servers of the
    same host share it), wall time in a cluster. `Probe.clock_offset_s` converts a server's times to it.
 3. A process is known by name and by `instance`, the runtime's word for one start of it ("pid:starttime", a pod's
    uid). A server's boot id is known only once it has been probed; `JobStatus.boots` remembers which instance it was.
 4. Every action is safe to repeat, and says enough for a runtime to refuse it when it comes late.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, TypeVar

from outlast.api.view import Member, View

Role = Literal["server", "worker", "evaluator", "redis"]
Phase = Literal["starting", "running", "exited"]
CONFIG_ERROR_EXIT = 3  # a process that leaves with it cannot be helped by a restart: the job fails with its message


_T = TypeVar("_T")


def _known(kind: type[_T], raw: dict[str, Any]) -> _T:
    """Made from the fields that this release knows."""
    return kind(**{f.name: raw[f.name] for f in fields(kind) if f.name in raw})  # type: ignore[arg-type]


# --- what is observed -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Process:
    """One process (a pod, in a cluster) under its stable name: the newest start the runtime knows of.

    An exited one stays in `ObservedJob.processes` until another start takes its name.
    """

    name: str
    role: Role
    instance: str  # this start of it: "pid:starttime", a pod's uid
    phase: Phase = "running"
    boot: str | None = None  # servers: as probed, None until then
    address: str = ""  # servers: "unix:/path" or "tcp:host:port"
    incarnation: int = 1  # workers
    exit_code: int | None = None  # None as well when a signal ended it
    exit_signal: int | None = None
    proven_dead: bool = False  # reaped, container terminated: it acts no more (False for a pod on a lost node)
    t_started: float = 0.0
    t_exited: float | None = None
    lived_s: float | None = None  # how long it ran, where that is not t_exited - t_started: a pod waits before it runs
    reason: str = ""  # why it ended, as far as known: the message of errors/NAME.json, OOMKilled, Evicted

    @property
    def alive(self) -> bool:
        return self.phase != "exited"


@dataclass(frozen=True)
class CheckpointRef:
    """A checkpoint that a server verified for its shard."""

    name: str
    history: int
    version: int


@dataclass(frozen=True)
class ViewTimes:
    """When a server installed a view and first applied an update in it; the server's clock."""

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


@dataclass(frozen=True)
class Probe:
    """The last status a server sent. A runtime keeps a dead server's last one until its name is probed again."""

    name: str
    boot: str
    t_heard: float  # the runtime's clock
    address: str = ""
    shard: int = 0
    epoch: int = 0  # of the view it has installed; 0: none, it is fresh
    history: int = 0
    role: str = "empty"  # empty | joining | head | middle | tail | single | stopped
    serving: bool = False
    initialised: bool = False
    version: int = 0
    last_seq: int = -1
    stable_seq: int = -1
    slots: int = 0
    caught_up: tuple[str, ...] = ()
    leaving: bool = False
    left: bool = False
    finished: bool = False
    broken: tuple[str, ...] = ()
    checkpoints: tuple[CheckpointRef, ...] = ()
    restore_error: str | None = None
    config_error: str | None = None
    applied: int = 0
    applied_total: int = 0
    duplicates: int = 0
    clocks: dict[int, int] = field(default_factory=dict)
    absent: dict[int, float] = field(default_factory=dict)  # slot -> when its last connection ended; server's clock
    views: dict[int, ViewTimes] = field(default_factory=dict)
    evaluation: Evaluation | None = None
    pushed_bytes: int = 0
    pulled_bytes: int = 0
    restoring: str | None = None  # what it loads its state from at this moment
    applied_t: float | None = None  # when it last applied an entry; the server's clock, as the next
    log_end_t: float | None = None  # all that the buffer's log held then has been applied
    backlog: int = 0
    buffer_bytes: int = 0
    replayed: int = 0  # gradients applied from the buffer since this process started
    t: float = 0.0
    pid: int = 0
    clock_offset_s: float = 0.0  # add to the server's times to get the runtime's (0 on one host)
    refused: bool = False  # its connection was closed and a new one refused: gone, though nobody has proved it

    @staticmethod
    def from_json(raw: dict[str, Any], t_heard: float, clock_offset_s: float = 0.0) -> Probe:
        """From a server's status document. Unknown keys are ignored: server and operator may differ in age."""
        known = {f.name for f in fields(Probe)}
        values = {k: v for k, v in raw.items() if k in known and k not in ("t_heard", "clock_offset_s", "refused")}
        values["caught_up"] = tuple(raw.get("caught_up", ()))
        values["broken"] = tuple(raw.get("broken", ()))
        values["checkpoints"] = tuple(
            CheckpointRef(str(c["name"]), int(c["history"]), int(c["version"])) for c in raw.get("checkpoints", ())
        )
        values["clocks"] = {int(k): int(v) for k, v in raw.get("clocks", {}).items()}
        values["absent"] = {int(k): float(v) for k, v in raw.get("absent", {}).items()}
        values["views"] = {
            int(k): ViewTimes(v.get("installed_t"), v.get("first_update_t")) for k, v in raw.get("views", {}).items()
        }
        evaluation = raw.get("evaluation")
        values["evaluation"] = None if not evaluation else Evaluation(**{
            f.name: finite(evaluation[f.name]) for f in fields(Evaluation) if f.name in evaluation
        })  # fmt: skip
        return Probe(t_heard=t_heard, clock_offset_s=clock_offset_s, **values)


def finite(value: Any) -> Any:
    """`value`, or None for a float that JSON has no word for."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class RedisState:
    """The job's Redis, or the one at `buffer.url`. `up`: it answers PING; `run_id` changes when it restarts."""

    up: bool = False
    run_id: str | None = None


# --- what is remembered -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Condition:
    """A metav1.Condition; `t_transition` becomes lastTransitionTime."""

    type: str
    status: str  # "True" | "False" | "Unknown"
    reason: str
    message: str
    t_transition: float


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
    version: int = 0  # of the shard when it was lost, as last heard
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
    done: tuple[str, ...] = ()  # workers and evaluator that have left with 0
    since: dict[str, float] = field(default_factory=dict)  # timers: since when something has been so
    failovers: tuple[Failover, ...] = ()  # the newest ones
    failover_count: int = 0  # all of them
    lost_before: int = 0  # updates that the losses lost which `failovers` no longer holds
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
        raw = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "resource_version"}
        raw["conditions"] = [asdict(c) for c in self.conditions]
        raw["views"] = {str(k): v.to_json() for k, v in self.views.items()}
        raw["incarnations"] = {str(k): v for k, v in self.incarnations.items()}
        raw["seen"] = {str(k): v for k, v in self.seen.items()}
        raw["adopted"] = {str(k): v for k, v in self.adopted.items()}
        raw["attempts"] = {k: asdict(v) for k, v in self.attempts.items()}
        raw["failovers"] = [asdict(f) for f in self.failovers]
        raw["progress"] = asdict(self.progress)
        for name in ("dead", "done", "rejected_checkpoints"):
            raw[name] = list(raw[name])
        return raw

    @staticmethod
    def from_json(raw: dict[str, Any], resource_version: str | None = None) -> JobStatus:
        """Inverse of `to_json`. Unknown keys, nested ones too, are ignored (a newer release wrote them); missing ones
        take their defaults."""
        known = {f.name for f in fields(JobStatus)} - {"resource_version"}
        values = {k: v for k, v in raw.items() if k in known}
        status = JobStatus(**values)
        return replace(
            status,
            conditions=tuple(_known(Condition, c) for c in raw.get("conditions", ())),
            views={int(k): View.from_json(v) for k, v in raw.get("views", {}).items()},
            boots=dict(raw.get("boots", {})),
            dead=tuple(raw.get("dead", ())),
            incarnations={int(k): int(v) for k, v in raw.get("incarnations", {}).items()},
            seen={int(k): str(v) for k, v in raw.get("seen", {}).items()},
            adopted={int(k): int(v) for k, v in raw.get("adopted", {}).items()},
            attempts={k: _known(Attempt, v) for k, v in raw.get("attempts", {}).items()},
            done=tuple(raw.get("done", ())),
            since=dict(raw.get("since", {})),
            failovers=tuple(_known(Failover, f) for f in raw.get("failovers", ())),
            rejected_checkpoints=tuple(raw.get("rejected_checkpoints", ())),
            progress=_known(Progress, raw.get("progress", {})),
            resource_version=resource_version,
        )


@dataclass(frozen=True)
class ObservedJob:
    """One turn's observation.

    `dead`: instances known to be dead that are no longer in `processes` (a runtime looks up those of
    `status.boots` that it does not show). `t_operator_start`: since when this operator has listened without a gap;
    a runtime moves it forward when its own loop was held up for longer than a heartbeat.
    """

    status: JobStatus
    processes: dict[str, Process] = field(default_factory=dict)
    probes: dict[str, Probe] = field(default_factory=dict)
    redis: RedisState = field(default_factory=RedisState)
    held: dict[str, float] = field(default_factory=dict)  # name -> not to be started before
    dead: frozenset[str] = frozenset()
    t_operator_start: float = 0.0
    generation: int | None = None


# --- what is to be done -----------------------------------------------------------------------------------------------


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


@dataclass(frozen=True)
class KillProcess:
    """SIGKILL (delete the pod with this uid, without grace). To be ignored when the name has another instance."""

    name: str
    instance: str
    why: str = ""


@dataclass(frozen=True)
class TermProcess:
    """SIGTERM (delete the pod with this uid). To be ignored when the name has another instance."""

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
class Emit:
    """An event for users: a Kubernetes Event, a line of the log."""

    type: str  # Normal | Warning
    reason: str
    message: str


Action = (
    StartProcess | KillProcess | TermProcess | InstallView | SetSlots | FinishJob | RequestCheckpoint | AssignSlot
    | StartRedis | Emit
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """`status` is written first (if it differs), then `actions` are executed in order; then sleep until `wake_at`
    (runtime's clock; None: until something happens) or until anything is observed to change."""

    status: JobStatus
    actions: tuple[Action, ...]
    reason: str
    wake_at: float | None = None

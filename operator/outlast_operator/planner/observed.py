"""What the planner sees in one turn: frozen data, no behaviour.

1. `ObservedJob` is what a runtime can see now.
2. All times are floats in seconds on the runtime's own clock: `time.monotonic()` for local processes (servers of the
   same host share it), wall time in a cluster. `Probe.clock_offset_s` converts a server's times to it.
3. A process is known by name and by `instance`, the runtime's word for one start of it ("pid:starttime", a pod's
   uid).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from outlast_operator.planner.checkpoints import CheckpointRef, Storage
from outlast_operator.planner.status import JobStatus, Wait

Role = Literal["server", "worker", "evaluator", "redis"]
Phase = Literal["starting", "running", "exited"]


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
    leaving: bool = False  # it was told to end, and is given time (a pod that is being deleted)
    proven_dead: bool = False  # reaped, container terminated: it acts no more (False for a pod on a lost node)
    t_started: float = 0.0
    t_exited: float | None = None
    lived_s: float | None = None  # how long it ran, where that is not t_exited - t_started: a pod waits before it runs
    claim: int = 0  # generation of the claim that a server mounts
    held_by_claim: str = ""  # why its claim keeps it from starting, in the scheduler's or the kubelet's words
    claim_out_of_reach: bool = False  # by the scheduler's word: no node that reaches the claim's volume takes the pod
    never_ran: bool = False  # an exited one whose container was never started: nothing was lost with it
    reason: str = ""  # why it ended, as far as known: the message of errors/NAME.json, OOMKilled, Evicted
    unreachable: bool = False  # its node does not answer, by the cluster's word
    unheard: bool = False  # a server whose container runs and that has told the operator nothing yet

    @property
    def alive(self) -> bool:
        return self.phase != "exited"


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
    former_version: int = 0  # that the shard held at least when it was rolled back, as workers' gradients tell a head
    last_seq: int = -1
    stable_seq: int = -1
    slots: int = 0
    caught_up: tuple[str, ...] = ()
    leaving: bool = False
    left: bool = False
    finished: bool = False
    broken: tuple[str, ...] = ()
    checkpoints: tuple[CheckpointRef, ...] = ()
    last_states: tuple[str, ...] = ()  # what leaving last members of its shard left (outlast.api.view.last_state_name)
    restore_error: str | None = None
    config_error: str | None = None
    applied: int = 0
    applied_total: int = 0
    duplicates: int = 0
    clocks: dict[int, int] = field(default_factory=dict)
    absent: dict[int, float] = field(default_factory=dict)  # slot -> when its last connection ended; server's clock
    connected: tuple[int, ...] | None = None  # slots that have a connection now; None: an older server does not tell
    views: dict[int, ViewTimes] = field(default_factory=dict)
    evaluation: Evaluation | None = None
    pushed_bytes: int = 0
    pulled_bytes: int = 0
    restoring: str | None = None  # what it loads its state from at this moment
    applied_t: float | None = None  # when it last applied an entry; the server's clock, as the next
    log_end_t: float | None = None  # all that the buffer's log held then has been applied
    redis_answered_t: float | None = None  # when Redis last did what this server asked (only heads ask); its clock
    redis_silent_t: float | None = None  # since when it cannot reach Redis; None: it does, or does not ask
    tells_silence: bool = True  # False: an older server, whose document lacks `redis_silent_t`
    backlog: int = 0
    buffer_bytes: int = 0
    # Stateless: the run of Redis that holds the state of this history; None: an older server does not tell.
    buffer_run: str | None = ""
    parameters: int = 0  # of its shard, once it holds them
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
        values["connected"] = None if raw.get("connected") is None else tuple(raw["connected"])
        values["tells_silence"], values["buffer_run"] = "redis_silent_t" in raw, raw.get("buffer_run")
        values["last_states"] = tuple(raw.get("last_states", ()))
        values["checkpoints"] = tuple(CheckpointRef.from_json(c) for c in raw.get("checkpoints", ()))
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
    paused: bool = False  # this run of it takes no gradients any more


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
    waits: dict[str, Wait] = field(default_factory=dict)  # process or object ("Secret mnist-token") -> why it waits
    dead: frozenset[str] = frozenset()
    storage: Storage | None = "Shared"  # as recorded, or what a job that starts now gets; None: not known yet
    claim_bytes: int | None = None  # that each of the job's own claims asks for; None: it has none
    claim_refusal: Wait | None = None  # why they are not expanded
    t_operator_start: float = 0.0
    generation: int | None = None

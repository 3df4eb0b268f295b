"""What the planner sees in one turn: frozen data, no behaviour.

1. `ObservedJob` is what a runtime can see now.
2. All times are floats in seconds on the runtime's own clock: `time.monotonic()` for local processes (servers of the
   same host share it), wall time in a cluster. `Probe.clock_offset_s` converts a server's times to it.
3. A process is known by name and by `instance`, the runtime's word for one start of it ("pid:starttime", a pod's
   uid).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from outlast.api.server_status import ServerStatus
from outlast_operator.planner.checkpoints import Storage
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
class Probe(ServerStatus):
    """The last status a server sent. A runtime keeps a dead server's last one until its name is probed again."""

    t_heard: float = 0.0  # the runtime's clock
    clock_offset_s: float = 0.0  # add to the server's times to get the runtime's (0 on one host)
    refused: bool = False  # its connection was closed and a new one refused: gone, though nobody has proved it

    @staticmethod
    def of(status: ServerStatus, t_heard: float, clock_offset_s: float = 0.0) -> Probe:
        return Probe(**vars(status), t_heard=t_heard, clock_offset_s=clock_offset_s)


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

"""What the planner hands a process: one JSON document in the environment variable `OUTLAST_CONFIG`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from typing import Any

ENVIRONMENT_VARIABLE = "OUTLAST_CONFIG"


@dataclass(frozen=True)
class ServerAddress:
    """A server's stable name and where it listens: `unix:/path` or `tcp:host:port`."""

    name: str
    address: str


@dataclass(frozen=True)
class ProcessConfig:
    """One process's share of a job. `spec` is the normalised `spec` of the TrainingJob, as JSON."""

    job: str
    job_uid: str
    token: str  # the job's secret, presented in every handshake
    role: str  # server | worker | evaluator
    name: str  # server-0, worker-1, evaluator
    spec: dict[str, Any]
    servers: tuple[tuple[ServerAddress, ...], ...]  # [shard][index]
    listen: str | None = None  # a server's own address
    shard: int = 0
    slot: int = 0
    incarnation: int = 1
    redis_url: str | None = None
    checkpoint_dir: str | None = None
    own_checkpoint_dir: bool = False  # no other server sees what is in it
    ledger_dir: str | None = None  # where a worker appends what it computed and saw acknowledged (local runs)
    extras: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> ProcessConfig:
        raw = json.loads(text)
        raw["servers"] = tuple(tuple(ServerAddress(**s) for s in shard) for shard in raw["servers"])
        return ProcessConfig(**raw)

    @staticmethod
    def from_environment() -> ProcessConfig:
        """Raises `RuntimeError` outside a process that Outlast started."""
        text = os.environ.get(ENVIRONMENT_VARIABLE)
        if text is None:
            raise RuntimeError(
                f"{ENVIRONMENT_VARIABLE} is not set: this code runs inside a TrainingJob; "
                "start it with `outlast run JOB.yaml` (training.script or training.task)"
            )
        return ProcessConfig.from_json(text)

"""What a study compares: the paper's five configurations as it ran them, ours as we recommend them, and the control.

Rules. (1) All of an experiment share everything that is no recovery: task, optimizer, workers, evaluation, run time.
So the learning rate is the paper's 0.01 for all, also where an example of ours recommends another. (2) A paper's
configuration is its configuration, not its code's accidents: workers stay alive, data is loaded once, the evaluator is
a process of its own. Plain SGD (`Sum`) for all of theirs and for the control. (3) Logs in Redis carry bfloat16 in
theirs and ours alike, for the memory; theirs is not written to disk, as the paper's object store was not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from outlast.api.job import TrainingJob
from outlast.api.strategy import TABLE

PAPER = "paper"
OURS = "ours"
CONTROL = "control"
EXTRA = "extra"

NEVER_UPDATES = 1_000_000_000
_THEIR_BUFFER = {"maxBytes": "8Gi", "dtype": "bfloat16", "durability": "None"}
_OUR_BUFFER = {"maxBytes": "8Gi", "dtype": "bfloat16", "durability": "EverySecond"}
_RELAXED = {"replicateEveryUpdates": 100, "ack": "Successor"}
_PLAIN = {"policy": "Sum"}
_THEIR_BACKLOG = {**_PLAIN, "reducedRate": {"above": 50, "lr": 0.001}, "outage": {"mode": "StaleGradients"}}


@dataclass(frozen=True)
class Configuration:
    """One way to outlast servers. `title` for legends, `about` a sentence for the page, `whose` one of the above."""

    name: str
    title: str
    about: str
    whose: str
    strategy: str
    consistency: str = "Async"
    recovery: dict[str, Any] = field(default_factory=dict)

    @property
    def buffered(self) -> bool:
        return TABLE[self.strategy, self.consistency].buffered


ALL = (
    Configuration(
        "control",
        "control",
        "One server, asynchronous, no checkpoint, never killed: the training itself.",
        CONTROL,
        "Checkpoint",
        recovery={"checkpoint": {"everyUpdates": NEVER_UPDATES}, "staleness": _PLAIN},
    ),
    Configuration(
        "paper-sync-checkpoint",
        "sync checkpointing (paper)",
        "One server, synchronous, a checkpoint every 100 updates.",
        PAPER,
        "Checkpoint",
        "Sync",
        {"checkpoint": {"everyUpdates": 100}, "staleness": _PLAIN},
    ),
    Configuration(
        "paper-async-checkpoint",
        "async checkpointing (paper)",
        "One server, asynchronous, a checkpoint every 100 updates.",
        PAPER,
        "Checkpoint",
        recovery={"checkpoint": {"everyUpdates": 100}, "staleness": _PLAIN},
    ),
    Configuration(
        "paper-sync-chain",
        "sync chain (paper)",
        "Three servers, synchronous; weights go down the chain every 100 updates, the next server alone acknowledges.",
        PAPER,
        "Chain",
        "Sync",
        {"chain": _RELAXED, "staleness": _PLAIN},
    ),
    Configuration(
        "paper-async-chain",
        "async chain (paper)",
        "Three servers, asynchronous; weights go down the chain every 100 updates, the next server alone acknowledges.",
        PAPER,
        "Chain",
        recovery={"chain": _RELAXED, "staleness": _PLAIN},
    ),
    Configuration(
        "paper-stateless",
        "stateless (paper)",
        "One server that holds nothing; all pending gradients summed and applied at once, at a rate of 0.001 where "
        "more than 50 are pending.",
        PAPER,
        "Stateless",
        recovery={"buffer": _THEIR_BUFFER, "staleness": _THEIR_BACKLOG},
    ),
    Configuration(
        "checkpoint",
        "Checkpoint",
        "One server, asynchronous, a checkpoint every 100 updates; stale gradients weigh less.",
        OURS,
        "Checkpoint",
    ),
    Configuration(
        "chain", "Chain", "Three servers, asynchronous; every gradient is acknowledged by the tail.", OURS, "Chain"
    ),
    Configuration(
        "stateless",
        "Stateless",
        "One server that holds nothing which Redis does not; cut off, workers go on with local steps.",
        OURS,
        "Stateless",
        recovery={"buffer": _OUR_BUFFER},
    ),
    Configuration(
        "hybrid",
        "Hybrid",
        "Three servers as in Chain; while no head answers, workers take local steps, kept in Redis.",
        OURS,
        "Hybrid",
        recovery={"buffer": _OUR_BUFFER},
    ),
    Configuration(
        "paper-async-checkpoint-none-yet",
        "async checkpointing, none taken yet",
        "As the paper's runs in fact were: killed before the first checkpoint, so that training starts anew.",
        EXTRA,
        "Checkpoint",
        recovery={"checkpoint": {"everyUpdates": NEVER_UPDATES}, "staleness": _PLAIN},
    ),
)
BY_NAME = {configuration.name: configuration for configuration in ALL}
CONTROL_NAME = "control"
NONE_YET = "paper-async-checkpoint-none-yet"
PAPERS = tuple(c.name for c in ALL if c.whose == PAPER)
RECOMMENDED = tuple(c.name for c in ALL if c.whose == OURS)


def make_job(
    configuration: Configuration,
    *,
    task: str,
    task_args: dict[str, Any],
    optimizer: dict[str, Any],
    evaluate: dict[str, Any],
    seed: int,
    stop_after: dict[str, Any],
    workers: int = 2,
) -> TrainingJob:
    """The job of one run. Raises `SpecError` as any job file does."""
    return TrainingJob.load(
        {
            "apiVersion": "outlast.dev/v1alpha1",
            "kind": "TrainingJob",
            "metadata": {"name": configuration.name},
            "spec": {
                "training": {
                    "task": task,
                    "args": task_args,
                    "seed": seed,
                    "consistency": configuration.consistency,
                    "optimizer": optimizer,
                    "stopAfter": stop_after,
                    "evaluate": evaluate,
                },
                "workers": {"replicas": workers},
                "recovery": {"strategy": configuration.strategy, **configuration.recovery},
            },
        }
    )

"""The fields of a TrainingJob's spec, with defaults and descriptions: what `kubectl explain tjob.spec` shows.

Rules. (1) Every field is described, units last in its name. (2) A limit of one field stands here; what concerns
several fields stands in rules.py. (3) Defaults are the documented ones; the only one that depends on another field is
`servers.replicas` (see spec.py). `spec.py` puts the parts together.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from outlast.api.base import (
    IMPORT_PATH,
    LARGEST_COUNT,
    LARGEST_EXACT,
    REDIS_URL,
    Amount,
    Bytes,
    Count,
    EverySeconds,
    EveryUpdates,
    FieldsModel,
    ObjectName,
    OpaqueObject,
    Seconds,
)
from outlast.api.errors import show
from outlast.api.schedule import Schedule
from outlast.api.strategy import Consistency, Strategy

OptimizerName = Literal["SGD", "Adam", "AdamW"]
Acknowledgement = Literal["Tail", "Successor", "Head"]
WhenFull = Literal["Block", "Drop"]
WireType = Literal["float32", "bfloat16"]
Durability = Literal["Always", "EverySecond", "None"]
StalenessPolicy = Literal["Sum", "Mean", "InverseStaleness", "DelayCompensation"]
OutageMode = Literal["StaleGradients", "LocalSteps"]
AccessMode = Literal["ReadWriteOnce", "ReadWriteOncePod", "ReadWriteMany"]


def _pair(raw: Any) -> Any:
    if isinstance(raw, list) and len(raw) != 2:
        raise ValueError(f"{show(raw)} is not a pair; write two numbers such as [0.9, 0.999]")
    return tuple(raw) if isinstance(raw, list) else raw


Beta = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0, le=1e6)]
Text = Annotated[str, Field(min_length=1, max_length=1024)]
Betas = Annotated[
    tuple[Beta, Beta],
    BeforeValidator(_pair),
    WithJsonSchema(
        {
            "type": "array",
            "minItems": 2,
            "maxItems": 2,
            "items": {"type": "number", "minimum": 0, "maximum": 1, "exclusiveMaximum": True},
        }
    ),
]


class Source(FieldsModel):
    config_map: ObjectName | None = Field(
        default=None, description="ConfigMap with code to mount into the pods; without it the image's code is used."
    )


class Optimizer(FieldsModel):
    name: OptimizerName = Field(default="SGD", description="SGD, Adam or AdamW, with the semantics of torch.optim.")
    lr: Rate = Field(default=0.01, description="Learning rate.")
    momentum: Beta = Field(default=0.0, description="SGD's momentum; 0 for none.")
    weight_decay: Annotated[float, Field(ge=0, le=1e6)] = Field(
        default=0.0, description="Weight decay: an L2 penalty in SGD and Adam, decoupled in AdamW."
    )
    nesterov: bool = Field(default=False, description="SGD: Nesterov's momentum; needs momentum above 0.")
    betas: Betas = Field(default=(0.9, 0.999), description="Adam and AdamW: decay of the running averages.")
    eps: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1e-8, description="Adam and AdamW: added to the denominator for numerical stability."
    )
    schedule: Schedule | None = Field(
        default=None, description="How the learning rate changes with the version; without it the rate is constant."
    )


class StopAfter(FieldsModel):
    updates: Count | None = Field(
        default=None, description="Stop when the parameters hold this many updates (status.version)."
    )
    epochs: Count | None = Field(
        default=None, description="Stop when this many passes over the training data have been applied."
    )
    seconds: Seconds | None = Field(
        default=None, description="Stop this many seconds after training began (suspended time not counted)."
    )
    accuracy: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="Stop when an evaluation reaches this accuracy, a fraction such as 0.9."
    )


class Evaluate(FieldsModel):
    every_seconds: EverySeconds | None = Field(
        default=2.0, description="Seconds between two evaluations; 0: not by time, and without everyUpdates not at all."
    )
    every_updates: EveryUpdates | None = Field(
        default=None, description="Evaluate whenever this many updates have passed; 0: not by updates."
    )
    samples: Count = Field(
        default=2000, description="Test samples for each evaluation of the series; the last one uses all of them."
    )

    @property
    def enabled(self) -> bool:
        return self.every_seconds is not None or self.every_updates is not None


class Training(FieldsModel):
    task: Annotated[str, Field(pattern=IMPORT_PATH, max_length=253)] | None = Field(
        default=None,
        description="What to train: an import path such as outlast.tasks.fashion_mnist. Either this or script.",
    )
    script: Text | None = Field(
        default=None, description="What to train: the path of a script that uses the SDK. Either this or task."
    )
    source: Source = Field(default_factory=Source, description="Where the code of the task or script comes from.")
    args: OpaqueObject = Field(
        default_factory=dict, description="Arguments of the task or script; their names and types are its own."
    )
    seed: Annotated[int, Field(ge=0, le=LARGEST_EXACT)] = Field(
        default=0, description="Seed of all randomness: initial weights, order of the data, dropout."
    )
    consistency: Consistency = Field(
        default="Async",
        description="Sync (a barrier over all slots at every update), Async (none), or BoundedStaleness (no slot runs "
        "more than maxStaleness steps ahead of the slowest).",
    )
    max_staleness: Annotated[int, Field(ge=0, le=LARGEST_COUNT)] = Field(
        default=8, description="BoundedStaleness: how many steps the fastest slot may be ahead of the slowest."
    )
    optimizer: Optimizer = Field(default_factory=Optimizer, description="The optimizer that the servers run.")
    stop_after: StopAfter = Field(
        default_factory=StopAfter, description="When training is complete: the first that holds; at least one."
    )
    evaluate: Evaluate = Field(
        default_factory=Evaluate,
        description="How often the parameters are evaluated on test data while training; a script evaluates itself.",
    )

    @property
    def evaluated(self) -> bool:
        """Whether an evaluator runs: a script has no evaluate() that it could call."""
        return self.task is not None and self.evaluate.enabled


class Servers(FieldsModel):
    shards: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1, description="Ranges into which the parameter vector is split, each served by its own servers."
    )
    replicas: Annotated[int, Field(ge=1, le=16)] = Field(
        description="Servers of each shard. Left out: 3 for Chain and Hybrid, 1 for Checkpoint and Stateless.",
        json_schema_extra={"x-outlast-optional": True},
    )
    template: OpaqueObject = Field(
        default_factory=dict,
        description="PodTemplateSpec that the server pods start from (Kubernetes' own type). The container named "
        "outlast, else the first, is the server's.",
    )


class Workers(FieldsModel):
    replicas: Annotated[int, Field(ge=1, le=9999)] = Field(
        default=2, description="Worker slots, each filled by one worker; may be changed while the job runs."
    )
    min_replicas: Annotated[int, Field(ge=1, le=9999)] = Field(
        default=1, description="Workers that must be ready before training begins or resumes; lowest value for scaling."
    )
    max_replicas: Annotated[int, Field(ge=1, le=9999)] | None = Field(
        default=None, description="Highest value to which replicas may be scaled; null for no limit."
    )
    grace_seconds: Amount = Field(
        default=60.0,
        description="Seconds for which a lost worker's slot waits for its replacement before a living worker takes it.",
    )
    template: OpaqueObject = Field(
        default_factory=dict,
        description="PodTemplateSpec that the worker pods start from (Kubernetes' own type); request GPUs here. "
        "The container named outlast, else the first, is the worker's.",
    )


class Evaluator(FieldsModel):
    template: OpaqueObject = Field(
        default_factory=dict,
        description="PodTemplateSpec that the evaluator's pod starts from (Kubernetes' own type). The container named "
        "outlast, else the first, is the evaluator's. Left out: the workers' template without its resources.",
    )


class Claim(FieldsModel):
    """A PersistentVolumeClaim that the operator makes for checkpoints."""

    storage_class_name: ObjectName | None = Field(
        default=None, description="StorageClass of the claim; null for the cluster's default class."
    )
    size: Bytes = Field(
        default=10 * 2**30,
        description="Storage that each claim requests: bytes or a quantity such as 10Gi; keep + 1 checkpoints must "
        "fit.",
        json_schema_extra={"x-outlast-default": "10Gi"},
    )
    access_modes: Annotated[list[AccessMode], Field(min_length=1, max_length=3)] = Field(
        default=["ReadWriteOnce"],
        description="ReadWriteOnce or ReadWriteOncePod (one claim a server), or ReadWriteMany (one claim that all "
        "servers mount; the StorageClass must support it).",
    )

    @property
    def shared(self) -> bool:
        """Whether one claim serves all servers."""
        return "ReadWriteMany" in self.access_modes


class Checkpoint(FieldsModel):
    every_updates: EveryUpdates | None = Field(
        default=100, description="Write a checkpoint whenever this many updates have passed; 0: not by updates."
    )
    every_seconds: EverySeconds | None = Field(
        default=None, description="Write a checkpoint whenever this many seconds have passed; 0: not by time."
    )
    keep: Annotated[int, Field(ge=1, le=10000)] = Field(
        default=3, description="Complete checkpoints to keep; older ones are deleted."
    )
    restore_from: Text | None = Field(
        default=None,
        description="Directory of checkpoints that a new job starts from, instead of fresh weights.",
    )
    volume: OpaqueObject | None = Field(
        default=None,
        description="Where checkpoints are kept: a VolumeSource (Kubernetes' own type) such as persistentVolumeClaim. "
        "Left out: on claims that the operator makes.",
    )
    claim: Claim | None = Field(
        default=None,
        description="Claims that the operator makes for checkpoints, where volume is left out; null for the defaults.",
    )

    @property
    def own_claim(self) -> Claim | None:
        """The claim that the operator makes: `claim`, or its defaults. None where checkpoints go to `volume`."""
        return None if self.volume is not None else self.claim or Claim()

    @property
    def periodic(self) -> bool:
        return self.every_updates is not None or self.every_seconds is not None


class Chain(FieldsModel):
    ack: Acknowledgement = Field(
        default="Tail",
        description="Which replica must have applied a gradient before it is acknowledged: the Tail (nothing "
        "acknowledged is lost while one caught-up member lives), or the paper's relaxed forms, the head's Successor or "
        "the Head alone.",
    )
    replicate_every_updates: Count = Field(
        default=1,
        description="Updates the head gathers before it sends them down the chain; above 1 only with a relaxed ack.",
    )


class Buffer(FieldsModel):
    max_bytes: Bytes = Field(
        default=2**30,
        description="Bound on the log of gradients in Redis, checked at every append: bytes or a quantity such as 4Gi.",
        json_schema_extra={"x-outlast-default": "1Gi"},
    )
    when_full: WhenFull = Field(
        default="Block",
        description="What a worker does when the log is full: Block until there is room, or Drop the new gradient "
        "unacknowledged and compute the next.",
    )
    dtype: WireType = Field(
        default="float32", description="Type of buffered gradients; bfloat16 halves their size and rounds them."
    )
    durability: Durability = Field(
        default="Always",
        description="When Redis writes the log to disk: Always (before it acknowledges), EverySecond (its crash may "
        "lose a second), or None (its crash loses the log).",
    )
    url: Annotated[str, Field(pattern=REDIS_URL, max_length=1024)] | None = Field(
        default=None, description="URL of a Redis that exists already; without it the operator runs one for the job."
    )
    template: OpaqueObject = Field(
        default_factory=dict,
        description="PodTemplateSpec that the pod of the job's own Redis starts from (Kubernetes' own type). The "
        "container named redis, else the first, is Redis's. Left out: the nodes and pull secrets of the servers' "
        "template.",
    )


class ReducedRate(FieldsModel):
    above: Count = Field(
        description="Gradients pending at once above which the rate is reduced (the paper: 50).",
        json_schema_extra={"x-outlast-optional": True, "x-outlast-nullable": True},
    )
    lr: Rate = Field(
        description="Learning rate used for them instead of optimizer.lr (the paper: 0.001).",
        json_schema_extra={"x-outlast-optional": True, "x-outlast-nullable": True},
    )


class Outage(FieldsModel):
    mode: OutageMode | None = Field(
        default=None,
        description="What a worker computes in an outage: StaleGradients (all at the last weights it pulled), or "
        "LocalSteps (it takes local optimizer steps and sends their sum, which counts as one update). Left out: "
        "LocalSteps where workers keep computing (Stateless, Hybrid), unless training.consistency is Sync.",
    )
    scale_rate: bool = Field(
        default=True,
        description="LocalSteps with SGD: take local steps at the learning rate times the number of workers, so that "
        "the average of all workers' steps moves as far as all their gradients would have; false: the rate as it is.",
    )
    send_every_seconds: Seconds = Field(
        default=5.0,
        description="LocalSteps: seconds after which a worker that is still cut off writes to Redis what its steps "
        "have moved so far. It is acknowledged then; a worker that dies loses the steps since.",
    )


class Staleness(FieldsModel):
    policy: StalenessPolicy = Field(
        default="InverseStaleness",
        description="How stale gradients are applied: Sum, Mean, InverseStaleness (in proportion to staleness "
        "beyond that of asynchronous training), or DelayCompensation (DC-ASGD).",
    )
    clip_norm: Annotated[float, Field(gt=0, le=1e9)] | None = Field(
        default=None, description="Clip each gradient to this L2 norm on the worker; null for no clipping."
    )
    reduced_rate: ReducedRate | None = Field(
        default=None, description="A lower learning rate for large backlogs, as in the paper; null for none."
    )
    outage: Outage = Field(default_factory=Outage, description="What workers do while their server is away.")

    @model_validator(mode="before")
    @classmethod
    def _empty_pair_is_null(cls, raw: Any) -> Any:
        """`reducedRate: {above: , lr: }` means the same as no reducedRate."""
        for key in ("reducedRate", "reduced_rate"):
            if (
                isinstance(raw, dict)
                and isinstance(raw.get(key), dict)
                and not any(value is not None for value in raw[key].values())
            ):
                raw = {**raw, key: None}
        return raw


class Failover(FieldsModel):
    heartbeat_seconds: Annotated[float, Field(ge=0.01, le=3600)] = Field(
        default=0.5, description="Seconds between two heartbeats of a server."
    )
    timeout_seconds: Annotated[float, Field(ge=0.02, le=86400)] = Field(
        default=2.0, description="Seconds of silence after which the next view excludes a server; 2 heartbeats or more."
    )
    assume_dead_seconds: Annotated[float, Field(ge=0.02, le=86400)] = Field(
        default=30.0,
        description="Seconds of silence after which a server counts as dead without proof, where no other member can "
        "continue; what it still acknowledges then is lost.",
    )
    delay_seconds: Amount = Field(
        default=0.0, description="Seconds for which the replacement of a lost server is held back (for experiments)."
    )


class Recovery(FieldsModel):
    strategy: Strategy = Field(
        default="Hybrid",
        description="How the job outlasts its servers: Checkpoint (restore the newest), Chain (promote a replica), "
        "Stateless (rebuild from Redis, workers keep computing), or Hybrid (Chain, with Redis during an outage).",
    )
    checkpoint: Checkpoint = Field(default_factory=Checkpoint, description="When and where checkpoints are written.")
    chain: Chain = Field(default_factory=Chain, description="How updates travel down the chain (Chain and Hybrid).")
    buffer: Buffer = Field(default_factory=Buffer, description="The log of gradients in Redis (Stateless and Hybrid).")
    staleness: Staleness = Field(default_factory=Staleness, description="How stale gradients are handled.")
    failover: Failover = Field(default_factory=Failover, description="How a loss is detected and handled.")

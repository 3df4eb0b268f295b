"""The shape of a TrainingJob's `status`, as `kubectl explain tjob.status` shows it.

Rules. (1) Only the operator writes it. (2) Fields described here keep name and type; the operator may keep more beside
them, so unknown fields are preserved. (3) Nothing is required but a condition's fields (metav1.Condition): a young job
has little of it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel

Time = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]


class StatusModel(BaseModel):
    """A part of the status: camelCase outside, unknown fields kept."""

    model_config = ConfigDict(extra="allow", alias_generator=to_camel, validate_by_name=True, validate_by_alias=True)


class ConditionStatus(StatusModel):
    """metav1.Condition."""

    type: str = Field(
        min_length=1,
        max_length=316,
        description="Ready, Suspended, Complete, Failed, PrimaryAvailable, ReplicationHealthy, FailoverInProgress, "
        "BufferHealthy, CheckpointAvailable, CheckpointStorage, PodsReady, EvaluationHealthy, NetworkOpen or "
        "SpecAccepted.",
    )
    status: Literal["True", "False", "Unknown"] = Field(description="Whether the condition holds.")
    reason: str = Field(
        min_length=1,
        max_length=1024,
        pattern="^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
        description="Why, as one word for programs.",
    )
    message: str = Field(max_length=32768, description="Why, as a sentence for people; may be empty.")
    last_transition_time: Time = Field(description="When the condition last changed its status.")
    observed_generation: int | None = Field(
        default=None, ge=0, description="The metadata.generation for which the condition was set."
    )


class MemberStatus(StatusModel):
    name: str = Field(description="Name of the server.")
    boot: str = Field(description="Boot id of the process: a restarted server is another member.")
    address: str = Field(default="", description="Where it listens.")


class ViewStatus(StatusModel):
    shard: int = Field(default=0, description="Shard that the view orders.")
    epoch: int = Field(description="Epoch, the fencing token: grows by one with every view.")
    history: int = Field(default=0, description="History: grows by one with every rollback to a checkpoint.")
    members: list[MemberStatus] = Field(default_factory=list, description="The chain: head first, tail last.")
    joining: list[MemberStatus] = Field(default_factory=list, description="Servers that still catch up.")
    restore: str | None = Field(
        default=None, description="What members restore from: null (what they hold), buffer, or a checkpoint's name."
    )


class ProgressStatus(StatusModel):
    accuracy: float | None = Field(default=None, description="Accuracy of the last evaluation, 0 to 1.")
    loss: float | None = Field(default=None, description="Loss of the last evaluation.")
    percent: float | None = Field(default=None, description="Share of stopAfter that is done, 0 to 100.")
    eta_seconds: float | None = Field(default=None, description="Seconds until stopAfter at the present pace.")


class WorkersStatus(StatusModel):
    ready: int | None = Field(default=None, description="Workers that are ready.")
    active: int | None = Field(default=None, description="Workers that exist and have not ended.")
    replicas: int | None = Field(default=None, description="Workers counted by the scale subresource.")
    selector: str | None = Field(default=None, description="Label selector of the worker pods, for autoscalers.")


class FailoverGradients(StatusModel):
    buffered: int | None = Field(default=None, description="Gradients buffered while there was no head.")
    replayed: int | None = Field(
        default=None,
        description="Hybrid: gradients that the new head applied from Redis until it had applied all that Redis held "
        "at its promotion; set when it has. Not set for Stateless, in which every gradient comes from Redis.",
    )
    lost: int | None = Field(
        default=None,
        description="Updates that a rollback to a checkpoint took from the shard: the last version that it reported, "
        "or that workers had pulled from it (their next gradients show it), less the checkpoint's. 0 without a "
        "rollback, also if a relaxed acknowledgement lost gradients.",
    )


class FailoverStatus(StatusModel):
    target: str = Field(description="What was lost: the name of a server or worker, or redis.")
    cause: str = Field(default="", description="How it was lost, as one word.")
    role: str | None = Field(default=None, description="What it was: head, middle, tail, single, worker or redis.")
    epoch: int | None = Field(default=None, description="Epoch of the view that handles the loss.")
    restore: str | None = Field(
        default=None, description="What that view restores from: null (a replica held it), buffer, or a checkpoint."
    )
    message: str | None = Field(default=None, description="Details of the cause, such as the last error or OOMKilled.")
    detected_time: Time | None = Field(default=None, description="When the loss was noticed.")
    decided_time: Time | None = Field(default=None, description="When the view that handles it was recorded.")
    promoted_time: Time | None = Field(default=None, description="When the new head had installed that view.")
    first_update_time: Time | None = Field(default=None, description="When the first update was applied after it.")
    gradients: FailoverGradients | None = Field(default=None, description="Outcome of the gradients meanwhile.")


class GradientsStatus(StatusModel):
    applied: int | None = Field(default=None, description="Gradients that the parameters hold.")
    buffered: int | None = Field(default=None, description="Gradients in Redis, not yet applied.")
    lost: int | None = Field(
        default=None,
        description="Updates that rollbacks took since the job began, also those of losses no longer listed; a "
        "rollback of several shards counts once, by the one that lost most.",
    )
    duplicates: int | None = Field(default=None, description="Gradients sent again and recognised.")


class CostStatus(StatusModel):
    total: float | None = Field(
        default=None,
        description="Cost so far of servers and workers, at the prices of spec.cost, for as long as they run.",
    )
    workers: float | None = Field(default=None, description="The part of it for workers.")
    idle: float | None = Field(
        default=None,
        description="The part of it for workers while there was no head (with Checkpoint and Chain: they wait then).",
    )
    recomputed: float | None = Field(
        default=None,
        description="The part of it for workers whose updates rollbacks took: the share that those are of all updates. "
        "Not set after a rollback of a job that began from another one's checkpoint.",
    )


class TrainingJobStatus(StatusModel):
    state: str | None = Field(default=None, description="One word for display; programs read the conditions.")
    waiting: str | None = Field(
        default=None,
        description="What the job's pods wait for, one word for each cause; the condition PodsReady has the message. "
        "Left out while nothing waits.",
    )
    conditions: list[ConditionStatus] = Field(
        default_factory=list,
        description="Conditions (metav1.Condition).",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    observed_generation: int | None = Field(default=None, description="The metadata.generation last acted on.")
    views: list[ViewStatus] | None = Field(
        default=None, description="The recorded view of every shard, in the order of the shards."
    )
    version: int | None = Field(default=None, description="Updates that the parameters hold.")
    progress: ProgressStatus | None = Field(default=None, description="How far training is.")
    workers: WorkersStatus | None = Field(default=None, description="Workers, and what the scale subresource reads.")
    failovers: list[FailoverStatus] | None = Field(
        default=None,
        description="The newest 100 losses: what was lost, and when each step of the failover took place.",
    )
    failover_count: int | None = Field(default=None, description="Losses so far, also those no longer listed.")
    gradients: GradientsStatus | None = Field(default=None, description="Counts of gradients.")
    cost: CostStatus | None = Field(default=None, description="What the job has cost.")
    start_time: Time | None = Field(default=None, description="When training began, or resumed after suspension.")
    completion_time: Time | None = Field(default=None, description="When the job completed or failed.")
    record: str | None = Field(
        default=None,
        description="The operator's own memory between two turns. Not an interface: it changes with every release.",
    )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, camelCase, without fields that are not set."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

"""The spec of a TrainingJob. job.py reads it from a document; a `JobSpec` that exists is valid."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from outlast.api.base import MANAGER, FieldsModel
from outlast.api.spec_fields import Evaluator, Recovery, Servers, Training, Workers
from outlast.api.spec_policy import Cost, RunPolicy, Security
from outlast.api.strategy import TABLE, Traits, default_replicas


class JobSpec(FieldsModel):
    """What to train, on which servers and workers, and how to outlast their loss. Valid if it exists."""

    suspend: bool = Field(
        default=False, description="True stops all pods after a last checkpoint and keeps the state; false resumes."
    )
    managed_by: Annotated[str, Field(pattern=MANAGER, max_length=63)] = Field(
        default="outlast.dev/operator", description="The controller that runs this job; other controllers ignore it."
    )
    training: Training = Field(description="What is trained, and until when.")
    servers: Servers = Field(default_factory=lambda: Servers(replicas=3), description="The parameter servers.")
    workers: Workers = Field(default_factory=Workers, description="The workers that compute gradients.")
    evaluator: Evaluator = Field(
        default_factory=Evaluator, description="The evaluator, which runs as training.evaluate says."
    )
    recovery: Recovery = Field(default_factory=Recovery, description="How the job outlasts the loss of its servers.")
    security: Security = Field(default_factory=Security, description="Protection of the data path.")
    run_policy: RunPolicy = Field(default_factory=RunPolicy, description="Limits of the run, and what remains of it.")
    cost: Cost = Field(default_factory=Cost, description="Prices, for status.cost.")

    @model_validator(mode="before")
    @classmethod
    def _default_replicas(cls, raw: Any) -> Any:
        """`servers.replicas` left out: 3 for strategies with a chain, 1 for the others."""
        if not isinstance(raw, dict):
            return raw
        servers = raw.get("servers")
        if servers is None:
            servers = {}
        if not isinstance(servers, dict) or servers.get("replicas") is not None:
            return raw
        recovery = raw.get("recovery")
        strategy = recovery.get("strategy") if isinstance(recovery, dict) else getattr(recovery, "strategy", None)
        return {**raw, "servers": {**servers, "replicas": default_replicas(strategy)}}

    @property
    def traits(self) -> Traits:
        """What strategy and consistency mean together."""
        return TABLE[self.recovery.strategy, self.training.consistency]

    @property
    def own_redis(self) -> bool:
        """Whether the job needs a Redis and names none."""
        return self.traits.buffered and self.recovery.buffer.url is None

    @property
    def local_steps(self) -> bool:
        """Whether a worker that is cut off goes on with local steps: `outage.mode`, or what it means left out."""
        mode = self.recovery.staleness.outage.mode
        return self.traits.buffered if mode is None else mode == "LocalSteps"

    @property
    def templates(self) -> dict[str, dict[str, Any]]:
        """The pod templates by their paths below `spec`."""
        return {
            "servers.template": self.servers.template,
            "workers.template": self.workers.template,
            "evaluator.template": self.evaluator.template,
            "recovery.buffer.template": self.recovery.buffer.template,
        }

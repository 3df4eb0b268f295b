"""A replica's share of the spec."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from outlast.api.schedule import rate_at
from outlast.api.spec import JobSpec
from outlast.api.strategy import TABLE, Traits
from outlast.chain.staleness import POLICIES, ReducedRate


def constant_rate(version: int) -> float:
    """No schedule: the spec's learning rate throughout."""
    return 1.0


@dataclass(frozen=True)
class ReplicaSettings:
    """A replica's share of the spec. Raises `ValueError` for what the rules refuse."""

    strategy: str = "Chain"  # Checkpoint | Chain | Stateless | Hybrid
    consistency: str = "Async"  # Sync | Async | BoundedStaleness
    slots: int = 1  # until INIT; afterwards the replicated data plan says
    ack: str = "Tail"  # Tail | Successor | Head
    replicate_every: int = 1  # updates
    max_staleness: int = 8  # steps between the slowest slot and one that goes on
    policy: str = "InverseStaleness"
    reduced_rate: ReducedRate | None = None
    base_lr: float = 0.01
    rate_at: Callable[[int], float] = constant_rate  # version -> multiplier of the learning rate
    stop_updates: int | None = None
    group_max: int = 32  # contributions drained from the log into one update
    window: int = 64  # entries that relaxed acknowledgements may run ahead of the tail: it bounds the log

    @property
    def traits(self) -> Traits:
        return TABLE[self.strategy, self.consistency]

    def __post_init__(self) -> None:
        if self.replicate_every > 1 and self.ack == "Tail":
            raise ValueError(
                f"replicateEveryUpdates {self.replicate_every} leaves the tail without the updates in between, so "
                "ack: Tail cannot be kept; use ack: Head or Successor, or replicateEveryUpdates: 1"
            )
        if self.policy not in POLICIES:
            raise ValueError(f"staleness policy {self.policy!r} is unknown; use one of {', '.join(POLICIES)}")
        if self.slots < 1 or self.group_max < 1 or self.window < 1 or self.replicate_every < 1:
            raise ValueError(f"slots, group_max, window and replicate_every must be at least 1: {self}")


def settings_from(spec: JobSpec, group_max: int = 32) -> ReplicaSettings:
    """The pure replica's settings, from a job's spec."""
    training, recovery = spec.training, spec.recovery
    reduced = recovery.staleness.reduced_rate
    return ReplicaSettings(
        strategy=recovery.strategy,
        consistency=training.consistency,
        slots=spec.workers.replicas,
        ack=recovery.chain.ack,
        replicate_every=recovery.chain.replicate_every_updates,
        max_staleness=training.max_staleness,
        policy=recovery.staleness.policy,
        reduced_rate=None if reduced is None else ReducedRate(reduced.above, reduced.lr),
        base_lr=training.optimizer.lr,
        rate_at=lambda version: rate_at(training.optimizer.schedule, version),
        stop_updates=training.stop_after.updates,
        group_max=group_max,
    )

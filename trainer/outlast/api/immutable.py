"""What may not change in a job that exists.

Rules. (1) A field is immutable when processes were started with it and cannot follow a change. EDITABLE is all the
rest; a pod template holds for pods made after its change. Of training.stopAfter all is followed at once but epochs, and
updates that are raised: processes end by what they were started with, so these are refused until the job is suspended
(else it would end where it was to end before, without a word). (2) A job whose pods a queue admits as one group of a
fixed size keeps its workers.replicas until it is suspended, when no pod of that group is left. (3) The API server
refuses a change by CEL (crd.py) except in opaque objects; the operator compares everything.
"""

from __future__ import annotations

from outlast.api.errors import FieldError
from outlast.api.rules import value_at
from outlast.api.spec import JobSpec

IMMUTABLE: tuple[str, ...] = (
    "managedBy",
    "training.task",
    "training.script",
    "training.source",
    "training.args",
    "training.seed",
    "training.consistency",
    "training.maxStaleness",
    "training.optimizer",
    "training.evaluate",
    "servers.shards",
    "servers.replicas",
    "recovery.strategy",
    "recovery.checkpoint",
    "recovery.chain",
    "recovery.buffer.maxBytes",
    "recovery.buffer.whenFull",
    "recovery.buffer.dtype",
    "recovery.buffer.durability",
    "recovery.buffer.url",
    "recovery.staleness",
    "recovery.failover",
    "security.tls",
)
EDITABLE: tuple[str, ...] = (
    "suspend",
    "training.stopAfter",
    "servers.template",
    "workers",
    "evaluator.template",
    "recovery.buffer.template",
    "security.networkPolicy",
    "runPolicy",
    "cost",
)
IMMUTABLE_MESSAGE = "cannot be changed in a job that exists; delete the job and create it again"

FIXED_WHILE_RUNNING_MESSAGE = (
    "cannot be followed by processes that were started with {before}; set suspend: true with it, and suspend: false "
    "when the job is suspended"
)

FIXED_IN_QUEUE_MESSAGE = (
    "the queue admitted the job's pods as one group, made for {before} workers; set suspend: true first, and "
    "suspend: false when the job is suspended: then it takes effect"
)


def changed_while_queued(before: JobSpec, after: JobSpec) -> list[FieldError]:
    """What of `after` would change the number of pods in their group."""
    then, now = before.workers.replicas, after.workers.replicas
    if now == then:
        return []
    return [FieldError("spec.workers.replicas", now, FIXED_IN_QUEUE_MESSAGE.format(before=then))]


def changed_while_running(before: JobSpec, after: JobSpec) -> list[FieldError]:
    """What of `after` only processes that are started anew would follow."""
    old, new = before.training.stop_after, after.training.stop_after
    changed: list[tuple[str, int | None, int | None]] = []
    if old.updates is not None and (new.updates is None or new.updates > old.updates):
        changed.append(("updates", old.updates, new.updates))
    if old.epochs != new.epochs:
        changed.append(("epochs", old.epochs, new.epochs))
    return [
        FieldError(f"spec.training.stopAfter.{name}", now, FIXED_WHILE_RUNNING_MESSAGE.format(before=then or "none"))
        for name, then, now in changed
    ]


def changed_immutables(before: JobSpec, after: JobSpec) -> list[FieldError]:
    """What differs between two specs of one job and may not."""
    old, new = before.to_json(), after.to_json()
    return [
        FieldError(f"spec.{path}", value_at(new, path), IMMUTABLE_MESSAGE)
        for path in IMMUTABLE
        if value_at(old, path) != value_at(new, path)
    ]

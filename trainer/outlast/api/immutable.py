"""What may not change in a job that exists.

Rules. (1) A field is immutable when processes were started with it and cannot follow a change. Editable at any time are
suspend, training.stopAfter, workers.*, servers.template (for pods made from then on), runPolicy and cost. Of stopAfter
all is followed at once but epochs, and updates that are raised: processes end by what they were started with, so these
take a suspension. (2) The API server refuses a change by CEL (crd.py) except in opaque objects; the operator compares
everything.
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
    "recovery.buffer",
    "recovery.staleness",
    "recovery.failover",
    "security",
)
IMMUTABLE_MESSAGE = "cannot be changed in a job that exists; delete the job and create it anew"


def changed_immutables(before: JobSpec, after: JobSpec) -> list[FieldError]:
    """What differs between two specs of one job and may not."""
    old, new = before.to_json(), after.to_json()
    return [
        FieldError(f"spec.{path}", value_at(new, path), IMMUTABLE_MESSAGE)
        for path in IMMUTABLE
        if value_at(old, path) != value_at(new, path)
    ]

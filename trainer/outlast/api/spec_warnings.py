"""What is legal in a spec and yet does not do what its author may expect.

Rules. (1) A warning compares with the default, not with what was written: the API server fills in defaults, and a job
that has been stored must warn like the file it came from. (2) A warning never changes what is done.
"""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from outlast.api.base import FieldsModel
from outlast.api.errors import SpecWarning
from outlast.api.spec import JobSpec
from outlast.api.spec_fields import Buffer, Chain, Staleness, Training
from outlast.api.strategy import BUFFERED


def warnings_for(spec: JobSpec) -> list[SpecWarning]:
    """All warnings about a valid spec, in the order of its fields."""
    parts = (_training, _checkpoint, _chain, _buffer, _staleness)
    return [SpecWarning(f"spec.{path}", message) for part in parts for path, message in part(spec)]


def _changed(part: FieldsModel, default: FieldsModel) -> list[str]:
    """The camelCase names of fields that differ from their defaults."""
    ours, theirs = part.to_json(), default.to_json()
    return [name for name in ours if ours[name] != theirs[name]]


def _training(spec: JobSpec) -> Iterator[tuple[str, str]]:
    consistency = spec.training.consistency
    if not spec.traits.bounded and "maxStaleness" in _changed(spec.training, Training()):
        yield "training.maxStaleness", f"has no effect with consistency {consistency}; only BoundedStaleness reads it"
    if spec.recovery.strategy in BUFFERED and not spec.traits.buffered:
        yield "recovery.strategy", "Hybrid behaves as Chain with consistency Sync: gradients are never buffered"


def _checkpoint(spec: JobSpec) -> Iterator[tuple[str, str]]:
    if not spec.recovery.checkpoint.periodic:
        yield (
            "recovery.checkpoint",
            "no checkpoint is written while training: the loss of every copy would start it from the beginning",
        )


def _chain(spec: JobSpec) -> Iterator[tuple[str, str]]:
    strategy, chain = spec.recovery.strategy, spec.recovery.chain
    if not spec.traits.chained:
        for name in _changed(chain, Chain()):
            yield f"recovery.chain.{name}", f"has no effect with strategy {strategy}, which has no chain"
    elif spec.traits.barrier and chain.ack != "Tail":
        yield (
            "recovery.chain.ack",
            f"{chain.ack} with consistency Sync: rounds that die with the head are computed again, and a run with "
            "failovers does not end exactly as one without",
        )
    elif spec.traits.diverts and chain.ack != "Tail":
        yield (
            "recovery.chain.ack",
            f"{chain.ack} can lose acknowledged gradients with the head, which Hybrid's buffer otherwise prevents",
        )


def _buffer(spec: JobSpec) -> Iterator[tuple[str, str]]:
    strategy, buffer = spec.recovery.strategy, spec.recovery.buffer
    if not spec.traits.buffered:
        why = "; only Stateless and Hybrid buffer gradients"
        if strategy in BUFFERED:
            why = f" and consistency {spec.training.consistency}, in which gradients are never buffered"
        for name in _changed(buffer, Buffer()):
            yield f"recovery.buffer.{name}", f"has no effect with strategy {strategy}{why}"
        return
    if buffer.url is not None:
        if urlsplit(buffer.url).password:
            yield "recovery.buffer.url", "holds a password, readable by everyone who may read the TrainingJob"
        if buffer.template:
            yield "recovery.buffer.template", "has no effect with a url: the operator runs no Redis for the job"
        if buffer.durability != "Always":
            yield "recovery.buffer.durability", "has no effect with a url; that Redis has its own appendfsync setting"
    elif buffer.durability == "None":
        yield "recovery.buffer.durability", "None: a crash of Redis loses gradients that were acknowledged"


def _staleness(spec: JobSpec) -> Iterator[tuple[str, str]]:
    staleness, default = spec.recovery.staleness, Staleness()
    if spec.traits.barrier:
        for name in ("policy", "reducedRate"):
            if name in _changed(staleness, default):
                yield f"recovery.staleness.{name}", "has no effect with consistency Sync, in which nothing is stale"
        return
    reduced = staleness.reduced_rate
    if reduced is not None and reduced.lr >= spec.training.optimizer.lr:
        yield "recovery.staleness.reducedRate.lr", f"{reduced.lr:g} is not below optimizer.lr: it reduces nothing"
    if spec.traits.buffered and staleness.policy == "Sum" and reduced is None and staleness.clip_norm is None:
        yield (
            "recovery.staleness.policy",
            "Sum applies the backlog of an outage as one step as long as itself; consider reducedRate or clipNorm",
        )

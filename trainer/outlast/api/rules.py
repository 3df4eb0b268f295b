"""The rules between fields, in one table: each once as CEL for the API server, once in Python for everybody else.

Rules of this file. (1) CEL text and predicate of a row say the same; a test evaluates both over many specs. (2) A
message states the fact, why, and the remedy; `{a.b}` in it stands for the value of `spec.a.b`, which must be a field
that is always present. (3) `self` is the `spec`. (4) A limit that concerns one field alone stands at the field. (5)
What is legal but without effect is a warning (spec_warnings.py), never an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from outlast.api.base import DNS_LABEL, PATTERNS
from outlast.api.errors import FieldError, Location, show
from outlast.api.schedule import Schedule
from outlast.api.spec import JobSpec
from outlast.api.strategy import BUFFERED, CHAINED, TABLE

# The longest name made from a job's: a worker's pod, `JOB-worker-SLOT-INCARNATION`. All must be DNS labels.
LONGEST_CHILD_SUFFIX = "-worker-9999-99999"
NAME_LENGTH = 63 - len(LONGEST_CHILD_SUFFIX)

_PLACEHOLDER = re.compile(r"\{([A-Za-z.]+)\}")


@dataclass(frozen=True)
class Rule:
    """`cel` (over `self` = spec) and `holds` are true for a good spec; `at` is the path that is blamed."""

    id: str
    at: str
    cel: str
    holds: Callable[[JobSpec], bool]
    message: str

    @cached_property
    def reads(self) -> frozenset[tuple[str, ...]]:
        """The fields that the rule looks at."""
        fields = re.sub(r"\.[A-Za-z]+\(\)", "", self.cel)  # without calls such as .isSorted()
        return frozenset(tuple(path.split(".")) for path in re.findall(r"self\.([A-Za-z.]+)", fields))

    def words(self, spec: JobSpec) -> str:
        """The message with values filled in."""
        document = spec.to_json()
        return _PLACEHOLDER.sub(lambda match: _plain(value_at(document, match[1])), self.message)

    @property
    def message_cel(self) -> str | None:
        """A CEL expression that gives the same words, or None if the message is constant.

        With `format`, for an API server bounds what an expression may cost and knows no bound for `string(x)`.
        """
        fields = _PLACEHOLDER.findall(self.message)
        if not fields:
            return None
        template = _PLACEHOLDER.sub("%s", self.message.replace("%", "%%"))
        return f"'{template}'.format([{', '.join(f'self.{field}' for field in fields)}])"


def value_at(document: Any, path: str) -> Any:
    """The value at a dotted path of a JSON document; None where there is none."""
    for part in path.split(".") if path else ():
        document = document.get(part) if isinstance(document, dict) else None
    return document


def _plain(value: Any) -> str:
    """A value as CEL's `format` writes it."""
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return value if isinstance(value, str) else show(value)


def _schedule(names: str, good: Callable[[Schedule], bool]) -> Callable[[JobSpec], bool]:
    """Holds unless there is a schedule with one of these names that is not good."""

    def holds(spec: JobSpec) -> bool:
        schedule = spec.training.optimizer.schedule
        return schedule is None or schedule.name not in names.split() or good(schedule)

    return holds


_OPTIMIZER = "self.training.optimizer"
_SCHEDULE = "self.training.optimizer.schedule"


def _periodic(at: str) -> str:
    """CEL: something happens now and then. A period that is 0 or left out is none."""
    return f"(has({at}.everySeconds) && {at}.everySeconds > 0.0 || has({at}.everyUpdates) && {at}.everyUpdates > 0)"


RULES: tuple[Rule, ...] = (
    # --- what is trained, and until when ---
    Rule(
        "task-or-script",
        "training",
        "has(self.training.task) != has(self.training.script)",
        lambda s: (s.training.task is None) != (s.training.script is None),
        "needs exactly one of task (an import path) and script (a file); write one and leave the other out",
    ),
    Rule(
        "stop-after",
        "training.stopAfter",
        "has(self.training.stopAfter.updates) || has(self.training.stopAfter.epochs) || "
        "has(self.training.stopAfter.seconds) || has(self.training.stopAfter.accuracy)",
        lambda s: any(value is not None for value in s.training.stop_after.to_json().values()),
        "has no end; set at least one of updates, epochs, seconds, accuracy",
    ),
    Rule(
        "accuracy-needs-evaluation",
        "training.stopAfter.accuracy",
        "!has(self.training.stopAfter.accuracy) || has(self.training.task) && " + _periodic("self.training.evaluate"),
        lambda s: s.training.stop_after.accuracy is None or s.training.evaluated,
        "the accuracy is not measured; use a task, and set training.evaluate.everySeconds or everyUpdates",
    ),
    # --- optimizer ---
    Rule(
        "momentum-is-sgd",
        "training.optimizer.momentum",
        f"{_OPTIMIZER}.name == 'SGD' || {_OPTIMIZER}.momentum == 0.0",
        lambda s: s.training.optimizer.name == "SGD" or s.training.optimizer.momentum == 0,
        "{training.optimizer.name} has no momentum; leave it out and set betas, or choose SGD",
    ),
    Rule(
        "nesterov-needs-momentum",
        "training.optimizer.nesterov",
        f"!{_OPTIMIZER}.nesterov || ({_OPTIMIZER}.name == 'SGD' && {_OPTIMIZER}.momentum > 0.0)",
        lambda s: (
            not s.training.optimizer.nesterov
            or (s.training.optimizer.name == "SGD" and s.training.optimizer.momentum > 0)
        ),
        "Nesterov needs SGD with momentum; set optimizer.momentum above 0 with SGD, or leave nesterov out",
    ),
    Rule(
        "betas-are-adams",
        "training.optimizer.betas",
        f"{_OPTIMIZER}.name != 'SGD' || {_OPTIMIZER}.betas == [0.9, 0.999]",
        lambda s: s.training.optimizer.name != "SGD" or s.training.optimizer.betas == (0.9, 0.999),
        "SGD has no betas; leave them out and set momentum, or choose Adam or AdamW",
    ),
    Rule(
        "eps-is-adams",
        "training.optimizer.eps",
        f"{_OPTIMIZER}.name != 'SGD' || {_OPTIMIZER}.eps == 1e-8",
        lambda s: s.training.optimizer.name != "SGD" or s.training.optimizer.eps == 1e-8,
        "SGD has no eps; leave it out, or choose Adam or AdamW",
    ),
    Rule(
        "step-needs-steps",
        "training.optimizer.schedule",
        f"!has({_SCHEDULE}) || {_SCHEDULE}.name != 'Step' || "
        f"has({_SCHEDULE}.everyUpdates) != has({_SCHEDULE}.milestones)",
        _schedule("Step", lambda c: (c.every_updates is None) != (c.milestones is None)),
        "a Step schedule needs exactly one of everyUpdates and milestones; write one and leave the other out",
    ),
    Rule(
        "steps-are-steps",
        "training.optimizer.schedule",
        f"!has({_SCHEDULE}) || {_SCHEDULE}.name == 'Step' || "
        f"(!has({_SCHEDULE}.everyUpdates) && !has({_SCHEDULE}.milestones))",
        _schedule("Constant Linear Cosine", lambda c: c.every_updates is None and c.milestones is None),
        "everyUpdates and milestones belong to Step; leave them out, or set schedule.name to Step",
    ),
    Rule(
        "milestones-rise",
        "training.optimizer.schedule.milestones",
        f"!has({_SCHEDULE}) || !has({_SCHEDULE}.milestones) || {_SCHEDULE}.milestones.isSorted()",
        _schedule("Constant Step Linear Cosine", lambda c: (c.milestones or []) == sorted(c.milestones or [])),
        "the milestones are not in order; write them from the lowest to the highest",
    ),
    Rule(
        "decay-needs-length",
        "training.optimizer.schedule.updates",
        f"!has({_SCHEDULE}) || !({_SCHEDULE}.name in ['Linear', 'Cosine']) || has({_SCHEDULE}.updates)",
        _schedule("Linear Cosine", lambda c: c.updates is not None),
        "missing; Linear and Cosine need the number of updates until they reach `final`",
    ),
    Rule(
        "length-is-decay",
        "training.optimizer.schedule.updates",
        f"!has({_SCHEDULE}) || {_SCHEDULE}.name in ['Linear', 'Cosine'] || !has({_SCHEDULE}.updates)",
        _schedule("Constant Step", lambda c: c.updates is None),
        "belongs to Linear and Cosine; leave it out, or set schedule.name to one of them",
    ),
    # --- servers and workers ---
    Rule(
        "chain-needs-replicas",
        "servers.replicas",
        "!(self.recovery.strategy in ['Chain', 'Hybrid']) || !has(self.servers.replicas) || self.servers.replicas >= 2",
        lambda s: s.recovery.strategy not in CHAINED or s.servers.replicas >= 2,
        "{servers.replicas} is too few for recovery.strategy {recovery.strategy}; use 2 or more, or choose Checkpoint",
    ),
    Rule(
        "single-server",
        "servers.replicas",
        "self.recovery.strategy in ['Chain', 'Hybrid'] || !has(self.servers.replicas) || self.servers.replicas == 1",
        lambda s: s.recovery.strategy in CHAINED or s.servers.replicas == 1,
        "{servers.replicas} is too many for recovery.strategy {recovery.strategy}, which has one server for "
        "each shard; use 1, or choose Chain or Hybrid",
    ),
    Rule(
        "workers-at-least",
        "workers.replicas",
        "self.workers.replicas >= self.workers.minReplicas",
        lambda s: s.workers.replicas >= s.workers.min_replicas,
        "{workers.replicas} is less than workers.minReplicas ({workers.minReplicas}); raise it, or lower minReplicas",
    ),
    Rule(
        "workers-at-most",
        "workers.replicas",
        "!has(self.workers.maxReplicas) || self.workers.replicas <= self.workers.maxReplicas",
        lambda s: s.workers.max_replicas is None or s.workers.replicas <= s.workers.max_replicas,
        "{workers.replicas} is more than workers.maxReplicas; lower it, or raise maxReplicas",
    ),
    # --- recovery ---
    Rule(
        "stateless-is-asynchronous",
        "training.consistency",
        "!(self.recovery.strategy == 'Stateless' && self.training.consistency == 'Sync')",
        lambda s: (s.recovery.strategy, s.training.consistency) in TABLE,
        "Sync is refused with recovery.strategy Stateless, because its barrier would make every worker wait for the "
        "server in an outage; use Async or BoundedStaleness, or choose Chain",
    ),
    Rule(
        "checkpoint-needs-period",
        "recovery.checkpoint",
        "self.recovery.strategy != 'Checkpoint' || " + _periodic("self.recovery.checkpoint"),
        lambda s: s.recovery.strategy != "Checkpoint" or s.recovery.checkpoint.periodic,
        "no checkpoint would be written while training, and recovery.strategy Checkpoint has nothing else; "
        "set everyUpdates or everySeconds",
    ),
    Rule(
        "claim-or-volume",
        "recovery.checkpoint",
        "!has(self.recovery.checkpoint.claim) || !has(self.recovery.checkpoint.volume)",
        lambda s: s.recovery.checkpoint.claim is None or s.recovery.checkpoint.volume is None,
        "has both claim (made by the operator) and volume (made by you); write one and leave the other out",
    ),
    Rule(
        "one-pod-alone",
        "recovery.checkpoint.claim.accessModes",
        "!has(self.recovery.checkpoint.claim) || self.recovery.checkpoint.claim.accessModes.size() == 1 || "
        "!('ReadWriteOncePod' in self.recovery.checkpoint.claim.accessModes)",
        lambda s: (
            s.recovery.checkpoint.claim is None
            or len(s.recovery.checkpoint.claim.access_modes) == 1
            or "ReadWriteOncePod" not in s.recovery.checkpoint.claim.access_modes
        ),
        "Kubernetes refuses ReadWriteOncePod together with other modes; write ReadWriteOncePod alone, or leave it out",
    ),
    Rule(
        "batches-are-not-tail",
        "recovery.chain.replicateEveryUpdates",
        "self.recovery.chain.replicateEveryUpdates == 1 || self.recovery.chain.ack != 'Tail'",
        lambda s: s.recovery.chain.replicate_every_updates == 1 or s.recovery.chain.ack != "Tail",
        "{recovery.chain.replicateEveryUpdates} is refused with ack Tail, because a gradient of a batch is "
        "acknowledged before the tail has it; use 1, or ack Successor or Head",
    ),
    Rule(
        "batches-are-not-hybrid",
        "recovery.chain.replicateEveryUpdates",
        "self.recovery.chain.replicateEveryUpdates == 1 || self.recovery.strategy != 'Hybrid'",
        lambda s: s.recovery.chain.replicate_every_updates == 1 or s.recovery.strategy != "Hybrid",
        "{recovery.chain.replicateEveryUpdates} is refused with recovery.strategy Hybrid, which acknowledges only what "
        "outlives the head (a batch does not); use 1, or choose Chain",
    ),
    Rule(
        "reduced-rate-pair",
        "recovery.staleness.reducedRate",
        "!has(self.recovery.staleness.reducedRate) || "
        "has(self.recovery.staleness.reducedRate.above) == has(self.recovery.staleness.reducedRate.lr)",
        lambda s: True,  # a ReducedRate cannot be made of one half: see half_missing
        "needs both above and lr; write both, or leave reducedRate out",
    ),
    Rule(
        "local-steps-not-sync",
        "recovery.staleness.outage.mode",
        "!has(self.recovery.staleness.outage.mode) || self.recovery.staleness.outage.mode != 'LocalSteps' "
        "|| self.training.consistency != 'Sync'",
        lambda s: s.recovery.staleness.outage.mode != "LocalSteps" or s.training.consistency != "Sync",
        "LocalSteps is refused with training.consistency Sync, whose weights are the same on all workers; "
        "use StaleGradients, or choose Async or BoundedStaleness",
    ),
    Rule(
        "local-steps-need-buffer",
        "recovery.staleness.outage.mode",
        "!has(self.recovery.staleness.outage.mode) || self.recovery.staleness.outage.mode != 'LocalSteps' "
        "|| self.recovery.strategy in ['Stateless', 'Hybrid']",
        lambda s: s.recovery.staleness.outage.mode != "LocalSteps" or s.recovery.strategy in BUFFERED,
        "LocalSteps is refused with recovery.strategy {recovery.strategy}, whose workers wait in an outage; "
        "use StaleGradients, or choose Stateless or Hybrid",
    ),
    Rule(
        "timeout-covers-heartbeats",
        "recovery.failover.timeoutSeconds",
        "self.recovery.failover.timeoutSeconds >= 2.0 * self.recovery.failover.heartbeatSeconds",
        lambda s: s.recovery.failover.timeout_seconds >= 2 * s.recovery.failover.heartbeat_seconds,
        "{recovery.failover.timeoutSeconds} is less than two heartbeats of {recovery.failover.heartbeatSeconds} s, so "
        "one late heartbeat would cause a failover; raise it, or lower heartbeatSeconds",
    ),
    Rule(
        "dead-after-timeout",
        "recovery.failover.assumeDeadSeconds",
        "self.recovery.failover.assumeDeadSeconds >= self.recovery.failover.timeoutSeconds",
        lambda s: s.recovery.failover.assume_dead_seconds >= s.recovery.failover.timeout_seconds,
        "{recovery.failover.assumeDeadSeconds} is less than timeoutSeconds ({recovery.failover.timeoutSeconds}); "
        "raise it, or lower timeoutSeconds",
    ),
)

NAME_MESSAGE = (
    f"must be {PATTERNS[DNS_LABEL]} of at most {NAME_LENGTH} characters, because the names of its pods are made from it"
)


def broken_rules(spec: JobSpec, wrong: Sequence[Location] = ()) -> list[FieldError]:
    """The rules that the spec breaks, in the table's order; those that read a field listed in `wrong` are skipped."""
    document = spec.to_json()
    return [
        FieldError(f"spec.{rule.at}", value_at(document, rule.at), rule.words(spec))
        for rule in RULES
        if not any(_touch(field, location) for field in rule.reads for location in wrong) and not rule.holds(spec)
    ]


def half_missing(path: str) -> Rule | None:
    """The rule for an object of which only one half was written, if the object at the path is such a pair."""
    return next((rule for rule in RULES if rule.id.endswith("-pair") and rule.at == path), None)


def _touch(field: Iterable[str], location: Location) -> bool:
    """Whether one of the two paths is at or below the other."""
    return all(a == b for a, b in zip(field, location, strict=False))


def name_error(name: Any) -> str | None:
    """What is wrong with `metadata.name`, or None."""
    if name is None:
        return "missing; write the job's name"
    if not isinstance(name, str):
        return f"{show(name)} is not a string; put it in quotes"
    if len(name) > NAME_LENGTH or not re.fullmatch(DNS_LABEL[1:-1], name):
        return f"{show(name)} {NAME_MESSAGE}"
    return None

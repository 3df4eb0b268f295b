"""The planner's memory and the TrainingJob's status: two forms of one record, written in one request. Pure.

`status.record` is the memory itself, one string, no interface (record.py). The rest is made from it for people,
programs and the scale subresource, in the words of the schema (outlast.api.status).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from outlast.api.view import Member
from outlast_operator.kubernetes.cluster import clock
from outlast_operator.kubernetes.job.acceptance import Acceptance
from outlast_operator.kubernetes.job.record import Record
from outlast_operator.kubernetes.manifests.names import JobRef, worker_selector
from outlast_operator.planner.status import Condition, Failover, JobStatus
from outlast_operator.planner.waits import summary

Json = dict[str, Any]
INVALID, REFUSED = "InvalidSpec", "ChangeRefused"


def to_status(record: Record, ref: JobRef, acceptance: Acceptance, job: Json) -> Json:
    """The whole `status` of the job as it stands."""
    status = record.status
    progress = status.progress
    shown: Json = {
        "state": status.state,
        "conditions": conditions(status, acceptance, job),
        "waiting": summary(status.waits)[0] or None,
        "observedGeneration": status.observed_generation,
        "views": [
            {
                "shard": shard,
                "epoch": view.epoch,
                "history": view.history,
                "members": [_member(m) for m in view.members],
                "joining": [_member(m) for m in view.joining],
                "restore": view.restore,
            }
            for shard, view in sorted(status.views.items())
        ],
        "version": progress.version,
        "progress": _present(
            accuracy=progress.accuracy, loss=progress.loss, percent=progress.percent, etaSeconds=progress.eta_s
        ),
        "workers": {
            "ready": progress.workers_ready,
            "active": progress.workers_active,
            "replicas": progress.workers_active,
            "selector": worker_selector(ref),
        },
        "failovers": [_failover(f) for f in status.failovers],
        "failoverCount": status.failover_count,
        "gradients": progress.gradients,
        "cost": {part: round(amount, 6) for part, amount in progress.cost.items()},
        "startTime": time_text(status.t_start),
        "completionTime": time_text(status.t_completed),
        "record": record.to_text(),
    }
    return {key: value for key, value in shown.items() if value is not None}


def conditions(status: JobStatus, acceptance: Acceptance, job: Json) -> list[Json]:
    """The planner's conditions, and whether what is written in the spec is in force."""
    refused = bool(acceptance.refused)
    value, type_ = str(not refused), "SpecAccepted"
    before = _shown(job).get(type_, {})
    since = before.get("lastTransitionTime") if before.get("status") == value else None
    accepted = {
        "type": type_,
        "status": value,
        "reason": REFUSED if refused else "Valid",
        "message": acceptance.message or "the spec is in force",
        "lastTransitionTime": since or time_text(clock.now()),
        **_present(observedGeneration=job["metadata"].get("generation")),
    }
    return [*(_condition(c, status.observed_generation) for c in status.conditions), accepted]


def shown_refusal(job: Json) -> str:
    """Why a change was refused, as the status says it already; empty if it does not."""
    condition = _shown(job).get("SpecAccepted", {})
    return str(condition.get("message", "")) if condition.get("status") == "False" else ""


def _shown(job: Json) -> dict[str, Json]:
    return {str(c.get("type")): c for c in (job.get("status") or {}).get("conditions") or ()}


def invalid_status(job: Json, message: str, now: float) -> Json:
    """The status of a job whose spec was never valid: Failed, with the reason, until it is mended."""
    generation = job["metadata"].get("generation")
    known = _shown(job)

    def condition(type_: str, value: str, reason: str, text: str) -> Json:
        before = known.get(type_, {})
        since = before.get("lastTransitionTime") if before.get("status") == value else None
        return {
            "type": type_,
            "status": value,
            "reason": reason,
            "message": text,
            "lastTransitionTime": since or time_text(now),
            "observedGeneration": generation,
        }

    return {
        "state": "Failed",
        "observedGeneration": generation,
        "conditions": [
            condition("Ready", "False", INVALID, "the spec is not valid"),
            condition("Failed", "True", INVALID, message),
            condition("SpecAccepted", "False", INVALID, message),
        ],
    }


def time_text(t: float | None) -> str | None:
    """Seconds since the epoch in RFC 3339, whole seconds as the API server keeps them for metav1.Time."""
    return None if t is None else datetime.fromtimestamp(t, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def micro_time_text(t: float | None) -> str | None:
    """With microseconds, where they matter: the steps of a failover are milliseconds apart."""
    return None if t is None else datetime.fromtimestamp(t, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _member(m: Member) -> Json:
    return {"name": m.name, "boot": m.boot, "address": m.address}


def _condition(c: Condition, generation: int | None) -> Json:
    return {
        **_present(observedGeneration=generation),
        "type": c.type,
        "status": c.status,
        "reason": c.reason,
        "message": c.message or c.reason,  # some API servers take an empty string for null
        "lastTransitionTime": time_text(c.t_transition),
    }


def _failover(f: Failover) -> Json:
    return {
        "target": f.target,
        "cause": f.cause or "Unknown",
        **_present(
            role=f.role or None,
            epoch=f.epoch,
            restore=f.restore,
            message=f.message or None,
            detectedTime=micro_time_text(f.t_detected),
            decidedTime=micro_time_text(f.t_decided),
            promotedTime=micro_time_text(f.t_promoted),
            firstUpdateTime=micro_time_text(f.t_first_update),
            gradients=f.gradients or None,
        ),
    }


def _present(**values: Any) -> Json:
    return {key: value for key, value in values.items() if value is not None}

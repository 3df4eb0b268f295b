"""A job's report from what its TrainingJob says: the fields of `outlast run`'s report.json that a cluster knows. Pure.

Not there: series and resources (ask Prometheus), bytes, the digest, and how fast gradients came during an outage.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from outlast.api.strategy import default_replicas

Json = dict[str, Any]
TIMES = ("detected", "decided", "promoted", "first_update")


def make_report(job: Json) -> Json:
    """Times are seconds since `status.startTime`; None for what has not happened."""
    spec, status = job.get("spec") or {}, job.get("status") or {}
    training, recovery = spec.get("training") or {}, spec.get("recovery") or {}
    start = seconds(status.get("startTime"))
    end = seconds(status.get("completionTime")) or datetime.now(UTC).timestamp()
    progress = status.get("progress") or {}
    outcome = _outcome(status)
    return {
        "schema": 1,
        "job": job["metadata"]["name"],
        "namespace": job["metadata"]["namespace"],
        "state": status.get("state", "Pending"),
        **outcome,
        "strategy": recovery.get("strategy"),
        "consistency": training.get("consistency"),
        "workers": (spec.get("workers") or {}).get("replicas"),
        "servers": _servers(spec),
        "seed": training.get("seed"),
        "duration_s": None if start is None else round(end - start, 3),
        "final": {
            "accuracy": progress.get("accuracy"),
            "loss": progress.get("loss"),
            "version": status.get("version", 0),
        },
        "gradients": status.get("gradients") or {},
        "failovers": status.get("failoverCount", 0),
        "failures": [_failure(f, start) for f in status.get("failovers") or ()],
        "cost": {**(status.get("cost") or {}), "currency": (spec.get("cost") or {}).get("currency")},
    }


def _servers(spec: Json) -> int:
    servers = spec.get("servers") or {}
    replicas = servers.get("replicas") or default_replicas((spec.get("recovery") or {}).get("strategy"))
    return int(servers.get("shards") or 1) * int(replicas)


def _outcome(status: Json) -> Json:
    for c in status.get("conditions") or ():
        if c["type"] in ("Complete", "Failed") and c["status"] == "True":
            return {"reason": c.get("reason", ""), "message": c.get("message", "")}
    return {"reason": "", "message": ""}


def _failure(failover: Json, start: float | None) -> Json:
    times = {name: seconds(failover.get(_camel(name) + "Time")) for name in TIMES}
    return {
        "target": failover.get("target"),
        "cause": failover.get("cause"),
        "role": failover.get("role"),
        "epoch": failover.get("epoch"),
        **{f"t_{name}_s": None if t is None or start is None else round(t - start, 3) for name, t in times.items()},
        "outage_s": _between(times["detected"], times["first_update"]),
        "gradients": failover.get("gradients") or {},
        "message": failover.get("message", ""),
    }


def _between(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else round(after - before, 3)


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def seconds(text: str | None) -> float | None:
    """RFC 3339 as seconds since 1970; None stays None."""
    return None if not text else datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()

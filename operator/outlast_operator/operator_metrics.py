"""The operator's own metrics in Prometheus' text format: jobs, leadership, requests to the API server, failovers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outlast_operator.kubernetes.controller import Controller

Sample = tuple[dict[str, str], float]


def metrics_text(controller: Controller, leading: bool) -> str:
    """All metrics, one family after the other."""
    jobs = controller.cache.jobs()
    counts = controller.counts()
    requests: list[Sample] = [
        ({"verb": verb, "resource": resource}, n) for (verb, resource), n in sorted(controller.api.requests.items())
    ]
    states = Counter(str((job.get("status") or {}).get("state") or "Pending") for job in jobs)
    families = [
        _family("outlast_operator_leading", "gauge", "1 while this operator leads.", [({}, float(leading))]),
        _family("outlast_operator_healthy", "gauge", "1 while events flow.", [({}, float(controller.healthy))]),
        _family("outlast_operator_loops", "gauge", "Jobs with a loop.", [({}, counts["loops"])]),
        _family("outlast_operator_failing_loops", "gauge", "Loops in an error.", [({}, counts["failing"])]),
        _family("outlast_api_requests_total", "counter", "Requests to the API server.", requests),
        _family("outlast_jobs", "gauge", "Jobs by state.", [({"state": s}, n) for s, n in sorted(states.items())]),
        _family("outlast_job_failovers_total", "counter", "Losses of a job.", _of(jobs, "failoverCount")),
        _family("outlast_job_version", "gauge", "Updates that the parameters hold.", _of(jobs, "version")),
        _family("outlast_job_cost_total", "gauge", "Cost of a job so far.", _of(jobs, "cost", "total")),
        _family("outlast_job_cost_idle", "gauge", "The part of it that was idle.", _of(jobs, "cost", "idle")),
    ]
    return "".join(families)


def _of(jobs: Iterable[dict[str, Any]], *path: str) -> list[Sample]:
    samples = []
    for job in jobs:
        value: Any = job.get("status") or {}
        for part in path:
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, int | float):
            meta = job["metadata"]
            samples.append(({"namespace": meta["namespace"], "job": meta["name"]}, float(value)))
    return samples


def _family(name: str, kind: str, text: str, samples: Iterable[Sample]) -> str:
    lines = [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
    for labels, value in samples:
        inner = ",".join(f'{key}="{_escape(word)}"' for key, word in labels.items())
        lines.append(f"{name}{{{inner}}} {value:g}" if inner else f"{name} {value:g}")
    return "\n".join(lines) + "\n"


def _escape(word: str) -> str:
    return word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

"""What this operator tells Prometheus: the jobs that are recorded, and the operator itself. Made at each scrape.

An operator that waits for the Lease tells of itself alone: else every job would count once a replica.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from outlast_operator.metrics import METRICS, OperatorState
from outlast_operator.state import Condition, JobStatus

if TYPE_CHECKING:
    from outlast_operator.kubernetes.controller import Controller


def metrics_text(controller: Controller, leading: bool) -> str:
    """All metrics, in Prometheus' text format."""
    from outlast_operator.kubernetes.loop import managed_by_us

    jobs = [job for job in controller.cache.jobs() if managed_by_us(job)] if leading else []
    for job in jobs:
        METRICS.observe_status(job["metadata"]["namespace"], job["metadata"]["name"], recorded_status(job))
    METRICS.keep_only((job["metadata"]["namespace"], job["metadata"]["name"]) for job in jobs)
    counts = controller.counts()
    state = OperatorState(
        leading, controller.healthy, counts["loops"], counts["failing"], dict(controller.api.requests)
    )
    return METRICS.text(state)


def recorded_status(job: dict[str, Any]) -> JobStatus:
    """The planner's memory; of a job that has none (it was never valid), or none that can be read, what its status
    shows: one job must not keep the others' metrics from being told."""
    from outlast_operator.kubernetes.record import UnreadableRecord, read_record

    shown = job.get("status") or {}
    if shown.get("record"):
        with suppress(UnreadableRecord):  # its loop says so
            return read_record(job).status
    conditions = tuple(
        Condition(str(c["type"]), str(c["status"]), str(c.get("reason", "")), str(c.get("message", "")), 0.0)
        for c in shown.get("conditions") or ()
    )
    return JobStatus(state=str(shown.get("state") or "Pending"), conditions=conditions)

"""The operator's metrics for Prometheus: its jobs, their failovers, what they cost, and how the operator itself is.

Rules. (1) Fed with what is recorded, a job's `JobStatus`, as often as one likes; nothing is told that it does not
say. (2) A line of the ledger counts once, when it is closed: only then are its cause and its times final. (3) Only
the operator that leads feeds it, so that sums over replicas are right. (4) `FAMILIES` is the list of names; the chart's
dashboard and alerts use no other (a test looks). (5) The text is made at each scrape. An operator that waits for the
Lease tells of itself alone: else every job would count once a replica.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import outlast
from outlast.process.metrics import Sample, metric_families
from outlast_operator.planner.status import Condition, Failover, JobStatus

if TYPE_CHECKING:
    from outlast_operator.kubernetes.controller import Controller

BUCKETS_S = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 300.0)
FAMILIES: dict[str, tuple[str, str]] = {  # name -> type, help
    "outlast_operator_info": ("gauge", "1; the label names the release."),
    "outlast_operator_leading": ("gauge", "1 while this operator holds the Lease."),
    "outlast_operator_healthy": ("gauge", "1 while events flow from the API server."),
    "outlast_operator_loops": ("gauge", "Jobs for which this operator runs a loop."),
    "outlast_operator_failing_loops": ("gauge", "Loops whose last turn failed and is retried."),
    "outlast_api_requests_total": ("counter", "Requests to the API server, by verb and resource."),
    "outlast_jobs": ("gauge", "Jobs by state."),
    "outlast_job_condition": ("gauge", "1 if the condition holds, 0 if not; left out while it is unknown."),
    "outlast_job_version": ("gauge", "Updates that the job's parameters hold."),
    "outlast_job_accuracy": ("gauge", "Accuracy of the last evaluation, 0 to 1."),
    "outlast_job_loss": ("gauge", "Loss of the last evaluation."),
    "outlast_job_progress_ratio": ("gauge", "Share of stopAfter that is done, 0 to 1."),
    "outlast_job_epoch": ("gauge", "Epoch of a shard's view."),
    "outlast_job_history": ("gauge", "Rollbacks of a shard to a checkpoint."),
    "outlast_job_servers_ready": ("gauge", "Servers that run."),
    "outlast_job_workers_ready": ("gauge", "Workers that run."),
    "outlast_job_gradients": ("gauge", "Gradients, by outcome."),
    "outlast_job_cost": (
        "gauge",
        "Cost so far at the prices of spec.cost: total; of it workers, idle, recomputed.",
    ),
    "outlast_job_goodput_ratio": (
        "gauge",
        "Share of the cost, 0 to 1, spent neither on waiting nor on work that a rollback undid.",
    ),
    "outlast_failovers_total": ("counter", "Handled losses, by what was lost and why."),
    "outlast_failover_seconds": ("histogram", "From the detection of a loss to the first update after it."),
}


@dataclass(frozen=True)
class OperatorState:
    """What an operator says of itself."""

    leading: bool = False
    healthy: bool = True
    loops: int = 0
    failing_loops: int = 0
    requests: Mapping[tuple[str, str], int] = field(default_factory=dict)  # (verb, resource) -> number


@dataclass
class _Histogram:
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    total_s: float = 0.0

    def add(self, seconds: float) -> None:
        self.buckets[bisect_left(BUCKETS_S, seconds)] += 1
        self.total_s += seconds

    def samples(self, labels: dict[str, str]) -> Iterator[Sample]:
        name, count = "outlast_failover_seconds", 0
        for bound, n in zip((*map(str, BUCKETS_S), "+Inf"), self.buckets, strict=True):
            count += n
            yield f"{name}_bucket", {**labels, "le": bound}, float(count)
        yield f"{name}_count", labels, float(count)
        yield f"{name}_sum", labels, self.total_s


@dataclass
class _Job:
    status: JobStatus
    counted: set[tuple[str, str, float]] = field(default_factory=set)  # lines of the ledger
    failovers: Counter[tuple[str, str]] = field(default_factory=Counter)  # (kind, cause) -> number
    seconds: dict[str, _Histogram] = field(default_factory=dict)  # kind -> histogram

    def take(self, status: JobStatus) -> None:
        self.status = status
        for f in status.failovers:
            if f.t_first_update is not None and _line(f) not in self.counted:
                self.failovers[f.kind, f.cause] += 1
                self.seconds.setdefault(f.kind, _Histogram()).add(max(0.0, f.t_first_update - f.t_detected))
                self.counted.add(_line(f))
        self.counted &= {_line(f) for f in status.failovers}  # lines that were dropped do not come back


def _line(f: Failover) -> tuple[str, str, float]:
    return f.target, f.boot, f.t_detected


class JobMetrics:
    """The metrics of all jobs of one operator. Safe to use from several threads."""

    def __init__(self) -> None:
        self._jobs: dict[tuple[str, str], _Job] = {}
        self._lock = threading.Lock()

    def observe_status(self, namespace: str, name: str, status: JobStatus) -> None:
        """Take over what is recorded of a job."""
        with self._lock:
            self._jobs.setdefault((namespace, name), _Job(status)).take(status)

    def forget(self, namespace: str, name: str) -> None:
        """The job is gone, and with it all that is told of it."""
        with self._lock:
            self._jobs.pop((namespace, name), None)

    def keep_only(self, jobs: Iterable[tuple[str, str]]) -> None:
        """Forget all jobs but these."""
        kept = set(jobs)
        with self._lock:
            self._jobs = {key: job for key, job in self._jobs.items() if key in kept}

    def text(self, operator: OperatorState) -> str:
        """Everything in Prometheus' text format."""
        from prometheus_client import CollectorRegistry, generate_latest

        with self._lock:
            samples = [*_operator_samples(operator), *self._samples()]

        class Collector:
            def describe(self) -> list[Any]:
                return []

            def collect(self) -> Iterator[Any]:
                return metric_families(FAMILIES, samples)

        registry = CollectorRegistry()
        registry.register(Collector())
        text: str = generate_latest(registry).decode()
        return text

    def _samples(self) -> Iterator[Sample]:
        states = Counter((namespace, job.status.state) for (namespace, _), job in self._jobs.items())
        for (namespace, state), number in sorted(states.items()):
            yield "outlast_jobs", {"namespace": namespace, "state": state}, float(number)
        for (namespace, name), job in sorted(self._jobs.items()):
            labels = {"namespace": namespace, "training_job": name}
            yield from _status_samples(job.status, labels)
            for (kind, cause), number in sorted(job.failovers.items()):
                yield "outlast_failovers_total", {**labels, "kind": kind, "cause": cause}, float(number)
            for kind, histogram in sorted(job.seconds.items()):
                yield from histogram.samples({**labels, "kind": kind})


def _operator_samples(operator: OperatorState) -> Iterator[Sample]:
    yield "outlast_operator_info", {"version": outlast.__version__}, 1.0
    yield "outlast_operator_leading", {}, float(operator.leading)
    yield "outlast_operator_healthy", {}, float(operator.healthy)
    yield "outlast_operator_loops", {}, float(operator.loops)
    yield "outlast_operator_failing_loops", {}, float(operator.failing_loops)
    for (verb, resource), number in sorted(operator.requests.items()):
        yield "outlast_api_requests_total", {"verb": verb, "resource": resource}, float(number)


def _status_samples(status: JobStatus, labels: dict[str, str]) -> Iterator[Sample]:
    for condition in status.conditions:
        if condition.status != "Unknown":
            yield "outlast_job_condition", {**labels, "type": condition.type}, float(condition.status == "True")
    progress = status.progress
    plain = {
        "version": progress.version,
        "accuracy": progress.accuracy,
        "loss": progress.loss,
        "progress_ratio": None if progress.percent is None else progress.percent / 100.0,
        "servers_ready": progress.servers_ready,
        "workers_ready": progress.workers_ready,
        "goodput_ratio": goodput(progress.cost),
    }
    yield from ((f"outlast_job_{name}", labels, float(value)) for name, value in plain.items() if value is not None)
    for shard, view in sorted(status.views.items()):
        yield "outlast_job_epoch", {**labels, "shard": str(shard)}, float(view.epoch)
        yield "outlast_job_history", {**labels, "shard": str(shard)}, float(view.history)
    for fact, number in sorted(progress.gradients.items()):
        yield "outlast_job_gradients", {**labels, "fact": fact}, float(number)
    for part, amount in sorted(progress.cost.items()):
        yield "outlast_job_cost", {**labels, "part": part}, float(amount)


def goodput(cost: Mapping[str, float]) -> float | None:
    """The share of `total` that was neither `idle` nor `recomputed`; None before anything was paid for."""
    total = cost.get("total", 0.0)
    if total <= 0.0:
        return None
    wasted = cost.get("idle", 0.0) + cost.get("recomputed", 0.0)
    return max(0.0, 1.0 - wasted / total)


METRICS = JobMetrics()


def observe_status(namespace: str, name: str, status: JobStatus) -> None:
    """`JobMetrics.observe_status` of this process's own."""
    METRICS.observe_status(namespace, name, status)


def forget(namespace: str, name: str) -> None:
    """`JobMetrics.forget` of this process's own."""
    METRICS.forget(namespace, name)


def metrics_text(controller: Controller, leading: bool) -> str:
    """All metrics, in Prometheus' text format."""
    from outlast_operator.kubernetes.job.loop import managed_by_us

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
    from outlast_operator.kubernetes.job.record import UnreadableRecord, read_record

    shown = job.get("status") or {}
    if shown.get("record"):
        with suppress(UnreadableRecord):  # its loop says so
            return read_record(job).status
    conditions = tuple(
        Condition(str(c["type"]), str(c["status"]), str(c.get("reason", "")), str(c.get("message", "")), 0.0)
        for c in shown.get("conditions") or ()
    )
    return JobStatus(state=str(shown.get("state") or "Pending"), conditions=conditions)

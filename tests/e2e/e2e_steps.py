"""Steps that several end-to-end tests take."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable
from typing import Any

from e2e_cluster import END_S, Cluster, Json, wait_until
from e2e_faults import Moment
from e2e_jobs import Job, seconds_of

from outlast.process.ledger import Fact

log = logging.getLogger("e2e")
StartJob = Callable[..., Job]
HANGS_S = 150  # longer than any figure is given
ACKNOWLEDGED = (Fact.ACKNOWLEDGED, Fact.BUFFERED)  # by a server, by Redis


def start_training(start_job: StartJob, strategy: str, **spec: Json) -> tuple[Job, float]:
    """A job in which every server and worker works; seconds from before `kubectl apply` to the first update."""
    before = time.monotonic()
    job = start_job(strategy, **spec)
    first = wait_until("the first update", lambda: job.first_fact_after(before, *ACKNOWLEDGED), 120)
    job.wait_whole()
    job.wait_condition("PrimaryAvailable")
    workers = job.document["spec"]["workers"]["replicas"]
    wait_until("all workers", lambda: job.status["workers"].get("ready") == workers, 60)
    # Ready is a process that runs; seconds later it has imported torch, joined, and answers for its metrics.
    slots = set(range(workers))
    wait_until("an update of each worker", lambda: slots <= {r.slot for r in job.facts(*ACKNOWLEDGED)}, 60)
    return job, first - before


def first_update_after(job: Job, target: str, epoch: int, moment: Moment) -> float:
    """Seconds from the kill to the first update in the new epoch, as the ledger in the status has it."""

    def found() -> float | None:
        for line in job.status.get("failovers") or []:
            if line["target"] == target and line.get("epoch", 0) > epoch and line.get("firstUpdateTime"):
                log.warning("%s", line)  # each of its steps, for whoever finds that it took too long
                return seconds_of(line["firstUpdateTime"]) - moment[0]
        return None

    return wait_until(f"the first update after the loss of {target} in epoch {epoch}", found, HANGS_S)


def stop(job: Job) -> None:
    """Suspend: the last member writes a checkpoint, and then nothing changes any more."""
    job.cluster.patch(job.namespace, job.name, {"suspend": True})
    job.wait_condition("Suspended", timeout_s=90)
    wait_until("the end of all processes", lambda: not job.living("server") and not job.living("worker"), END_S)


def metric(job: Job, pod: Any, name: str) -> float:
    """What a process of the job says of itself."""
    text = job.cluster.core.connect_get_namespaced_pod_proxy_with_path(
        f"{pod.metadata.name}:9090", job.namespace, "metrics"
    )
    value = re.search(rf"^{name}(?:{{.*?}})? (\S+)$", text, re.MULTILINE)
    assert value, f"{pod.metadata.name} has no {name} in its metrics:\n{text[:2000]}"
    return float(value[1])


def busy_seconds(job: Job) -> dict[str, float]:
    """Seconds that each living worker was busy so far: pod -> seconds."""
    return {pod.metadata.name: metric(job, pod, "outlast_worker_busy_seconds_total") for pod in job.living("worker")}


def wait_drained(job: Job, at_most: int) -> None:
    """Until no more than so many gradients wait in Redis."""
    wait_until(
        f"{job.name}: at most {at_most} gradients in Redis that are not applied",
        lambda: metric(job, job.head(), "outlast_server_backlog_gradients") <= at_most,
        120,
        poll_s=0.5,
    )


def idle_shares(job: Job, start: float, before: dict[str, float]) -> list[float]:
    """What share of the time since `start`, when `busy_seconds` gave `before`, each worker was not busy."""
    elapsed, after = time.monotonic() - start, busy_seconds(job)
    assert after.keys() == before.keys(), "a worker was replaced"
    return [1 - (after[pod] - before[pod]) / elapsed for pod in before]


def updates_go_on(job: Job, timeout_s: float = HANGS_S) -> None:
    """Wait for an acknowledgement later than now."""
    now = time.monotonic()
    wait_until(f"{job.name}: a later update", lambda: job.first_fact_after(now, *ACKNOWLEDGED), timeout_s)


def events_of(cluster: Cluster, namespace: str, name: str) -> str:
    """What was told of a job, one message after another."""
    selector = f"involvedObject.kind=TrainingJob,involvedObject.name={name}"
    told = json.loads(cluster.kubectl("get", "events", "-n", namespace, "--field-selector", selector, "-o", "json"))
    return "\n".join(event["message"] for event in told["items"])

"""What users do to a job: scale, suspend, let it end, delete it."""

from __future__ import annotations

import time

from e2e_cluster import END_S, Cluster, wait_until
from e2e_figures import Figures
from e2e_jobs import EVALUATED
from e2e_selection import every
from e2e_steps import StartJob, start_training, stop, updates_go_on

CHILDREN = ("pods", "services", "secrets", "persistentvolumeclaims")


def test_workers_are_scaled(cluster: Cluster, start_job: StartJob) -> None:
    job, _ = start_training(start_job, "Chain")
    for count in (4, 1):
        cluster.kubectl("scale", "tjob", job.name, "-n", job.namespace, f"--replicas={count}")
        wait_until(f"{count} workers", lambda n=count: len(job.living("worker")) == n, 60)
        wait_until(f"{count} ready workers", lambda n=count: job.status["workers"].get("ready") == n, 60)
        updates_go_on(job)
    stop(job)
    assert job.lost() == 0


def test_a_suspended_job_keeps_its_state(start_job: StartJob, figures: Figures) -> None:
    job, _ = start_training(start_job, "Chain")
    stop(job)
    assert job.lost() == 0
    version = job.status["version"]
    assert version > 0
    before = time.monotonic()
    job.cluster.patch(job.namespace, job.name, {"suspend": False})
    updates_go_on(job)
    figures.time("Chain: resume to next update", time.monotonic() - before, at_most=25)
    job.wait_whole()
    wait_until("a version beyond that of before", lambda: job.status["version"] > version, 30)


def test_a_finished_job_is_complete_and_removes_itself(cluster: Cluster, start_job: StartJob) -> None:
    training = {"stopAfter": {"updates": 300}, **EVALUATED}
    job = start_job("Chain", training=training, runPolicy={"ttlSecondsAfterFinished": 5})
    cluster.kubectl(
        "wait", "--for=condition=Complete", f"tjob/{job.name}", "-n", job.namespace, "--timeout=120s", timeout_s=130
    )
    status = job.status
    assert status["state"] == "Succeeded", status["state"]
    assert status["version"] == 300
    assert status["progress"]["accuracy"] > 0.2, "it was evaluated at the end, and has learned"
    assert not job.living("worker"), "workers of a finished job still run"
    wait_until("the end of the job", lambda: cluster.job(job.namespace, job.name) is None, 60)
    wait_until("the end of its children", lambda: not children(cluster, job.namespace, job.name), END_S)


@every
def test_pods_of_a_finished_job_stay_if_that_is_wished(cluster: Cluster, start_job: StartJob) -> None:
    policy = {"cleanPodPolicy": "None", "ttlSecondsAfterFinished": 8}
    job = start_job("Hybrid", training={"stopAfter": {"updates": 200}}, runPolicy=policy)
    job.wait_condition("Complete", timeout_s=120)
    roles = {pod.metadata.labels["outlast.dev/role"] for pod in job.pods()}
    assert {"server", "worker", "redis"} <= roles, roles
    wait_until("the end of the job", lambda: cluster.job(job.namespace, job.name) is None, 60)
    wait_until("the end of its children", lambda: not children(cluster, job.namespace, job.name), END_S)


@every
def test_a_later_end_takes_a_suspension(cluster: Cluster, start_job: StartJob) -> None:
    job = start_job("Chain", training={"stopAfter": {"updates": 100_000}})
    job.wait_whole()
    cluster.patch(job.namespace, job.name, {"training": {"stopAfter": {"updates": 200_000}}})
    job.wait_condition("SpecAccepted", "False")
    (message,) = [c["message"] for c in job.status["conditions"] if c["type"] == "SpecAccepted"]
    assert "spec.training.stopAfter.updates" in message
    assert "suspend" in message
    cluster.patch(job.namespace, job.name, {"suspend": True})
    job.wait_condition("SpecAccepted")
    job.wait_condition("Suspended", timeout_s=90)
    cluster.patch(job.namespace, job.name, {"suspend": False})
    job.wait_whole()
    updates_go_on(job)


def test_a_deleted_job_leaves_nothing(cluster: Cluster, start_job: StartJob) -> None:
    job, _ = start_training(start_job, "Hybrid")
    assert children(cluster, job.namespace, job.name)
    cluster.kubectl("delete", "tjob", job.name, "-n", job.namespace, "--wait=true")
    wait_until("the end of its children", lambda: not children(cluster, job.namespace, job.name), END_S)


def children(cluster: Cluster, namespace: str, job: str) -> list[str]:
    """What carries the job's label: pods, Services, Secrets, claims."""
    listed = cluster.kubectl(
        "get", ",".join(CHILDREN), "-n", namespace, "-l", f"outlast.dev/job-name={job}", "-o", "name"
    )
    return listed.split()

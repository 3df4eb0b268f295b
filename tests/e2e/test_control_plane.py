"""The operator and the API server are lost, alone and in the middle of a failover; several things are lost at once."""

from __future__ import annotations

import time
from typing import Any

import e2e_faults as faults
import pytest
from e2e_cluster import Cluster, wait_until
from e2e_figures import FULL, Figures
from e2e_jobs import Job
from e2e_release import NAMESPACES, RELEASE, living_operators
from e2e_steps import StartJob, start_training, stop, updates_go_on

AWAY_S = 60 if FULL else 20


def leader(cluster: Cluster, system: str) -> str:
    """The operator's pod that holds the Lease."""
    return cluster.kubectl("get", "lease", RELEASE, "-n", system, "-o", "jsonpath={.spec.holderIdentity}").strip()


def operators(cluster: Cluster, system: str) -> list[str]:
    return [pod.metadata.name for pod in living_operators(cluster, system)]


def lose_operators(cluster: Cluster, system: str, names: list[str]) -> None:
    cluster.kubectl("delete", "pod", "-n", system, "--force", "--grace-period=0", *names)


def ends_right(job: Job, epoch: int, figures: Figures, case: str) -> None:
    job.wait_whole(beyond_epoch=epoch, timeout_s=120)
    updates_go_on(job)
    stop(job)
    figures.number(f"{case}: acknowledged gradients lost", job.lost(), "==", 0)


# The operator takes some hundred milliseconds for a failover: these delays hit it at different steps.
@pytest.mark.parametrize("delay_s", [0.0, 0.3, 1.0])
def test_the_leading_operator_dies_in_a_failover(
    cluster: Cluster, release: str, start_job: StartJob, figures: Figures, delay_s: float
) -> None:
    job, _ = start_training(start_job, "Chain")
    epoch, name = job.view()["epoch"], leader(cluster, release)
    faults.kill_process(cluster, job.head())
    time.sleep(delay_s)  # the fault's time, not a wait for something
    lose_operators(cluster, release, [name])
    wait_until("another leader", lambda: leader(cluster, release) not in ("", name), 60)
    ends_right(job, epoch, figures, f"operator killed {delay_s:g} s after the head")


def test_both_operators_die_in_a_failover(
    cluster: Cluster, release: str, start_job: StartJob, figures: Figures
) -> None:
    job, _ = start_training(start_job, "Chain")
    epoch, names = job.view()["epoch"], operators(cluster, release)
    assert len(names) == 2
    faults.kill_process(cluster, job.head())
    lose_operators(cluster, release, names)
    wait_until("another leader", lambda: leader(cluster, release) not in ("", *names), 60)
    ends_right(job, epoch, figures, "both operators killed with the head")


def test_a_server_dies_while_no_operator_is_there(
    cluster: Cluster, release: str, start_job: StartJob, figures: Figures
) -> None:
    job, _ = start_training(start_job, "Chain")
    epoch = job.view()["epoch"]
    cluster.kubectl("scale", "deployment", RELEASE, "-n", release, "--replicas=0")
    try:
        wait_until("the end of the operators", lambda: not operators(cluster, release), 60)
        updates_go_on(job)  # training needs no operator
        faults.kill_process(cluster, job.head())
        time.sleep(AWAY_S)  # the fault: nobody is there to answer
        assert job.view()["epoch"] == epoch
    finally:
        cluster.kubectl("scale", "deployment", RELEASE, "-n", release, "--replicas=2")
    ends_right(job, epoch, figures, f"operator away for {AWAY_S} s")


def test_the_api_server_restarts(cluster: Cluster, start_job: StartJob, figures: Figures) -> None:
    if cluster.provider != "debian":
        pytest.skip("the API server of this cluster is not ours to restart")
    job, _ = start_training(start_job, "Chain")
    epoch, start = job.view()["epoch"], time.monotonic()
    cluster.restart("kube-apiserver")
    updates_go_on(job)
    figures.time("API server restarted: pause of all workers", job.longest_pause(start, time.monotonic()), at_most=1)
    faults.kill_process(cluster, job.head())
    ends_right(job, epoch, figures, "API server restarted, then the head killed")


def test_redis_is_lost(cluster: Cluster, start_job: StartJob) -> None:
    job, _ = start_training(start_job, "Stateless")
    redis = job.pods(role="redis")[0]
    faults.delete_by_force(cluster, redis)
    wait_until("another Redis", lambda: [p for p in job.living("redis") if p.metadata.uid != redis.metadata.uid], 60)
    updates_go_on(job, timeout_s=120)


def _replacement(job: Job, lost: Any) -> bool:
    """Whether another pod of a worker's name is ready."""
    others = [
        p for p in job.living("worker") if p.spec.hostname == lost.spec.hostname and p.metadata.uid != lost.metadata.uid
    ]
    return any(c.type == "Ready" and c.status == "True" for p in others for c in p.status.conditions or ())


def test_a_worker_is_lost(cluster: Cluster, start_job: StartJob, figures: Figures) -> None:
    job, _ = start_training(start_job, "Chain")
    epoch, lost, other = job.view()["epoch"], job.pod_of("worker-0"), job.pod_of("worker-1")
    start = time.monotonic()
    faults.delete_by_force(cluster, lost)
    wait_until("another worker-0", lambda: _replacement(job, lost), 60)
    wait_until("both workers", lambda: job.status["workers"].get("ready") == 2, 60)
    updates_go_on(job)
    figures.time("Chain, a worker lost: pause of the other", job.longest_pause(start, time.monotonic()), at_most=1)
    assert job.pod_of("worker-1").metadata.uid == other.metadata.uid, "a worker that had not failed was replaced"
    assert job.view()["epoch"] == epoch, "a lost worker changes no chain"
    stop(job)
    figures.number("Chain, a worker lost: acknowledged gradients lost", job.lost(), "==", 0)


@pytest.mark.parametrize("roles", [("worker",), ("worker", "server", "evaluator")], ids=["workers", "everything"])
def test_all_pods_are_lost_at_once(cluster: Cluster, start_job: StartJob, roles: tuple[str, ...]) -> None:
    job, _ = start_training(start_job, "Chain", recovery={"checkpoint": {"everyUpdates": 50}})
    job.wait_condition("CheckpointAvailable")
    for pod in [pod for role in roles for pod in job.living(role)]:
        faults.delete_by_force(cluster, pod)
    updates_go_on(job, timeout_s=120)
    wait_until("both workers", lambda: job.status["workers"].get("ready") == 2, 60)
    assert job.condition("Failed") != "True"


def test_jobs_in_two_namespaces_do_not_see_each_other(cluster: Cluster, start_job: StartJob, namespace: str) -> None:
    job, _ = start_training(start_job, "Chain")
    other = NAMESPACES[1]
    assert namespace != other
    document = {**job.document, "metadata": {"name": job.name, "namespace": other}}
    document["spec"] = {**document["spec"], "suspend": True}
    cluster.apply(document)
    try:
        wait_until(
            "the other job to be seen", lambda: (cluster.job(other, job.name) or {}).get("status", {}).get("state"), 30
        )
        assert not cluster.pods(other, job_name=job.name)
        assert len(job.living("worker")) == 2
        updates_go_on(job)
    finally:
        cluster.kubectl("delete", "tjob", job.name, "-n", other, "--wait=true")
    updates_go_on(job)
    assert job.is_whole()

"""Nodes are drained as a cluster's upgrade does it: nothing that was acknowledged is lost, and each drain ends."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from e2e_cluster import Cluster, wait_until
from e2e_figures import FULL, Figures
from e2e_jobs import EVALUATED, Job
from e2e_steps import StartJob, start_training, stop, updates_go_on

pytestmark = pytest.mark.skipif(not FULL, reason="for make e2e-full: too long for every run")
DRAIN_S = 60.0
STRATEGIES = ["Checkpoint", "Chain", "Hybrid", "Stateless"]


def nodes_of(cluster: Cluster) -> list[str]:
    found = sorted(node.metadata.name for node in cluster.core.list_node().items)
    if len(found) < 3:
        pytest.skip(f"{len(found)} nodes cannot be drained one after the other; these tests need three")
    return found


@contextmanager
def cordoned(cluster: Cluster, *nodes: str) -> Iterator[None]:
    cluster.kubectl("cordon", *nodes)
    try:
        yield
    finally:
        cluster.kubectl("uncordon", *nodes)


def drain(cluster: Cluster, node: str) -> float:
    """Seconds until every pod that can be evicted is gone."""
    began = time.monotonic()
    cluster.kubectl(
        "drain", node, "--ignore-daemonsets", "--delete-emptydir-data", f"--timeout={DRAIN_S + 30:.0f}s",
        timeout_s=DRAIN_S + 60,
    )  # fmt: skip
    return time.monotonic() - began


def wait_all_whole(job: Job) -> None:
    for view in job.status["views"]:
        job.wait_whole(shard=view["shard"])


def assert_nothing_went_back(job: Job) -> None:
    assert {view["history"] for view in job.status["views"]} == {0}, job.status["views"]
    told = [(line["target"], line["cause"]) for line in job.status.get("failovers") or [] if line["role"] != "worker"]
    assert {cause for _, cause in told} <= {"Planned"}, told


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nodes_drained_one_after_the_other(
    cluster: Cluster, start_job: StartJob, figures: Figures, strategy: str, shards: int
) -> None:
    nodes = nodes_of(cluster)
    job, _ = start_training(start_job, strategy, training=EVALUATED, servers={"shards": shards})
    times = []
    for node in nodes:
        with cordoned(cluster, node):
            times.append(drain(cluster, node))
        wait_all_whole(job)
        updates_go_on(job)
    assert_nothing_went_back(job)
    stop(job)
    what = f"{strategy}, {shards} shards, nodes drained one after the other"
    figures.number(f"{what}: acknowledged gradients lost", job.lost(), "==", 0)
    figures.time(f"{what}: a drain", times, at_most=DRAIN_S)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_nodes_drained_at_once(cluster: Cluster, start_job: StartJob, figures: Figures, strategy: str) -> None:
    job, _ = start_training(start_job, strategy, training=EVALUATED)
    two = nodes_of(cluster)[:2]
    with cordoned(cluster, *two), ThreadPoolExecutor(2) as pool:
        times = list(pool.map(lambda node: drain(cluster, node), two))
        wait_all_whole(job)
        updates_go_on(job)
    assert_nothing_went_back(job)
    stop(job)
    figures.number(f"{strategy}, two nodes drained at once: acknowledged gradients lost", job.lost(), "==", 0)
    figures.time(f"{strategy}, two nodes drained at once: a drain", times, at_most=DRAIN_S)


def test_a_budget_holds_an_eviction_back_until_the_replacement_has_the_state(
    cluster: Cluster, start_job: StartJob
) -> None:
    job, _ = start_training(start_job, "Chain", training=EVALUATED)
    budget = f"{job.name}-shard-0"

    def allowed() -> str:
        return cluster.kubectl("get", "pdb", budget, "-n", job.namespace, "-o", "jsonpath={.status.disruptionsAllowed}")

    wait_until("a budget that allows one eviction", lambda: allowed() == "1", 30)
    epoch = job.view()["epoch"]
    cluster.kubectl("delete", "pod", job.head().metadata.name, "-n", job.namespace, "--wait=false")
    wait_until("a budget that allows none", lambda: allowed() == "0", 10)
    job.wait_whole(beyond_epoch=epoch)
    wait_until("a budget that allows one eviction again", lambda: allowed() == "1", 30)
    stop(job)

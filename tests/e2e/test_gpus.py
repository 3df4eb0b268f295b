"""GPUs are scheduled as any extended resource is. This machine has none: the node is given a capacity of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from e2e_cluster import Cluster, wait_until
from e2e_environment import template
from e2e_selection import every
from e2e_steps import StartJob, events_of

GPU = "nvidia.com/gpu"


@pytest.fixture
def give_gpus(cluster: Cluster) -> Iterator[Callable[[int], None]]:
    """give_gpus(2): the first node has so many from now on. None are left when the test ends."""
    node = cluster.core.list_node().items[0]
    if GPU in (node.status.capacity or {}):
        pytest.skip("the node has GPUs of its own")

    def patch(operation: str, **value: str) -> None:
        path = GPU.replace("/", "~1")
        steps = [{"op": operation, "path": f"/status/{kind}/{path}", **value} for kind in ("capacity", "allocatable")]
        cluster.core.patch_node_status(node.metadata.name, steps)

    yield lambda count: patch("add", value=str(count))
    patch("remove")


def running(pods: list[Any]) -> list[Any]:
    return [pod for pod in pods if pod.status.phase == "Running"]


@every
def test_workers_get_gpus_and_a_worker_without_one_waits(
    cluster: Cluster, start_job: StartJob, give_gpus: Callable[[int], None]
) -> None:
    give_gpus(1)
    limits = {"limits": {GPU: 1}, "requests": {"cpu": "10m", "memory": "64Mi"}}
    pod = template("10m", resources=limits)
    job = start_job("Chain", workers={"replicas": 2, "template": pod})
    wait_until("an update", lambda: job.status.get("version", 0) > 0, 120)
    assert len(running(job.living("worker"))) == 1, "one GPU is there, and each worker wants one"
    (worker,) = running(job.living("worker"))
    assert worker.spec.containers[0].resources.limits[GPU] == "1"
    assert GPU not in (job.head().spec.containers[0].resources.limits or {}), "servers were given none"
    wait_until("a word on the worker that waits", lambda: GPU in events_of(cluster, job.namespace, job.name), 60)
    give_gpus(2)
    wait_until("both workers", lambda: job.status["workers"].get("ready") == 2, 90)

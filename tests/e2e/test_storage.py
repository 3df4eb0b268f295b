"""Where a job's code comes from and where its checkpoints go, other than in the other tests: a ConfigMap, claims."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

import pytest
from e2e_cluster import END_S, Cluster, wait_until
from e2e_faults import delete_by_force
from e2e_jobs import Job, is_ready
from e2e_steps import StartJob, start_training, stop, updates_go_on

TASK = """
    import torch
    from outlast.tasks.base import Task

    class Regression(Task):
        def model(self):
            return torch.nn.Linear(400, 1)

        def batches_per_epoch(self):
            return 1000

        def batch(self, index):
            x = torch.randn(32, 400, generator=torch.Generator().manual_seed(self.seed + index))
            return x, x[:, :1]

        def loss(self, model, batch):
            return (model(batch[0]) - batch[1]).square().mean()
"""


@pytest.fixture
def task(cluster: Cluster, namespace: str) -> Iterator[str]:
    """A ConfigMap with a task of the user's own; its name."""
    name = "e2e-task"
    data = {"regression.py": textwrap.dedent(TASK)}
    metadata = {"name": name, "namespace": namespace}
    cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
    yield name
    cluster.kubectl("delete", "configmap", name, "-n", namespace)


def test_code_of_a_configmap_trains_two_shards_into_claims(
    cluster: Cluster, namespace: str, start_job: StartJob, task: str
) -> None:
    job, _ = start_training(
        start_job,
        "Chain",
        training={"task": "regression", "source": {"configMap": task}},
        servers={"shards": 2, "replicas": 2},
        recovery={"checkpoint": {"everyUpdates": 500}},
    )
    before = job.wait_whole(shard=1)
    claims = claims_of(cluster, job)
    assert [(c.status.phase, c.spec.access_modes) for c in claims] == [("Bound", ["ReadWriteOnce"])] * 4

    delete_by_force(cluster, job.head(1))
    after = job.wait_whole(beyond_epoch=before["epoch"], shard=1)
    assert after["members"][0]["boot"] != before["members"][0]["boot"], "another server is its head"
    updates_go_on(job)

    stop(job)
    assert job.lost() == 0
    cluster.patch(namespace, job.name, {"suspend": False})
    updates_go_on(job)  # from what the claims have kept

    volumes = {c.spec.volume_name for c in claims_of(cluster, job)}
    cluster.kubectl("delete", "tjob", job.name, "-n", namespace, "--wait=true")
    left = "the end of the claims, which belong to the job, and of their volumes"
    wait_until(
        left, lambda: not volumes & {v.metadata.name for v in cluster.core.list_persistent_volume().items}, END_S
    )


def claims_of(cluster: Cluster, job: Job) -> list[Any]:
    found = cluster.core.list_namespaced_persistent_volume_claim(
        job.namespace, label_selector=f"outlast.dev/job-name={job.name}"
    )
    return list(found.items)


def test_a_synchronous_chain_loses_its_head_and_a_worker(cluster: Cluster, start_job: StartJob) -> None:
    """No worker may be left out of a step: both losses are waited for, and nothing is applied twice or lost."""
    job, _ = start_training(start_job, "Chain", training={"consistency": "Sync"})
    epoch = job.view()["epoch"]
    delete_by_force(cluster, job.head())
    job.wait_whole(epoch)
    updates_go_on(job)
    lost = job.living("worker")[0]
    delete_by_force(cluster, lost)
    wait_until("another process of its slot", lambda: is_ready(job.replacement_of(lost)), 60)
    wait_until("both workers", lambda: job.status["workers"].get("ready") == 2, 60)
    updates_go_on(job)
    stop(job)
    assert job.lost() == 0

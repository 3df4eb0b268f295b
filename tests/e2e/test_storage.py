"""Where a job's code comes from and where its checkpoints go, other than in the other tests: a ConfigMap, a claim."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

import pytest
from e2e_cluster import END_S, Cluster, Json, wait_until
from e2e_environment import folder_of
from e2e_faults import delete_by_force
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
def volume(cluster: Cluster) -> Iterator[str]:
    """A PersistentVolume that any claim may have, as an administrator would offer one; its name."""
    name = "e2e-checkpoints"
    folder = folder_of(name, "checkpoints")
    spec: Json = {
        "capacity": {"storage": "20Gi"},
        "accessModes": ["ReadWriteMany"],
        "persistentVolumeReclaimPolicy": "Retain",
        "hostPath": {"path": f"{cluster.prefix}{folder}", "type": "Directory"},
    }
    cluster.apply({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec})
    yield name
    cluster.kubectl("delete", "pv", name, "--wait=false")


@pytest.fixture
def task(cluster: Cluster, namespace: str) -> Iterator[str]:
    """A ConfigMap with a task of the user's own; its name."""
    name = "e2e-task"
    data = {"regression.py": textwrap.dedent(TASK)}
    metadata = {"name": name, "namespace": namespace}
    cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
    yield name
    cluster.kubectl("delete", "configmap", name, "-n", namespace)


def test_code_of_a_configmap_trains_two_shards_into_a_claim(
    cluster: Cluster, namespace: str, start_job: StartJob, volume: str, task: str
) -> None:
    job, _ = start_training(
        start_job,
        "Chain",
        training={"task": "regression", "source": {"configMap": task}},
        servers={"shards": 2, "replicas": 2},
        recovery={"checkpoint": {"volume": None, "everyUpdates": 500}},
    )
    claim = cluster.core.list_namespaced_persistent_volume_claim(
        namespace, label_selector=f"outlast.dev/job-name={job.name}"
    ).items
    assert [(c.status.phase, c.spec.volume_name) for c in claim] == [("Bound", volume)]
    before = job.wait_whole(shard=1)

    delete_by_force(cluster, job.head(1))
    after = job.wait_whole(beyond_epoch=before["epoch"], shard=1)
    assert after["members"][0]["boot"] != before["members"][0]["boot"], "another server is its head"
    updates_go_on(job)

    stop(job)
    job.checkpoints = folder_of(volume, "checkpoints")
    assert job.lost() == 0
    cluster.patch(namespace, job.name, {"suspend": False})
    updates_go_on(job)  # from what the claim has kept

    cluster.kubectl("delete", "tjob", job.name, "-n", namespace, "--wait=true")
    gone = "the end of the claim, which belongs to the job"
    wait_until(gone, lambda: cluster.core.read_persistent_volume(volume).status.phase == "Released", END_S)


def test_a_synchronous_chain_loses_its_head_and_a_worker(cluster: Cluster, start_job: StartJob) -> None:
    """No worker may be left out of a step: both losses are waited for, and nothing is applied twice or lost."""
    job, _ = start_training(start_job, "Chain", training={"consistency": "Sync"})
    epoch = job.view()["epoch"]
    delete_by_force(cluster, job.head())
    job.wait_whole(epoch)
    updates_go_on(job)
    delete_by_force(cluster, job.living("worker")[0])
    wait_until("both workers", lambda: job.status["workers"].get("ready") == 2, 60)
    updates_go_on(job)
    stop(job)
    assert job.lost() == 0

"""A pod that calls itself a server of a job, in labels, host name and owner reference, is never dialled by the
operator, nor by anybody from another namespace."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import e2e_faults as faults
import pytest
from e2e_cluster import Cluster, Json, wait_until
from e2e_jobs import Job
from e2e_release import NAMESPACES, all_operators
from e2e_selection import kept
from e2e_steps import StartJob, start_training, updates_go_on

NAME = "e2e-forged"
LISTENER = """
import socket
listener = socket.create_server(("", 7070), backlog=16)
print("listening", flush=True)
while True:
    peer, where = listener.accept()
    peer.settimeout(5)
    print("dialled by", where, peer.recv(4096), flush=True)
"""
OWNERS = {
    "in another namespace": (NAMESPACES[1], "outlast.dev/v1alpha1", "TrainingJob"),
    "of another group": (NAMESPACES[0], "batch/v1", "Job"),
}


def forged(server: Any, namespace: str) -> Json:
    """A pod like a server's, which nobody owns yet."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": NAME,
            "namespace": namespace,
            "labels": server.metadata.labels,
            "annotations": server.metadata.annotations,
        },
        "spec": {
            "hostname": server.spec.hostname,
            "subdomain": server.spec.subdomain,
            "terminationGracePeriodSeconds": 1,
            "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "outlast",
                    "image": server.spec.containers[0].image,
                    "command": ["python", "-c", LISTENER],
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                }
            ],
        },
    }


def open_policy(namespace: str) -> Json:
    """Whoever wants to may reach the forged pod: no policy hides that somebody does."""
    spec = {"podSelector": {}, "ingress": [{}], "policyTypes": ["Ingress"]}
    metadata = {"name": NAME, "namespace": namespace}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}


@contextmanager
def followed(cluster: Cluster, namespace: str, log: Path) -> Iterator[None]:
    """The forged pod's words go to `log` as they come: the garbage collector ends the pod, whose owner is nowhere."""
    command = [str(cluster.tools / "kubectl"), "--kubeconfig", cluster.kubeconfig, "logs", "-f", NAME, "-n", namespace]
    with log.open("wb") as file, subprocess.Popen(command, stdout=file) as process:
        try:
            yield
        finally:
            process.terminate()


@pytest.mark.parametrize("owner", kept(list(OWNERS), list(OWNERS)[:1]))
def test_a_pod_with_a_forged_owner_is_never_dialled(
    cluster: Cluster, start_job: StartJob, tmp_path: Path, owner: str
) -> None:
    job, _ = start_training(start_job, "Chain")
    namespace, api, kind = OWNERS[owner]
    log = tmp_path / "forged.log"
    try:
        cluster.apply(open_policy(namespace), forged(job.head(), namespace))
        cluster.kubectl("wait", f"pod/{NAME}", "-n", namespace, "--for=condition=Ready", "--timeout=60s", timeout_s=70)
        with followed(cluster, namespace, log):
            wait_until("the forged server to listen", lambda: "listening" in log.read_text(), 30)
            cluster.core.patch_namespaced_pod(NAME, namespace, owned_by(job, api, kind))
            epoch = job.view()["epoch"]
            faults.kill_process(cluster, job.head())  # the operator looks at all of the job's pods, and acts
            job.wait_whole(beyond_epoch=epoch)
            updates_go_on(job)
        dialled = re.findall(r"dialled by \('([\d.]+)'", log.read_text())
        operators = {pod.status.pod_ip for pod in all_operators(cluster)}
        assert not operators & set(dialled), log.read_text()
        # In its own namespace it shares the servers' labels and so their DNS name: whoever may make pods there may read
        # the job's Secret as well.
        assert not dialled or namespace == job.namespace, log.read_text()
    finally:
        for what in ("pod", "networkpolicy"):
            cluster.kubectl("delete", what, NAME, "-n", namespace, "--ignore-not-found", "--wait=false")


def owned_by(job: Job, api: str, kind: str) -> Json:
    uid = job.read()["metadata"]["uid"]
    owner = {"apiVersion": api, "kind": kind, "name": job.name, "uid": uid, "controller": True}
    return {"metadata": {"ownerReferences": [owner]}}

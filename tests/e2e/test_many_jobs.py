"""Fifty jobs at once: all planned soon, in little memory, with few requests, and none while nothing happens."""

from __future__ import annotations

import re
import secrets
import time

from e2e_cluster import END_S, Cluster, wait_until
from e2e_faults import processes_of
from e2e_figures import FULL, Figures
from e2e_release import operator_pods
from e2e_selection import every

JOBS, PODS_A_JOB = 50, 6  # three servers, two workers, an evaluator
STILL_S = 3
CALM_S = 20 if FULL else 10
READS = ("get", "list", "watch")
NOWHERE = {"spec": {"nodeSelector": {"outlast.dev/no-such-node": "true"}, "containers": [{"name": "outlast"}]}}


def requests(cluster: Cluster, system: str) -> dict[tuple[str, str], float]:
    """(verb, resource) -> requests to the API server so far, over all replicas of the operator."""
    total: dict[tuple[str, str], float] = {}
    for pod in operator_pods(cluster, system):
        text = cluster.core.connect_get_namespaced_pod_proxy_with_path(f"{pod.metadata.name}:8080", system, "metrics")
        for labels, value in re.findall(r"^outlast_api_requests_total\{(.*?)\} (\S+)$", text, re.MULTILINE):
            known = dict(re.findall(r'(\w+)="(.*?)"', labels))
            key = (known["verb"].lower(), known["resource"])
            total[key] = total.get(key, 0.0) + float(value)
    assert total, "the operator's metrics have no outlast_api_requests_total"
    return total


def memory_mb(cluster: Cluster, system: str) -> float:
    """Of the operator's replica that uses most: resident megabytes of its processes."""
    largest = 0.0
    for pod in operator_pods(cluster, system):
        pids = processes_of(cluster, pod)
        lines = cluster.on_node(" ".join(["grep -h VmRSS", *(f"/proc/{pid}/status" for pid in pids)]))
        largest = max(largest, sum(float(line.split()[1]) for line in lines.splitlines()) / 1024)
    return largest


def writes(made: dict[tuple[str, str], float]) -> float:
    return sum(n for (verb, resource), n in made.items() if verb not in READS and resource not in ("leases", "events"))


def stands_still(cluster: Cluster, release: str) -> bool:
    """Whether the operators write next to nothing for a while: each pod that finds no node is told once."""
    before = writes(requests(cluster, release))
    time.sleep(STILL_S)  # what is looked at is a time without writes
    return writes(requests(cluster, release)) - before <= JOBS / 10


@every
def test_fifty_jobs_at_once(cluster: Cluster, namespace: str, release: str, figures: Figures) -> None:
    prefix = f"many-{secrets.token_hex(2)}"
    documents = [
        {
            "apiVersion": "outlast.dev/v1alpha1",
            "kind": "TrainingJob",
            "metadata": {"name": f"{prefix}-{i}", "namespace": namespace, "labels": {"outlast.dev/e2e": prefix}},
            "spec": {
                "training": {"task": "outlast.tasks.synthetic", "stopAfter": {"updates": 1000}},
                "servers": {"replicas": 3, "template": NOWHERE},
                "workers": {"replicas": 2, "template": NOWHERE},
                "recovery": {"strategy": "Chain", "checkpoint": {"volume": {"emptyDir": {}}}},
            },
        }
        for i in range(JOBS)
    ]
    before = requests(cluster, release)
    try:
        start = time.monotonic()
        cluster.apply(*documents)
        wait_until(
            "the pods of fifty jobs",
            lambda: (
                len([p for p in cluster.pods(namespace) if p.metadata.name.startswith(prefix)]) == JOBS * PODS_A_JOB
            ),
            300,
            poll_s=1,
        )
        figures.time(f"{JOBS} jobs at once: all planned", time.monotonic() - start, at_most=60)
        planned = requests(cluster, release)
        made = {key: planned[key] - before.get(key, 0.0) for key in planned if key[1] != "leases"}
        figures.number(f"{JOBS} jobs at once: requests a job until planned", sum(made.values()) / JOBS, "<=", 40)
        wait_until("an end of the writes", lambda: stands_still(cluster, release), 120)
        planned = requests(cluster, release)
        time.sleep(CALM_S)  # the measured time, in which nothing happens
        calm = requests(cluster, release)
        written = writes(calm) - writes(planned)
        figures.number("pending jobs: writes a job in 5 s", written / JOBS / (CALM_S / 5), "<=", 1)
        figures.number(f"{JOBS} jobs at once: operator's memory, MB", memory_mb(cluster, release), "<=", 200)
    finally:
        cluster.kubectl(
            "delete", "tjob", "-n", namespace, "-l", f"outlast.dev/e2e={prefix}", "--wait=true", timeout_s=120
        )
        wait_until("the end of their pods", lambda: not cluster.pods(namespace), END_S, poll_s=1)

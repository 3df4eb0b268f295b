"""Faults of whole nodes and of the control plane, and the cluster made well again after each test."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from e2e_cluster import Cluster, script, wait_until
from e2e_faults import Moment
from e2e_jobs import is_ready
from e2e_release import leader, living_operators

READY_S = 90.0


def number(node: str) -> str:
    """What scripts/cluster calls a node."""
    return node.rpartition("-")[2]


def fault(command: str, node: str, *more: str) -> Moment:
    """Returns when it had been done."""
    script("cluster.sh", command, number(node), *more)
    return time.time(), time.monotonic()


def names(cluster: Cluster) -> list[str]:
    return sorted(node.metadata.name for node in cluster.core.list_node().items)


def condition(cluster: Cluster, node: str, type_: str) -> tuple[str, float]:
    """What the cluster says of a node, and since when (seconds since the epoch)."""
    found = next(c for c in cluster.core.read_node(node).status.conditions if c.type == type_)
    return found.status, found.last_transition_time.timestamp()


def are_ready(cluster: Cluster) -> bool:
    taints = [t for n in cluster.core.list_node().items for t in n.spec.taints or ()]
    return not taints and all(condition(cluster, name, "Ready")[0] == "True" for name in names(cluster))


@contextmanager
def made_well(cluster: Cluster) -> Iterator[None]:
    """Afterwards every node has its power, its network and its disk, takes pods, and two operators are ready."""
    try:
        yield
    finally:
        for part in ("etcd", "kube-apiserver"):
            script("cluster.sh", "start", part)
        for node in names(cluster):
            for command in ("power-on", "heal", "free"):
                fault(command, node)
            cluster.kubectl("uncordon", node)
        wait_until("all nodes to be ready", lambda: are_ready(cluster), READY_S)
        wait_until("two operators that are ready", lambda: operators_ready(cluster), 120)


def operators_ready(cluster: Cluster) -> bool:
    pods = living_operators(cluster)
    return len(pods) == 2 and all(map(is_ready, pods)) and leader(cluster) in [p.metadata.name for p in pods]


def node_of_leader(cluster: Cluster) -> str:
    return next((p.spec.node_name for p in living_operators(cluster) if p.metadata.name == leader(cluster)), "")


def lead_from(cluster: Cluster, is_right: Callable[[str], bool]) -> None:
    """Make an operator lead whose node `is_right`."""
    wait_until("an operator to lead", lambda: node_of_leader(cluster), 60)
    if not any(is_right(p.spec.node_name) for p in living_operators(cluster)):
        standby = next(p for p in living_operators(cluster) if p.metadata.name != leader(cluster))
        with _no_other_takes_pods(cluster, is_right):
            _delete(cluster, standby)

    def leads() -> bool:
        """Else the one that leads ends; the new one in its place may be the first to take the lead again."""
        node = node_of_leader(cluster)
        if node and not is_right(node):
            _delete(cluster, next(p for p in living_operators(cluster) if p.metadata.name == leader(cluster)))
        return bool(node) and is_right(node)

    wait_until("the lead to be where it should", leads, 180)


def find_names_on(cluster: Cluster, node: str) -> None:
    """Make one of the cluster's two DNS servers run there: who loses that node waits for every second answer."""

    def ready() -> list[Any]:
        pods = cluster.core.list_namespaced_pod("kube-system", label_selector="k8s-app=kube-dns").items
        return [p for p in pods if p.metadata.deletion_timestamp is None and is_ready(p)]

    pods = ready()
    if node not in {p.spec.node_name for p in pods}:
        with _no_other_takes_pods(cluster, lambda name: name == node):
            cluster.kubectl("delete", "pod", pods[0].metadata.name, "-n", "kube-system", "--wait=false")
            wait_until(f"a DNS server on {node}", lambda: node in {p.spec.node_name for p in ready()}, 60)


@contextmanager
def _no_other_takes_pods(cluster: Cluster, is_right: Callable[[str], bool]) -> Iterator[None]:
    others = [node for node in names(cluster) if not is_right(node)]
    cluster.kubectl("cordon", *others)
    try:
        yield
    finally:
        cluster.kubectl("uncordon", *others)


def _delete(cluster: Cluster, operator: Any) -> None:
    """An operator's pod; until two are ready again."""
    cluster.kubectl("delete", "pod", operator.metadata.name, "-n", operator.metadata.namespace, "--wait=false")
    wait_until("two operators that are ready", lambda: operators_ready(cluster), 120)


def restarts(cluster: Cluster) -> dict[str, int]:
    """Operator's pod -> how often its container was started again."""
    return {p.metadata.name: p.status.container_statuses[0].restart_count for p in living_operators(cluster)}


def created(pod: Any) -> float:
    return float(pod.metadata.creation_timestamp.timestamp())


def toleration_s(pod: Any) -> float:
    """How long a pod stays on a node that does not answer."""
    return float(next(t.toleration_seconds for t in pod.spec.tolerations if t.key == "node.kubernetes.io/unreachable"))

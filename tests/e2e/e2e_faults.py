"""Ways in which a pod is lost, each as it happens to users. All return the moment: (time.time(), time.monotonic())."""

from __future__ import annotations

import time
from typing import Any

from e2e_cluster import Cluster

Moment = tuple[float, float]


def _now() -> Moment:
    return time.time(), time.monotonic()


def drain(cluster: Cluster, pod: Any) -> Moment:
    """`kubectl delete pod`, a drained node, a spot notice: SIGTERM, then the pod's grace."""
    moment = _now()
    cluster.core.delete_namespaced_pod(pod.metadata.name, pod.metadata.namespace)
    return moment


def delete_by_force(cluster: Cluster, pod: Any) -> Moment:
    """`kubectl delete pod --force --grace-period=0`: the object is gone at once, the process a moment later."""
    moment = _now()
    cluster.core.delete_namespaced_pod(
        pod.metadata.name, pod.metadata.namespace, grace_period_seconds=0, propagation_policy="Background"
    )
    return moment


def processes_of(cluster: Cluster, pod: Any) -> list[str]:
    """The ids, on the node, of the processes in a pod's first container."""
    container = pod.status.container_statuses[0].container_id.rpartition("/")[2]
    find = f'for d in /proc/[0-9]*; do grep -qs {container} $d/cgroup && echo "${{d#/proc/}}"; done; true'
    pids = cluster.on_node(find).split()
    assert pids, f"no process of {pod.metadata.name}'s container {container} was found on the node"
    return pids


def have_ended(cluster: Cluster, pids: list[str]) -> bool:
    return not cluster.on_node(f"kill -0 {' '.join(pids)} 2>/dev/null && echo alive; true")


def kill_process(cluster: Cluster, pod: Any) -> Moment:
    """`kill -9` of the container's processes, on the node: out of memory, a crash."""
    return signal_processes(cluster, processes_of(cluster, pod), "KILL")


def signal_processes(cluster: Cluster, pids: list[str], name: str) -> Moment:
    """A signal to processes on the node, whose ids were looked up before: nothing is left to do but that."""
    moment = _now()
    cluster.on_node(f"kill -{name} {' '.join(pids)} 2>/dev/null; true")
    return moment


KILLS = {"force": delete_by_force, "kill -9": kill_process}

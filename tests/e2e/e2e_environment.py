"""Namespaces and pods as an ordinary team has them: all restrictions by default, and the images as they ship.

A namespace under test enforces Pod Security *restricted*, has a ResourceQuota that no pod without requests and limits
passes, a LimitRange that gives such pods some, and a NetworkPolicy that denies everything. What a job's pods write is
read from the nodes' disks (e2e_nodes.py).
"""

from __future__ import annotations

from typing import Any

LEDGERS = "/var/ledger"
TASK: dict[str, Any] = {"task": "outlast.tasks.synthetic", "args": {"parameters": 50_000, "computeMs": 20}}
METRICS_PORT = 9090

Json = dict[str, Any]


def namespace(name: str) -> list[Json]:
    """A namespace with its policies, in the order in which they must be made."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    return [
        _object("v1", "Namespace", name, labels=labels),
        _object("v1", "ResourceQuota", "team", name, {"hard": {
            "requests.cpu": "40", "requests.memory": "200Gi", "limits.cpu": "800", "limits.memory": "800Gi",
            "pods": "400", "persistentvolumeclaims": "100",
        }}),
        _object("v1", "LimitRange", "team", name, {"limits": [{
            "type": "Container",
            "default": {"cpu": "2", "memory": "1Gi"},
            "defaultRequest": {"cpu": "10m", "memory": "64Mi"},
        }]}),
        _policy("deny-all", name, {}),
        # Whoever watches jobs, here through the API server's proxy, opens their metrics: docs/how-to/secure.md.
        _policy("metrics", name, {"ingress": [{"ports": [{"port": METRICS_PORT, "protocol": "TCP"}]}]}, ["Ingress"]),
    ]  # fmt: skip


def _policy(name: str, namespace: str, rules: Json, types: list[str] | None = None) -> Json:
    spec = {"podSelector": {}, "policyTypes": types or ["Ingress", "Egress"], **rules}
    return _object("networking.k8s.io/v1", "NetworkPolicy", name, namespace, spec)


def _object(version: str, kind: str, name: str, namespace: str = "", spec: Json | None = None, **metadata: Any) -> Json:
    made: Json = {"apiVersion": version, "kind": kind, "metadata": {"name": name, **metadata}}
    if namespace:
        made["metadata"]["namespace"] = namespace
    return made if spec is None else {**made, "spec": spec}


def template(cpu: str, *, ledger_of: str = "", **container: Any) -> Json:
    """A PodTemplateSpec for servers or workers that requests little: several jobs must find room on two cores.

    `ledger_of`: the job whose workers note in a ledger what they saw acknowledged.
    """
    pod: Json = {"name": "outlast", "resources": {"requests": {"cpu": cpu, "memory": "64Mi"}}, **container}
    if not ledger_of:
        return {"spec": {"containers": [pod]}}
    volume = f"ledger-{ledger_of}"
    pod["env"] = [{"name": "OUTLAST_LEDGER_DIR", "value": LEDGERS}]
    pod["volumeMounts"] = [{"name": volume, "mountPath": LEDGERS}]
    return {"spec": {"containers": [pod], "volumes": [{"name": volume, "emptyDir": {}}]}}

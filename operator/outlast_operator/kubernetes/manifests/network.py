"""A job's NetworkPolicies: what its pods must be able to say to each other, where a namespace denies by default.

Rules. (1) Policies add up, and the first that selects a pod for a direction closes what none opens. Servers and Redis
are therefore closed to all but the job, the operator and metrics, everywhere. Workers and the evaluator run their
users' code, which may listen and download: nothing of theirs is closed by these policies. (2) So the way out, and the
workers' port for metrics, are opened only where another policy has closed them. What user code needs beyond that, such
a namespace's team has to open.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from outlast.api.spec import JobSpec
from outlast_operator.kubernetes.manifests.names import (
    DATA_PORT,
    METRICS_PORT,
    REDIS_PORT,
    ROLE_LABEL,
    UID_LABEL,
    JobRef,
    labels,
    metadata,
    network_policy,
)
from outlast_operator.kubernetes.manifests.template import Json, pod_labels

API = "networking.k8s.io/v1"
NAMESPACE_LABEL = "kubernetes.io/metadata.name"
DNS_PORT = 53
INGRESS, EGRESS = "Ingress", "Egress"


@dataclass(frozen=True)
class Peers:
    """Who is let in beside the job's own pods."""

    namespace: str  # of the operators
    labels: Mapping[str, str]  # that all their pods have
    metrics_from: Sequence[Json] = ()  # NetworkPolicyPeers that may scrape metrics; empty: all


def network_policies(job: JobRef, spec: JobSpec, peers: Peers, others: Iterable[Json]) -> list[Json]:
    """What the job's policies are to be. `others`: those of its namespace that are not its own."""
    if spec.security.network_policy == "None":
        return []
    others = list(others)
    wanted = [_ingress(job, spec, peers, others)]
    if any(closes(other, EGRESS, its) for other in others for its in _labels(job, spec).values()):
        wanted.append(_egress(job))
    return wanted


def closes(policy: Json, direction: str, its_labels: Mapping[str, str]) -> bool:
    """Whether the policy selects a pod with these labels for the direction."""
    spec = policy.get("spec") or {}
    types = spec.get("policyTypes") or [INGRESS, *([EGRESS] if spec.get("egress") else [])]
    return direction in types and _selects(spec.get("podSelector") or {}, its_labels)


def _ingress(job: JobRef, spec: JobSpec, peers: Peers, others: list[Json]) -> Json:
    roles = ["server", *(["redis"] if spec.own_redis else [])]
    worker = _labels(job, spec)["worker"]
    if any(closes(other, INGRESS, worker) for other in others):
        roles.append("worker")
    operators = {
        "namespaceSelector": {"matchLabels": {NAMESPACE_LABEL: peers.namespace}},
        "podSelector": {"matchLabels": dict(peers.labels)},
    }
    rules = [
        {"ports": [_tcp(DATA_PORT)], "from": [_pods(job), operators]},
        {"ports": [_tcp(METRICS_PORT)], **({"from": list(peers.metrics_from)} if peers.metrics_from else {})},
    ]
    if spec.own_redis:
        rules.insert(1, {"ports": [_tcp(REDIS_PORT)], "from": [_pods(job, "server", "worker"), operators]})
    return _policy(job, INGRESS, {**_pods(job, *roles), "policyTypes": [INGRESS], "ingress": rules})


def _egress(job: JobRef) -> Json:
    dns = [{"port": DNS_PORT, "protocol": protocol} for protocol in ("UDP", "TCP")]
    rules = [{"ports": [_tcp(DATA_PORT), _tcp(REDIS_PORT)], "to": [_pods(job)]}, {"ports": dns}]
    return _policy(job, EGRESS, {**_pods(job), "policyTypes": [EGRESS], "egress": rules})


def _policy(job: JobRef, direction: str, spec: Json) -> Json:
    name = network_policy(job, direction.lower())
    its_metadata = metadata(job, name, labels(job, "network"))
    return {"apiVersion": API, "kind": "NetworkPolicy", "metadata": its_metadata, "spec": spec}


def _pods(job: JobRef, *roles: str) -> Json:
    """A podSelector of the job's pods; without roles: of all."""
    selector: Json = {"matchLabels": {UID_LABEL: job.uid}}
    if roles:
        selector["matchExpressions"] = [{"key": ROLE_LABEL, "operator": "In", "values": sorted(roles)}]
    return {"podSelector": selector}


def _tcp(port: int) -> Json:
    return {"port": port, "protocol": "TCP"}


def _labels(job: JobRef, spec: JobSpec) -> dict[str, Json]:
    """The labels of the job's pods, by role."""
    templates = {
        "server": spec.servers.template,
        "worker": spec.workers.template,
        "evaluator": spec.evaluator.template or spec.workers.template,
        "redis": spec.recovery.buffer.template,
    }
    return {role: {**pod_labels(template), **labels(job, role)} for role, template in templates.items()}


def _selects(selector: Mapping[str, Any], its_labels: Mapping[str, str]) -> bool:
    if any(its_labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    return all(_holds(e, its_labels) for e in selector.get("matchExpressions") or ())


def _holds(expression: Mapping[str, Any], its_labels: Mapping[str, str]) -> bool:
    value, values = its_labels.get(str(expression.get("key"))), expression.get("values") or ()
    match expression.get("operator"):
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case _:
            return value is None

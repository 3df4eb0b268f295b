"""What stands beside the pods: the Service that names servers, secrets, the checkpoints' claim, and the job's Redis."""

from __future__ import annotations

import base64
import shlex
from typing import Any

from outlast.api.base import parse_quantity
from outlast.api.spec import JobSpec
from outlast.api.spec_fields import Claim
from outlast.buffer.types import redis_maxmemory
from outlast_operator.kubernetes.manifests.names import (
    CONTAINER_ANNOTATION,
    DATA_PORT,
    JOB_LABEL,
    NAME_ANNOTATION,
    NAMED_LABEL,
    REDIS_CONTAINER,
    REDIS_PORT,
    ROLE_LABEL,
    SHARD_LABEL,
    TEMPLATE_ANNOTATION,
    UID_LABEL,
    JobRef,
    labels,
    metadata,
    pod_name,
    redis_secret,
    redis_service,
    servers_service,
    token_secret,
)
from outlast_operator.kubernetes.manifests.pods import (
    PASSWORD_KEY,
    REDIS_VARIABLE,
    TOKEN_KEY,
    Images,
    group,
    secret_variable,
    template_digest,
    template_of,
)
from outlast_operator.kubernetes.manifests.template import (
    TMP,
    Json,
    Ours,
    grace_s,
    merge,
    our_container,
    pod_spec,
    resources,
)
from outlast_operator.runtime.redis import redis_settings

# Redis is started before any worker has told the model's size; its limit then leaves room for snapshots of this size.
ASSUMED_SNAPSHOT_BYTES = 1 << 30
REDIS_REQUEST_BYTES = 512 << 20
_DATA = "/data"
_REDIS_GRACE_S = 50


def servers_headless(job: JobRef) -> Json:
    """Gives every server pod its host name, from its start on: a server is asked for its view before it is ready.

    A pod on a lost node then keeps its name until its object is gone: one that is known dead loses its label `named`.
    """
    service = _service(
        job,
        servers_service(job),
        "server",
        {"name": "data", "port": DATA_PORT},
        clusterIP="None",
        publishNotReadyAddresses=True,
    )
    service["spec"]["selector"][NAMED_LABEL] = "true"
    return service


def redis_endpoint(job: JobRef) -> Json:
    """Leads to a Redis that is to end as well: until it does, servers read from it."""
    port = {"name": "redis", "port": REDIS_PORT}
    return _service(job, redis_service(job), "redis", port, publishNotReadyAddresses=True)


def secret(job: JobRef, name: str, role: str, key: str, value: str) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(job, name, labels(job, role)),
        "type": "Opaque",
        "data": {key: base64.b64encode(value.encode()).decode()},
    }


def token(job: JobRef, value: str) -> Json:
    return secret(job, token_secret(job), "server", TOKEN_KEY, value)


def redis_password(job: JobRef, value: str) -> Json:
    return secret(job, redis_secret(job), "redis", PASSWORD_KEY, value)


def secret_value(obj: Json, key: str) -> str:
    """Raises `KeyError` when the Secret has no such key."""
    return base64.b64decode(obj["data"][key]).decode()


def checkpoints_claim(job: JobRef, name: str, claim: Claim) -> Json:
    """A claim as the spec asks for it: of all servers (ReadWriteMany), or of one."""
    spec: Json = {"accessModes": list(claim.access_modes), "resources": {"requests": {"storage": str(claim.size)}}}
    if claim.storage_class_name is not None:
        spec["storageClassName"] = claim.storage_class_name
    its_metadata = metadata(job, name, labels(job, "server"))
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": its_metadata, "spec": spec}


def disruption_budgets(job: JobRef, spec: JobSpec) -> list[Json]:
    """One a shard with several servers: an eviction may take one of them at a time. The only server of a shard has
    none, for it would block every drain: it hands its state over when it is told to end.

    A number, not a percentage or `maxUnavailable`: for these the disruption controller asks the pods' owner for its
    scale, and a TrainingJob's counts workers. A pod that is not ready (it joins, it hangs) may be evicted at any time.
    """
    replicas = spec.servers.replicas
    return [] if replicas < 2 else [_budget(job, shard, replicas - 1) for shard in range(spec.servers.shards)]


def _budget(job: JobRef, shard: int, at_least: int) -> Json:
    its_labels = {**labels(job, "server", shard=str(shard))}
    selector = {key: its_labels[key] for key in (UID_LABEL, ROLE_LABEL, SHARD_LABEL)}
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(job, f"{job.name}-shard-{shard}", its_labels),
        "spec": {
            "minAvailable": at_least,
            "selector": {"matchLabels": selector},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


def redis_pod(job: JobRef, spec: JobSpec, images: Images, replaces: str | None) -> Json:
    """A Redis of the job's own, on nodes that may run its servers. The kubelet restarts it in place, so that a crash
    finds its file again."""
    queue_labels, queue_annotations = group(job, spec)
    its_metadata = metadata(job, pod_name(job, "redis", replaces), {**labels(job, "redis"), **queue_labels})
    template = template_of(spec, "redis")
    digest = template_digest(spec, "redis")
    its_metadata["annotations"] = {NAME_ANNOTATION: "redis", TEMPLATE_ANNOTATION: digest, **queue_annotations}
    container = our_container(template, REDIS_CONTAINER).get("name", REDIS_CONTAINER)
    if container != REDIS_CONTAINER:
        its_metadata["annotations"][CONTAINER_ANNOTATION] = str(container)
    ours = Ours(
        container=REDIS_CONTAINER,
        metadata=its_metadata,
        image=images.redis,
        command=["sh", "-c", _redis_script(spec)],
        env=[secret_variable(REDIS_VARIABLE, redis_secret(job), PASSWORD_KEY)],
        ports=[{"name": "redis", "containerPort": REDIS_PORT}],
        mounts=[{"name": "outlast-data", "mountPath": _DATA}, {"name": "outlast-tmp", "mountPath": TMP}],
        volumes=[{"name": "outlast-data", "emptyDir": {}}, {"name": "outlast-tmp", "emptyDir": {"medium": "Memory"}}],
        readiness={"tcpSocket": {"port": REDIS_PORT}, "periodSeconds": 5},
        resources=_redis_resources(spec),
        hostname="redis",
    )
    pod = merge(template, ours)
    pod["spec"]["restartPolicy"] = "Always"
    # The operator ends it when servers have applied what it holds; this is how long it waits for that.
    wait_s = max(0, int(grace_s(template, _REDIS_GRACE_S)) - 5)
    pod["spec"]["terminationGracePeriodSeconds"] = wait_s + 5
    made = next(c for c in pod["spec"]["containers"] if c["name"] == container)
    made.setdefault("lifecycle", {"preStop": {"exec": {"command": ["sleep", str(wait_s)]}}})
    if "affinity" not in pod_spec(template):
        pod["spec"]["affinity"] = {"podAntiAffinity": _rather_not_beside(job, "server")}
    return pod


def _rather_not_beside(job: JobRef, role: str) -> Json:
    """One node's drain or loss should not take both."""
    its_labels = labels(job, role)
    term = {
        "topologyKey": "kubernetes.io/hostname",
        "labelSelector": {"matchLabels": {key: its_labels[key] for key in (UID_LABEL, ROLE_LABEL)}},
    }
    return {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]}


def _redis_resources(spec: JobSpec) -> Json:
    """Room for the log and its snapshots as a limit. It requests little, for most logs stay short: a node that is short
    of memory evicts a pod first that uses more than it requested, and with Redis goes what was acknowledged, so a log
    that is expected to grow has its memory requested in recovery.buffer.template."""
    limit = redis_maxmemory(spec.recovery.buffer.max_bytes, ASSUMED_SNAPSHOT_BYTES)
    log = redis_maxmemory(spec.recovery.buffer.max_bytes, 0)
    return resources("100m", f"{_mebi(min(log, REDIS_REQUEST_BYTES))}Mi", "1", f"{_mebi(limit + limit // 8)}Mi")


def _mebi(nbytes: int) -> int:
    return -(-nbytes >> 20)


def _maxmemory(spec: JobSpec) -> int:
    """Redis's own limit: what its container may use, less an eighth for what Redis does not count (a rewrite of its
    file, buffers of connections); by default room for the log and its snapshots."""
    asked = our_container(template_of(spec, "redis"), REDIS_CONTAINER).get("resources") or {}
    limit = (asked.get("limits") or {}).get("memory")
    if limit is None:
        return redis_maxmemory(spec.recovery.buffer.max_bytes, ASSUMED_SNAPSHOT_BYTES)
    return int(parse_quantity(limit)) * 8 // 9


def _redis_script(spec: JobSpec) -> str:
    """The password goes through a file in memory: arguments are shown by `ps` on the node."""
    buffer = spec.recovery.buffer
    settings = redis_settings(buffer.durability, _maxmemory(spec))
    arguments = ["--port", str(REDIS_PORT), "--bind", "0.0.0.0", "--dir", _DATA, "--daemonize", "no", *settings]
    return (
        f"umask 077; printf 'requirepass %s\\n' \"${REDIS_VARIABLE}\" > {TMP}/redis.conf; "
        f"exec redis-server {TMP}/redis.conf {shlex.join(arguments)}"
    )


def _service(job: JobRef, name: str, role: str, port: dict[str, Any], **more: Any) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(job, name, labels(job, role)),
        "spec": {"selector": {JOB_LABEL: job.name, UID_LABEL: job.uid, ROLE_LABEL: role}, "ports": [port], **more},
    }

"""What stands beside the pods: the Service that names servers, secrets, the checkpoints' claim, and the job's Redis."""

from __future__ import annotations

import base64
import shlex
from typing import Any

from outlast.api.spec import JobSpec
from outlast.buffer_types import redis_maxmemory
from outlast_operator.failover import policy
from outlast_operator.manifests.names import (
    DATA_PORT,
    JOB_LABEL,
    NAME_ANNOTATION,
    NAMED_LABEL,
    REDIS_CONTAINER,
    REDIS_PORT,
    ROLE_LABEL,
    UID_LABEL,
    JobRef,
    checkpoint_claim,
    labels,
    metadata,
    pod_name,
    redis_secret,
    redis_service,
    servers_service,
    token_secret,
)
from outlast_operator.manifests.pods import PASSWORD_KEY, REDIS_VARIABLE, TOKEN_KEY, Images, group, secret_variable
from outlast_operator.manifests.template import TMP, Json, Ours, merge, pod_spec
from outlast_operator.redis_process import redis_settings

# Redis is started before any worker has told the model's size; its limit then leaves room for snapshots of this size.
ASSUMED_SNAPSHOT_BYTES = 1 << 30
CLAIM_SIZE = "10Gi"
_DATA = "/data"
# What the servers' template says of where pods may run and who may pull their images holds for the job's Redis as well.
_OF_SERVERS = (
    "imagePullSecrets",
    "nodeSelector",
    "tolerations",
    "priorityClassName",
    "schedulerName",
    "runtimeClassName",
)


def runs_redis(spec: JobSpec) -> bool:
    """Whether the job needs a Redis and names none."""
    return policy(spec).needs_redis and spec.recovery.buffer.url is None


def needs_claim(spec: JobSpec) -> bool:
    """Whether checkpoints go to a claim of the job's own."""
    return spec.recovery.checkpoint.volume is None


def servers_headless(job: JobRef) -> Json:
    """Gives every server pod its host name, from its start on: a server is asked for its view before it is ready.

    Older endpoints controllers then name dead pods as well, so one that is known dead loses its label `named`.
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
    return _service(job, redis_service(job), "redis", {"name": "redis", "port": REDIS_PORT})


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


def checkpoints_claim(job: JobRef) -> Json:
    """A claim that all servers of the job may mount, wherever they run."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata(job, checkpoint_claim(job), labels(job, "server")),
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": CLAIM_SIZE}}},
    }


def redis_pod(job: JobRef, spec: JobSpec, images: Images, replaces: str | None) -> Json:
    """A Redis of the job's own, on nodes that may run its servers. The kubelet restarts it in place, so that a crash
    finds its file again."""
    queue_labels, queue_annotations = group(job, spec)
    its_metadata = metadata(job, pod_name(job, "redis", replaces), {**labels(job, "redis"), **queue_labels})
    its_metadata["annotations"] = {NAME_ANNOTATION: "redis", **queue_annotations}
    ours = Ours(
        metadata=its_metadata,
        image=images.redis,
        command=["sh", "-c", _redis_script(spec)],
        env=[secret_variable(REDIS_VARIABLE, redis_secret(job), PASSWORD_KEY)],
        ports=[{"name": "redis", "containerPort": REDIS_PORT}],
        mounts=[{"name": "outlast-data", "mountPath": _DATA}, {"name": "outlast-tmp", "mountPath": TMP}],
        volumes=[{"name": "outlast-data", "emptyDir": {}}, {"name": "outlast-tmp", "emptyDir": {"medium": "Memory"}}],
        readiness={"tcpSocket": {"port": REDIS_PORT}, "periodSeconds": 5},
        requests={"cpu": "100m", "memory": _memory(spec)},
        hostname="redis",
    )
    theirs = pod_spec(spec.servers.template)
    where = {field: theirs[field] for field in _OF_SERVERS if field in theirs}
    pod = merge({"spec": {"containers": [{"name": REDIS_CONTAINER}], **where}}, ours)
    pod["spec"]["restartPolicy"] = "Always"
    return pod


def _memory(spec: JobSpec) -> str:
    """What the log may grow to, and slack. A pod that uses more than it requests is the first that a node evicts, and
    with it goes what was acknowledged. Snapshots are not in it: nobody knows the model's size before a worker told."""
    return f"{-(-redis_maxmemory(spec.recovery.buffer.max_bytes, 0) >> 20)}Mi"


def _redis_script(spec: JobSpec) -> str:
    """The password goes through a file in memory: arguments are shown by `ps` on the node."""
    buffer = spec.recovery.buffer
    limit = redis_maxmemory(buffer.max_bytes, ASSUMED_SNAPSHOT_BYTES)
    settings = redis_settings(buffer.durability, limit)
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

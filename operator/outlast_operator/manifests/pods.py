"""The pods of servers, workers and the evaluator: their configuration, environment, mounts and ports.

What a process needs to know stands in OUTLAST_CONFIG; secrets come beside it by reference, so that nobody who may read
a pod reads them. Servers hold no model code and get no source; only servers see the checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from outlast.api.config import ENVIRONMENT_VARIABLE, ProcessConfig, ServerAddress
from outlast.api.spec import JobSpec
from outlast.metrics import PORT_VARIABLE
from outlast_operator.failover import policy
from outlast_operator.manifests.names import (
    CONTAINER,
    CONTAINER_ANNOTATION,
    DATA_PORT,
    INCARNATION_ANNOTATION,
    METRICS_PORT,
    NAME_ANNOTATION,
    NAMED_LABEL,
    QUEUE_LABEL,
    REDIS_PORT,
    SLOTS_ANNOTATION,
    JobRef,
    checkpoint_claim,
    labels,
    metadata,
    pod_name,
    redis_secret,
    redis_service,
    server_address,
    servers_service,
    token_secret,
)
from outlast_operator.manifests.template import TMP, Json, Ours, merge, our_container
from outlast_operator.state import StartProcess
from outlast_operator.turn import server_name

COMMAND = ["python", "-m", "outlast.pod"]
CHECKPOINTS, SOURCE, SLOTS = "/outlast/checkpoints", "/outlast/source", "/outlast/slots"
TOKEN_VARIABLE, REDIS_VARIABLE = "OUTLAST_TOKEN", "OUTLAST_REDIS_PASSWORD"
TOKEN_KEY, PASSWORD_KEY = "token", "password"
REQUESTS: Mapping[str, Mapping[str, str]] = {
    "server": {"cpu": "100m", "memory": "256Mi"},
    "worker": {"cpu": "100m", "memory": "256Mi"},
    "evaluator": {"cpu": "50m", "memory": "256Mi"},
}
DEFAULTS = {  # of libraries that look for a home, or take a thread for every core of the node
    "HOME": TMP,
    "USER": "outlast",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}


@dataclass(frozen=True)
class Images:
    """What runs where a template names no image."""

    trainer: str
    redis: str


def process_pod(job: JobRef, spec: JobSpec, images: Images, action: StartProcess) -> Json:
    """The pod that carries out one `StartProcess`. Raises `ValueError` for a template that cannot be merged."""
    ours = Ours(
        metadata=_metadata(job, spec, action),
        image=images.trainer,
        command=COMMAND,
        env=_environment(job, spec, action),
        ports=_ports(action),
        mounts=_mounts(spec, action),
        volumes=_volumes(job, spec, action),
        readiness=_readiness(action),
        requests=REQUESTS[action.role],
        hostname=action.name,
        subdomain=servers_service(job) if action.role == "server" else None,
        working_dir=SOURCE if _has_source(spec, action) else None,
        spread=action.role == "server",
        keep_resources=action.role != "evaluator",  # the workers' GPUs are not for it
    )
    return merge(_template(spec, action), ours)


def process_config(job: JobRef, spec: JobSpec, action: StartProcess) -> ProcessConfig:
    """Without the secrets, which the pod adds."""
    r = spec.servers.replicas
    names = [[server_name(spec, shard, i) for i in range(r)] for shard in range(spec.servers.shards)]
    # Templates are for us alone, and a variable of the environment has room for 128 KiB.
    bare = {**spec.to_json()}
    bare["servers"], bare["workers"] = {**bare["servers"], "template": {}}, {**bare["workers"], "template": {}}
    own_redis = policy(spec).needs_redis and spec.recovery.buffer.url is None
    extras: Json = {"threads": _threads(spec, action)}
    if action.role == "worker":
        extras["slots_file"] = f"{SLOTS}/slots.json"
    if _has_source(spec, action):
        extras["path"] = [SOURCE]
    return ProcessConfig(
        job=job.name,
        job_uid=job.uid,
        token="",
        role=action.role,
        name=action.name,
        spec=bare,
        servers=tuple(tuple(ServerAddress(n, server_address(job, n)) for n in shard) for shard in names),
        listen=f"tcp:0.0.0.0:{DATA_PORT}" if action.role == "server" else None,
        shard=action.shard,
        slot=action.slot,
        incarnation=action.incarnation,
        redis_url=redis_url(f"{redis_service(job)}:{REDIS_PORT}") if own_redis else spec.recovery.buffer.url,
        checkpoint_dir=CHECKPOINTS if action.role == "server" else None,
        extras=extras,
    )


def pod_count(spec: JobSpec) -> int:
    """Pods of a whole job, for gang schedulers."""
    own_redis = policy(spec).needs_redis and spec.recovery.buffer.url is None
    return spec.servers.shards * spec.servers.replicas + spec.workers.replicas + spec.training.evaluated + own_redis


def group(job: JobRef, spec: JobSpec) -> tuple[dict[str, str], dict[str, str]]:
    """(labels, annotations) by which Kueue admits all pods of a job together; empty without its queue label."""
    if job.queue is None:
        return {}, {}
    prefix = "kueue.x-k8s.io"
    its_labels = {QUEUE_LABEL: job.queue, f"{prefix}/pod-group-name": job.name}
    count = str(pod_count(spec))
    return its_labels, {f"{prefix}/pod-group-total-count": count, f"{prefix}/retriable-in-group": "true"}


def _template(spec: JobSpec, action: StartProcess) -> Json:
    return spec.servers.template if action.role == "server" else spec.workers.template


def _metadata(job: JobRef, spec: JobSpec, action: StartProcess) -> Json:
    queue_labels, queue_annotations = group(job, spec)
    more = {"index": str(action.index if action.role == "server" else action.slot)}
    if action.role == "server":
        more["shard"] = str(action.shard)
    elif action.role == "evaluator":
        more = {}
    name = pod_name(job, action.name, action.replaces, action.incarnation)
    its_labels = {**labels(job, action.role, **more), **queue_labels}
    if action.role == "server":
        its_labels[NAMED_LABEL] = "true"
    ours = metadata(job, name, its_labels)
    ours["annotations"] = {
        NAME_ANNOTATION: action.name,
        INCARNATION_ANNOTATION: str(action.incarnation),
        **queue_annotations,
    }
    container = our_container(_template(spec, action)).get("name", CONTAINER)
    if container != CONTAINER:
        ours["annotations"][CONTAINER_ANNOTATION] = str(container)
    if action.role == "worker":
        ours["annotations"][SLOTS_ANNOTATION] = "{}"
    return ours


def _environment(job: JobRef, spec: JobSpec, action: StartProcess) -> list[Json]:
    config = process_config(job, spec, action)
    env: list[Json] = [
        {"name": ENVIRONMENT_VARIABLE, "value": config.to_json()},
        secret_variable(TOKEN_VARIABLE, token_secret(job), TOKEN_KEY),
    ]
    if policy(spec).needs_redis and spec.recovery.buffer.url is None:
        env.append(secret_variable(REDIS_VARIABLE, redis_secret(job), PASSWORD_KEY))
    more = DEFAULTS if action.role == "evaluator" else {**DEFAULTS, PORT_VARIABLE: str(METRICS_PORT)}
    return [*env, *({"name": name, "value": value} for name, value in more.items())]


def redis_url(host: str, password: str | None = None) -> str:
    """The url of a job's own Redis at `host` (name or address, and port)."""
    return f"redis://{f':{password}@' if password else ''}{host}/0"


def secret_variable(name: str, secret: str, key: str) -> Json:
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}


def _ports(action: StartProcess) -> list[Json]:
    ports = [{"name": "metrics", "containerPort": METRICS_PORT}]
    if action.role == "server":
        ports.insert(0, {"name": "data", "containerPort": DATA_PORT})
    return ports


def _readiness(action: StartProcess) -> Json | None:
    """For people who list pods; the planner asks servers itself."""
    return {"tcpSocket": {"port": DATA_PORT}, "periodSeconds": 5} if action.role == "server" else None


def _has_source(spec: JobSpec, action: StartProcess) -> bool:
    return action.role != "server" and spec.training.source.config_map is not None


def _mounts(spec: JobSpec, action: StartProcess) -> list[Json]:
    mounts: list[Json] = [{"name": "outlast-tmp", "mountPath": TMP}]
    if action.role == "server":
        mounts.append({"name": "outlast-checkpoints", "mountPath": CHECKPOINTS})
    if action.role == "worker":
        mounts.append({"name": "outlast-slots", "mountPath": SLOTS})
    if _has_source(spec, action):
        mounts.append({"name": "outlast-source", "mountPath": SOURCE, "readOnly": True})
    return mounts


def _volumes(job: JobRef, spec: JobSpec, action: StartProcess) -> list[Json]:
    volumes: list[Json] = [{"name": "outlast-tmp", "emptyDir": {}}]
    if action.role == "server":
        source = spec.recovery.checkpoint.volume or {"persistentVolumeClaim": {"claimName": checkpoint_claim(job)}}
        volumes.append({**source, "name": "outlast-checkpoints"})
    if action.role == "worker":
        item = {"path": "slots.json", "fieldRef": {"fieldPath": f"metadata.annotations['{SLOTS_ANNOTATION}']"}}
        volumes.append({"name": "outlast-slots", "downwardAPI": {"items": [item]}})
    if _has_source(spec, action):
        volumes.append({"name": "outlast-source", "configMap": {"name": spec.training.source.config_map}})
    return volumes


def _threads(spec: JobSpec, action: StartProcess) -> int:
    """Threads for torch: as many as the container's whole CPUs, one where it names none."""
    if action.role == "evaluator":
        return 1
    resources = our_container(_template(spec, action)).get("resources") or {}
    cpu = str((resources.get("limits") or {}).get("cpu") or (resources.get("requests") or {}).get("cpu") or "1")
    return max(1, int(cpu)) if cpu.isdigit() else 1


def with_slots(slots: Mapping[int, int]) -> Json:
    """A patch that tells a worker which slots to fill besides its own."""
    text = json.dumps({str(slot): incarnation for slot, incarnation in sorted(slots.items())})
    return {"metadata": {"annotations": {SLOTS_ANNOTATION: text}}}

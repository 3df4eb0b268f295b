"""The pods of servers, workers and the evaluator: their configuration, environment, mounts and ports.

What a process needs to know stands in OUTLAST_CONFIG; secrets come beside it by reference, so that nobody who may read
a pod reads them. Servers hold no model code and get no source; only servers see the checkpoints.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from outlast.api.config import ENVIRONMENT_VARIABLE, ProcessConfig, ServerAddress
from outlast.api.spec import JobSpec
from outlast.process.metrics import PORT_VARIABLE
from outlast.process.readiness import PATH, PORT_EXTRA
from outlast_operator.kubernetes.manifests.names import (
    CLAIM_ANNOTATION,
    CONTAINER,
    CONTAINER_ANNOTATION,
    DATA_PORT,
    INCARNATION_ANNOTATION,
    METRICS_PORT,
    NAME_ANNOTATION,
    NAMED_LABEL,
    QUEUE_LABEL,
    READINESS_PORT,
    REDIS_PORT,
    SLOTS_ANNOTATION,
    TEMPLATE_ANNOTATION,
    JobRef,
    checkpoint_claim,
    labels,
    metadata,
    pod_name,
    redis_secret,
    redis_service,
    server_address,
    server_claim,
    servers_service,
    token_secret,
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
    without_resources,
)
from outlast_operator.planner.actions import StartProcess
from outlast_operator.planner.turn import server_names

COMMAND = ["python", "-m", "outlast.pod"]
CHECKPOINTS, SOURCE, SLOTS = "/outlast/checkpoints", "/outlast/source", "/outlast/slots"
TOKEN_VARIABLE, REDIS_VARIABLE = "OUTLAST_TOKEN", "OUTLAST_REDIS_PASSWORD"
TOKEN_KEY, PASSWORD_KEY = "token", "password"
RESOURCES: Mapping[str, Json] = {
    "server": resources("100m", "256Mi", "2", "2Gi"),
    "worker": resources("100m", "256Mi", "2", "4Gi"),
    "evaluator": resources("50m", "256Mi", "1", "2Gi"),
}
# What the servers' template says of where pods may run and who may pull their images holds for the job's Redis as well.
OF_SERVERS = (
    "imagePullSecrets",
    "nodeSelector",
    "tolerations",
    "priorityClassName",
    "schedulerName",
    "runtimeClassName",
)
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
        resources=RESOURCES[action.role],
        hostname=action.name,
        subdomain=servers_service(job) if action.role == "server" else None,
        working_dir=SOURCE if _has_source(spec, action) else None,
        spread=action.role == "server",
    )
    return merge(_template(spec, action), ours)


def process_config(job: JobRef, spec: JobSpec, action: StartProcess) -> ProcessConfig:
    """Without the secrets, which the pod adds."""
    names = [server_names(spec, shard) for shard in range(spec.servers.shards)]
    bare = _without_templates(spec)
    own_redis = spec.own_redis
    extras: Json = {"threads": _threads(spec, action)}
    if action.role == "server":
        extras["grace_s"] = grace_s(spec.servers.template)
        extras[PORT_EXTRA] = READINESS_PORT
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
        own_checkpoint_dir=action.role == "server" and action.storage != "Shared",
        extras=extras,
    )


def _without_templates(spec: JobSpec) -> Json:
    """Templates are for the operator alone, and a variable of the environment has room for 128 KiB."""
    bare = spec.to_json()
    for path in spec.templates:
        *parents, leaf = path.split(".")
        at = bare
        for part in parents:
            at[part] = dict(at[part])
            at = at[part]
        at[leaf] = {}
    return bare


def pod_count(spec: JobSpec) -> int:
    """Pods of a whole job, for gang schedulers."""
    own_redis = spec.own_redis
    return spec.servers.shards * spec.servers.replicas + spec.workers.replicas + spec.training.evaluated + own_redis


def group(job: JobRef, spec: JobSpec) -> tuple[dict[str, str], dict[str, str]]:
    """(labels, annotations) by which Kueue admits all pods of a job together; empty without its queue label."""
    if job.queue is None:
        return {}, {}
    prefix = "kueue.x-k8s.io"
    its_labels = {QUEUE_LABEL: job.queue, f"{prefix}/pod-group-name": job.name}
    count = str(pod_count(spec))
    return its_labels, {f"{prefix}/pod-group-total-count": count, f"{prefix}/retriable-in-group": "true"}


def template_of(spec: JobSpec, role: str) -> Json:
    """The template that a role's pods start from: its own, else that of the role that it goes with. What another role's
    template asks for (GPUs, above all) is not for it: of the workers' the evaluator takes all but its resources, of the
    servers' Redis takes where pods may run and who may pull their images."""
    own = {
        "server": spec.servers.template,
        "worker": spec.workers.template,
        "evaluator": spec.evaluator.template,
        "redis": spec.recovery.buffer.template,
    }[role]
    if own or role in ("server", "worker"):
        return own
    if role == "evaluator":
        return without_resources(spec.workers.template)
    theirs = pod_spec(spec.servers.template)
    return {"spec": {field: theirs[field] for field in OF_SERVERS if field in theirs}}


def template_digest(spec: JobSpec, role: str) -> str:
    """Tells pods that were made from an older template."""
    text = json.dumps(template_of(spec, role), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _template(spec: JobSpec, action: StartProcess) -> Json:
    return template_of(spec, action.role)


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
        queue_annotations = {CLAIM_ANNOTATION: str(action.claim), **queue_annotations}
    ours = metadata(job, name, its_labels)
    ours["annotations"] = {
        NAME_ANNOTATION: action.name,
        INCARNATION_ANNOTATION: str(action.incarnation),
        TEMPLATE_ANNOTATION: template_digest(spec, action.role),
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
    if spec.own_redis:
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
    """For disruption budgets and for people who list pods; the planner asks servers itself."""
    if action.role != "server":
        return None
    return {"httpGet": {"path": PATH, "port": READINESS_PORT}, "periodSeconds": 1, "failureThreshold": 1}


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
        source = spec.recovery.checkpoint.volume or _checkpoints_volume(job, action)
        volumes.append({**source, "name": "outlast-checkpoints"})
    if action.role == "worker":
        item = {"path": "slots.json", "fieldRef": {"fieldPath": f"metadata.annotations['{SLOTS_ANNOTATION}']"}}
        volumes.append({"name": "outlast-slots", "downwardAPI": {"items": [item]}})
    if _has_source(spec, action):
        volumes.append({"name": "outlast-source", "configMap": {"name": spec.training.source.config_map}})
    return volumes


def _checkpoints_volume(job: JobRef, action: StartProcess) -> Json:
    match action.storage:
        case "Shared":
            return {"persistentVolumeClaim": {"claimName": checkpoint_claim(job)}}
        case "PerServer":
            return {"persistentVolumeClaim": {"claimName": server_claim(job, action.name, action.claim)}}
        case "NodeLocal":
            return {"emptyDir": {}}


def _threads(spec: JobSpec, action: StartProcess) -> int:
    """Threads for torch: as many as the container's whole CPUs, one where it names none."""
    asked = our_container(_template(spec, action)).get("resources") or {}
    cpu = str((asked.get("limits") or {}).get("cpu") or (asked.get("requests") or {}).get("cpu") or "1")
    return max(1, int(cpu)) if cpu.isdigit() else 1


def with_slots(slots: Mapping[int, int]) -> Json:
    """A patch that tells a worker which slots to fill besides its own."""
    text = json.dumps({str(slot): incarnation for slot, incarnation in sorted(slots.items())})
    return {"metadata": {"annotations": {SLOTS_ANNOTATION: text}}}

"""A user's PodTemplateSpec and the operator's part of a pod, merged: the user's fields are kept, gaps are filled.

Lists are merged by the key that Kubernetes merges them by (containers, env, volumes by name; mounts by path; ports by
number). The process's container is the one named `outlast` (`redis` in Redis's pod), else the first; others are the
user's sidecars.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from outlast_operator.kubernetes.manifests.names import CONTAINER, JOB_LABEL, ROLE_LABEL, SHARD_LABEL

USER_ID = 65532
GRACE_S = 30
TMP = "/tmp"  # the only place that is written to, with a read-only root
_LOST_NODE = ("not-ready", "unreachable")
# A lost node may have run one of the cluster's DNS servers, to which every second question goes until the cluster has
# noticed: by default a question waits for 5 s, twice.
_RESOLVER = {"options": [{"name": "timeout", "value": "1"}, {"name": "attempts", "value": "3"}]}
LOST_NODE_S = 30  # seconds after which a pod leaves a node that does not answer
RESERVED = "OUTLAST_"
BUILT_HERE = "outlast/"

Json = dict[str, Any]


@dataclass
class Ours:
    """What a job's pod needs beside the template."""

    metadata: Json
    image: str
    command: list[str]
    env: list[Json]
    container: str = CONTAINER  # the template's container of this name becomes ours, else its first
    ports: list[Json] = field(default_factory=list)
    mounts: list[Json] = field(default_factory=list)
    volumes: list[Json] = field(default_factory=list)
    readiness: Json | None = None
    resources: Json = field(default_factory=dict)  # where the template names none
    hostname: str | None = None
    subdomain: str | None = None
    working_dir: str | None = None
    spread: bool = False  # its like should run on other nodes


def merge(template: Mapping[str, Any] | None, ours: Ours) -> Json:
    """The pod. Raises `ValueError` for a template whose parts are not what Kubernetes calls by these names."""
    template = copy.deepcopy(dict(template or {}))
    spec = pod_spec(template)
    containers = _list(spec.get("containers"), "template.spec.containers")
    index = next((i for i, c in enumerate(containers) if c.get("name") == ours.container), 0)
    if not containers:
        containers = [{}]
    containers[index] = _container(containers[index], ours)
    spec["containers"] = containers
    _pod_defaults(spec, ours)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": _metadata(_object(template.get("metadata"), "template.metadata"), ours.metadata),
        "spec": spec,
    }


def pod_spec(template: Mapping[str, Any] | None) -> Json:
    """The template's pod; empty if it has none. Raises `ValueError` as `merge` does."""
    return _object((template or {}).get("spec"), "template.spec")


def pod_labels(template: Mapping[str, Any] | None) -> Json:
    """The labels that the template gives its pods. Raises `ValueError` as `merge` does."""
    template_metadata = _object((template or {}).get("metadata"), "template.metadata")
    return _object(template_metadata.get("labels"), "template.metadata.labels")


def resources(cpu: str, memory: str, cpu_limit: str, memory_limit: str) -> Json:
    """Requests that a small node has room for, and limits beside them: a ResourceQuota on limits refuses a container
    without, and the default of a LimitRange may lie below what is requested."""
    return {"requests": {"cpu": cpu, "memory": memory}, "limits": {"cpu": cpu_limit, "memory": memory_limit}}


def without_resources(template: Mapping[str, Any] | None) -> Json:
    """The template without the resources of the process's container, which are for another role."""
    found = copy.deepcopy(dict(template or {}))
    containers = _list(pod_spec(found).get("containers"), "template.spec.containers")
    named = [c for c in containers if c.get("name") == CONTAINER]
    for container in (named or containers)[:1]:
        container.pop("resources", None)
    return found


def grace_s(template: Mapping[str, Any] | None, default_s: float = GRACE_S) -> float:
    """Seconds between SIGTERM and SIGKILL for the pods of this template."""
    return float(pod_spec(template).get("terminationGracePeriodSeconds", default_s))


def our_container(template: Mapping[str, Any] | None, name: str = CONTAINER) -> Mapping[str, Any]:
    """The template's container that becomes ours; empty if it names none."""
    containers = _list(pod_spec(template).get("containers"), "template.spec.containers")
    named = [c for c in containers if c.get("name") == name]
    return dict((named or containers or [{}])[0])


def _metadata(theirs: Json, ours: Json) -> Json:
    merged = {**theirs, **ours}
    for key in ("labels", "annotations"):
        merged[key] = {**_object(theirs.get(key), f"template.metadata.{key}"), **ours.get(key, {})}
    merged.pop("generateName", None)
    return merged


def _pod_defaults(spec: Json, ours: Ours) -> None:
    spec["restartPolicy"] = "Never"  # a restarted server would be an empty one under an old pod
    if ours.hostname is not None:
        spec["hostname"] = ours.hostname
    if ours.subdomain is not None:
        spec["subdomain"] = ours.subdomain
    spec.setdefault("terminationGracePeriodSeconds", GRACE_S)
    spec.setdefault("automountServiceAccountToken", False)
    spec.setdefault("enableServiceLinks", False)  # a namespace with thousands of Services fills the environment
    spec.setdefault("dnsConfig", copy.deepcopy(_RESOLVER))
    spec["securityContext"] = {**_pod_security(), **_object(spec.get("securityContext"), "securityContext")}
    spec["volumes"] = _by("name", ours.volumes, _list(spec.get("volumes"), "volumes"))
    spec["tolerations"] = _tolerations(_list(spec.get("tolerations"), "tolerations"))
    if ours.spread and "affinity" not in spec:
        spec["affinity"] = _apart(ours.metadata["labels"])


def _container(theirs: Json, ours: Ours) -> Json:
    c = dict(theirs)
    c.setdefault("name", ours.container)
    c.setdefault("image", ours.image)
    c.setdefault("imagePullPolicy", pull_policy(str(c["image"])))
    if "command" not in c:
        c["command"] = ours.command
    if ours.working_dir is not None:
        c.setdefault("workingDir", ours.working_dir)
    c["env"] = _environment(_list(c.get("env"), "env"), ours.env)
    c["ports"] = _by("containerPort", ours.ports, _list(c.get("ports"), "ports"))
    c["volumeMounts"] = _by("mountPath", ours.mounts, _list(c.get("volumeMounts"), "volumeMounts"))
    c["securityContext"] = {**_container_security(), **_object(c.get("securityContext"), "securityContext")}
    if not c.get("resources") and ours.resources:
        c["resources"] = copy.deepcopy(ours.resources)
    if ours.readiness is not None:
        c.setdefault("readinessProbe", ours.readiness)
    c.setdefault("terminationMessagePolicy", "FallbackToLogsOnError")  # a crash's last words
    return c


def pull_policy(image: str) -> str:
    """No registry of this project serves what `make images` builds: anyone could register such a name."""
    return "Never" if image.startswith(BUILT_HERE) else "IfNotPresent"


def _environment(theirs: list[Json], ours: list[Json]) -> list[Json]:
    """The operator's variables win under reserved names; its others are defaults."""
    forced = [e for e in ours if e["name"].startswith(RESERVED)]
    defaults = [e for e in ours if not e["name"].startswith(RESERVED)]
    return _by("name", defaults, _by("name", [e for e in theirs if e.get("name") not in _names(forced)], forced))


def _names(items: Iterable[Json]) -> set[str]:
    return {str(item.get("name")) for item in items}


def _by(key: str, defaults: list[Json], theirs: list[Json]) -> list[Json]:
    """`theirs`, and those of `defaults` whose key does not stand in it."""
    known = {item.get(key) for item in theirs}
    return [*theirs, *(item for item in defaults if item[key] not in known)]


def _apart(its_labels: Mapping[str, str]) -> Json:
    """Rather not on a node that has one of the same chain (workers: of the same job)."""
    keys = (JOB_LABEL, ROLE_LABEL, SHARD_LABEL)
    term = {
        "topologyKey": "kubernetes.io/hostname",
        "labelSelector": {"matchLabels": {key: its_labels[key] for key in keys if key in its_labels}},
    }
    preferred = [{"weight": 100, "podAffinityTerm": term}]
    return {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}


def _tolerations(theirs: list[Json]) -> list[Json]:
    """`theirs`, and for how long a node that does not answer is borne, where they do not say it of that very taint. The
    API server would make it 300 s."""
    ours = [{"key": f"node.kubernetes.io/{what}", "operator": "Exists", "effect": "NoExecute"} for what in _LOST_NODE]
    said = {t.get("key") for t in theirs if t.get("effect") in (None, "", "NoExecute")}
    return [*theirs, *({**t, "tolerationSeconds": LOST_NODE_S} for t in ours if t["key"] not in said)]


def _pod_security() -> Json:
    return {
        "runAsNonRoot": True,
        "runAsUser": USER_ID,
        "runAsGroup": USER_ID,
        "fsGroup": USER_ID,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _container_security() -> Json:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _object(value: Any, where: str) -> Json:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{where} is not an object; write it as in a PodTemplateSpec")
    return dict(value)


def _list(value: Any, where: str) -> list[Json]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError(f"{where} is not a list of objects; write it as in a PodTemplateSpec")
    return list(value)

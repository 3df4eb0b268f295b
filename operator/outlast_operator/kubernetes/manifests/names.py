"""Names, labels and owners of a job's children.

A server keeps its host name over all its pods (`server-0` in the headless Service); a pod's own name ends in a tag that
follows from what it is a start of, so that the same start has the same name in every operator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from outlast.api.crd import GROUP, VERSION
from outlast.api.job import KIND

JOB_LABEL, ROLE_LABEL = f"{GROUP}/job-name", f"{GROUP}/role"
SHARD_LABEL, INDEX_LABEL, CHAIN_LABEL = f"{GROUP}/shard", f"{GROUP}/index", f"{GROUP}/chain-role"
UID_LABEL = f"{GROUP}/job-uid"  # a job made anew under a name is another one
NAMED_LABEL = f"{GROUP}/named"  # "true" while a server's host name leads to this pod
NAME_ANNOTATION = f"{GROUP}/process"  # the stable name: server-0, worker-1, evaluator, redis
CLAIM_ANNOTATION = f"{GROUP}/claim"  # generation of the claim that a server pod mounts
INCARNATION_ANNOTATION = f"{GROUP}/incarnation"
CONTAINER_ANNOTATION = f"{GROUP}/container"  # which container runs our process, if it is not called `outlast`
TEMPLATE_ANNOTATION = f"{GROUP}/template"  # digest of the template that the pod was made from
SLOTS_ANNOTATION = f"{GROUP}/slots"  # {slot: incarnation} that a worker fills besides its own
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
CONTAINER, REDIS_CONTAINER = "outlast", "redis"
DATA_PORT, METRICS_PORT, READINESS_PORT, REDIS_PORT = 7070, 9090, 9091, 6379
_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"  # no vowels, no look-alikes: no words by accident
_TAG_LENGTH = 5


class JobId(NamedTuple):
    """One TrainingJob among all that ever were. Jobs of one name differ in uid; a uid alone proves nothing, because a
    pod of any namespace may claim it."""

    namespace: str
    name: str
    uid: str


@dataclass(frozen=True)
class JobRef:
    """Which job an object belongs to."""

    name: str
    namespace: str
    uid: str
    labels: Mapping[str, str] = field(default_factory=dict)  # the job's own

    @property
    def id(self) -> JobId:
        return JobId(self.namespace, self.name, self.uid)

    @property
    def queue(self) -> str | None:
        """The Kueue queue that the job was put in."""
        return self.labels.get(QUEUE_LABEL)


def tag(job: JobRef, process: str, replaces: str | None, incarnation: int) -> str:
    """Five characters that name one start of a process."""
    digest = hashlib.sha256("\0".join((job.uid, process, replaces or "", str(incarnation))).encode()).digest()
    return "".join(_ALPHABET[byte % len(_ALPHABET)] for byte in digest[:_TAG_LENGTH])


def pod_name(job: JobRef, process: str, replaces: str | None, incarnation: int = 1) -> str:
    return f"{job.name}-{process}-{tag(job, process, replaces, incarnation)}"


def servers_service(job: JobRef) -> str:
    return f"{job.name}-servers"


def token_secret(job: JobRef) -> str:
    return f"{job.name}-token"


def redis_service(job: JobRef) -> str:
    return f"{job.name}-redis"


def redis_secret(job: JobRef) -> str:
    return f"{job.name}-redis"


def checkpoint_claim(job: JobRef) -> str:
    return f"{job.name}-checkpoints"


def server_claim(job: JobRef, server: str, generation: int) -> str:
    """The claim that one server writes its parts to; another generation follows one that held the server back."""
    return f"{checkpoint_claim(job)}-{server}" + (f"-{generation}" if generation else "")


def network_policy(job: JobRef, direction: str) -> str:
    return f"{job.name}-{direction}"


def server_address(job: JobRef, server: str) -> str:
    """Where pods of the same namespace reach a server, whichever pod it is now."""
    return f"tcp:{server}.{servers_service(job)}:{DATA_PORT}"


def owner(job: JobRef) -> dict[str, Any]:
    # Without blockOwnerDeletion, which needs rights on finalizers, and nobody waits for a child to be gone.
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": KIND, "name": job.name, "uid": job.uid, "controller": True}


def owner_of(obj: Mapping[str, Any]) -> JobId | None:
    """The TrainingJob that controls the object, or None (invariant one-owner).

    An owner is of its object's own namespace, and of the API group as well as the kind: the API server checks neither
    when it takes an owner reference. Labels prove nothing at all.
    """
    meta = obj.get("metadata") or {}
    for reference in meta.get("ownerReferences") or ():
        group = str(reference.get("apiVersion", "")).partition("/")[0]
        if reference.get("controller") and reference.get("kind") == KIND and group == GROUP:
            return JobId(str(meta.get("namespace")), str(reference.get("name")), str(reference.get("uid")))
    return None


def is_owned(obj: Mapping[str, Any], job: JobRef) -> bool:
    """Whether the object's controller is this very job."""
    return owner_of(obj) == job.id


def labels(job: JobRef, role: str, **more: str) -> dict[str, str]:
    """The labels of a child. `more`: shard, index."""
    named = {"shard": SHARD_LABEL, "index": INDEX_LABEL, "chain_role": CHAIN_LABEL}
    return {
        JOB_LABEL: job.name,
        UID_LABEL: job.uid,
        ROLE_LABEL: role,
        "app.kubernetes.io/name": "outlast",
        "app.kubernetes.io/instance": job.name,
        "app.kubernetes.io/component": role,
        "app.kubernetes.io/managed-by": "outlast-operator",
        **{named[key]: value for key, value in more.items()},
    }


def worker_selector(job: JobRef) -> str:
    """The worker pods, as the scale subresource gives it to autoscalers."""
    return f"{JOB_LABEL}={job.name},{ROLE_LABEL}=worker"


def metadata(job: JobRef, name: str, its_labels: Mapping[str, str]) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": job.namespace,
        "labels": dict(its_labels),
        "ownerReferences": [owner(job)],
    }

"""TrainingJobs and the pods that they own, as the watches delivered them. Never filled by listing.

Rules. (1) Of two states of one object the newer counts (by resource version), whichever way they came: from a watch,
or as the answer to the operator's own request. (2) An object that was deleted stays deleted; of each process the last
states of its newest deleted pods are kept, because they show how a container ended. Only the fields that are read are
kept. (3) A pod belongs to the job that its owner reference names, of the pod's own namespace and in full
(`names.owner_of`); pods without one belong to no job, whatever their labels say.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

from outlast_operator.kubernetes.manifests.names import NAME_ANNOTATION, JobId, owner_of

Json = dict[str, Any]
Key = tuple[str, str]  # namespace, name of a job
_REMOVED_KEPT = 10_000
_GONE_KEPT = 3  # pods of one process: more than can matter at one time


def version_of(obj: Json) -> int:
    """Resource versions grow; an API server that gives other words gives them in order of arrival."""
    text = str(obj["metadata"].get("resourceVersion", "0"))
    return int(text) if text.isdigit() else 0


def key_of(obj: Json) -> Key:
    return str(obj["metadata"]["namespace"]), str(obj["metadata"]["name"])


def essence(pod: Json) -> Json:
    """The pod without what nobody here reads: its environment alone may be 100 KB, and a job may lose many pods."""
    metadata = {key: value for key, value in pod["metadata"].items() if key != "managedFields"}
    spec = pod.get("spec") or {}
    claims = [volume for volume in spec.get("volumes") or () if "persistentVolumeClaim" in volume]
    where = {"nodeName": spec.get("nodeName"), "volumes": claims}
    return {"metadata": metadata, "spec": where, "status": pod.get("status") or {}}


class _Uids(dict[str, None]):
    """The newest `_REMOVED_KEPT` that were put in."""

    def put(self, uid: str) -> None:
        self[uid] = None
        while len(self) > _REMOVED_KEPT:
            del self[next(iter(self))]


class Cache:
    """Safe to use from several threads. `on_change(namespace, name)` is called, without the lock, for each news."""

    def __init__(self, on_change: Callable[[str, str], None]) -> None:
        self._on_change = on_change
        self._lock = threading.Lock()
        self._jobs: dict[Key, Json] = {}
        self._pods: dict[JobId, dict[str, Json]] = {}  # job -> pod uid -> pod
        self._gone: dict[JobId, dict[str, Json]] = {}
        self._removed = _Uids()  # deleted jobs: a list may be older than the deletion
        self._buried = _Uids()  # deleted pods

    # --- in ---

    def put_job(self, job: Json) -> bool:
        """Returns whether this was news."""
        key = key_of(job)
        with self._lock:
            known = self._jobs.get(key)
            if job["metadata"]["uid"] in self._removed:
                return False
            if known is not None and version_of(known) >= version_of(job):
                return False
            self._jobs[key] = job
        self._on_change(*key)
        return True

    def remove_job(self, job: Json) -> None:
        key, uid = key_of(job), job["metadata"]["uid"]
        with self._lock:
            known = self._jobs.get(key)
            if known is not None and known["metadata"]["uid"] == uid:
                del self._jobs[key]
            self._removed.put(uid)
            self._gone.pop(JobId(*key, uid), None)
        self._on_change(*key)

    def put_pod(self, pod: Json) -> bool:
        """Returns whether this was news."""
        owner = owner_of(pod)
        if owner is None:
            return self._forget(pod)
        uid, pod = pod["metadata"]["uid"], essence(pod)
        with self._lock:
            if uid in self._buried:
                return False
            pods = self._pods.setdefault(owner, {})
            if uid in pods and version_of(pods[uid]) >= version_of(pod):
                return False
            pods[uid] = pod
        self._on_change(owner.namespace, owner.name)
        return True

    def _forget(self, orphan: Json) -> bool:
        """It may have been a job's. Returns whether it was."""
        uid = orphan["metadata"]["uid"]
        with self._lock:
            known = [pods.pop(uid) for pods in self._pods.values() if uid in pods]
        for owner in filter(None, map(owner_of, known)):
            self._on_change(owner.namespace, owner.name)
        return bool(known)

    def remove_pod(self, pod: Json) -> None:
        """The pod is gone; `pod` is its last known state."""
        owner = owner_of(pod)
        if owner is None:
            self._forget(pod)
            return
        uid, pod = pod["metadata"]["uid"], essence(pod)
        with self._lock:
            before = self._pods.get(owner, {}).pop(uid, None)
            known = self._gone.setdefault(owner, {})
            if uid in self._buried and before is None and uid not in known:
                return
            newest = max((p for p in (before, pod, known.get(uid)) if p is not None), key=version_of)
            if known.get(uid) is newest:
                return
            self._buried.put(uid)
            job_is_gone = owner.uid in self._removed
            if job_is_gone and not self._pods.get(owner):
                self._pods.pop(owner, None)
            known[uid] = newest
            if job_is_gone:
                del self._gone[owner]
            else:
                _keep_newest(known, newest)
        self._on_change(owner.namespace, owner.name)

    def behind(self, jobs: Iterable[Json], pods: Iterable[Json]) -> set[tuple[str, int]]:
        """(uid, version) of the listed objects that are newer than what the watches have told."""
        with self._lock:
            known = {j["metadata"]["uid"]: version_of(j) for j in self._jobs.values()}
            for pods_ in (*self._pods.values(), *self._gone.values()):
                known.update({uid: version_of(pod) for uid, pod in pods_.items()})
            removed = {*self._removed, *self._buried}
        listed = [*jobs, *(pod for pod in pods if owner_of(pod) is not None)]
        found = {(str(obj["metadata"]["uid"]), version_of(obj)) for obj in listed}
        return {(uid, version) for uid, version in found if uid not in removed and known.get(uid, -1) < version}

    def align(self, jobs: Iterable[Json], pods: Iterable[Json], as_of: int, namespaces: Iterable[str] | None) -> int:
        """Take over complete lists, made at version `as_of`: what they lack and is older has been deleted unheard of.

        Returns how many objects the watches had failed to tell. `namespaces` None: the lists are of all.
        """
        jobs, pods = list(jobs), list(pods)
        unheard = sum([self.put_job(j) for j in jobs]) + sum([self.put_pod(p) for p in pods])
        listed = {obj["metadata"]["uid"] for obj in (*jobs, *pods)}
        served = None if namespaces is None else set(namespaces)

        def is_lost(obj: Json) -> bool:
            inside = served is None or obj["metadata"]["namespace"] in served
            return inside and obj["metadata"]["uid"] not in listed and version_of(obj) <= as_of

        with self._lock:
            lost_jobs = [j for j in self._jobs.values() if is_lost(j)]
            lost_pods = [p for pods_ in self._pods.values() for p in pods_.values() if is_lost(p)]
        for pod in lost_pods:
            self.remove_pod(pod)
        for job in lost_jobs:
            self.remove_job(job)
        return unheard + len(lost_jobs) + len(lost_pods)

    # --- out ---

    def job(self, namespace: str, name: str) -> Json | None:
        with self._lock:
            return self._jobs.get((namespace, name))

    def jobs(self) -> list[Json]:
        with self._lock:
            return list(self._jobs.values())

    def pods(self, job: JobId) -> tuple[dict[str, Json], dict[str, Json]]:
        """(those that exist, the last states of those that do not any more), by uid."""
        with self._lock:
            return dict(self._pods.get(job, {})), dict(self._gone.get(job, {}))

    def pod(self, job: JobId, uid: str) -> Json | None:
        """One pod of the job, while it exists."""
        with self._lock:
            return self._pods.get(job, {}).get(uid)


def _keep_newest(gone: dict[str, Json], of: Json) -> None:
    """Leave `_GONE_KEPT` pods of the process that `of` was a pod of: those that went last."""
    name = _process_of(of)
    its = [uid for uid, pod in gone.items() if _process_of(pod) == name]
    for uid in its[:-_GONE_KEPT]:
        del gone[uid]


def _process_of(pod: Json) -> str:
    return str((pod["metadata"].get("annotations") or {}).get(NAME_ANNOTATION))

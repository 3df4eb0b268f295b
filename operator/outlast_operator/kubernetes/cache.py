"""What the watches have told: TrainingJobs, and the pods that they own. Never asked for by listing.

Rules. (1) Of two states of one object the newer counts (by resource version), whichever way they came: from a watch,
or as the answer to a request of ours. (2) An object that was deleted stays deleted; the last state of a deleted pod is
kept as long as its job, for it says how its container ended. (3) A pod belongs to the job that its owner reference
names by uid; pods without one are not ours, whatever their labels say.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

from outlast.api.spec import KIND

Json = dict[str, Any]
Key = tuple[str, str]  # namespace, name of a job
_REMOVED_KEPT = 10_000
_GONE_KEPT = 500  # of a job: more than the pods that can matter at one time


def version_of(obj: Json) -> int:
    """Resource versions grow; an API server that gives other words gives them in order of arrival."""
    text = str(obj["metadata"].get("resourceVersion", "0"))
    return int(text) if text.isdigit() else 0


def key_of(obj: Json) -> Key:
    return str(obj["metadata"]["namespace"]), str(obj["metadata"]["name"])


def owner_of(pod: Json) -> tuple[str, str] | None:
    """(name, uid) of the TrainingJob that controls the pod, or None."""
    for owner in pod["metadata"].get("ownerReferences") or ():
        if owner.get("controller") and owner.get("kind") == KIND:
            return str(owner["name"]), str(owner["uid"])
    return None


class Cache:
    """Safe to use from several threads. `on_change(namespace, name)` is called, without the lock, for each news."""

    def __init__(self, on_change: Callable[[str, str], None]) -> None:
        self._on_change = on_change
        self._lock = threading.Lock()
        self._jobs: dict[Key, Json] = {}
        self._pods: dict[str, dict[str, Json]] = {}  # job uid -> pod uid -> pod
        self._gone: dict[str, dict[str, Json]] = {}
        self._removed: dict[str, None] = {}  # uids of deleted jobs, in order: a list may be older than the deletion

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
            self._removed[uid] = None
            while len(self._removed) > _REMOVED_KEPT:
                del self._removed[next(iter(self._removed))]
            self._gone.pop(uid, None)
        self._on_change(*key)

    def put_pod(self, pod: Json) -> bool:
        """Returns whether this was news."""
        owner = owner_of(pod)
        if owner is None:
            return False
        uid = pod["metadata"]["uid"]
        with self._lock:
            if uid in self._gone.get(owner[1], {}):
                return False
            pods = self._pods.setdefault(owner[1], {})
            if uid in pods and version_of(pods[uid]) >= version_of(pod):
                return False
            pods[uid] = pod
        self._on_change(pod["metadata"]["namespace"], owner[0])
        return True

    def remove_pod(self, pod: Json) -> None:
        """The pod is gone; `pod` is its last known state."""
        owner = owner_of(pod)
        if owner is None:
            return
        uid = pod["metadata"]["uid"]
        with self._lock:
            before = self._pods.get(owner[1], {}).pop(uid, None)
            known = self._gone.setdefault(owner[1], {})
            newest = max((p for p in (before, pod, known.get(uid)) if p is not None), key=version_of)
            if known.get(uid) is newest:
                return
            job_is_gone = owner[1] in self._removed
            if job_is_gone and not self._pods.get(owner[1]):
                self._pods.pop(owner[1], None)
            known[uid] = newest
            if job_is_gone:
                del self._gone[owner[1]]
            elif len(known) > _GONE_KEPT:
                del known[next(iter(known))]
        self._on_change(pod["metadata"]["namespace"], owner[0])

    def behind(self, jobs: Iterable[Json], pods: Iterable[Json]) -> set[tuple[str, int]]:
        """(uid, version) of the listed objects that are newer than what the watches have told."""
        with self._lock:
            known = {j["metadata"]["uid"]: version_of(j) for j in self._jobs.values()}
            for pods_ in (*self._pods.values(), *self._gone.values()):
                known.update({uid: version_of(pod) for uid, pod in pods_.items()})
            removed = set(self._removed)
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

    def pods(self, job_uid: str) -> tuple[dict[str, Json], dict[str, Json]]:
        """(those that exist, the last states of those that do not any more), by uid."""
        with self._lock:
            return dict(self._pods.get(job_uid, {})), dict(self._gone.get(job_uid, {}))

"""A pod as the planner sees it: pure reading of the API server's object.

Rules. (1) Dead is proved by the kubelet's word that our container has terminated (its name was noted at the start),
never by the object's absence: a forced deletion removes the object while the process still runs. (2) A pod that cannot
start (no node, no such image, no such Secret) waits, in the scheduler's or kubelet's words; the kubelet goes on trying,
and the pod starts when the cause is gone. (3) A pod that should be gone, its grace having passed since we first saw it
deleted, is on a node that does not answer; so is one that is to go and that the node controller has called not ready,
and nobody waits for its grace. No time of another host's clock is compared with ours.
"""

from __future__ import annotations

import calendar
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from outlast_operator.kubernetes.manifests.names import (
    CLAIM_ANNOTATION,
    CONTAINER,
    CONTAINER_ANNOTATION,
    DATA_PORT,
    INCARNATION_ANNOTATION,
    NAME_ANNOTATION,
    REDIS_CONTAINER,
    ROLE_LABEL,
    TEMPLATE_ANNOTATION,
)
from outlast_operator.planner.status import Wait

Json = dict[str, Any]
ROLES = ("server", "worker", "evaluator", "redis")
UNMOUNTED_S = 10.0  # for which a node may take to mount a volume before another one is thought to have it
OVERDUE_S = 15.0  # after its grace a pod whose node answers is gone
REASON_CHARACTERS = 300
LAST_SIGNAL = 31  # of those that have a meaning of their own
IMAGE_PULL, CLAIM_UNBOUND = "ImagePullBackOff", "ClaimUnbound"
_ELSEWHERE = re.compile(r"volume node affinity conflict|PersistentVolume's node affinity")
_STUCK = {
    "ErrImagePull": "its image cannot be pulled",
    IMAGE_PULL: "its image cannot be pulled",
    "ErrImageNeverPull": "its image is not on the node, and imagePullPolicy is Never",
    "InvalidImageName": "its image has no valid name",
    "RegistryUnavailable": "the registry of its image does not answer",
    "ImageInspectError": "its image cannot be inspected",
    "SignatureValidationFailed": "the signature of its image is refused",
    "CreateContainerConfigError": "its container cannot be configured",
    "CreateContainerError": "its container cannot be made",
    "RunContainerError": "its container cannot be started",
}


@dataclass(frozen=True)
class PodView:
    """What matters of one pod. `phase` as in state.Process, but a server that listens not yet counts as running."""

    uid: str
    pod: str
    name: str  # the stable one: server-0
    role: str
    namespace: str = ""
    phase: str = "starting"  # starting | running | exited
    address: str = ""
    incarnation: int = 1
    exit_code: int | None = None
    exit_signal: int | None = None
    proven_dead: bool = False
    reason: str = ""
    deleting: bool = False
    wait: Wait | None = None  # why it does not start yet
    template: str = ""  # digest of the template that it was made from
    restarts: int = 0  # of its container (Redis alone is restarted in place)
    created: str = ""
    lived_s: float | None = None  # how long its container ran the last time that it ended, by the kubelet's word
    lingers: bool = False  # ours has ended, a sidecar has not
    over: bool = False  # evicted, refused by its node, or done: the kubelet starts nothing in it any more
    is_placed: bool = False  # it has a node
    claims: frozenset[str] = frozenset()  # names of the PersistentVolumeClaims that it mounts
    claim: int = 0  # generation of the claim that a server mounts
    held_by_claim: str = ""  # why that keeps it from starting
    claim_out_of_reach: bool = False  # the volume has a place, and no node there takes the pod
    never_ran: bool = False  # an exited one whose container was never started, as far as was told
    unreachable: bool = False  # its node does not answer, by the node controller's word

    @property
    def alive(self) -> bool:
        return self.phase != "exited"

    @property
    def instance(self) -> str:
        return self.uid if not self.restarts else f"{self.uid}.{self.restarts}"

    @property
    def ip(self) -> str:
        return self.address.removeprefix("tcp:").rpartition(":")[0]


@dataclass
class Since:
    """Since when something has been so of a pod, by our own sight and on the clock of `now`; None: it is not so."""

    unmounted: float | None = None  # it has a node, and its volumes are not there
    deleting: float | None = None  # it is to go

    def note(self, pod: Json, now: float, gone: bool = False) -> None:
        if self.deleting is None and (gone or pod["metadata"].get("deletionTimestamp") is not None):
            self.deleting = now
        waits = is_unmounted(pod)
        self.unmounted = (now if self.unmounted is None else self.unmounted) if waits else None


def read_pod(pod: Json, now: float, since: Since, gone: bool = False, trouble: str = "") -> PodView | None:
    """`trouble`: see `pull_trouble`. None for what is no process of a job."""
    meta, status = pod["metadata"], pod.get("status") or {}
    annotations = meta.get("annotations") or {}
    name, role = annotations.get(NAME_ANNOTATION), (meta.get("labels") or {}).get(ROLE_LABEL)
    if not name or role not in ROLES:
        return None
    ip = status.get("podIP")
    incarnation = str(annotations.get(INCARNATION_ANNOTATION, "1"))
    generation = str(annotations.get(CLAIM_ANNOTATION, "0"))
    base: Json = {
        "uid": str(meta["uid"]),
        "pod": str(meta["name"]),
        "namespace": str(meta["namespace"]),
        "name": str(name),
        "role": str(role),
        "address": f"tcp:{ip}:{DATA_PORT}" if ip else "",
        "incarnation": int(incarnation) if incarnation.isdigit() else 1,
        "deleting": gone or meta.get("deletionTimestamp") is not None,
        "created": str(meta.get("creationTimestamp", "")),
        "over": status.get("phase") in ("Failed", "Succeeded"),
        "is_placed": bool((pod.get("spec") or {}).get("nodeName")),
        "claims": frozenset(_claims(pod)),
        "claim": int(generation) if generation.isdigit() else 0,
        "template": str(annotations.get(TEMPLATE_ANNOTATION, "")),
        "unreachable": is_unreachable(status),
    }
    container = _container_status(pod, role)
    base["restarts"] = int(container.get("restartCount") or 0)
    base |= _phase(meta, status, container, now, since, gone)
    if base.get("phase") == "exited":
        base["never_ran"] = not _has_run(container)
    elif "phase" not in base:
        base["wait"] = _wait(status, trouble)
        if role == "server":
            base |= _claim_trouble(status, now, since)
    others = [c for c in status.get("containerStatuses") or () if c.get("name") != container.get("name")]
    base["lingers"] = bool(base.get("proven_dead")) and any("running" in (c.get("state") or {}) for c in others)
    return PodView(**base)


def may_dial(pod: Json | None, ip: str) -> bool:
    """Whether a new connection to `ip` reaches this pod's process: the object is there and has the address, and its
    container runs. Afterwards the node may give the address to any other pod."""
    status = (pod or {}).get("status") or {}
    if pod is None or status.get("podIP") != ip or status.get("phase") in ("Failed", "Succeeded"):
        return False
    role = str((pod["metadata"].get("labels") or {}).get(ROLE_LABEL))
    return "running" in (_container_status(pod, role).get("state") or {})


def _container_status(pod: Json, role: str) -> Json:
    """The status of the container that runs our process; empty where the kubelet has not told of it yet."""
    ours, statuses = our_container(pod, role), (pod.get("status") or {}).get("containerStatuses") or ()
    return next((dict(c) for c in statuses if c.get("name") == ours), {})


def our_container(pod: Json, role: str) -> str:
    """Its name. The kubelet sorts statuses by name, and others may put sidecars before ours: no order says anything."""
    ours = REDIS_CONTAINER if role == "redis" else CONTAINER
    return str((pod["metadata"].get("annotations") or {}).get(CONTAINER_ANNOTATION, ours))


def is_unmounted(pod: Json) -> bool:
    """Whether a node has taken it and has not got its volumes and network ready; before any image is pulled."""
    found = _conditions(pod.get("status") or {})
    return found.get("PodScheduled", {}).get("status") == "True" and (
        found.get("PodReadyToStartContainers", {}).get("status") == "False"
    )


def _conditions(status: Json) -> dict[str, Json]:
    return {str(c.get("type")): c for c in status.get("conditions") or ()}


def _claim_trouble(status: Json, now: float, since: Since) -> Json:
    """Why the volume of a pod that does not start keeps it from it, if that is known to be the reason."""
    scheduled = _conditions(status).get("PodScheduled", {})
    message = str(scheduled.get("message") or "")
    if scheduled.get("status") == "False" and _ELSEWHERE.search(message):
        words = _short(f"no node with access to its volume takes it: {message}")
        return {"held_by_claim": words, "claim_out_of_reach": True}
    if since.unmounted is not None and now - since.unmounted >= UNMOUNTED_S:
        words = f"its volume is not mounted {UNMOUNTED_S:g} s after a node took it; another node may still have it"
        return {"held_by_claim": words}
    return {}


def pull_trouble(pod: Json) -> str:
    """What the registry said, which the kubelet tells for a moment and then only that it waits to try again."""
    status = pod.get("status") or {}
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") == "ErrImagePull":
            return str(waiting.get("message") or "")
    return ""


def _claims(pod: Json) -> Iterator[str]:
    for volume in (pod.get("spec") or {}).get("volumes") or ():
        claim = volume.get("persistentVolumeClaim") or {}
        if claim.get("claimName"):
            yield str(claim["claimName"])


def _has_run(container: Json) -> bool:
    states = (container.get("state") or {}, container.get("lastState") or {})
    return any("running" in state or "terminated" in state for state in states)


def _phase(meta: Json, status: Json, container: Json, now: float, since: Since, gone: bool) -> Json:
    state, last = container.get("state") or {}, (container.get("lastState") or {}).get("terminated")
    # With `waiting`, it waits to be restarted in place.
    ended = state.get("terminated") or (last if "waiting" in state else None)
    if ended is not None:
        return _exit(ended, status)
    before: Json = {} if last is None else {"lived_s": _life_s(last)}
    if gone:
        return {**before, "phase": "exited", "reason": "its pod was deleted"}
    if status.get("phase") == "Failed":  # evicted or refused by its node: the kubelet is ending its containers
        return {**before, "phase": "exited", "reason": _short(_why(status) or "its pod failed")}
    if _is_overdue(meta, now, since) or (meta.get("deletionTimestamp") is not None and is_unreachable(status)):
        return {**before, "phase": "exited", "reason": "its node does not answer", "unreachable": True}
    return {**before, "phase": "running"} if "running" in state else {}


def _exit(ended: Json, status: Json) -> Json:
    code, why = int(ended.get("exitCode") or 0), ended.get("reason") or ""
    number = _signal(ended, code) if why != "OOMKilled" else 0
    words = "" if number else _last_line(str(ended.get("message") or ""))  # who is killed has no last words
    if why == "OOMKilled":
        words = "it used more memory than its limit (OOMKilled); raise resources.limits.memory in its template"
    elif why not in ("", "Error", "Completed") and not words:
        words = str(why)
    return {
        "phase": "exited",
        "exit_code": None if number else code,
        "exit_signal": number or None,
        "proven_dead": True,
        "lived_s": _life_s(ended),
        "reason": _short(words or (_why(status) if code else "")),
    }


def _life_s(ended: Json) -> float:
    """Both times are the kubelet's. One that was never started has no start, or the year 1970."""
    start, end = (parse_time(str(ended.get(key) or "1970-01-01T00:00:00Z")) for key in ("startedAt", "finishedAt"))
    return max(0.0, end - start) if start > 0 else 0.0


def _signal(ended: Json, code: int) -> int:
    """The signal that ended it, or 0: `sys.exit(-1)` is 255, which no signal is behind. That the kernel took its memory
    for its own limit's sake is an error of its own, though it came by a signal: started again, it would come again."""
    return int(ended.get("signal") or 0) or (code - 128 if 128 < code <= 128 + LAST_SIGNAL else 0)


def _wait(status: Json, trouble: str) -> Wait | None:
    """What keeps the pod from running, by its own status: the kubelet's word of any of its containers, or the
    scheduler's."""
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        waiting = (container.get("state") or {}).get("waiting") or {}
        why = str(waiting.get("reason") or "")
        if why in _STUCK:
            said = trouble if trouble and why == IMAGE_PULL else waiting.get("message")
            return Wait(IMAGE_PULL if why == "ErrImagePull" else why, _short(f"{_STUCK[why]}: {said or why}"))
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            reason, message = str(condition.get("reason") or "Unschedulable"), condition.get("message")
            if "PersistentVolumeClaim" in str(message) or "persistentvolumeclaim" in str(message):
                reason = CLAIM_UNBOUND
            return Wait(reason, _short(f"no node takes it: {message or reason}"))
    return None


def _why(status: Json) -> str:
    reason, message = str(status.get("reason") or ""), str(status.get("message") or "")
    return f"{reason}: {message}" if reason and message else reason or message


def _is_overdue(meta: Json, now: float, since: Since) -> bool:
    if meta.get("deletionTimestamp") is None or since.deleting is None:
        return False
    return now > since.deleting + float(meta.get("deletionGracePeriodSeconds") or 0) + OVERDUE_S


def is_unreachable(status: Json) -> bool:
    """Whether the node controller has called the pod not ready because its node does not answer.

    It changes the condition Ready alone, and each kubelet that calls a pod not ready says why: so no right to read
    nodes is needed. A pod that was not ready before gets no such word.
    """
    conditions = {c.get("type"): c for c in status.get("conditions") or ()}
    ready, containers = conditions.get("Ready") or {}, conditions.get("ContainersReady") or {}
    of_the_kubelet = ready.get("reason") in ("ContainersNotReady", "ReadinessGatesNotReady")
    return ready.get("status") == "False" and containers.get("status") == "True" and not of_the_kubelet


def parse_time(text: str) -> float:
    """RFC 3339 in UTC, as the API server writes it, to seconds since the epoch."""
    return float(calendar.timegm(time.strptime(text[:19], "%Y-%m-%dT%H:%M:%S")))


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""


def _short(text: str) -> str:
    return text if len(text) <= REASON_CHARACTERS else text[: REASON_CHARACTERS - 3] + "..."

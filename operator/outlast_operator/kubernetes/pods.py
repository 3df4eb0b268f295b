"""A pod as the planner sees it: pure reading of the API server's object.

Rules. (1) Dead is proved by the kubelet's word that our container has terminated (its name was noted at the start),
never by the object's absence: a forced deletion removes the object while the process still runs. (2) A pod that cannot
start (no such image, no such Secret) counts as a process that failed to start, once it has tried for `STUCK_S`; so
back-off and its limit hold for it as well. (3) A pod that should be gone, its grace having passed since we first saw it
deleted, is on a node that does not answer. No time of another host's clock is compared with ours.
"""

from __future__ import annotations

import calendar
import time
from dataclasses import dataclass
from typing import Any

from outlast_operator.manifests.names import (
    CONTAINER,
    CONTAINER_ANNOTATION,
    DATA_PORT,
    INCARNATION_ANNOTATION,
    NAME_ANNOTATION,
    REDIS_CONTAINER,
    ROLE_LABEL,
)
from outlast_operator.state import CONFIG_ERROR_EXIT

Json = dict[str, Any]
ROLES = ("server", "worker", "evaluator", "redis")
STUCK_S = 20.0  # the kubelet has then tried an image at least twice
OVERDUE_S = 15.0  # after its grace a pod whose node answers is gone
REASON_CHARACTERS = 300
LAST_SIGNAL = 31  # of those that have a meaning of their own
_HOPELESS = {"InvalidImageName"}
_STUCK = {
    "ErrImagePull": "its image cannot be pulled",
    "ImagePullBackOff": "its image cannot be pulled",
    "ErrImageNeverPull": "its image is not on the node, and imagePullPolicy is Never",
    "InvalidImageName": "its image has no valid name",
    "RegistryUnavailable": "the registry of its image does not answer",
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
    waits: str = ""  # why it does not start yet, in plain words
    restarts: int = 0  # of its container (Redis alone is restarted in place)
    created: str = ""
    lived_s: float | None = None  # how long its container ran the last time that it ended, by the kubelet's word
    lingers: bool = False  # ours has ended, a sidecar has not
    over: bool = False  # evicted, refused by its node, or done: the kubelet starts nothing in it any more
    never_ran: bool = False  # its container was never made: there is no log, and the kubelet goes on trying

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

    stuck: float | None = None  # its container cannot be started
    deleting: float | None = None  # it is to go

    def note(self, pod: Json, now: float, gone: bool = False) -> None:
        if self.deleting is None and (gone or pod["metadata"].get("deletionTimestamp") is not None):
            self.deleting = now
        self.stuck = (now if self.stuck is None else self.stuck) if is_stuck(pod) else None


def read_pod(pod: Json, now: float, since: Since, gone: bool = False, trouble: str = "") -> PodView | None:
    """`trouble`: see `pull_trouble`. None for what is no process of a job."""
    meta, status = pod["metadata"], pod.get("status") or {}
    annotations = meta.get("annotations") or {}
    name, role = annotations.get(NAME_ANNOTATION), (meta.get("labels") or {}).get(ROLE_LABEL)
    if not name or role not in ROLES:
        return None
    ip = status.get("podIP")
    incarnation = str(annotations.get(INCARNATION_ANNOTATION, "1"))
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
    }
    container = _container_status(pod, role)
    base["restarts"] = int(container.get("restartCount") or 0)
    base |= _phase(meta, status, container, now, since, gone, trouble)
    others = [c for c in status.get("containerStatuses") or () if c.get("name") != container.get("name")]
    base["lingers"] = bool(base.get("proven_dead")) and any("running" in (c.get("state") or {}) for c in others)
    return PodView(**base)


def _container_status(pod: Json, role: str) -> Json:
    """The status of the container that runs our process; empty where the kubelet has not told of it yet."""
    ours, statuses = our_container(pod, role), (pod.get("status") or {}).get("containerStatuses") or ()
    return next((dict(c) for c in statuses if c.get("name") == ours), {})


def our_container(pod: Json, role: str) -> str:
    """Its name. The kubelet sorts statuses by name, and others may put sidecars before ours: no order says anything."""
    ours = REDIS_CONTAINER if role == "redis" else CONTAINER
    return str((pod["metadata"].get("annotations") or {}).get(CONTAINER_ANNOTATION, ours))


def is_stuck(pod: Json) -> bool:
    """Whether the kubelet tries to start our container, and cannot."""
    role = str((pod["metadata"].get("labels") or {}).get(ROLE_LABEL))
    waiting = (_container_status(pod, role).get("state") or {}).get("waiting") or {}
    return waiting.get("reason") in _STUCK


def pull_trouble(pod: Json) -> str:
    """What the registry said, which the kubelet tells for a moment and then only that it waits to try again."""
    for container in (pod.get("status") or {}).get("containerStatuses") or ():
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") == "ErrImagePull":
            return str(waiting.get("message") or "")
    return ""


def _phase(meta: Json, status: Json, container: Json, now: float, since: Since, gone: bool, trouble: str) -> Json:
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
    if _is_overdue(meta, now, since):
        return {**before, "phase": "exited", "reason": "its node does not answer"}
    if "running" in state:
        return {**before, "phase": "running"}
    return _not_started(status, state.get("waiting") or {}, now, since, trouble)


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


def _not_started(status: Json, waiting: Json, now: float, since: Since, trouble: str) -> Json:
    why = str(waiting.get("reason") or "")
    if why in _STUCK:
        said = trouble if trouble and why == "ImagePullBackOff" else waiting.get("message")
        words = _short(f"{_STUCK[why]}: {said or why}")
        if why in _HOPELESS or (since.stuck is not None and now - since.stuck >= STUCK_S):
            code = CONFIG_ERROR_EXIT if why in _HOPELESS else 1
            ended = {"phase": "exited", "exit_code": code, "proven_dead": True, "reason": words}
            return {**ended, "never_ran": True, "lived_s": 0.0}
        return {"waits": words}
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return {"waits": _short(f"no node takes it: {condition.get('message') or condition.get('reason')}")}
    return {}


def _why(status: Json) -> str:
    reason, message = str(status.get("reason") or ""), str(status.get("message") or "")
    return f"{reason}: {message}" if reason and message else reason or message


def _is_overdue(meta: Json, now: float, since: Since) -> bool:
    if meta.get("deletionTimestamp") is None or since.deleting is None:
        return False
    return now > since.deleting + float(meta.get("deletionGracePeriodSeconds") or 0) + OVERDUE_S


def parse_time(text: str) -> float:
    """RFC 3339 in UTC, as the API server writes it, to seconds since the epoch."""
    return float(calendar.timegm(time.strptime(text[:19], "%Y-%m-%dT%H:%M:%S")))


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""


def _short(text: str) -> str:
    return text if len(text) <= REASON_CHARACTERS else text[: REASON_CHARACTERS - 3] + "..."

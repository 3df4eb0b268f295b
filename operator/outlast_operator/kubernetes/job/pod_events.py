"""What Events alone tell of pods that do not start: volumes that cannot be mounted, claims that cannot be bound.

Rules. (1) Asked for only while a pod of the job has a node and no container yet, or waits for a claim: every other word
stands in the pod's status. (2) Nothing waits for the answer; it is there for the next look. (3) Without the right to
list events the pod's own status is all that is said.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from typing import Any

from outlast_operator.kubernetes.cluster.api import CORE, Api, ApiError
from outlast_operator.kubernetes.job.pods import CLAIM_UNBOUND, PodView
from outlast_operator.planner.status import Wait

log = logging.getLogger("outlast.kubernetes")

Json = dict[str, Any]
ASK_S = 2.0  # between two requests
DENIED_S = 300.0  # after which a right may have been given
OF_PODS = frozenset(
    {"FailedMount", "FailedAttachVolume", "FailedMapVolume", "FailedCreatePodSandBox", "NetworkNotReady"}
)
BEYOND = frozenset({"Pulling", "Pulled", "Created", "Started"})  # what a pod comes to once it has its volumes
OF_CLAIMS = frozenset({"FailedBinding", "ProvisioningFailed"})


class PodEvents:
    """Of one job. `follow` belongs to its loop; `told` is what is known now, by pod uid."""

    def __init__(self, api: Api, namespace: str, pool: Executor, clock: Callable[[], float], wake: Callable[[], None]):
        self._api, self._namespace, self._pool = api, namespace, pool
        self._clock, self._wake = clock, wake
        self._t_next = 0.0
        self.told: Mapping[str, Wait] = {}

    def follow(self, pods: Iterable[PodView]) -> None:
        """Ask for events of those of these pods that have not started, at most every `ASK_S`."""
        silent = [view for view in pods if view.alive and view.phase == "starting" and not view.deleting]
        silent = [view for view in silent if view.is_placed or (view.wait and view.wait.reason == CLAIM_UNBOUND)]
        if not silent:
            self.told = {}
        elif self._clock() >= self._t_next:
            self._t_next = self._clock() + ASK_S
            self._pool.submit(self._ask, silent)

    def _ask(self, pods: list[PodView]) -> None:
        try:
            events = self._list("Pod")
            if any(view.claims for view in pods):
                events += self._list("PersistentVolumeClaim")
        except ApiError as error:
            log.info("events of %s cannot be listed: %s", self._namespace, error)
            if error.code == 403:
                self._t_next = self._clock() + DENIED_S
            return
        told = {view.uid: wait for view in pods if (wait := wait_of(view, events)) is not None}
        if told != self.told:
            self.told = told
            self._wake()

    def _list(self, kind: str) -> list[Json]:
        selector = f"involvedObject.kind={kind}"
        found: list[Json] = self._api.list(CORE, self._namespace, "events", fieldSelector=selector)["items"]
        return found


def wait_of(view: PodView, events: Iterable[Json]) -> Wait | None:
    """The newest word of a pod, or of the claims that it waits for; None once the pod has got beyond it."""
    found: list[tuple[str, Wait]] = []
    beyond: list[str] = []
    for event in events:
        about, reason = event.get("involvedObject") or {}, str(event.get("reason"))
        message = " ".join(str(event.get("message") or reason).split())
        if about.get("uid") == view.uid and reason in OF_PODS:
            found.append((_time(event), Wait(reason, message)))
        elif about.get("uid") == view.uid and reason in BEYOND:
            beyond.append(_time(event))
        elif about.get("kind") == "PersistentVolumeClaim" and about.get("name") in view.claims and reason in OF_CLAIMS:
            found.append((_time(event), Wait(CLAIM_UNBOUND, f"claim {about['name']}: {reason}: {message}")))
    if not found:
        return None
    newest, wait = max(found, key=lambda told: told[0])
    return None if beyond and max(beyond) >= newest else wait


def _time(event: Json) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or "")

"""What must hold before the operator serves: the TrainingJob resource and the required rights.

Rules. (1) The operator waits for them and says what is missing: in its log, as the body of /readyz, and as the
termination message of its container. It does not exit: a restart brings neither rights nor a resource, and the kubelet
waits ever longer between restarts. (2) A namespace that is refused holds up no other: once `SETTLE_S` have passed the
operator serves those that are not. It looks at the others again, and ends when one can be served, to begin with it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from outlast_operator.kubernetes.cluster.api import JOBS, PLURAL, Api, ApiError
from outlast_operator.kubernetes.rights import IN_CLUSTER, IN_NAMESPACES, LEASE, Right

log = logging.getLogger("outlast.preflight")

RETRY_S = 2.0
SETTLE_S = 20.0  # the API server sees roles that came with the operator some seconds later
LOOK_AGAIN_S = 30.0
REVIEWS = "apis/authorization.k8s.io/v1"
TERMINATION_LOG = Path("/dev/termination-log")

Namespace = str | None  # None: all


class Preflight:
    """`namespaces` None: all. `stop` ends the wait, and is set when the operator should begin anew."""

    def __init__(
        self,
        api: Api,
        namespaces: Sequence[str] | None,
        lease: tuple[str, str],
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
        termination_log: Path = TERMINATION_LOG,
    ) -> None:
        self._api, self._lease, self._stop, self._clock = api, lease, stop, clock
        self._asked: list[Namespace] = [None] if namespaces is None else list(namespaces)
        self._termination_log = termination_log
        self.missing = "the preflight has not ended"  # empty: nothing
        self.left_out: list[Namespace] = []

    def wait(self) -> list[Namespace]:
        """Returns the namespaces that can be served; none if the operator was told to stop."""
        start = self._clock()
        while not self._stop.is_set():
            refusals = self._refusals()
            served = [namespace for namespace in self._asked if namespace not in refusals]
            lease = self._lease_refusal()
            enough = not refusals or (served and self._clock() - start >= SETTLE_S)
            if enough and not lease:
                self._leave_out(refusals)
                self._say("")
                return served
            self._say("; ".join([*dict.fromkeys(refusals.values()), *([lease] if lease else [])]))
            self._stop.wait(RETRY_S)
        return []

    def warn_of_degradation(self, served: Iterable[Namespace]) -> None:
        """One line for each right that is missing without holding the operator up."""
        for namespace in served:
            optional = [r for r in (*IN_NAMESPACES, *(IN_CLUSTER if namespace is None else ())) if not r.required]
            try:
                for right in optional:
                    if denied := ", ".join(self._denied(right, namespace)):
                        log.warning("no right to %s %s%s: %s", denied, right.key, _in(namespace), right.without)
            except ApiError as error:
                log.warning("the rights%s cannot be checked: %s", _in(namespace), error)

    def watch_left_out(self) -> None:
        """End the operator when a namespace that it had to leave out can be served."""
        if self.left_out:
            threading.Thread(target=self._watch_left_out, name="left-out", daemon=True).start()

    def _watch_left_out(self) -> None:
        while not self._stop.wait(LOOK_AGAIN_S):
            ready = [namespace for namespace in self.left_out if not self._refusal(namespace)]
            if ready:
                log.warning("restarting the operator: it can now serve %s", ", ".join(map(str, ready)))
                self._stop.set()

    def _leave_out(self, refusals: dict[Namespace, str]) -> None:
        self.left_out = list(refusals)
        for refusal in refusals.values():
            log.warning("a namespace is left out until it can be served: %s", refusal)

    def _say(self, missing: str) -> None:
        if missing == self.missing:
            return
        self.missing = missing
        if missing:
            log.error("not ready: %s", missing)
        if self._termination_log.exists():  # in a container
            self._termination_log.write_text(missing[:4000])

    # --- what is refused ---

    def _refusals(self) -> dict[Namespace, str]:
        refusals = {namespace: self._refusal(namespace) for namespace in self._asked}
        return {namespace: refusal for namespace, refusal in refusals.items() if refusal}

    def _refusal(self, namespace: Namespace) -> str:
        """Why this namespace cannot be served; empty if it can."""
        try:
            self._api.list(JOBS, namespace, PLURAL, limit="1")  # fails where the resource does not exist, too
            required = [right for right in IN_NAMESPACES if right.required]
            denied = [f"{', '.join(verbs)} {r.key}" for r in required if (verbs := self._denied(r, namespace))]
        except ApiError as error:
            if error.not_found:
                return NO_RESOURCE
            return f"TrainingJobs{_in(namespace)} cannot be listed: {error}; {_remedy(error)}"
        return f"no right to {'; '.join(denied)}{_in(namespace)}; {GRANT}" if denied else ""

    def _lease_refusal(self) -> str:
        namespace, name = self._lease
        try:
            denied = [v for v in LEASE.verbs if not self._may(v, LEASE, namespace, "" if v == "create" else name)]
        except ApiError as error:
            return f"the rights on the Lease {namespace}/{name} cannot be checked: {error}; {_remedy(error)}"
        return f"no right to {', '.join(denied)} the Lease {namespace}/{name}; {GRANT}" if denied else ""

    def _denied(self, right: Right, namespace: Namespace) -> list[str]:
        return [verb for verb in right.verbs if not self._may(verb, right, namespace)]

    def _may(self, verb: str, right: Right, namespace: Namespace, name: str = "") -> bool:
        resource, _, part = right.resource.partition("/")
        asked = {
            "verb": verb,
            "group": right.group,
            "resource": resource,
            "subresource": part,
            "namespace": namespace or "",
            "name": name,
        }
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": asked},
        }
        answer = self._api.create(REVIEWS, "", "selfsubjectaccessreviews", review)
        return bool((answer.get("status") or {}).get("allowed"))


NO_RESOURCE = (
    "the cluster has no resource TrainingJob; apply crds/trainingjobs.outlast.dev.yaml, or install the chart with "
    "crds.install=true"
)
GRANT = "grant it with the chart's roles (rbac.create), or see docs/how-to/secure.md"


def _in(namespace: Namespace) -> str:
    return f" in namespace {namespace}" if namespace else " in all namespaces"


def _remedy(error: ApiError) -> str:
    return GRANT if error.code == 403 else "the operator retries"

"""A job's NetworkPolicies, kept as its spec and its namespace want them.

Rules. (1) Level-based: what is missing is made, what differs is put back, what is not wanted any more is deleted. That
is looked at when the loop begins, when the spec changes, and each `LOOK_S`: another policy may close the namespace at
any time. (2) Without the right to make them the job goes on; what is closed then, the condition NetworkOpen names.
(3) An operator outside of the cluster has no pod that a policy could let in: it makes none.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

from outlast.api.spec import JobSpec
from outlast_operator.kubernetes.cluster.api import NETWORKING, Api, ApiError
from outlast_operator.kubernetes.manifests.names import JobRef, is_owned
from outlast_operator.kubernetes.manifests.network import Peers, network_policies

log = logging.getLogger("outlast.kubernetes")

Json = dict[str, Any]
PLURAL = "networkpolicies"
LOOK_S = 30.0


class Policies:
    """Those of one job. `keep` belongs to its loop."""

    def __init__(self, api: Api, ref: JobRef, peers: Peers | None, pool: Executor, clock: Callable[[], float]) -> None:
        self._api, self._ref, self._peers, self._pool, self._clock = api, ref, peers, pool, clock
        self._looked: tuple[JobSpec, float] | None = None  # the spec of the last look, and when that was
        self._lock = threading.Lock()  # one look at a time
        self._said = ""

    def keep(self, spec: JobSpec) -> None:
        """Look, if it is time to, and mend what is found; nothing is waited for. A job that has ended keeps its
        policies, for its pods may be kept too."""
        now = self._clock()
        if self._peers is None or (self._looked is not None and _is_fresh(self._looked, spec, now)):
            return
        self._looked = (spec, now)
        self._pool.submit(self._mend, spec, self._peers)

    def _mend(self, spec: JobSpec, peers: Peers) -> None:
        try:
            with self._lock:
                found = self._api.list(NETWORKING, self._ref.namespace, PLURAL)["items"]
                own = {p["metadata"]["name"]: p for p in found if is_owned(p, self._ref)}
                others = [p for p in found if not is_owned(p, self._ref)]
                taken = {p["metadata"]["name"] for p in others}
                for wanted in network_policies(self._ref, spec, peers, others):
                    if wanted["metadata"]["name"] in taken:
                        raise ApiError(409, "NameTaken", f"{wanted['metadata']['name']} exists and is not this job's")
                    self._make(wanted, own.pop(wanted["metadata"]["name"], None))
                for name, unwanted in own.items():
                    self._api.delete(NETWORKING, self._ref.namespace, PLURAL, name, unwanted["metadata"]["uid"])
            self._said = ""
        except ApiError as error:
            if str(error) != self._said:  # a right that is missing is missing each time
                log.warning("%s/%s: network policies: %s", self._ref.namespace, self._ref.name, error)
            self._said = str(error)

    def _make(self, wanted: Json, found: Json | None) -> None:
        name = wanted["metadata"]["name"]
        if found is None:
            self._api.create(NETWORKING, self._ref.namespace, PLURAL, wanted)
        elif found["spec"] != wanted["spec"]:
            self._api.replace(NETWORKING, self._ref.namespace, PLURAL, name, {**found, "spec": wanted["spec"]})


def _is_fresh(looked: tuple[JobSpec, float], spec: JobSpec, now: float) -> bool:
    return looked[0] is spec and now < looked[1] + LOOK_S

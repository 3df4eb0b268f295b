"""A job's PodDisruptionBudgets, kept as its spec wants them.

Rules. (1) Level-based: what is missing is made, what differs is put back, what is not wanted any more is deleted; it is
looked at when the loop begins, when the spec changes, and each `LOOK_S`. (2) Budgets are a help, not a need: without
the right to make them training goes on, and a drain may take several servers at once, which then hand over one by one.
(3) The planner is not held up: requests go through the pool for the API server.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

from outlast.api.spec import JobSpec
from outlast_operator.kubernetes.cluster.api import POLICY, Api, ApiError
from outlast_operator.kubernetes.manifests.children import disruption_budgets
from outlast_operator.kubernetes.manifests.names import UID_LABEL, JobRef, is_owned

log = logging.getLogger("outlast.kubernetes")

Json = dict[str, Any]
PLURAL = "poddisruptionbudgets"
LOOK_S = 60.0


class Budgets:
    """Those of one job. `keep` belongs to its loop."""

    def __init__(self, api: Api, ref: JobRef, pool: Executor, clock: Callable[[], float]) -> None:
        self._api, self._ref, self._pool, self._clock = api, ref, pool, clock
        self._looked: tuple[list[Json], float] | None = None  # what was wanted, and when
        self._lock = threading.Lock()  # one look at a time

    def keep(self, spec: JobSpec, ended: bool) -> None:
        """Look, if it is time to, and mend what is found. A job that has ended has no budgets."""
        wanted = [] if ended else disruption_budgets(self._ref, spec)
        now = self._clock()
        if self._looked is not None and self._looked[0] == wanted and now < self._looked[1] + LOOK_S:
            return
        self._looked = (wanted, now)
        self._pool.submit(self._mend, wanted)

    def _mend(self, wanted: list[Json]) -> None:
        with self._lock:
            try:
                found = self._api.list(
                    POLICY, self._ref.namespace, PLURAL, labelSelector=f"{UID_LABEL}={self._ref.uid}"
                )
                own = {b["metadata"]["name"]: b for b in found["items"] if is_owned(b, self._ref)}
                for budget in wanted:
                    self._make(budget, own.pop(budget["metadata"]["name"], None))
                for name, budget in own.items():
                    self._api.delete(POLICY, self._ref.namespace, PLURAL, name, budget["metadata"]["uid"])
            except ApiError as error:
                log.warning("%s/%s: disruption budgets: %s", self._ref.namespace, self._ref.name, error)

    def _make(self, wanted: Json, found: Json | None) -> None:
        name = wanted["metadata"]["name"]
        if found is None:
            self._api.create(POLICY, self._ref.namespace, PLURAL, wanted)
        elif any(found["spec"].get(key) != value for key, value in wanted["spec"].items()):
            body = {**found, "spec": wanted["spec"]}
            self._api.replace(POLICY, self._ref.namespace, PLURAL, name, body)

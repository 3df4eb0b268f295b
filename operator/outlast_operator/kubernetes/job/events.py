"""Events of a TrainingJob: what `kubectl describe tjob` tells. Written beside the loop, repeated ones counted.

An event is news, not a record: one that cannot be written is logged and lost.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from outlast.api.job import API_VERSION, KIND
from outlast_operator.kubernetes.cluster.api import CORE, Api, ApiError
from outlast_operator.kubernetes.job.status import time_text
from outlast_operator.kubernetes.manifests.names import JobRef

log = logging.getLogger("outlast.kubernetes")

COMPONENT = "outlast-operator"
REPEATED_S = 600.0  # the same words within this time are one event with a count
_KEPT = 200
_LONGEST = 1000


@dataclass
class _Told:
    name: str
    count: int
    t_first: float
    t_last: float


class Events:
    """Events of one job."""

    def __init__(self, api: Api, ref: JobRef, pool: Executor, clock: Callable[[], float]) -> None:
        self._api, self._ref, self._pool, self._clock = api, ref, pool, clock
        self._told: dict[tuple[str, str], _Told] = {}
        self._lock = threading.Lock()

    def tell(self, type_: str, reason: str, message: str) -> None:
        """`type_`: Normal or Warning."""
        log.log(
            logging.WARNING if type_ == "Warning" else logging.INFO,
            "%s/%s %s: %s", self._ref.namespace, self._ref.name, reason, message,
        )  # fmt: skip
        now = self._clock()
        with self._lock:
            told = self._told.get((reason, message))
            if told is not None and now - told.t_last < REPEATED_S:
                told.count, told.t_last = told.count + 1, now
                count = told.count
            else:
                told = _Told(f"{self._ref.name}.{int(now * 1e6):x}{len(self._told) % 16:x}", 1, now, now)
                count = 1
                if len(self._told) >= _KEPT:
                    self._told.pop(next(iter(self._told)))
                self._told[reason, message] = told
        self._pool.submit(self._write, type_, reason, message[:_LONGEST], told, count)

    def _write(self, type_: str, reason: str, message: str, told: _Told, count: int) -> None:
        namespace = self._ref.namespace
        try:
            if count > 1:
                news: dict[str, Any] = {"count": count, "lastTimestamp": time_text(told.t_last)}
                self._api.patch(CORE, namespace, "events", told.name, news)
                return
            self._api.create(CORE, namespace, "events", self._event(type_, reason, message, told))
        except ApiError as error:
            log.info("event %s of %s was not written: %s", reason, self._ref.name, error)

    def _event(self, type_: str, reason: str, message: str, told: _Told) -> dict[str, Any]:
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": told.name, "namespace": self._ref.namespace},
            "involvedObject": {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": self._ref.name,
                "namespace": self._ref.namespace,
                "uid": self._ref.uid,
            },
            "type": type_,
            "reason": reason,
            "message": message,
            "count": 1,
            "firstTimestamp": time_text(told.t_first),
            "lastTimestamp": time_text(told.t_last),
            "source": {"component": COMPONENT},
            "reportingComponent": COMPONENT,
        }

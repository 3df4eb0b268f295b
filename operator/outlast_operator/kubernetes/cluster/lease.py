"""Leader election: one of several operators holds a Lease (coordination.k8s.io) and renews it; the others wait.

Rules. (1) An operator that sees the Lease unchanged for `DURATION_S`, on its own clock, may take it: clocks need not
agree. (2) An operator that has not renewed for the shorter `DEADLINE_S` is no longer leader, even if its calls are
still pending: each action asks `holds` first, and a watchdog beside the calls reports the loss. (3) Two leaders for a
moment would do no harm: views are recorded by compare-and-swap. (4) A leader that leaves releases the Lease, so that
the next need not wait. (5) The identity of an operator in a pod is the pod's name: restarted in place it continues at
once, because the process before it is dead.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from outlast_operator.kubernetes.cluster.api import LEASES, Api, ApiError

log = logging.getLogger("outlast.lease")

Json = dict[str, Any]
DURATION_S, DEADLINE_S, RENEW_S, RETRY_S = 8.0, 6.0, 2.0, 1.0
CALL_S = 2.0  # of one request: a second and a third one fit into the deadline
WATCHDOG_S = 0.25


class Leadership:
    """Runs in threads of its own. `on_change(leading)` is called at each gain and loss, in order.

    `api`: one whose requests end within `CALL_S` (`Api.within`).
    """

    def __init__(
        self,
        api: Api,
        namespace: str,
        name: str,
        identity: str,
        on_change: Callable[[bool], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api, self._namespace, self._name, self.identity = api, namespace, name, identity
        self._on_change, self._clock = on_change, clock
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._seen: tuple[str, float] = ("", 0.0)  # the record as last seen, and since when it is so
        self._held: Json | None = None  # the Lease as we last wrote it
        self._renewed = 0.0
        self.leading = False
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def start(self) -> None:
        self._thread.start()
        threading.Thread(target=self._guard, name="lease-watchdog", daemon=True).start()

    @property
    def holds(self) -> bool:
        """Whether nobody else can lead at this moment, on our own clock."""
        return self.leading and not self._stopped.is_set() and self._clock() - self._renewed < DEADLINE_S

    def stop(self) -> None:
        """Give the Lease back, if it is ours."""
        self._stopped.set()
        self._thread.join(timeout=DEADLINE_S)
        if self.leading:
            self._give_back()

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._turn()
            self._stopped.wait(RENEW_S if self.leading else RETRY_S)

    def _turn(self) -> None:
        now = self._clock()
        try:
            ours = self._try(now)
        except ApiError as error:
            log.warning("the Lease %s/%s was not renewed: %s", self._namespace, self._name, error)
            return  # the watchdog knows for how long we may go on
        if ours:
            self._renewed = now  # when it was asked for: what the others measure from is later
        self._set(ours and self._clock() - now < DEADLINE_S)

    def _guard(self) -> None:
        while not self._stopped.wait(WATCHDOG_S):
            self.check()

    def check(self) -> None:
        """Lead no more when the deadline has passed."""
        if self.leading and not self.holds:
            self._set(False)

    def _set(self, leading: bool) -> None:
        with self._lock:
            if leading != self.leading:
                self.leading = leading
                log.warning("%s %s", self.identity, "leads" if leading else "leads no more")
                self._on_change(leading)

    def _try(self, now: float) -> bool:
        """Whether the Lease is ours now."""
        if self.leading and self._held is not None and self._take(self._held, taken_over=False):
            return True  # as we left it: nobody else has touched it
        try:
            lease = self._api.get(LEASES, self._namespace, "leases", self._name)
        except ApiError as error:
            if not error.not_found:
                raise
            return self._create()
        spec = lease.get("spec") or {}
        record = f"{spec.get('holderIdentity')} {spec.get('renewTime')}"
        if record != self._seen[0]:
            self._seen = (record, now)
        holder = spec.get("holderIdentity")
        if holder and holder != self.identity and now - self._seen[1] < DURATION_S:
            return False
        return self._take(lease, taken_over=holder != self.identity)

    def _create(self) -> bool:
        body = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": {**self._ours(), "acquireTime": _micro_time(), "leaseTransitions": 0},
        }
        try:
            self._api.create(LEASES, self._namespace, "leases", body)
        except ApiError as error:
            if error.already_exists:
                return False
            raise
        return True

    def _take(self, lease: Json, taken_over: bool) -> bool:
        spec = {**(lease.get("spec") or {}), **self._ours()}
        if taken_over:
            spec |= {"acquireTime": _micro_time(), "leaseTransitions": int(spec.get("leaseTransitions") or 0) + 1}
        try:
            self._held = self._api.replace(LEASES, self._namespace, "leases", self._name, {**lease, "spec": spec})
        except ApiError as error:
            self._held = None
            if error.conflict or error.not_found:
                return False  # another operator was faster
            raise
        return True

    def _ours(self) -> Json:
        return {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": int(DURATION_S),
            "renewTime": _micro_time(),
        }

    def _give_back(self) -> None:
        try:
            lease = self._api.get(LEASES, self._namespace, "leases", self._name)
            if (lease.get("spec") or {}).get("holderIdentity") == self.identity:
                spec = {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}
                self._api.replace(LEASES, self._namespace, "leases", self._name, {**lease, "spec": spec})
        except ApiError as error:
            log.info("the Lease was not released: %s", error)


def _micro_time() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

"""kopf's handlers: they put what the watches tell into the cache, and that wakes the loop it concerns. No decision.

kopf only watches here. Handlers are raw (`on.event`), which patch nothing: no finalizers, no progress in annotations,
no status of kopf's. Leadership is a Lease of our own; kopf's peering and its posting of events are off.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import kopf

from outlast.api.crd import GROUP, PLURAL, VERSION
from outlast_operator.kubernetes.cluster.api import Api
from outlast_operator.kubernetes.cluster.lease import CALL_S, Leadership
from outlast_operator.kubernetes.controller import Controller
from outlast_operator.kubernetes.http import Answer, serve
from outlast_operator.kubernetes.job.acceptance import Account
from outlast_operator.kubernetes.manifests.names import JOB_LABEL
from outlast_operator.kubernetes.manifests.network import Peers
from outlast_operator.kubernetes.manifests.pods import Images
from outlast_operator.kubernetes.metrics import metrics_text
from outlast_operator.kubernetes.preflight import Preflight

log = logging.getLogger("outlast.handlers")

WATCH_TIMEOUT_S = 300  # the API server ends a watch after that, and it is begun anew where it was


@dataclass(frozen=True)
class Settings:
    """How an operator was started. `namespaces` None: all."""

    namespaces: Sequence[str] | None
    lease_namespace: str
    lease_name: str
    health_port: int
    metrics_port: int
    images: Images
    peers: Peers | None = None  # None: the operator runs in no pod, so no NetworkPolicy can let it in
    account: Account | None = None  # the operator's own; None: not known


class Probes:
    """What the kubelet is told."""

    def __init__(self, preflight: Preflight) -> None:
        self._preflight = preflight
        self.controller: Controller | None = None
        self.watching = threading.Event()

    def alive(self) -> Answer:
        """While the preflight waits the process is well: a restart brings nothing."""
        return _answer("" if self.controller is None or self.controller.healthy else "events do not flow")

    def ready(self) -> Answer:
        if self._preflight.missing:
            return _answer(self._preflight.missing)
        flowing = self.watching.is_set() and self.controller is not None and self.controller.healthy
        return _answer("" if flowing else "the watches are not running yet")


class Backoffs:
    """Seconds before each further try of a request of kopf's: for as long as the API server is away, for a restart of
    this process brings nothing. What no patience mends (a right that was taken away) the controller's audit finds."""

    def __iter__(self) -> Iterator[float]:
        return itertools.chain((0.2, 0.5, 1.0), itertools.repeat(2.0))


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code. Raises `RuntimeError` when a watch ends by itself."""
    api = Api.connect()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())  # until kopf takes them over
    preflight = Preflight(api, settings.namespaces, (settings.lease_namespace, settings.lease_name), stop)
    probes = Probes(preflight)
    health = serve(settings.health_port, {"/healthz": probes.alive, "/readyz": probes.ready})
    try:
        served = preflight.wait()
        if served:
            threading.Thread(target=preflight.warn_of_degradation, args=(served,), name="rights", daemon=True).start()
            preflight.watch_left_out()
            _serve(api, settings, None if None in served else [str(n) for n in served], probes, stop)
    finally:
        health.shutdown()
    return 0


def _serve(
    api: Api, settings: Settings, namespaces: Sequence[str] | None, probes: Probes, stop: threading.Event
) -> None:
    controller = Controller(
        api, settings.images, namespaces, may_act=lambda: leadership.holds, peers=settings.peers,
        account=settings.account,
    )  # fmt: skip
    leadership = Leadership(
        api.within(CALL_S), settings.lease_namespace, settings.lease_name, identity(), controller.lead
    )
    metrics = serve(settings.metrics_port, {"/metrics": lambda: (200, metrics_text(controller, leadership.leading))})
    probes.controller = controller
    controller.start()
    leadership.start()
    try:
        asyncio.run(_watch(controller, namespaces, probes.watching, stop))
    except Exception as error:  # kopf re-raises whatever ended a watch: a right that was taken away, say
        raise RuntimeError(f"a watch ended: {error}; the preflight of the next start logs what is missing") from error
    finally:
        controller.stop()
        leadership.stop()
        metrics.shutdown()


async def _watch(
    controller: Controller, namespaces: Sequence[str] | None, watching: threading.Event, stop: threading.Event
) -> None:
    """Until kopf is told to stop, by a signal or by `stop`."""

    def end() -> None:
        controller.stop()  # at once: the network may close to a pod that ends, and no server is lost by that
        stop.set()

    try:
        await kopf.operator(
            registry=make_registry(controller, end),
            namespaces=list(namespaces or ()),
            clusterwide=namespaces is None,
            standalone=True,
            ready_flag=watching,
            stop_flag=stop,
            identity=identity(),  # type: ignore[arg-type]  # kopf would ask who our user is, whom no image knows
        )
    finally:
        stop.set()  # kopf waits for it in a thread, and asyncio for that thread: after a signal, for ever


def make_registry(controller: Controller, end: Callable[[], None]) -> kopf.OperatorRegistry:
    """Everything that kopf is asked to do. `end`: what the signals that end the operator call, in place of kopf's."""
    registry = kopf.OperatorRegistry()

    @kopf.on.startup(registry=registry)
    async def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, end)
        settings.scanning.disabled = True  # needs no rights on namespaces and CustomResourceDefinitions
        settings.posting.enabled = False
        settings.posting.level = logging.CRITICAL
        settings.watching.label_selectors["pods"] = JOB_LABEL  # the API server leaves out other pods
        settings.watching.server_timeout = WATCH_TIMEOUT_S
        settings.watching.client_timeout = WATCH_TIMEOUT_S + 30
        settings.persistence.finalizer = f"{GROUP}/never"
        settings.networking.error_backoffs = Backoffs()

    @kopf.on.login(registry=registry)
    def log_in(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
    async def job_changed(event: kopf.RawEvent, **_: Any) -> None:
        body = dict(event["object"])
        if event["type"] is None:
            controller.relisted()
        controller.cache.remove_job(body) if event["type"] == "DELETED" else controller.cache.put_job(body)

    @kopf.on.event("pods", labels={JOB_LABEL: kopf.PRESENT}, registry=registry)
    async def pod_changed(event: kopf.RawEvent, **_: Any) -> None:
        body = dict(event["object"])
        if event["type"] is None:
            controller.relisted()
        controller.cache.remove_pod(body) if event["type"] == "DELETED" else controller.cache.put_pod(body)

    return registry


def identity() -> str:
    """Who we are in the Lease: the pod, or this very process outside one."""
    return os.environ.get("POD_NAME") or f"{socket.gethostname()}-{os.getpid()}"


def _answer(wrong: str) -> Answer:
    return (503, f"{wrong}\n") if wrong else (200, "ok\n")

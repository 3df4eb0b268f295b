"""kopf's handlers: they put what the watches tell into the cache, and that wakes the loop it concerns. No decision.

kopf only watches here. Handlers are raw (`on.event`), which patch nothing: no finalizers, no progress in annotations,
no status of kopf's. Leadership is a Lease of our own; kopf's peering and its posting of events are off.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import kopf

from outlast.api.crd import GROUP, PLURAL, VERSION
from outlast_operator.kubernetes.api import JOBS, Api, ApiError
from outlast_operator.kubernetes.controller import Controller
from outlast_operator.kubernetes.lease import CALL_S, Leadership
from outlast_operator.manifests.names import JOB_LABEL
from outlast_operator.manifests.pods import Images
from outlast_operator.operator_metrics import metrics_text
from outlast_operator.serving import Answer, serve

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


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code."""
    api = Api.connect()
    _check_resource(api, settings.namespaces)
    controller = Controller(api, settings.images, settings.namespaces, may_act=lambda: leadership.holds)
    leadership = Leadership(
        api.within(CALL_S), settings.lease_namespace, settings.lease_name, identity(), controller.lead
    )
    watching = threading.Event()
    checks = {
        "/healthz": _when(lambda: controller.healthy, "events do not flow"),
        "/readyz": _when(lambda: watching.is_set() and controller.healthy, "the watches do not run yet"),
    }
    health = serve(settings.health_port, checks)
    metrics = serve(settings.metrics_port, {"/metrics": lambda: (200, metrics_text(controller, leadership.leading))})
    registry = make_registry(controller)
    controller.start()
    leadership.start()
    try:
        asyncio.run(
            kopf.operator(
                registry=registry,
                namespaces=list(settings.namespaces or ()),
                clusterwide=settings.namespaces is None,
                standalone=True,
                ready_flag=watching,
                identity=identity(),  # type: ignore[arg-type]  # kopf would ask who our user is, whom no image knows
            )
        )
    finally:
        controller.stop()
        leadership.stop()
        health.shutdown()
        metrics.shutdown()
    return 0


def _check_resource(api: Api, namespaces: Sequence[str] | None) -> None:
    """Raises `RuntimeError` where TrainingJobs cannot be watched: kopf looks for them once."""
    for namespace in namespaces if namespaces is not None else (None,):
        try:
            api.list(JOBS, namespace, PLURAL, limit="1")
        except ApiError as error:
            where = f"in namespace {namespace}" if namespace else "in all namespaces"
            remedy = (
                "install the CustomResourceDefinition (it comes with the chart; or: python -m outlast.api.crd)"
                if error.not_found
                else "see the operator's Role" if error.code == 403 else "see KUBECONFIG"
            )  # fmt: skip
            raise RuntimeError(f"TrainingJobs {where} cannot be listed: {error}; {remedy}") from error


def make_registry(controller: Controller) -> kopf.OperatorRegistry:
    """Everything that kopf is asked to do."""
    registry = kopf.OperatorRegistry()

    @kopf.on.startup(registry=registry)
    async def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.scanning.disabled = True  # needs no rights on namespaces and CustomResourceDefinitions
        settings.posting.enabled = False
        settings.posting.level = logging.CRITICAL
        settings.watching.label_selectors["pods"] = JOB_LABEL  # the API server leaves out everybody else's
        settings.watching.server_timeout = WATCH_TIMEOUT_S
        settings.watching.client_timeout = WATCH_TIMEOUT_S + 30
        settings.persistence.finalizer = f"{GROUP}/never"
        settings.networking.error_backoffs = [0.2, 0.5, 1, 2, 5]

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


def _when(holds: Callable[[], bool], otherwise: str) -> Callable[[], Answer]:
    return lambda: (200, "ok\n") if holds() else (503, f"{otherwise}\n")

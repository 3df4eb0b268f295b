"""Bring a TrainingJob resource up to date that exists already and that the chart's release does not own.

Labels and annotations are the owner's (another release, `kubectl apply`) and stay; the schema becomes the given one.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from outlast_operator.kubernetes.cluster.api import Api, ApiError, Json

CRDS = "apis/apiextensions.k8s.io/v1"
PLURAL = "customresourcedefinitions"
# Helm's own field manager: a release that owns the resource finds no conflict when it upgrades it later.
MANAGER = "helm"
KEEP = {"helm.sh/resource-policy": "keep"}  # with the resource would go every job
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
POLL_S = 0.2


class NotEstablished(Exception):
    """The API server took the resource and does not serve it."""


def update(api: Api, wanted: Json, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
    """Apply and wait until the resource is served. Raises `ApiError`, `NotEstablished`."""
    name = wanted["metadata"]["name"]
    try:
        metadata = api.get(CRDS, "", PLURAL, name)["metadata"]
    except ApiError as error:
        if not error.not_found:
            raise
        metadata = wanted["metadata"]
    annotations = {k: v for k, v in (metadata.get("annotations") or {}).items() if k != LAST_APPLIED}
    body = {
        "apiVersion": wanted["apiVersion"],
        "kind": wanted["kind"],
        "metadata": {"name": name, "labels": metadata.get("labels") or {}, "annotations": annotations | KEEP},
        "spec": wanted["spec"],
    }
    live = api.apply(CRDS, "", PLURAL, name, body, MANAGER)
    deadline = clock() + timeout_s
    while not _is_established(live):
        if clock() >= deadline:
            raise NotEstablished(f"{name} is not established after {timeout_s:g} s: {_conditions(live)}")
        time.sleep(POLL_S)  # between two looks; the condition ends the wait
        live = api.get(CRDS, "", PLURAL, name)


def _is_established(crd: Json) -> bool:
    return any(c["type"] == "Established" and c["status"] == "True" for c in _list(crd))


def _conditions(crd: Json) -> str:
    return "; ".join(f"{c['type']}={c['status']} {c.get('message', '')}".strip() for c in _list(crd)) or "no conditions"


def _list(crd: Json) -> list[Json]:
    return (crd.get("status") or {}).get("conditions") or []

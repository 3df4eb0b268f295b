"""The operator under test: a release of the chart, and where it is."""

from __future__ import annotations

import hashlib
import os
from typing import Any

from e2e_cluster import ROOT, Cluster

PREFIX = os.environ.get("OUTLAST_E2E_PREFIX", "outlast-e2e")  # of namespaces: another one for a second session beside
SYSTEM = f"{PREFIX}-system"
NAMESPACES = (f"{PREFIX}-1", f"{PREFIX}-2")  # served by the operator, and no others
RELEASE = "outlast"


def install(cluster: Cluster, *options: str, everywhere: bool = False) -> None:
    """Install or upgrade the release, and wait until it is ready. `everywhere`: as the chart does by default, for all
    namespaces, with cluster roles; else with rights in `NAMESPACES` alone."""
    scope = [] if everywhere else [f"namespaces={{{','.join(NAMESPACES)}}}", "userRoles=Namespaced"]
    # The resource TrainingJob stays when a release goes: it may be an earlier session's, or `kubectl apply`'s.
    adopt = ["--take-ownership"]
    if cluster.helm("version", "--short").startswith("v4"):
        adopt.append("--force-conflicts")
    chart = str(ROOT / "charts" / "outlast")
    # The annotation makes new pods of an image that changed under its tag.
    digest = hashlib.sha256(cluster.images.encode()).hexdigest()[:16]
    # Its own namespace denies everything, too. What jobs need is opened by the operator itself.
    values = ",".join([*scope, "networkPolicy.enabled=true", f"podAnnotations.images=d{digest}"])
    command = ["upgrade", "--install", RELEASE, chart, "-n", SYSTEM, "--set", values]
    cluster.helm(*command, "--wait", "--timeout", "120s", *adopt, *options)


def all_operators(cluster: Cluster, system: str = SYSTEM) -> list[Any]:
    """The operator's pods, those that are to go as well: they act until they are told to end, and have ended."""
    selector = f"app.kubernetes.io/instance={RELEASE}"
    return list(cluster.core.list_namespaced_pod(system, label_selector=selector).items)


def living_operators(cluster: Cluster, system: str = SYSTEM) -> list[Any]:
    """The operator's pods that are there to stay."""
    there = [p for p in all_operators(cluster, system) if p.metadata.deletion_timestamp is None]
    return [p for p in there if p.status.phase in ("Pending", "Running")]  # an evicted one's object stays


def operator_pods(cluster: Cluster, system: str) -> list[Any]:
    """The same. Raises `AssertionError` if there is none."""
    living = living_operators(cluster, system)
    assert living, f"no pod of release {RELEASE} is in namespace {system} to stay"
    return living


def leader(cluster: Cluster, system: str = SYSTEM) -> str:
    """The name of the operator's pod that holds the Lease; empty if none does."""
    lease = cluster.custom.get_namespaced_custom_object("coordination.k8s.io", "v1", system, "leases", RELEASE)
    return str(lease["spec"].get("holderIdentity") or "")

"""Helm for the tests of the chart: found, or fetched once; and what it renders, as documents.

Helm is looked for in PATH, then where the test cluster keeps its tools; else scripts/cluster/tools.sh fetches it there.
Nothing is skipped for want of it.
"""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "outlast"

# Everything that a value can switch on.
EVERYTHING: dict[str, Any] = {
    "namespaces": ["team-a", "team-b"],
    "userRoles": "Namespaced",
    "image": {"repository": "registry.example/outlast", "tag": "9", "pullPolicy": "Always"},
    "imagePullSecrets": [{"name": "pull"}],
    "extraArgs": ["--log-format=text"],
    "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy"}],
    "serviceAccount": {"name": "someone", "annotations": {"a": "b"}},
    "crds": {"annotations": {"c": "d"}},
    "nodeSelector": {"pool": "control"},
    "tolerations": [{"key": "control", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {}}
    ],
    "priorityClassName": "system-cluster-critical",
    "podAnnotations": {"e": "f"},
    "podLabels": {"g": "h"},
    "commonLabels": {"i": "j"},
    "podDisruptionBudget": {"minAvailable": "50%"},
    "networkPolicy": {
        "enabled": True,
        "metricsFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
        "egress": [{"ports": [{"port": 443, "protocol": "TCP"}]}],
    },
    "metrics": {
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
        "dashboard": {"enabled": True, "annotations": {"folder": "Outlast"}},
    },
}


@functools.cache
def helm() -> str:
    """The path of a Helm. Raises `RuntimeError` when there is none and none can be fetched."""
    found = shutil.which("helm")
    if found is not None:
        return found
    with (Path(tempfile.gettempdir()) / f"outlast-helm-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes at once: the first one fetches
        script = '. "$0/lib.sh"; . "$0/tools.sh"; install_tools; echo "$TOOLS"'
        command = ["bash", "-euc", script, str(ROOT / "scripts" / "cluster")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(f"no helm in PATH, and none could be fetched; install Helm 3.8 or later: {done.stderr}")
    return str(Path(done.stdout.strip()) / "helm")


def run(*arguments: str, values: dict[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
    """helm with arguments, and with values on its standard input."""
    with_values = ["--values", "-"] if values is not None else []
    return subprocess.run(
        [helm(), *arguments, *with_values],
        input=yaml.safe_dump(values or {}),
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "KUBECONFIG": os.devnull},
    )


def template_text(
    values: dict[str, Any] | None = None,
    kubernetes: str = "1.31.0",
    release: str = "outlast",
    namespace: str = "outlast-system",
) -> str:
    """What `helm template` prints, with the Prometheus Operator's resources there. Fails with Helm's own words."""
    done = run(
        "template", release, str(CHART), "--namespace", namespace, "--kube-version", kubernetes,
        "--api-versions", "monitoring.coreos.com/v1", values=values or {},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def render(
    values: dict[str, Any] | None = None,
    kubernetes: str = "1.31.0",
    release: str = "outlast",
    namespace: str = "outlast-system",
) -> list[dict[str, Any]]:
    """The release's objects; its hooks are none."""
    return [o for o in render_all(values, kubernetes, release, namespace) if not is_hook(o)]


def render_all(
    values: dict[str, Any] | None = None,
    kubernetes: str = "1.31.0",
    release: str = "outlast",
    namespace: str = "outlast-system",
) -> list[dict[str, Any]]:
    """The rendered objects, hooks among them."""
    return [doc for doc in yaml.safe_load_all(template_text(values, kubernetes, release, namespace)) if doc]


def is_hook(o: dict[str, Any]) -> bool:
    return "helm.sh/hook" in (o["metadata"].get("annotations") or {})


def refusal(values: dict[str, Any], *arguments: str) -> str:
    """Helm's words when it refuses the values."""
    done = run("template", "outlast", str(CHART), *arguments, values=values)
    assert done.returncode != 0, "Helm took it"
    return done.stderr


def of_kind(objects: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [o for o in objects if o["kind"] == kind]


def only(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = of_kind(objects, kind)
    return found

"""The cluster under test: the provider that made it, kubectl, helm, and objects as plain dicts.

Everything goes through kubectl and helm, as a user would; what is asked many times a second goes through the Python
client, which is faster.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import kubernetes
from e2e_environment import namespace
from e2e_nodes import Nodes
from kubernetes.client.exceptions import ApiException

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts" / "cluster"
SESSION_VARIABLE = "OUTLAST_TEST_SESSION"  # tests/conftest.py ends what carries it; the cluster outlives the tests
GROUP, VERSION, PLURAL = "outlast.dev", "v1alpha1", "trainingjobs"
POLL_S = 0.05
# Pods end within seconds of their grace (30 s, where nobody shortens it); the rest is for a kubelet that is late.
NOT_NOW = (429, 500, 502, 503, 504)
END_S = 120.0

Json = dict[str, Any]
T = TypeVar("T")


def run(command: list[str], *, stdin: str | None = None, timeout_s: float = 120) -> str:
    """Run a command; returns what it printed. Raises `AssertionError` with its words if it fails."""
    environment = {k: v for k, v in os.environ.items() if k != SESSION_VARIABLE}
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=timeout_s, env=environment, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def script(name: str, *arguments: str, timeout_s: float = 1500) -> str:
    """Run one of scripts/cluster; its messages go to the terminal's capture, as they come."""
    environment = {k: v for k, v in os.environ.items() if k != SESSION_VARIABLE}
    done = subprocess.run(
        [str(SCRIPTS / name), *arguments], stdout=subprocess.PIPE, text=True, timeout=timeout_s, env=environment,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"scripts/cluster/{name} {' '.join(arguments)} failed (its words are above)"
    return done.stdout.strip()


def wait_until(what: str, condition: Callable[[], T | None], timeout_s: float, poll_s: float = POLL_S) -> T:
    """The first value of `condition` that is true. Raises `AssertionError` that says what was waited for."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            value = condition()
        except ApiException as error:  # an API server that is busy, or starts, answers later
            if error.status not in NOT_NOW:
                raise
            value = None
        if value:
            return value
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s in vain for {what}; it was {value!r} at last"
        time.sleep(poll_s)  # between two looks; what ends the wait is the condition


@dataclass
class Cluster:
    """`provider` as scripts/cluster/cluster.sh names it: given, kind or modules. `images`: which were loaded.
    `passing`: it ends with the session, and all that is in it."""

    provider: str
    kubeconfig: str
    tools: Path
    images: str = ""
    passing: bool = False

    def __post_init__(self) -> None:
        configuration = kubernetes.client.Configuration()
        kubernetes.config.load_kube_config(self.kubeconfig, client_configuration=configuration)
        api = kubernetes.client.ApiClient(configuration)
        self.core = kubernetes.client.CoreV1Api(api)
        self.custom = kubernetes.client.CustomObjectsApi(api)
        self.nodes = Nodes(kubelets)

    # --- commands ---

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout_s: float = 60) -> str:
        command = [str(self.tools / "kubectl"), "--kubeconfig", self.kubeconfig, *arguments]
        return run(command, stdin=stdin, timeout_s=timeout_s)

    def helm(self, *arguments: str, timeout_s: float = 180) -> str:
        return run([str(self.tools / "helm"), "--kubeconfig", self.kubeconfig, *arguments], timeout_s=timeout_s)

    def apply(self, *documents: Json) -> None:
        self.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": documents}))

    def on_node(self, command: str) -> str:
        """A shell command as root, where the processes of all nodes are seen: here, for they run on this machine."""
        assert self.provider != "given", "the processes of OUTLAST_E2E_KUBECONFIG's nodes are out of reach"
        return run(["sh", "-c", command])

    def restart(self, part: str) -> None:
        """End a part of the control plane (kube-apiserver, ...) and start it again."""
        script("cluster.sh", "restart", part)
        assert "not running" not in (parts := script("cluster.sh", "status")), parts

    # --- objects ---

    def job(self, namespace: str, name: str) -> Json | None:
        try:
            found: Json = self.custom.get_namespaced_custom_object(GROUP, VERSION, namespace, PLURAL, name)
        except ApiException as error:
            if error.status == 404:
                return None
            raise
        return found

    def pods(self, namespace: str, **labels: str) -> list[Any]:
        """The pods with these labels; `role="server"` stands for outlast.dev/role."""
        selector = ",".join(f"outlast.dev/{key.replace('_', '-')}={value}" for key, value in labels.items())
        return list(self.core.list_namespaced_pod(namespace, label_selector=selector).items)

    def patch(self, namespace: str, name: str, spec: Json) -> None:
        """Merge into a job's spec."""
        self.custom.patch_namespaced_custom_object(GROUP, VERSION, namespace, PLURAL, name, {"spec": spec})

    def make_namespaces(self, names: Iterable[str]) -> None:
        """Restricted ones, for jobs."""
        self.apply(*(document for name in names for document in namespace(name)))


def kubelets() -> dict[str, Path]:
    """The nodes that have power, by name, and their kubelets' folders as this machine sees them."""
    lines = script("cluster.sh", "kubelets").splitlines()
    return {name: Path(folder) for name, folder in (line.split() for line in lines)}


def connect() -> Cluster:
    """Make the cluster ready, and get at it. Fails with the provider's words where there can be none."""
    script("cluster.sh", "up")
    kubeconfig = script("cluster.sh", "kubeconfig")
    return Cluster(script("cluster.sh", "provider"), kubeconfig, Path(script("cluster.sh", "tools")))

"""The first job of docs/how-to/install.md, pasted as it stands there: how soon it is ready, and what it takes."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from e2e_cluster import ROOT, Cluster
from e2e_figures import Figures
from e2e_release import RELEASE, SYSTEM

PAGE = ROOT / "docs" / "how-to" / "install.md"
NAME = "first"
LAPTOP_CPUS, LAPTOP_GIB = 2.0, 4.0  # allocatable, two operators included
UNITS = {"": 1, "m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def pasted() -> tuple[str, str]:
    """The command that applies the job, and all that follow it there."""
    (block,) = [b for b in re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL) if f"{{name: {NAME}}}" in b]
    apply, end, rest = block.partition("\nJOB\n")
    return apply + end, rest


@pytest.fixture
def shell(cluster: Cluster, namespace: str) -> Iterator[Any]:
    """Runs commands as a user's shell does, whose kubectl speaks to the cluster; the job goes at the end."""
    kubectl = f"{cluster.tools}/kubectl --kubeconfig {cluster.kubeconfig} -n {namespace}"

    def run(text: str) -> str:
        script = f'set -e\nkubectl() {{ {kubectl} "$@"; }}\n{text}'
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=400, check=False)
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
        return done.stdout

    yield run
    run(f"kubectl delete tjob {NAME} --ignore-not-found")


def requested(pods: list[Any], resource: str) -> float:
    quantities = [c.resources.requests[resource] for pod in pods for c in pod.spec.containers]
    found = [re.fullmatch(r"([\d.]+)(m|Ki|Mi|Gi|)", q) for q in quantities]
    return sum(float(q[1]) * UNITS[q[2]] for q in found if q)


def used_bytes(cluster: Cluster, names: set[str]) -> int:
    """What these pods hold in memory, by the kubelets' word."""
    total = 0
    for node in cluster.core.list_node().items:
        path = f"/api/v1/nodes/{node.metadata.name}/proxy/stats/summary"
        for pod in json.loads(cluster.kubectl("get", "--raw", path))["pods"]:
            if pod["podRef"]["name"] in names:
                total += pod["memory"]["workingSetBytes"]
    return total


def test_the_first_job_starts_survives_and_fits_a_laptop(
    cluster: Cluster, namespace: str, shell: Any, figures: Figures
) -> None:
    apply, rest = pasted()
    began = time.monotonic()
    shell(f"{apply}\nkubectl wait tjob/{NAME} --for=condition=Ready --timeout=5m")
    figures.time("the first job of the docs: pasted to Ready, with new claims", time.monotonic() - began, at_most=18)
    operators = cluster.core.list_namespaced_pod(SYSTEM, label_selector=f"app.kubernetes.io/instance={RELEASE}").items
    pods = [*cluster.pods(namespace, job_name=NAME), *operators]
    gib = 2**30
    figures.number("the first job and two operators: CPUs requested", requested(pods, "cpu"), "<=", LAPTOP_CPUS)
    figures.number("the same: GiB requested", requested(pods, "memory") / gib, "<=", LAPTOP_GIB)
    figures.number("the same: GiB used", used_bytes(cluster, {p.metadata.name for p in pods}) / gib, "<=", LAPTOP_GIB)
    shown = shell(rest)
    row = next(line.split() for line in shown.splitlines() if line.startswith(NAME))
    assert row[-2] == "1", f"FAILOVERS is 1, says the page, not {row[-2]}:\n{shown}"
    assert "server-0 (head) is lost" in shown or "Planned" in shown, shown

"""Fixtures over a real cluster: the cluster, the operator installed by its chart, a namespace, the figures.

OUTLAST_E2E_KUBECONFIG=FILE uses that cluster; OUTLAST_SKIP_E2E=1 goes without; OUTLAST_E2E_FULL=1 is `make e2e-full`;
OUTLAST_E2E_KEEP=1 leaves the release and its namespaces as they are at the end, to look at.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from e2e_cluster import ROOT, Cluster, Json, connect, script
from e2e_figures import Figures
from e2e_jobs import Job, make_job
from e2e_release import NAMESPACES, RELEASE, SYSTEM, install

TEST_TIMEOUT_S = 900
BUILD = ROOT / "build"
KEEP = os.environ.get("OUTLAST_E2E_KEEP", "") not in ("", "0")

_figures = Figures()
_failed = pytest.StashKey[bool]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    items.sort(key=lambda item: item.path.is_relative_to(here))  # stable: these last, for they take longest
    for item in items:
        if item.path.is_relative_to(here):
            if os.environ.get("OUTLAST_SKIP_E2E", "") not in ("", "0"):
                item.add_marker(pytest.mark.skip(reason="OUTLAST_SKIP_E2E is set"))
            if item.get_closest_marker("timeout") is None:
                # Without fixtures: the first of them may build a cluster.
                item.add_marker(pytest.mark.timeout(TEST_TIMEOUT_S, func_only=True))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[_failed] = True
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _figures.taken:
        terminalreporter.section("figures (build/e2e.json)")
        for line in _figures.table():
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def figures() -> Iterator[Figures]:
    yield _figures
    _figures.write(BUILD / "e2e.json")


@pytest.fixture(scope="session")
def version() -> str:
    import outlast

    return outlast.__version__


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster that is ready, with the images of operator, Redis and trainer pods in it. Who starts it ends it."""
    was_up = script("cluster.sh", "is-up") == "yes"
    images = ""
    if script("cluster.sh", "provider") != "given":
        images = script("images.sh")  # before `up`, which loads them
    found = connect()
    found.passing, found.images = not was_up and not KEEP, images
    yield found
    found.nodes.close()
    if not was_up and not KEEP:
        script("cluster.sh", "down")


@pytest.fixture(scope="session")
def release(cluster: Cluster) -> Iterator[str]:
    """The operator, installed by the chart with rights in `NAMESPACES` alone. Its namespace."""
    cluster.make_namespaces((SYSTEM, *NAMESPACES))
    install(cluster)
    yield SYSTEM
    collect(cluster, SYSTEM, BUILD / "e2e" / "operator")
    if not KEEP and not cluster.passing:
        cluster.kubectl("delete", "tjob", "--all", "-n", NAMESPACES[0])
        cluster.kubectl("delete", "tjob", "--all", "-n", NAMESPACES[1])
        cluster.helm("uninstall", RELEASE, "-n", SYSTEM, "--wait")
        cluster.kubectl("delete", "namespace", SYSTEM, *NAMESPACES, timeout_s=120)


@pytest.fixture
def namespace(release: str) -> str:
    """A namespace that the operator serves."""
    return NAMESPACES[0]


@pytest.fixture
def start_job(
    cluster: Cluster, release: str, namespace: str, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Job]]:
    """start_job("Chain", recovery={...}): make a job and apply it. It goes with the test; a failed test leaves its
    objects and logs in build/e2e. `within`: another namespace; `named`: another job's name."""
    made: list[Job] = []

    def start(strategy: str, within: str = namespace, named: str = "", **spec: Json) -> Job:
        job = make_job(cluster, within, strategy, **spec)
        if named:
            its_metadata = {**job.document["metadata"], "name": named}
            job = replace(job, name=named, document={**job.document, "metadata": its_metadata})
        made.append(job)
        job.apply()
        return job

    yield start
    if request.node.stash.get(_failed, False):
        folder = BUILD / "e2e" / request.node.name
        collect(cluster, namespace, folder)
        for other in {job.namespace for job in made} - {namespace}:
            collect(cluster, other, folder / other)
        collect(cluster, release, folder / "operator")
    for job in made:
        cluster.kubectl("delete", "tjob", job.name, "-n", job.namespace, "--ignore-not-found", "--wait=true")
        job.ledgers.forget()


def collect(cluster: Cluster, namespace: str, folder: Path) -> None:
    """What a namespace holds, in words: objects, events, logs."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, command in {
        "objects.yaml": ("get", "tjob,pods,services,pvc,deployments,leases,networkpolicies", "-o", "yaml"),
        "describe.txt": ("describe", "tjob,pods"),
        "events.txt": ("get", "events", "--sort-by=.metadata.creationTimestamp"),
    }.items():
        with contextlib.suppress(AssertionError):
            (folder / name).write_text(cluster.kubectl(*command, "-n", namespace))
    for pod in cluster.core.list_namespaced_pod(namespace).items:
        with contextlib.suppress(AssertionError):  # a pod that never ran has no log
            text = cluster.kubectl("logs", pod.metadata.name, "-n", namespace, "--all-containers", "--tail=5000")
            (folder / f"{pod.metadata.name}.log").write_text(text)

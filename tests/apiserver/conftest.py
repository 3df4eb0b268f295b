"""Fixtures over a real API server, without nodes: what is asked of it is answered as any cluster would.

It is of Kubernetes 1.37, the newest release that is tested. OUTLAST_KUBERNETES=1.30 takes the oldest that is supported.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from apiserver_process import CRD_FILE, NEWEST, ApiServer, api_server

TEST_TIMEOUT_S = 120
RELEASE = os.environ.get("OUTLAST_KUBERNETES", NEWEST)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            if os.environ.get("OUTLAST_SKIP_E2E", "") not in ("", "0"):
                item.add_marker(pytest.mark.skip(reason="OUTLAST_SKIP_E2E is set"))
            if item.get_closest_marker("timeout") is None:
                # Without fixtures: the first of them may build an API server.
                item.add_marker(pytest.mark.timeout(TEST_TIMEOUT_S, func_only=True))


@pytest.fixture(scope="session")
def bare_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API server that knows nothing of ours."""
    with api_server(tmp_path_factory.mktemp("apiserver") / "run", RELEASE) as server:
        yield server


@pytest.fixture(scope="session")
def server(bare_server: ApiServer) -> ApiServer:
    """The same with the CRD of TrainingJobs and a default class, which no provisioner serves."""
    bare_server.install(yaml.safe_load(CRD_FILE.read_text()))
    default = {"name": "standard", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}
    bare_server.api.create(
        "apis/storage.k8s.io/v1", "", "storageclasses",
        {"metadata": default, "provisioner": "nobody.example", "volumeBindingMode": "WaitForFirstConsumer"},
    )  # fmt: skip
    return bare_server


@pytest.fixture
def namespace(server: ApiServer) -> str:
    return server.make_namespace(f"n-{secrets.token_hex(4)}")

"""An API server takes the CRD, by every way in which it gets there, and serves it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from apiserver_process import CRD_FILE, DEFINITIONS, OLDEST, ROOT, ApiServer, api_server, is_built, wait_until

Json = dict[str, Any]
CHART_FILE = ROOT / "charts" / "outlast" / "templates" / "crd.yaml"
# Under another group: beside the one that other tests use, and the rules are not the group's.
GROUP = "copy.outlast.dev"


@pytest.fixture(scope="module")
def oldest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    if not is_built("kubernetes-oldest"):
        pytest.skip(f"Kubernetes {OLDEST} is not built; `make e2e-oldest` builds it")
    with api_server(tmp_path_factory.mktemp("oldest") / "run", OLDEST) as server:
        yield server


def of_file() -> Json:
    return as_copy(yaml.safe_load(CRD_FILE.read_text()))


def of_chart() -> Json:
    lines = [line for line in CHART_FILE.read_text().splitlines() if "{{" not in line]
    document = yaml.safe_load("\n".join(lines))
    del document["metadata"]["annotations"]  # their lines are templates in part
    return as_copy(document)


def as_copy(document: Json) -> Json:
    document["spec"]["group"] = GROUP
    document["metadata"]["name"] = f"{document['spec']['names']['plural']}.{GROUP}"
    return document


@pytest.mark.parametrize("release", ["bare_server", "oldest"])
@pytest.mark.parametrize("source", [of_file, of_chart], ids=["crds", "chart"])
def test_created_and_applied(release: str, source: Any, request: pytest.FixtureRequest) -> None:
    server: ApiServer = request.getfixturevalue(release)
    document = source()
    path = f"{DEFINITIONS}/{document['metadata']['name']}"

    code, answer = server.request("POST", DEFINITIONS, document)
    assert code == 201, answer["message"]
    try:
        wait_until(lambda: established(server, path), "the CRD is not established")
        apply = f"{path}?fieldManager=test&force=true"
        code, answer = server.request("PATCH", apply, yaml.safe_dump(document).encode(), "application/apply-patch+yaml")
        assert code == 200, answer["message"]
    finally:
        server.request("DELETE", path)
        wait_until(lambda: server.request("GET", path)[0] == 404, "the CRD is not deleted")

    code, answer = server.request("PATCH", apply, yaml.safe_dump(document).encode(), "application/apply-patch+yaml")
    assert code == 201, answer["message"]
    wait_until(lambda: established(server, path), "the CRD is not established")
    server.request("DELETE", path)
    wait_until(lambda: server.request("GET", path)[0] == 404, "the CRD is not deleted")


def established(server: ApiServer, path: str) -> bool:
    code, found = server.request("GET", path)
    conditions = (found.get("status") or {}).get("conditions") or ()
    bad = [c for c in conditions if c["type"] == "NonStructuralSchema" and c["status"] == "True"]
    assert not bad, bad
    return code == 200 and any(c["type"] == "Established" and c["status"] == "True" for c in conditions)

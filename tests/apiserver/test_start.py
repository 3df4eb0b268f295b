"""What the operator asks an API server before it serves, and how it updates a resource that is there already."""

from __future__ import annotations

import copy
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from apiserver_process import DEFINITIONS, ApiServer, wait_until
from kubernetes import client

from outlast.api import crd
from outlast_operator.kubernetes.check import check_job
from outlast_operator.kubernetes.cluster.api import JOBS, PLURAL, Api, ApiError
from outlast_operator.kubernetes.crd_update import update
from outlast_operator.kubernetes.preflight import Preflight
from outlast_operator.kubernetes.rights import IN_CLUSTER, IN_NAMESPACES, LEASE, Right

Json = dict[str, Any]
RBAC = "apis/rbac.authorization.k8s.io/v1"
NAME = "trainingjobs.outlast.dev"


class Account:
    """A service account, and the operator's client with its token."""

    def __init__(self, server: ApiServer, namespace: str) -> None:
        self._server, self.namespace = server, namespace
        accounts = f"api/v1/namespaces/{namespace}/serviceaccounts"
        code, answer = server.request("POST", accounts, {"metadata": {"name": "operator"}})
        assert code == 201, answer
        code, answer = server.request("POST", f"{accounts}/operator/token", {"spec": {"expirationSeconds": 3600}})
        assert code == 201, answer
        settings = client.Configuration()
        settings.host = server.client.configuration.host
        settings.ssl_ca_cert = server.client.configuration.ssl_ca_cert
        settings.api_key = {"authorization": f"Bearer {answer['status']['token']}"}
        self.api = Api(client.ApiClient(settings))

    def grant(self, namespace: str, *rights: Right) -> str:
        """A Role with these rights, bound; returns its name."""
        name = f"r-{secrets.token_hex(4)}"
        rules = [{"apiGroups": [r.group], "resources": [r.resource], "verbs": list(r.verbs)} for r in rights]
        self._server.api.create(RBAC, namespace, "roles", {"metadata": {"name": name}, "rules": rules})
        subject = {"kind": "ServiceAccount", "name": "operator", "namespace": self.namespace}
        binding = {
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            "subjects": [subject],
        }
        self._server.api.create(RBAC, namespace, "rolebindings", binding)
        return name


@pytest.fixture
def account(server: ApiServer, namespace: str) -> Account:
    return Account(server, namespace)


@pytest.fixture
def waiting(account: Account, tmp_path: Path) -> Iterator[Waiting]:
    made = Waiting(account, tmp_path / "termination-log")
    yield made
    made.end()


class Waiting:
    """A preflight in a thread of its own. Its clock stands still until `settle`."""

    def __init__(self, account: Account, log: Path) -> None:
        log.touch()
        self._account, self._log = account, log
        self._stop, self._now = threading.Event(), 0.0
        self.served: list[str | None] | None = None
        self.preflight: Preflight | None = None
        self._thread: threading.Thread | None = None

    def start(self, namespaces: list[str]) -> None:
        lease = (self._account.namespace, "outlast")
        self.preflight = Preflight(self._account.api, namespaces, lease, self._stop, lambda: self._now, self._log)
        self._thread = threading.Thread(target=self._wait)
        self._thread.start()

    def _wait(self) -> None:
        assert self.preflight is not None
        self.served = self.preflight.wait()

    def says(self, *words: str) -> None:
        def said() -> bool:
            assert self.preflight is not None
            return all(word in self.preflight.missing and word in self._log.read_text() for word in words)

        wait_until(said, f"the operator does not say {words}, but {self._log.read_text()!r}")
        assert self.served is None

    def serves(self, *namespaces: str) -> None:
        wait_until(lambda: self.served is not None, f"the operator still waits: {self._log.read_text()}")
        assert self.served == list(namespaces)
        assert self._log.read_text() == ""

    def settle(self) -> None:
        self._now = 1000.0

    def end(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()


def test_the_operator_waits_for_each_right_and_serves_with_the_required_ones(
    server: ApiServer, account: Account, waiting: Waiting
) -> None:
    where = server.make_namespace(f"n-{secrets.token_hex(4)}")
    waiting.start([where])
    waiting.says(f"TrainingJobs in namespace {where} cannot be listed: 403", "grant it with the chart's roles")
    required = [right for right in IN_NAMESPACES if right.required]
    account.grant(where, required[0])
    waiting.says(f"no right to update outlast.dev/{PLURAL}/status; get, list, watch, create, patch, delete pods")
    account.grant(where, *required[1:])
    waiting.says(f"no right to create, get, update the Lease {account.namespace}/outlast")
    account.grant(account.namespace, LEASE)
    waiting.serves(where)


def test_the_rights_that_are_not_required_are_named(
    server: ApiServer, account: Account, waiting: Waiting, caplog: pytest.LogCaptureFixture
) -> None:
    where = server.make_namespace(f"n-{secrets.token_hex(4)}")
    account.grant(where, *(right for right in IN_NAMESPACES if right.required))
    account.grant(account.namespace, LEASE)
    waiting.start([where])
    waiting.serves(where)
    assert waiting.preflight is not None
    waiting.preflight.warn_of_degradation([where])
    told = [r.getMessage() for r in caplog.records if r.getMessage().startswith("no right to")]
    optional = [right for right in IN_NAMESPACES if not right.required]
    assert len(told) == len(optional)
    for right in optional:
        assert any(right.key in line and line.endswith(right.without) for line in told)
    assert not any(right.key in line for right in IN_CLUSTER for line in told)


def test_a_deleted_namespace_holds_up_no_other(server: ApiServer, account: Account, waiting: Waiting) -> None:
    kept, gone = (server.make_namespace(f"n-{secrets.token_hex(4)}") for _ in range(2))
    for where in (kept, gone):
        account.grant(where, *(right for right in IN_NAMESPACES if right.required))
    account.grant(account.namespace, LEASE)
    server.request("DELETE", f"api/v1/namespaces/{gone}")
    wait_until(lambda: server.request("GET", f"api/v1/namespaces/{gone}")[0] == 404, "the namespace is not deleted")
    waiting.start([kept, gone])
    waiting.says(f"TrainingJobs in namespace {gone} cannot be listed: 403")
    waiting.settle()
    waiting.serves(kept)
    assert waiting.preflight is not None
    assert waiting.preflight.left_out == [gone]


# --- the resource -----------------------------------------------------------------------------------------------------


def test_a_resource_is_updated_with_its_jobs_and_its_owners_marks(server: ApiServer, namespace: str) -> None:
    path = f"{DEFINITIONS}/{NAME}"
    older = copy.deepcopy(crd.generate())
    older["spec"]["versions"][0]["additionalPrinterColumns"].pop(0)
    mark = {"meta.helm.sh/release-name": "other"}
    _, live = server.request("GET", path)
    older["metadata"] |= {
        "resourceVersion": live["metadata"]["resourceVersion"],
        "annotations": mark,
        "labels": {"a": "b"},
    }
    code, answer = server.request("PUT", path, older)
    assert code == 200, answer
    job = server.api.create(JOBS, namespace, PLURAL, check_job("kept"))
    update(server.api, crd.generate(), timeout_s=30)
    _, live = server.request("GET", path)
    assert live["spec"]["versions"] == crd.generate()["spec"]["versions"]
    assert live["metadata"]["annotations"] == {**mark, "helm.sh/resource-policy": "keep"}
    assert live["metadata"]["labels"] == {"a": "b"}
    kept = server.api.get(JOBS, namespace, PLURAL, "kept")
    assert kept["metadata"]["uid"] == job["metadata"]["uid"]


def test_a_resource_that_the_api_server_refuses_is_left_as_it_is(server: ApiServer) -> None:
    before = server.request("GET", f"{DEFINITIONS}/{NAME}")[1]["spec"]
    wrong = copy.deepcopy(crd.generate())
    wrong["spec"]["scope"] = "Cluster"
    with pytest.raises(ApiError) as refused:
        update(server.api, wrong, timeout_s=30)
    assert refused.value.invalid
    assert server.request("GET", f"{DEFINITIONS}/{NAME}")[1]["spec"] == before


def test_an_update_without_the_right_says_which(server: ApiServer, account: Account) -> None:
    with pytest.raises(ApiError) as refused:
        update(account.api, crd.generate(), timeout_s=30)
    assert refused.value.code == 403
    assert "customresourcedefinitions" in refused.value.message

"""An API server without nodes: etcd, kube-apiserver and the controller manager of one release."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kubernetes import client, config

from outlast.api.crd import GROUP, PLURAL, VERSION
from outlast_operator.kubernetes.cluster.api import Api

Json = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts" / "cluster"
CRD_FILE = ROOT / "crds" / "trainingjobs.outlast.dev.yaml"
DEFINITIONS = "apis/apiextensions.k8s.io/v1/customresourcedefinitions"
NEWEST, OLDEST = "1.37", "1.30"
STOP_S = 20.0


class ApiServer:
    """`api` is the operator's own client; `request` sends anything, and answers with the status code and the body."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        settings = client.Configuration()
        config.load_kube_config(str(kubeconfig), client_configuration=settings)  # type: ignore[no-untyped-call]
        self.client = client.ApiClient(settings)
        self.api = Api(self.client)

    def request(self, method: str, path: str, body: Any = None, content: str = "application/json") -> tuple[int, Json]:
        answer = self.client.rest_client.pool_manager.request(
            method,
            f"{self.client.configuration.host}/{path}",
            body=body if isinstance(body, bytes) or body is None else json.dumps(body).encode(),
            headers={"Content-Type": content, "Accept": "application/json"},
            timeout=30.0,
            retries=False,
        )
        if not answer.headers.get("Content-Type", "").startswith("application/json"):
            return answer.status, {"message": answer.data.decode()}  # of a path that is not served
        return answer.status, json.loads(answer.data)

    def make_namespace(self, name: str, **labels: str) -> str:
        """Ready to take pods: a controller has made its service account."""
        self.api.create("api/v1", "", "namespaces", {"metadata": {"name": name, "labels": labels}})
        account = f"api/v1/namespaces/{name}/serviceaccounts/default"
        wait_until(lambda: self.request("GET", account)[0] == 200, "no controller made the service account")
        return name

    def install(self, definition: Json) -> None:
        """Make the CRD, and wait until its objects are served."""
        code, answer = self.request("POST", DEFINITIONS, definition)
        assert code == 201, answer
        path = f"apis/{GROUP}/{VERSION}/{PLURAL}"
        wait_until(lambda: self.request("GET", path)[0] == 200, "the API server serves no TrainingJobs")


def wait_until(condition: Any, otherwise: str, timeout_s: float = 30.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{otherwise}, {timeout_s:g} s on"
        time.sleep(0.05)
    return found


@contextlib.contextmanager
def api_server(folder: Path, release: str) -> Iterator[ApiServer]:
    """Builds what is not built: the first time that takes minutes. Raises `AssertionError` with the last words."""
    words = folder.with_suffix(".log")
    with (
        words.open("w") as log,
        subprocess.Popen(
            [SCRIPTS / "cluster.sh", "api-server", folder, "controllers"],
            env={**os.environ, "OUTLAST_KUBERNETES": release},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        kubeconfig = process.stdout.readline().strip()
        assert kubeconfig, f"no API server of Kubernetes {release}:\n{words.read_text()[-2000:]}"
        try:
            yield ApiServer(Path(kubeconfig))
        finally:
            assert process.stdin is not None
            process.stdin.close()  # it ends with its input
            process.wait(STOP_S)


def is_built(program: str) -> bool:
    """Whether a program of scripts/cluster/programs is in the cache, as it is pinned now."""
    line = f'. ./lib.sh; . ./programs.sh; [ -d "$(folder_of {program})" ]'
    return subprocess.run(["bash", "-c", line], cwd=SCRIPTS, check=False).returncode == 0

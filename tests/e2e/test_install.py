"""Installing the chart as people do, with Helm 4 and Helm 3, under restricted Pod Security and a quota on limits."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from e2e_cluster import ROOT, SESSION_VARIABLE, Cluster, Json, script, wait_until
from e2e_figures import FULL
from e2e_release import PREFIX

from outlast.api import crd

pytestmark = pytest.mark.skipif(not FULL, reason="for make e2e-full: too long for every run")
CHART, CRD = ROOT / "charts" / "outlast", "trainingjobs.outlast.dev"
CRD_FILE = ROOT / "crds" / f"{CRD}.yaml"
NAMESPACE, JOBS = f"{PREFIX}-install", f"{PREFIX}-install-jobs"
RELEASE = "installed"
NAME = f"{RELEASE}-outlast"
LEASE = f"lease.coordination.k8s.io/{NAME}"  # the operator's own
OPERATOR = f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/name=outlast-operator"
READY_S = 120
QUOTA = {"requests.cpu": "1", "requests.memory": "1Gi", "limits.cpu": "8", "limits.memory": "4Gi", "pods": "10"}
OF_JOBS = {"requests.cpu": "8", "requests.memory": "24Gi", "limits.cpu": "32", "limits.memory": "32Gi", "pods": "20"}
SOME = ("--set", f"namespaces={{{JOBS}}},userRoles=Namespaced")
KINDS = "all,serviceaccounts,secrets,configmaps,roles,rolebindings,poddisruptionbudgets,leases,persistentvolumeclaims"


@dataclass
class Helm:
    """One Helm, on one cluster; `folder` holds it beside kubectl."""

    cluster: Cluster
    folder: Path
    major: int

    def __call__(self, *arguments: str, fails: bool = False) -> str:
        """Run it; returns all that it said. Raises `AssertionError` if it ends otherwise than expected."""
        return self.shell(" ".join(f"'{word}'" for word in ("helm", *arguments)), fails)

    def shell(self, commands: str, fails: bool = False) -> str:
        """Commands as a user pastes them."""
        inherited = {k: v for k, v in os.environ.items() if k != SESSION_VARIABLE}
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
            env={**inherited, "PATH": f"{self.folder}:{os.environ['PATH']}", "KUBECONFIG": self.cluster.kubeconfig},
        )  # fmt: skip
        assert (done.returncode != 0) == fails, f"{commands}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def install(self, *options: str, command: str = "install", chart: Path = CHART, fails: bool = False) -> str:
        return self(command, RELEASE, str(chart), "-n", NAMESPACE, *options, fails=fails)

    @property
    def rollback(self) -> str:
        return "--atomic" if self.major == 3 else "--rollback-on-failure"


@pytest.fixture(scope="module", params=[4, 3], ids=["helm 4", "helm 3"])
def helm(cluster: Cluster, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Helm:
    folder = tmp_path_factory.mktemp(f"helm{request.param}")
    binary = cluster.tools / "helm" if request.param == 4 else Path(script("cluster.sh", "prepare", "helm")) / "helm"
    (folder / "helm").symlink_to(binary)
    (folder / "kubectl").symlink_to(cluster.tools / "kubectl")
    found = Helm(cluster, folder, request.param)
    assert found("version", "--short").startswith(f"v{request.param}.")
    return found


@pytest.fixture
def namespaces(cluster: Cluster) -> Iterator[str]:
    """The release's namespace and the jobs', empty, as strict as namespaces of teams are."""
    for name, hard in ((NAMESPACE, QUOTA), (JOBS, OF_JOBS)):
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "team", "namespace": name}}
        cluster.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}},
            {**quota, "spec": {"hard": hard}},
        )
    yield NAMESPACE
    for kind in ("clusterrole", "clusterrolebinding"):
        cluster.kubectl("delete", kind, "-l", f"app.kubernetes.io/instance={RELEASE}", "--ignore-not-found")
    cluster.kubectl("delete", "namespace", NAMESPACE, JOBS, timeout_s=120)


@pytest.fixture
def bare(cluster: Cluster, namespaces: str) -> Iterator[None]:
    """No TrainingJob resource: the cluster as it comes. Only on a cluster of the tests, with no jobs."""
    if cluster.provider == "given" or PREFIX != "outlast-e2e":
        pytest.skip("others may use the TrainingJob resource of this cluster")
    if cluster.kubectl("get", "crd", CRD, "--ignore-not-found"):
        left = json.loads(cluster.kubectl("get", "tjob", "-A", "-o", "json"))["items"]
        assert left == [], "jobs of other tests would go with the resource"
        cluster.kubectl("delete", "crd", CRD)
    yield
    if not cluster.kubectl("get", "crd", CRD, "--ignore-not-found"):
        cluster.kubectl("create", "-f", str(CRD_FILE))  # other tests' release has it


@pytest.fixture(params=["no resource", "another's resource"])
def either(cluster: Cluster, namespaces: str, request: pytest.FixtureRequest) -> None:
    """The cluster as it comes, or with a TrainingJob resource that no release of this name owns."""
    if request.param == "no resource":
        request.getfixturevalue("bare")
    elif not cluster.kubectl("get", "crd", CRD, "--ignore-not-found"):
        cluster.kubectl("create", "-f", str(CRD_FILE))


def older_resource() -> Json:
    """The resource of an earlier release: a column and a field less."""
    document = copy.deepcopy(crd.generate())
    (version,) = document["spec"]["versions"]
    version["additionalPrinterColumns"].pop(0)
    del version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]["failoverCount"]
    return document


def live_resource(cluster: Cluster) -> Json:
    found: Json = json.loads(cluster.kubectl("get", "crd", CRD, "-o", "json"))
    return found


def assert_resource_is_current(cluster: Cluster) -> None:
    live, wanted = live_resource(cluster), crd.generate()
    assert live["spec"]["versions"] == wanted["spec"]["versions"]
    assert live["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def operators(cluster: Cluster) -> list[Json]:
    found = json.loads(cluster.kubectl("get", "pods", "-n", NAMESPACE, "-l", OPERATOR, "-o", "json"))
    return [pod for pod in found["items"] if "deletionTimestamp" not in pod["metadata"]]


def restarts(cluster: Cluster) -> int:
    statuses = [s for pod in operators(cluster) for s in pod["status"].get("containerStatuses", [])]
    return sum(s["restartCount"] for s in statuses)


def running(cluster: Cluster) -> bool:
    statuses = [s for pod in operators(cluster) for s in pod["status"].get("containerStatuses", [])]
    return bool(statuses) and all("running" in s["state"] for s in statuses)


def ready(cluster: Cluster) -> bool:
    status = json.loads(cluster.kubectl("get", "deployment", NAME, "-n", NAMESPACE, "-o", "json"))["status"]
    return bool(status.get("readyReplicas", 0) == status.get("replicas"))


def logs(cluster: Cluster) -> str:
    return cluster.kubectl("logs", "-n", NAMESPACE, "-l", OPERATOR, "--tail=50")


def waits_unready(cluster: Cluster, reason: str) -> None:
    """The operator's pods run, say what is missing, and are not restarted meanwhile: past three liveness probes."""
    wait_until("the operators to say what is missing", lambda: running(cluster) and reason in logs(cluster), READY_S)
    started = max(pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"] for pod in operators(cluster))
    wait_until("50 s of running", lambda: _age_s(started) > 50, 90, poll_s=2)
    assert restarts(cluster) == 0
    assert not ready(cluster)


def _age_s(stamp: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(stamp)).total_seconds()


def failovers(cluster: Cluster) -> int:
    job = cluster.job(JOBS, "first")
    assert job is not None
    return int((job.get("status") or {}).get("failoverCount", 0))


def objects(cluster: Cluster, namespace: str) -> set[str]:
    """All that is in a namespace, but what Kubernetes itself puts there and moves on."""
    names = cluster.kubectl("get", KINDS, "-n", namespace, "-o", "name").split()
    return {name for name in names if name not in ("configmap/kube-root-ca.crt", "serviceaccount/default")}


def clusterwide(cluster: Cluster) -> str:
    return cluster.kubectl(
        "get", "clusterroles,clusterrolebindings", "-l", f"app.kubernetes.io/instance={RELEASE}", "-o", "name"
    )


# --- installing -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("values", [(), SOME], ids=["without values", "with values"])
def test_install_twice_and_test(cluster: Cluster, helm: Helm, values: tuple[str, ...]) -> None:
    for _ in range(2):
        helm.install("--wait", "--timeout", f"{READY_S}s", *values)
        assert ready(cluster)
        assert restarts(cluster) == 0
        assert_resource_is_current(cluster)
        helm("test", RELEASE, "-n", NAMESPACE)
        served = JOBS if values else NAMESPACE
        assert cluster.kubectl("get", "tjob", "-n", served, "-o", "name") == "", "the test's job is deleted"
        helm("uninstall", RELEASE, "-n", NAMESPACE, "--wait")
        assert clusterwide(cluster) == ""
        assert live_resource(cluster), "it stays, and with it all jobs"
        wait_until("an empty namespace", lambda: objects(cluster, NAMESPACE) <= {LEASE}, 60)


@pytest.mark.usefixtures("namespaces")
def test_the_commands_of_the_notes_work_when_pasted(cluster: Cluster, helm: Helm) -> None:
    script("images.sh", "trainer", "redis")
    said = helm.install("--wait", "--timeout", f"{READY_S}s", *SOME)
    notes = said.split("NOTES:\n", 1)[1]
    pasted = re.findall(r"^(?:kubectl .*<<'JOB'\n(?:.*\n)*?JOB|(?:kubectl|helm) .*)$", notes, re.MULTILINE)
    assert len(pasted) == 8, "a command that this test does not see"
    for command in pasted:
        helm.shell(command)
    wait_until("the loss to be counted", lambda: failovers(cluster) == 1, 30)
    cluster.kubectl("delete", "tjob", "first", "-n", JOBS)


def test_helm_test_fails_where_no_operator_serves(cluster: Cluster, helm: Helm, namespaces: str) -> None:
    helm.install("--set", "replicas=0", *SOME)
    helm("test", RELEASE, "-n", NAMESPACE, "--timeout", "150s", fails=True)
    said = cluster.kubectl("logs", "-n", NAMESPACE, f"{NAME}-test")
    assert f"no operator wrote the status of a TrainingJob in namespace {JOBS}" in said
    assert cluster.kubectl("get", "tjob", "-n", JOBS, "-o", "name") == ""


# --- after something went wrong ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("namespaces")
def test_a_failed_try_is_repaired_by_an_upgrade(cluster: Cluster, helm: Helm) -> None:
    helm.install("--wait", "--timeout", "15s", "--set", "image.tag=absent", *SOME, fails=True)
    helm.install("--install", "--wait", "--timeout", f"{READY_S}s", *SOME, command="upgrade")
    assert ready(cluster)


@pytest.mark.usefixtures("bare")
def test_upgrade_from_a_release_whose_resource_was_refused(cluster: Cluster, helm: Helm, tmp_path: Path) -> None:
    """What a release of before Kubernetes 1.30 was supported has left: all but the resource, in the state failed."""
    former = Path(shutil.copytree(CHART, tmp_path / "outlast"))
    template = former / "templates" / "crd.yaml"
    text = template.read_text()
    assert text.count("  group: outlast.dev\n") == 1
    template.write_text(text.replace("  group: outlast.dev\n", "  group: not.outlast.dev\n"))  # its name says otherwise
    said = helm.install(chart=former, fails=True)
    assert "CustomResourceDefinition" in said
    waits_unready(cluster, "the cluster has no resource TrainingJob")
    helm.install("--wait", "--timeout", f"{READY_S}s", command="upgrade")
    assert ready(cluster)
    assert_resource_is_current(cluster)
    helm("test", RELEASE, "-n", NAMESPACE)


@pytest.mark.usefixtures("bare")
def test_the_operator_waits_for_the_resource_which_an_upgrade_then_updates(cluster: Cluster, helm: Helm) -> None:
    """`crds.install=false`, before an administrator has applied it; then the chart takes over."""
    helm.install("--set", "crds.install=false", *SOME)
    waits_unready(cluster, "apply crds/trainingjobs.outlast.dev.yaml, or install the chart with crds.install=true")
    cluster.apply(older_resource())
    wait_until("the operators to be ready", lambda: ready(cluster), 60)
    assert restarts(cluster) == 0
    helm.install("--wait", "--timeout", f"{READY_S}s", *SOME, command="upgrade")
    assert_resource_is_current(cluster)


@pytest.mark.usefixtures("bare")
def test_a_resource_that_kubectl_applied_is_brought_up_to_date_with_its_jobs(cluster: Cluster, helm: Helm) -> None:
    cluster.apply(older_resource())
    cluster.kubectl("wait", "crd", CRD, "--for=condition=Established", "--timeout=30s")
    job = {
        "apiVersion": "outlast.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "kept", "namespace": JOBS},
        "spec": {"suspend": True, "training": {"task": "outlast.tasks.synthetic", "stopAfter": {"updates": 1}}},
    }
    cluster.apply(job)
    before = cluster.job(JOBS, "kept")
    for command in ("install", "upgrade"):
        helm.install("--wait", "--timeout", f"{READY_S}s", *SOME, command=command)
        assert_resource_is_current(cluster)
        assert clusterwide(cluster) == "", "the Job's rights go with it"
        assert not any("job.batch" in name for name in objects(cluster, NAMESPACE))
    cluster.kubectl("annotate", "crd", CRD, "helm.sh/resource-policy-")
    helm.install("--wait", "--timeout", f"{READY_S}s", *SOME, command="upgrade")
    helm("uninstall", RELEASE, "-n", NAMESPACE, "--wait")
    after = cluster.job(JOBS, "kept")
    assert before is not None
    assert after is not None
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    cluster.kubectl("delete", "tjob", "kept", "-n", JOBS)


@pytest.mark.usefixtures("bare")
def test_a_release_that_made_the_resource_keeps_it_when_its_marks_are_lost(cluster: Cluster, helm: Helm) -> None:
    """`kubectl replace` takes the annotations away by which Helm knows it, and those that keep it."""
    helm.install("--wait", "--timeout", f"{READY_S}s", *SOME)
    uid = live_resource(cluster)["metadata"]["uid"]
    cluster.kubectl("replace", "-f", str(CRD_FILE))
    helm.install("--wait", "--timeout", f"{READY_S}s", *SOME, command="upgrade")
    assert_resource_is_current(cluster)
    assert live_resource(cluster)["metadata"]["uid"] == uid, "with another one every job is gone"


# --- rights -----------------------------------------------------------------------------------------------------------

READS_CRDS = {
    "apiGroups": ["apiextensions.k8s.io"],
    "resources": ["customresourcedefinitions"],
    "verbs": ["get", "list"],
}
MAKES_CRDS = {**READS_CRDS, "verbs": ["get", "list", "watch", "create", "patch"]}
READS_ROLES = {
    "apiGroups": ["rbac.authorization.k8s.io"],
    "resources": ["clusterroles", "clusterrolebindings"],
    "verbs": ["get", "list"],
}


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize(
    "rules",
    [[], [READS_CRDS], [READS_CRDS, READS_ROLES], [MAKES_CRDS, READS_ROLES]],
    ids=["a namespace's admin", "reads CRDs", "reads all", "makes CRDs"],
)
def test_without_rights_a_rolled_back_install_leaves_nothing(cluster: Cluster, helm: Helm, rules: list[Json]) -> None:
    user = f"{PREFIX}-ada"
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": user}}
    binding = {**role, "kind": "ClusterRoleBinding"}
    person = {"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}
    cluster.kubectl("create", "rolebinding", user, "--clusterrole=admin", f"--user={user}", "-n", NAMESPACE)
    cluster.apply(
        {**role, "rules": rules},
        {
            **binding,
            "roleRef": {"apiGroup": person["apiGroup"], "kind": "ClusterRole", "name": user},
            "subjects": [person],
        },
    )
    try:
        before = objects(cluster, NAMESPACE)
        had = cluster.kubectl("get", "crd", CRD, "--ignore-not-found", "-o", "name")
        said = helm.install(helm.rollback, "--timeout", "60s", "--kube-as-user", user, fails=True)
        assert "orbidden" in said
        # Helm keeps its record of a release if it may not delete what the release has not even made.
        record = {f"secret/sh.helm.release.v1.{RELEASE}.v1"} if READS_ROLES in rules else set()
        wait_until("an empty namespace", lambda: objects(cluster, NAMESPACE) - record == before, 60)
        assert clusterwide(cluster) == ""
        assert cluster.kubectl("get", "crd", CRD, "--ignore-not-found", "-o", "name") == had or MAKES_CRDS in rules
    finally:
        cluster.kubectl("delete", "clusterrole,clusterrolebinding", user)


def test_an_operator_without_rights_waits_until_they_are_granted(cluster: Cluster, helm: Helm, namespaces: str) -> None:
    helm.install("--set", "rbac.create=false", *SOME)
    waits_unready(cluster, f"TrainingJobs in namespace {JOBS} cannot be listed")
    helm.install("--wait", "--timeout", f"{READY_S}s", "--set", "rbac.create=true", *SOME, command="upgrade")
    assert restarts(cluster) == 0
    helm("test", RELEASE, "-n", NAMESPACE)


def test_the_documented_first_job_is_the_one_of_the_notes() -> None:
    page = (ROOT / "docs" / "how-to" / "install.md").read_text()
    notes = (CHART / "templates" / "NOTES.txt").read_text()
    jobs = [yaml.safe_load(m) for text in (page, notes) for m in re.findall(r"<<'JOB'\n(.*?)\nJOB\n", text, re.DOTALL)]
    assert len(jobs) == 2
    assert jobs[0] == jobs[1]

"""The chart's hooks: the Job that updates a resource which the release does not own, and `helm test`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from chart_tools import CHART, EVERYTHING, is_hook, of_kind, only, render, render_all, run

from outlast.api import crd
from outlast.api.job import TrainingJob
from outlast_operator.cli import kubectl
from outlast_operator.cli.main import make_parser
from outlast_operator.kubernetes.check import check_job

VALUES = {"defaults": {}, "everything": EVERYTHING}
REACHABLE = {"emptyDir", "configMap", "secret", "projected"}


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart as it renders where the resource exists and is not the release's: `helm template` asks no cluster."""
    copied = Path(shutil.copytree(CHART, tmp_path_factory.mktemp("foreign") / "outlast"))
    helpers = copied / "templates" / "_helpers.tpl"
    text = helpers.read_text()
    asked = 'lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" "trainingjobs.outlast.dev"'
    assert text.count(asked) == 1
    answer = 'dict "metadata" (dict "annotations" (dict "meta.helm.sh/release-name" "other"))'
    helpers.write_text(text.replace(asked, answer))
    return copied


def rendered(chart: Path, values: dict[str, Any]) -> list[dict[str, Any]]:
    done = run(
        "template", "outlast", str(chart), "--namespace", "outlast-system", "--kube-version", "1.31.0",
        "--api-versions", "monitoring.coreos.com/v1", values=values,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [doc for doc in yaml.safe_load_all(done.stdout) if doc]


def before(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The hooks that run before anything is made or changed, in Helm's order."""
    hooks = [o for o in objects if is_hook(o) and "pre-install" in o["metadata"]["annotations"]["helm.sh/hook"]]
    return sorted(hooks, key=lambda o: int(o["metadata"]["annotations"]["helm.sh/hook-weight"]))


def pods(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [o["spec"] if o["kind"] == "Pod" else o["spec"]["template"]["spec"] for o in objects
            if o["kind"] in ("Pod", "Job")]  # fmt: skip


def test_a_release_that_owns_the_resource_or_makes_it_has_no_hook_for_it() -> None:
    assert before(render_all()) == []
    assert only(render_all(), "CustomResourceDefinition")


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_a_foreign_resource_is_updated_by_a_job_and_is_no_object_of_the_release(
    foreign: Path, values: dict[str, Any]
) -> None:
    objects = rendered(foreign, values)
    assert of_kind(objects, "CustomResourceDefinition") == [], "Helm would refuse what it does not own"
    hooks = before(objects)
    kinds = ["ClusterRole", "ClusterRoleBinding", "ServiceAccount", "ConfigMap", "Job"]
    if values.get("networkPolicy", {}).get("enabled"):
        kinds.insert(3, "NetworkPolicy")
    assert [o["kind"] for o in hooks] == kinds, "first what may be refused: nothing is left then"
    role, binding, account, *_, data, job = hooks
    assert {o["metadata"]["annotations"]["helm.sh/hook"] for o in hooks} == {"pre-install,pre-upgrade"}
    for o in hooks:
        policy = o["metadata"]["annotations"]["helm.sh/hook-delete-policy"].split(",")
        assert set(policy) == {"before-hook-creation", "hook-succeeded", "hook-failed"}, "nothing of it stays"
        kubernetes_validate.validate(o, "1.31", strict=True)
    (rule,) = role["rules"]
    assert rule["resourceNames"] == ["trainingjobs.outlast.dev"]
    assert set(rule["verbs"]) == {"get", "patch"}
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"][0]["name"] == account["metadata"]["name"]
    assert job["spec"]["template"]["spec"]["serviceAccountName"] == account["metadata"]["name"]
    applied = yaml.safe_load(data["data"]["crd.yaml"])
    assert applied["spec"] == crd.generate()["spec"]
    assert applied["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    (container,) = job["spec"]["template"]["spec"]["containers"]
    mount = next(m for m in container["volumeMounts"] if m["name"] == "crd")
    arguments = make_parser("crd").parse_args(container["args"])
    assert arguments.apply == Path(mount["mountPath"]) / "crd.yaml"


@pytest.mark.parametrize("values", [{"crds": {"install": False}}, {"rbac": {"create": False}}], ids=str)
def test_a_foreign_resource_can_be_left_to_its_owner(foreign: Path, values: dict[str, Any]) -> None:
    objects = rendered(foreign, values)
    assert before(objects) == []
    assert of_kind(objects, "CustomResourceDefinition") == []


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_pods_of_hooks_meet_pod_security_and_quotas(foreign: Path, values: dict[str, Any]) -> None:
    found = pods(rendered(foreign, values))
    assert len(found) == 2
    for pod in found:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod.get("imagePullSecrets") == values.get("imagePullSecrets")
        assert all(set(volume) - {"name"} <= REACHABLE for volume in pod["volumes"])
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert context["readOnlyRootFilesystem"] is True
            for kind in ("requests", "limits"):
                assert set(container["resources"][kind]) == {"cpu", "memory"}


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_no_selector_of_the_operator_finds_a_hooks_pod(foreign: Path, values: dict[str, Any]) -> None:
    objects = rendered(foreign, values)
    selector = only(objects, "Deployment")["spec"]["selector"]["matchLabels"]
    labels = [o["metadata"]["labels"] if o["kind"] == "Pod" else o["spec"]["template"]["metadata"]["labels"]
              for o in objects if o["kind"] in ("Pod", "Job")]  # fmt: skip
    assert len(labels) == 2
    assert not any(selector.items() <= one.items() for one in labels)


@pytest.mark.parametrize(("values", "served"), [({}, "outlast-system"), (EVERYTHING, "team-a")], ids=["all", "some"])
def test_helm_test_asks_in_a_namespace_that_is_served(values: dict[str, Any], served: str) -> None:
    hooks = [o for o in render_all(values) if is_hook(o)]
    assert {o["metadata"]["annotations"]["helm.sh/hook"] for o in hooks} == {"test"}
    role, binding, pod = only(hooks, "Role"), only(hooks, "RoleBinding"), only(hooks, "Pod")
    assert role["metadata"]["namespace"] == binding["metadata"]["namespace"] == served
    assert binding["subjects"][0]["namespace"] == pod["metadata"]["namespace"] == "outlast-system"
    (rule,) = role["rules"]
    assert rule["resources"] == ["trainingjobs"]
    assert set(rule["verbs"]) == {"create", "get", "watch", "delete"}
    (container,) = pod["spec"]["containers"]
    assert container["command"] == ["kubectl-outlast"]
    arguments = kubectl.make_parser().parse_args(container["args"])
    assert arguments.namespace == served
    for o in hooks:
        kubernetes_validate.validate(o, "1.31", strict=True)


def test_hooks_reach_the_api_server_where_the_namespace_denies_by_default(foreign: Path) -> None:
    objects = rendered(foreign, {"networkPolicy": {"enabled": True}})
    policies = [o for o in objects if o["kind"] == "NetworkPolicy" and is_hook(o)]
    assert {o["metadata"]["annotations"]["helm.sh/hook"] for o in policies} == {"pre-install,pre-upgrade", "test"}
    labels = [o["metadata"]["labels"] if o["kind"] == "Pod" else o["spec"]["template"]["metadata"]["labels"]
              for o in objects if o["kind"] in ("Pod", "Job")]  # fmt: skip
    for policy in policies:
        assert policy["spec"]["egress"] == [{}], "the API server's address is no pod's"
        assert all(policy["spec"]["podSelector"]["matchLabels"].items() <= one.items() for one in labels)


def test_the_job_of_helm_test_is_valid_and_has_no_pods() -> None:
    loaded = TrainingJob.load(check_job("outlast-check-000000"))
    assert loaded.warnings == []
    assert loaded.spec.suspend


def test_without_roles_there_is_no_helm_test() -> None:
    assert [o for o in render_all({"rbac": {"create": False}}) if is_hook(o)] == []
    assert [o for o in render() if is_hook(o)] == []

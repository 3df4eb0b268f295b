"""The chart: valid for every Kubernetes, its CRD the generated one, its pods restricted, its values checked."""

from __future__ import annotations

import json
import re
from typing import Any

import kubernetes_validate
import pytest
import yaml
from chart_tools import CHART, EVERYTHING, ROOT, of_kind, only, refusal, render, run, template_text

from outlast.api import crd
from outlast.api.job import TrainingJob
from outlast_operator.cli.main import make_parser

KUBERNETES = ["1.30", "1.31", "1.33", "1.35", "1.37"]
VALUES = {"defaults": {}, "everything": EVERYTHING}
FOREIGN = {"ServiceMonitor", "PodMonitor", "PrometheusRule"}  # of the Prometheus Operator: no schema here


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_lint(values: dict[str, Any]) -> None:
    done = run("lint", "--strict", str(CHART), "--kube-version", "1.31.0", values={**values, "metrics": {}})
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("kubernetes", KUBERNETES)
def test_objects_meet_the_schemas_of(kubernetes: str, values: dict[str, Any]) -> None:
    objects = render(values, f"{kubernetes}.0")
    checked = [o for o in objects if o["kind"] not in FOREIGN]
    assert len(checked) >= 10
    for o in checked:
        kubernetes_validate.validate(o, kubernetes, strict=True)


@pytest.mark.parametrize("version", ["1.30.0", "v1.30.4-gke.1348000", "v1.31.2-eks-7f9249a", "v1.32.1+k3s1"])
def test_supported_releases_are_taken(version: str) -> None:
    assert only(render(kubernetes=version), "Deployment")


def test_older_releases_are_refused() -> None:
    assert "requires kubeVersion: >=1.30.0-0" in refusal({}, "--kube-version", "1.29.14")


def test_schemas_refuse_what_is_wrong() -> None:
    deployment = only(render(), "Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["imagePulPolicy"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, "1.31", strict=True)


def test_appversion_is_the_projects() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert chart["appVersion"] == chart["version"] == version[1]


# --- the CRD ----------------------------------------------------------------------------------------------------------


def test_crd_template_is_generated() -> None:
    command = "python -m outlast.api.crd --helm > charts/outlast/templates/crd.yaml"
    assert (CHART / "templates" / "crd.yaml").read_text() == crd.render(helm=True), f"run: {command}"


@pytest.mark.parametrize("kubernetes", ["1.30.0", "1.37.0"])
def test_crd_as_installed_is_the_generated_one(kubernetes: str) -> None:
    for values in VALUES.values():
        installed = only(render(values, kubernetes), "CustomResourceDefinition")
        assert installed["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
        assert installed["metadata"]["name"] == "trainingjobs.outlast.dev"
        assert installed["spec"] == crd.generate()["spec"]


def test_crd_can_be_left_to_others() -> None:
    assert of_kind(render({"crds": {"install": False}}), "CustomResourceDefinition") == []
    assert not (CHART / "crds").exists(), "Helm never upgrades what lies there"


# --- the operator's pods ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_pods_meet_pod_security_restricted(values: dict[str, Any]) -> None:
    pod = only(render(values), "Deployment")["spec"]["template"]["spec"]
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 65532
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["readOnlyRootFilesystem"] is True
        assert not any("hostPort" in port for port in container["ports"])
        assert all(set(container["resources"][kind]) == {"cpu", "memory"} for kind in ("requests", "limits")), "quotas"
    assert all(set(volume) - {"name"} <= {"emptyDir", "configMap", "secret", "projected"} for volume in pod["volumes"])


def test_arguments_and_namespaces() -> None:
    everywhere = _container({})["args"]
    assert "--all-namespaces" in everywhere
    assert not any(a.startswith("--namespace=") for a in everywhere)
    some = _container(EVERYTHING)["args"]
    assert [a for a in some if a.startswith("--namespace=")] == ["--namespace=team-a", "--namespace=team-b"]
    assert "--all-namespaces" not in some
    assert "--lease-namespace=outlast-system" in some
    assert "--trainer-image=outlast/trainer:0.1.0" in some
    assert "--redis-image=outlast/redis:0.1.0" in some
    assert some[-1] == "--log-format=text"
    for arguments in (everywhere, some):
        make_parser("operator").parse_args(arguments)  # ends the test where the operator would not take them


def test_values_reach_the_pods() -> None:
    template = only(render(EVERYTHING), "Deployment")["spec"]["template"]
    pod = template["spec"]
    for name in (
        "imagePullSecrets",
        "nodeSelector",
        "tolerations",
        "affinity",
        "topologySpreadConstraints",
        "priorityClassName",
    ):
        assert pod[name] == EVERYTHING[name], name
    assert pod["serviceAccountName"] == "someone"
    assert template["metadata"]["annotations"]["e"] == "f"
    assert template["metadata"]["labels"]["g"] == "h"
    assert pod["containers"][0]["image"] == "registry.example/outlast:9"
    assert pod["containers"][0]["imagePullPolicy"] == "Always"
    assert {"name": "HTTPS_PROXY", "value": "http://proxy"} in pod["containers"][0]["env"]


@pytest.mark.parametrize(
    ("repository", "policy"), [("outlast/operator", "Never"), ("registry.example/outlast/operator", "IfNotPresent")]
)
def test_an_image_that_names_no_registry_of_ours_is_never_pulled(repository: str, policy: str) -> None:
    """Else whoever registers the name "outlast" with the default registry runs code in the cluster."""
    assert _container({"image": {"repository": repository}})["imagePullPolicy"] == policy


def test_replicas_prefer_different_nodes_and_survive_a_drain() -> None:
    deployment = only(render(), "Deployment")
    (preferred,) = deployment["spec"]["template"]["spec"]["affinity"]["podAntiAffinity"][
        "preferredDuringSchedulingIgnoredDuringExecution"
    ]
    selector = deployment["spec"]["selector"]["matchLabels"]
    assert preferred["podAffinityTerm"]["labelSelector"]["matchLabels"] == selector
    assert deployment["spec"]["replicas"] == 2
    budget = only(render(), "PodDisruptionBudget")
    assert budget["apiVersion"] == "policy/v1"
    assert budget["spec"]["selector"]["matchLabels"] == selector
    assert of_kind(render({"replicas": 1}), "PodDisruptionBudget") == [], "it would hold up every drain"


def test_a_long_release_name_fits() -> None:
    for o in [*render(EVERYTHING, release="r" * 53), *render(release="r" * 53)]:
        assert len(o["metadata"]["name"]) <= (253 if o["kind"].startswith("Cluster") else 63), o["kind"]
        for key, value in o["metadata"].get("labels", {}).items():
            assert len(value) <= 63, key


def test_network_policy_lets_in_metrics_only() -> None:
    (policy,) = of_kind(render(EVERYTHING), "NetworkPolicy")
    (rule,) = policy["spec"]["ingress"]
    assert rule["ports"] == [{"port": "metrics", "protocol": "TCP"}]
    assert rule["from"] == EVERYTHING["networkPolicy"]["metricsFrom"]
    assert of_kind(render(), "NetworkPolicy") == []


def test_the_operator_is_told_who_may_ask_jobs_for_metrics() -> None:
    """It makes the policies of their pods."""
    (deployment,) = of_kind(render(EVERYTHING), "Deployment")
    arguments = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    (told,) = [a.removeprefix("--metrics-from=") for a in arguments if a.startswith("--metrics-from=")]
    assert json.loads(told) == EVERYTHING["networkPolicy"]["metricsFrom"]
    (deployment,) = of_kind(render(), "Deployment")
    arguments = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    assert not any(a.startswith("--metrics-from") for a in arguments)


# --- values -----------------------------------------------------------------------------------------------------------

WRONG = [
    ({"replica": 3}, "replica"),
    ({"replicas": "two"}, "replicas"),
    ({"replicas": -1}, "replicas"),
    ({"namespaces": "team"}, "namespaces"),
    ({"namespaces": ["Team_A"]}, "namespaces"),
    ({"namespaces": ["a", "a"]}, "namespaces"),
    ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
    ({"image": {"tagg": "1"}}, "tagg"),
    ({"userRoles": "Everybody"}, "userRoles"),
    ({"userRoles": "Namespaced"}, "which is empty; list the namespaces, or choose Aggregated"),
    ({"logFormat": "xml"}, "logFormat"),
    ({"ports": {"health": 80}}, "health"),
    ({"metrics": {"podMonitor": {"interval": "15"}}}, "interval"),
    ({"metrics": {"prometheusRule": {"failoverSeconds": 0}}}, "failoverSeconds"),
    ({"podDisruptionBudget": {"minAvailable": "half"}}, "minAvailable"),
    ({"metrics": {"serviceMonitor": {"enabled": True}}}, "install the Prometheus Operator first, or set it to false"),
    ({"metrics": {"podMonitor": {"enabled": True}}}, "metrics.podMonitor.enabled is true, but"),
    ({"metrics": {"prometheusRule": {"enabled": True}}}, "metrics.prometheusRule.enabled is true, but"),
]


@pytest.mark.parametrize(("values", "words"), WRONG, ids=[str(values) for values, _ in WRONG])
def test_wrong_values_are_refused(values: dict[str, Any], words: str) -> None:
    assert words in refusal(values)


def test_service_monitor_needs_the_service() -> None:
    values = {"metrics": {"service": False, "serviceMonitor": {"enabled": True}}}
    assert "needs metrics.service: true" in refusal(values, "--api-versions", "monitoring.coreos.com/v1")


def _paths(node: Any, prefix: str = "") -> set[str]:
    if not isinstance(node, dict) or not node:
        return {prefix}
    return {path for key, child in node.items() for path in _paths(child, f"{prefix}.{key}".lstrip("."))}


def test_every_value_is_used_and_in_the_schema() -> None:
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())
    assert set(defaults) | {"global"} == set(schema["properties"])
    templates = "".join(p.read_text() for p in (CHART / "templates").rglob("*.*") if p.name != "crd.yaml")
    templates += (CHART / "templates" / "crd.yaml").read_text()[:2000]
    whole = {"resources", "podSecurityContext", "securityContext", "updateStrategy", "metrics"}  # passed on, or `with`
    for path in _paths(defaults):
        used = path if path.split(".")[0] not in whole else path.split(".")[0]
        assert f".Values.{used}" in templates, path
    for path in _paths(defaults["metrics"]):
        assert all(f".{part}" in templates for part in path.split(".")[:2]), path


def test_notes_give_a_job_that_is_valid() -> None:
    done = run("install", "outlast", str(CHART), "--dry-run=client", "--namespace", "outlast-system", values={})
    assert done.returncode == 0, done.stderr
    notes = done.stdout.split("NOTES:\n", 1)[1]
    assert "\nkubectl -n outlast-system rollout status deployment/outlast" in notes, "a command is pasted as it stands"
    assert "WARNING" not in notes
    job = re.search(r"<<'JOB'\n(.*?)\nJOB\n", notes, re.DOTALL)
    assert job is not None, "an indented JOB would not end the text when pasted"
    loaded = TrainingJob.load(job[1])
    assert loaded.warnings == []
    assert loaded.name == "first"


def test_notes_warn_where_users_could_run_as_the_operator() -> None:
    values = {"namespaces": ["team-a", "outlast-system"]}
    done = run("install", "outlast", str(CHART), "--dry-run=client", "--namespace", "outlast-system", values=values)
    assert "WARNING: outlast-system contains the operator's ServiceAccount" in done.stdout


def test_nothing_is_left_unrendered_but_what_prometheus_renders() -> None:
    assert "{{" not in template_text()
    rules = yaml.safe_dump(only(render(EVERYTHING), "PrometheusRule"), width=10_000)
    assert set(re.findall(r"\{\{.*?\}\}", rules)) == {"{{ $labels.namespace }}", "{{ $labels.training_job }}"}
    others = [o for o in render(EVERYTHING) if o["kind"] not in ("PrometheusRule", "ConfigMap")]
    assert "{{" not in yaml.safe_dump(others)


def _container(values: dict[str, Any]) -> dict[str, Any]:
    (container,) = only(render(values), "Deployment")["spec"]["template"]["spec"]["containers"]
    found: dict[str, Any] = container
    return found

"""Dashboard, alerts and monitors: they ask for metrics that are told, by labels that they have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from chart_tools import CHART, EVERYTHING, of_kind, only, render

from outlast.api.server_status import ServerStatus
from outlast.process import metrics as trainer
from outlast_operator.kubernetes import metrics as operator
from outlast_operator.kubernetes.manifests.names import JOB_LABEL, METRICS_PORT, ROLE_LABEL

FAMILIES = trainer.FAMILIES | operator.FAMILIES
TOLD = trainer.sample_names(FAMILIES)
LABELS = {
    "outlast_server_": {"namespace", "training_job", "process"},
    "outlast_worker_": {"namespace", "training_job", "process"},
    "outlast_job": {"namespace", "training_job"},
    "outlast_failover": {"namespace", "training_job", "kind"},
    "outlast_operator_": set(),
    "outlast_api_": {"verb", "resource"},
}
MORE = {
    "outlast_server_role": {"role"}, "outlast_worker_gradients_total": {"fact"}, "outlast_jobs": {"state"},
    "outlast_job_condition": {"type"}, "outlast_job_epoch": {"shard"}, "outlast_job_history": {"shard"},
    "outlast_job_gradients": {"fact"}, "outlast_job_cost": {"part"}, "outlast_failovers_total": {"cause"},
    "outlast_failover_seconds_bucket": {"le"}, "outlast_operator_info": {"version"},
}  # fmt: skip


def dashboard() -> dict[str, Any]:
    config_map = only(render(EVERYTHING), "ConfigMap")
    found: dict[str, Any] = json.loads(config_map["data"]["outlast.json"])
    return found


def alerts() -> list[dict[str, Any]]:
    (group,) = only(render(EVERYTHING), "PrometheusRule")["spec"]["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def expressions() -> Iterator[tuple[str, str]]:
    """(where, PromQL)."""
    board = dashboard()
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"]
    for annotation in board["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]
    for rule in alerts():
        yield rule["alert"], rule["expr"]


def labels_of(name: str) -> set[str]:
    prefix = max((p for p in LABELS if name.startswith(p)), key=len)
    return LABELS[prefix] | MORE.get(name, set())


def test_only_metrics_that_are_told_are_asked_for() -> None:
    unknown = {(where, n) for where, e in expressions() for n in re.findall(r"outlast_[a-z_]+", e) if n not in TOLD}
    assert unknown == set()


def test_every_metric_is_shown_somewhere() -> None:
    asked = {TOLD[name] for _, e in expressions() for name in re.findall(r"outlast_[a-z_]+", e)}
    assert set(FAMILIES) - asked == {"outlast_operator_info", "outlast_server_serving", "outlast_server_history",
        "outlast_server_received_bytes_total", "outlast_server_sent_bytes_total", "outlast_server_parameters",
    }, "a metric that nobody looks at: show it, or say here that it is for questions of one's own"  # fmt: skip


def test_matchers_and_groups_use_labels_that_are_there() -> None:
    wrong = set()
    for where, expression in expressions():
        names = re.findall(r"outlast_[a-z_]+", expression)
        for name, matchers in re.findall(r"(outlast_[a-z_]+)\{([^}]*)\}", expression):
            for label in re.findall(r"(\w+)(?:=~|!=|=)", matchers):
                if label not in labels_of(name):
                    wrong.add((where, name, label))
        for group in re.findall(r"\bby \(([^)]*)\)", expression):
            for label in re.split(r",\s*", group):
                if not any(label in labels_of(name) for name in names):
                    wrong.add((where, "by", label))
    assert wrong == set()


def test_the_labels_above_are_those_that_are_told() -> None:
    status = ServerStatus("server-0", "b", role="head")
    told = [*trainer.server_samples(status, 1), *trainer.worker_samples(trainer.WorkerCounts(), 0, 0, False, False, 0)]
    for name, labels, _ in told:
        assert labels_of(name) - {"namespace", "training_job", "process"} == set(labels), name


def test_alerts_are_complete_and_follow_the_values() -> None:
    for rule in alerts():
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert {"summary", "description"} == set(rule["annotations"])
        assert re.fullmatch(r"[0-9]+[smh]", rule.get("for", "1m")), rule["alert"]
    text = yaml.safe_dump(alerts())
    assert "NO_HEAD_SECONDS" not in text
    assert "FAILOVER_SECONDS" not in text
    by_name = {rule["alert"]: rule for rule in alerts()}
    assert by_name["OutlastJobWithoutHead"]["for"] == "60s"
    assert by_name["OutlastFailoverSlow"]["expr"].endswith("> 10")
    assert len(by_name) == len(alerts())


def test_alerts_speak_of_conditions_and_kinds_that_exist() -> None:
    from outlast_operator.planner import conditions

    known = {v for k, v in vars(conditions).items() if k.isupper() and isinstance(v, str)}
    for _, expression in expressions():
        for matched in re.findall(r'type=~?"([^"]*)"', expression):
            assert set(matched.split("|")) <= known


def test_dashboard_is_well_formed() -> None:
    board = dashboard()
    assert board == json.loads((CHART / "dashboards" / "outlast.json").read_text())
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        p = panel["gridPos"]
        cells = {(x, y) for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])}
        assert p["x"] + p["w"] <= 24
        assert not cells & taken, f"{panel['title']} lies over another panel"
        taken |= cells
    for _, expression in expressions():
        assert expression.count("(") == expression.count(")")
        assert expression.count("{") == expression.count("}")


def test_monitors_find_what_they_watch() -> None:
    objects = render(EVERYTHING)
    service, monitor = only(objects, "Service"), only(objects, "ServiceMonitor")
    wanted = monitor["spec"]["selector"]["matchLabels"]
    assert wanted.items() <= service["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
    assert monitor["spec"]["endpoints"][0]["honorLabels"] is True, "else `namespace` would be the operator's"
    deployment = only(objects, "Deployment")["spec"]["template"]
    assert service["spec"]["selector"].items() <= deployment["metadata"]["labels"].items()
    pods = only(objects, "PodMonitor")["spec"]
    assert [e["key"] for e in pods["selector"]["matchExpressions"]] == [JOB_LABEL, ROLE_LABEL]
    assert pods["namespaceSelector"] == {"matchNames": ["team-a", "team-b"]}
    assert pods["podMetricsEndpoints"][0]["port"] == "metrics"
    assert METRICS_PORT == 9090
    everywhere = {"metrics": {"podMonitor": {"enabled": True}}}
    assert only(render(everywhere), "PodMonitor")["spec"]["namespaceSelector"] == {"any": True}


@pytest.mark.parametrize("kind", ["ServiceMonitor", "PodMonitor", "PrometheusRule", "ConfigMap"])
def test_nothing_of_it_without_being_asked(kind: str) -> None:
    assert of_kind(render(), kind) == []

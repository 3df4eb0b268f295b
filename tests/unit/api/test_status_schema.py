"""The schema of `status`: what the operator writes passes, what reads it (scale, conditions) finds its field."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from api_server import Schema, schema, without_nulls

STATUS = {
    "state": "Running",
    "waiting": "Unschedulable",
    "conditions": [
        {
            "type": "Ready",
            "status": "True",
            "reason": "Training",
            "message": "",
            "lastTransitionTime": "2026-01-02T03:04:05Z",
            "observedGeneration": 1,
        }
    ],
    "observedGeneration": 1,
    "views": [
        {
            "shard": 0,
            "epoch": 2,
            "history": 0,
            "members": [{"name": "server-1", "boot": "b1", "address": "tcp:server-1.mnist-servers:7070"}],
            "joining": [{"name": "server-0", "boot": "b2", "address": "tcp:server-0.mnist-servers:7070"}],
            "restore": None,
        }
    ],
    "version": 812,
    "progress": {"accuracy": 0.91, "loss": 0.2, "percent": 40.6, "etaSeconds": 33.1},
    "workers": {"ready": 2, "active": 2, "replicas": 2, "selector": "outlast.dev/job-name=m,outlast.dev/role=worker"},
    "failovers": [
        {
            "target": "server-0",
            "cause": "Killed",
            "role": "head",
            "epoch": 2,
            "restore": None,
            "message": "OOMKilled",
            "detectedTime": "2026-01-02T03:04:05.000001Z",
            "decidedTime": "2026-01-02T03:04:05.010000Z",
            "promotedTime": "2026-01-02T03:04:05.020000Z",
            "firstUpdateTime": "2026-01-02T03:04:05.030000Z",
            "gradients": {"buffered": 3, "replayed": 3, "lost": 0},
        }
    ],
    "failoverCount": 1,
    "gradients": {"applied": 812, "buffered": 3, "lost": 0, "duplicates": 1},
    "cost": {"total": 0.02, "workers": 0.01, "idle": 0.0, "recomputed": 0.0},
    "startTime": "2026-01-02T03:00:00Z",
    "completionTime": "2026-01-02T04:00:00Z",
    "record": "1:eJw=",
}  # fmt: skip


def status_schema() -> Schema:
    found: Schema = schema()["properties"]["status"]
    return found


def errors(status: Any) -> list[str]:
    validator = jsonschema.Draft4Validator(status_schema())
    found = validator.iter_errors(without_nulls(status, status_schema()))
    return [f"{'.'.join(map(str, e.absolute_path))}: {e.message}" for e in found]


def leaves(value: Any, path: str = "") -> set[str]:
    if isinstance(value, dict):
        return {leaf for key, child in value.items() for leaf in leaves(child, f"{path}.{key}")}
    return {leaf for child in value for leaf in leaves(child, path + "[]")} if isinstance(value, list) else {path}


def described(node: Schema, path: str = "") -> set[str]:
    if "properties" in node:
        return {leaf for key, child in node["properties"].items() for leaf in described(child, f"{path}.{key}")}
    return described(node["items"], path + "[]") if "items" in node else {path}


def test_a_whole_status_passes_and_has_every_field() -> None:
    assert errors(STATUS) == []
    assert described(status_schema()) == leaves(STATUS)


def test_a_young_status_passes() -> None:
    assert errors({}) == []
    assert errors({"state": "Pending", "conditions": [], "views": [], "failovers": []}) == []


@pytest.mark.parametrize("field", ["type", "status", "reason", "message", "lastTransitionTime"])
def test_a_condition_is_whole(field: str) -> None:
    whole = STATUS["conditions"][0]  # type: ignore[index]
    part = {k: v for k, v in whole.items() if k != field}
    assert errors({"conditions": [part]}) == [f"conditions.0: '{field}' is a required property"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("reason", ""), ("reason", "two words"), ("status", "true"), ("type", ""), ("observedGeneration", -1)],
)
def test_a_condition_is_metav1s(field: str, value: Any) -> None:
    whole = STATUS["conditions"][0]  # type: ignore[index]
    found = errors({"conditions": [{**whole, field: value}]})
    assert found
    assert all(error.startswith(f"conditions.0.{field}: ") for error in found)


def test_conditions_are_merged_by_type_and_nothing_is_pruned() -> None:
    conditions = status_schema()["properties"]["conditions"]
    assert conditions["x-kubernetes-list-type"] == "map"
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]
    assert "type" in conditions["items"]["required"], "a key of a map must be there"
    assert status_schema()["x-kubernetes-preserve-unknown-fields"] is True


def test_scale_reads_counts_and_a_string() -> None:
    workers = status_schema()["properties"]["workers"]["properties"]
    assert workers["selector"]["type"] == "string", "autoscalers parse it; an object is refused"
    assert workers["replicas"]["type"] == "integer"
    spec = schema()["properties"]["spec"]["properties"]["workers"]["properties"]["replicas"]
    assert (spec["type"], spec["default"]) == ("integer", 2)


# --- what an API server's validation of a CRD demands -----------------------------------------------------------------


def test_the_schema_is_one_that_kubernetes_takes() -> None:
    allowed = {
        "description", "type", "format", "enum", "pattern", "minimum", "maximum", "exclusiveMinimum",
        "exclusiveMaximum", "minLength", "maxLength", "minItems", "maxItems", "nullable", "default", "anyOf",
        "properties", "required", "items", "x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields",
        "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-validations",
    }  # fmt: skip
    for path, node in _nodes(schema()):
        assert set(node) <= allowed, path
        if "default" in node:
            # A default is held to its own schema, and to that of everything inside it, after defaulting and pruning.
            jsonschema.Draft4Validator(node).validate(without_nulls(node["default"], node))
            if isinstance(node["default"], dict):
                assert set(node["default"]) <= set(node.get("properties", {})), path
        if node.get("x-kubernetes-int-or-string"):
            assert "type" not in node, path
            assert node["anyOf"] == [{"type": "integer"}, {"type": "string"}], path
        if node.get("x-kubernetes-list-type") == "map":
            assert set(node["x-kubernetes-list-map-keys"]) <= set(node["items"]["required"]), path
        if "required" in node:
            assert set(node["required"]) <= set(node["properties"]), path


def _nodes(node: Schema, path: str = "") -> list[tuple[str, Schema]]:
    children = [n for key, child in node.get("properties", {}).items() for n in _nodes(child, f"{path}.{key}")]
    return [(path, node), *children, *(_nodes(node["items"], path + "[]") if "items" in node else [])]

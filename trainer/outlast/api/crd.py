"""The CustomResourceDefinition of TrainingJob, generated from the models: `python -m outlast.api.crd`.

Rules. (1) Nothing is written by hand: fields, limits, defaults and descriptions come from the models (spec.py and what
it imports, status.py), rules from rules.py and immutable.py. (2) The schema is structural: references inlined, null as
`nullable`, no `additionalProperties: false` (the API server prunes what it does not know). (3) An object that may be
left out has the default {}, so that the defaults inside it are filled in. (4) An API server estimates what a rule may
cost at worst and refuses the CRD if that is too much: strings and lists that rules read are bounded. (5) `--helm`
writes a template of the chart (Helm never upgrades what lies in its `crds/`), kept on uninstall: with the CRD would go
every job.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import yaml

from outlast.api.base import DNS_LABEL
from outlast.api.immutable import IMMUTABLE, IMMUTABLE_MESSAGE
from outlast.api.rules import NAME_LENGTH, RULES, Rule
from outlast.api.spec import JobSpec
from outlast.api.status import TrainingJobStatus
from outlast.api.strategy import CHAIN_LENGTH, CHAINED

GROUP, VERSION, PLURAL = "outlast.dev", "v1alpha1", "trainingjobs"
HEADER = "# Generated from trainer/outlast/api by `python -m outlast.api.crd`; do not edit.\n"
HELM_BEGIN = '{{- define "outlast.crd" -}}'
HELM_END = """\
{{- end }}
{{- if eq (include "outlast.crdDelivery" .) "release" }}
{{ include "outlast.crd" . }}
{{- end }}
"""
HELM_METADATA = """\
  labels: {{- include "outlast.labels" . | nindent 4 }}
  annotations:
    helm.sh/resource-policy: keep
    {{- with .Values.crds.annotations }}{{ toYaml . | nindent 4 }}{{ end }}
"""

_KEPT = frozenset(
    [
        "description",
        "type",
        "format",
        "enum",
        "pattern",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "minLength",
        "maxLength",
        "minItems",
        "maxItems",
        "nullable",
        "default",
        "anyOf",
        "x-kubernetes-int-or-string",
        "x-kubernetes-preserve-unknown-fields",
        "x-kubernetes-list-type",
        "x-kubernetes-list-map-keys",
        "x-kubernetes-validations",
    ]
)

COLUMNS: tuple[tuple[str, str, str, str], ...] = (
    ("State", "string", ".status.state", "State of the job."),
    ("Waiting", "string", ".status.waiting", "What its pods wait for."),
    ("Strategy", "string", ".spec.recovery.strategy", "Recovery strategy."),
    ("Workers", "integer", ".status.workers.ready", "Workers that are ready."),
    ("Epoch", "integer", ".status.views[0].epoch", "Epoch of the first shard: views so far."),
    ("Version", "integer", ".status.version", "Updates that the parameters hold."),
    ("Accuracy", "number", ".status.progress.accuracy", "Accuracy of the last evaluation."),
    ("Failovers", "integer", ".status.failoverCount", "Losses so far."),
    ("Age", "date", ".metadata.creationTimestamp", "Time since creation."),
)


def generate() -> dict[str, Any]:
    """The CRD as plain JSON values, with the rules between fields and those for immutable fields."""
    spec = _structural(JobSpec.model_json_schema(by_alias=True, mode="validation"), defaults=True)
    status = _structural(TrainingJobStatus.model_json_schema(by_alias=True, mode="validation"), defaults=False)
    spec["description"] = "The desired state: what to train, with which processes, and how to outlast failures."
    status["description"] = "The observed state; only the operator writes it."
    spec["x-kubernetes-validations"] = [_validation(rule) for rule in RULES] + _immutable(spec)
    schema = {
        "description": "A training job that outlasts the loss of its parameter servers.",
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": "Version of this schema: outlast.dev/v1alpha1."},
            "kind": {"type": "string", "description": "TrainingJob."},
            "metadata": {
                "type": "object",
                "properties": {"name": {"type": "string", "maxLength": NAME_LENGTH, "pattern": DNS_LABEL}},
            },
            "spec": spec,
            "status": status,
        },
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": "TrainingJob",
                "listKind": "TrainingJobList",
                "plural": PLURAL,
                "singular": "trainingjob",
                "shortNames": ["tjob"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.workers.replicas",
                            "statusReplicasPath": ".status.workers.replicas",
                            "labelSelectorPath": ".status.workers.selector",
                        },
                    },
                    "additionalPrinterColumns": [
                        {"name": name, "type": type_, "jsonPath": path, "description": description}
                        for name, type_, path, description in COLUMNS
                    ],
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


def render(helm: bool = False) -> str:
    """The CRD as YAML; `helm`: as one of the chart's templates."""
    body = yaml.dump(generate(), Dumper=_Dumper, sort_keys=False, width=118, allow_unicode=True)
    return HEADER + (_template(body) if helm else body)


# --- schema -----------------------------------------------------------------------------------------------------------


def _structural(schema: dict[str, Any], defaults: bool) -> dict[str, Any]:
    """pydantic's JSON schema -> a structural one. `defaults`: fill in defaults (a status has none)."""
    definitions = schema.get("$defs", {})
    return _convert(schema, definitions, defaults)


def _convert(node: dict[str, Any], definitions: dict[str, Any], defaults: bool) -> dict[str, Any]:
    node = _resolve(node, definitions)
    result = {key: value for key, value in node.items() if key in _KEPT}
    for limit, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(result.get(exclusive), int | float) and not isinstance(result[exclusive], bool):
            result[limit], result[exclusive] = result[exclusive], True
    if (rules := _fractional_limits(result)) is not None:
        result["x-kubernetes-validations"] = rules
    if result.get("type") == "integer":
        result["format"] = "int32" if result.get("maximum", 2**63) < 2**31 else "int64"
    if not defaults or result.get("default", ...) is None:
        result.pop("default", None)
    if node.get("additionalProperties") is True:
        result["x-kubernetes-preserve-unknown-fields"] = True
    if "items" in node:
        result["items"] = _convert(node["items"], definitions, defaults)
    if "properties" in node:
        properties = {name: _property(child, definitions, defaults) for name, child in node["properties"].items()}
        optional = {name for name, child in node["properties"].items() if child.get("x-outlast-optional")}
        result["properties"] = properties
        if required := [name for name in node.get("required", ()) if name not in optional]:
            result["required"] = required
        if defaults:
            for name, child in properties.items():
                if "properties" in child and name not in required and not child.get("nullable"):
                    child["default"] = {}
    return result


def _fractional_limits(node: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Rules for limits such as 0.01: the API server cuts them to whole numbers where the value is written as one."""
    rules = []
    for limit, relation, words in (
        ("minimum", ">=", "small; use {} or more"),
        ("maximum", "<=", "large; use {} or less"),
    ):
        value = node.get(limit)
        if isinstance(value, float) and not value.is_integer():
            assert not node.get(f"exclusive{limit.capitalize()}"), f"an exclusive {limit} of {value} has no rule yet"
            rules.append({"rule": f"self {relation} {value}", "message": f"is too {words.format(value)}"})
    return rules or None


def _property(child: dict[str, Any], definitions: dict[str, Any], defaults: bool) -> dict[str, Any]:
    """A field, with the marks in its `json_schema_extra` obeyed."""
    result = _convert(child, definitions, defaults)
    if "x-outlast-default" in child:
        result["default"] = child["x-outlast-default"]
    if child.get("x-outlast-nullable"):
        result["nullable"] = True
    return result


def _resolve(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Inline a reference, and turn "this or null" into `nullable`; what stands at the field itself wins."""
    node = dict(node)
    if "$ref" in node:
        target = _resolve(definitions[node.pop("$ref").rsplit("/", 1)[-1]], definitions)
        node = {**target, **node}
    alternatives = node.get("anyOf", [])
    others = [choice for choice in alternatives if choice.get("type") != "null"]
    if len(others) == 1 and len(alternatives) == 2:
        del node["anyOf"]
        node = {**_resolve(others[0], definitions), **node, "nullable": True}
    return node


# --- rules ------------------------------------------------------------------------------------------------------------


def _validation(rule: Rule) -> dict[str, Any]:
    result = {"rule": rule.cel, "fieldPath": f".{rule.at}", "reason": "FieldValueInvalid"}
    if rule.message_cel is None:
        return {**result, "message": rule.message}
    return {**result, "messageExpression": rule.message_cel}


# What a field that may be absent counts as; `self` is its spec.
_ABSENT = {
    "servers.replicas": f"(self.recovery.strategy in {list(CHAINED)} ? {CHAIN_LENGTH} : 1)",
    "training.evaluate.everySeconds": "0.0",
    "training.evaluate.everyUpdates": "0",
    "recovery.checkpoint.everySeconds": "0.0",
    "recovery.checkpoint.everyUpdates": "0",
}
# Objects that say nothing without this field.
_EMPTY_WITHOUT = {"recovery.staleness.reducedRate": "above"}


def _immutable(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Transition rules: field by field, for whole objects have no bounded cost. Opaque objects: the operator checks."""
    rules = []
    for path in IMMUTABLE:
        schema = spec
        for part in path.split("."):
            schema = schema["properties"][part]
        if (unchanged := _unchanged(path, schema)) is not None:
            rules.append(
                {
                    "rule": unchanged,
                    "fieldPath": f".{path}",
                    "reason": "FieldValueForbidden",
                    "message": IMMUTABLE_MESSAGE,
                }
            )
    return rules


def _unchanged(path: str, schema: dict[str, Any]) -> str | None:
    """CEL: the field has the value it had. None for what cannot be compared."""
    if path in _ABSENT:
        return _same(f"(has(self.{path}) ? self.{path} : {_ABSENT[path]})")
    if "properties" in schema:
        parts = [_unchanged(f"{path}.{name}", child) for name, child in schema["properties"].items()]
        same = " && ".join(part for part in parts if part)
    elif schema.get("x-kubernetes-preserve-unknown-fields"):
        return None
    elif schema.get("x-kubernetes-int-or-string"):
        same = _same(
            f"(type(self.{path}) == string ? quantity(self.{path}).asApproximateFloat() : double(self.{path}))"
        )
    else:
        same = _same(f"self.{path}")
    if schema.get("nullable") or "default" not in schema:
        present = f"has(self.{path})"
        if path in _EMPTY_WITHOUT:
            present = f"({present} && has(self.{path}.{_EMPTY_WITHOUT[path]}))"
        return f"{_same(present)} && (!{present} || ({same}))"
    return same


def _same(value: str) -> str:
    """CEL: an expression over `self` has the value that it had."""
    return f"{value} == {value.replace('self.', 'oldSelf.')}"


# --- YAML -------------------------------------------------------------------------------------------------------------


class _Dumper(yaml.SafeDumper):
    """Without anchors, lists indented under their key."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _template(body: str) -> str:
    assert "{{" not in body, "the CRD holds what Helm would take for a template"
    name = f"  name: {PLURAL}.{GROUP}\n"
    assert body.count(name) == 1
    return f"{HELM_BEGIN}\n{body.replace(name, name + HELM_METADATA)}{HELM_END}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m outlast.api.crd", description="Write the CRD of TrainingJob.")
    parser.add_argument("--helm", action="store_true", help="as a template of the chart")
    sys.stdout.write(render(helm=parser.parse_args(arguments).helm))


if __name__ == "__main__":
    main()

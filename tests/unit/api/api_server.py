"""What an API server does with a spec: fill in defaults, hold it to the schema, evaluate the rules in CEL.

The rules are evaluated by cel-python, with values typed by the schema as an API server types them: a number is a double
even when written as 1, and a null is a field that is not there.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import celpy
import jsonschema
from celpy import celtypes

from outlast.api import crd
from outlast.api.base import parse_quantity

Schema = dict[str, Any]


def schema() -> Schema:
    """The OpenAPI schema of a whole TrainingJob."""
    version = crd.generate()["spec"]["versions"][0]
    found: Schema = version["schema"]["openAPIV3Schema"]
    return found


@functools.cache
def spec_schema() -> Schema:
    found: Schema = schema()["properties"]["spec"]
    return found


def fill_in(node: Schema, value: Any) -> Any:
    """What the API server does: prune nulls that are no value, fill in defaults from the outside in."""
    if not isinstance(value, dict) or "properties" not in node:
        return value
    result = dict(value)
    for name, child in node["properties"].items():
        if name in result and result[name] is None and not child.get("nullable"):
            del result[name]
        if name not in result and "default" in child:
            result[name] = child["default"]
        if name in result:
            result[name] = fill_in(child, result[name])
    return result


def refusals(spec: Any) -> list[str]:
    """`path: message` of everything the API server has against a spec. Rules only when the form is right."""
    stored = fill_in(spec_schema(), spec)
    return list(form_errors(stored)) or list(broken_rules(stored))


def form_errors(stored: Any) -> Iterator[str]:
    validator = jsonschema.Draft4Validator(spec_schema())  # OpenAPI 3.0: exclusiveMinimum is a boolean
    written = without_nulls(stored, spec_schema())
    found = [f"{'.'.join(['spec', *map(str, e.absolute_path)])}: {e.message}" for e in validator.iter_errors(written)]
    yield from found
    if found:
        return
    for path, node, value in _fields("spec", spec_schema(), written):
        for rule in node.get("x-kubernetes-validations", ()):
            if path != "spec" and not evaluate(rule["rule"], self=typed(value, node)):
                yield f"{path}: {rule['message']}"


def _fields(path: str, node: Schema, value: Any) -> Iterator[tuple[str, Schema, Any]]:
    yield path, node, value
    for name, child in node.get("properties", {}).items():
        if isinstance(value, dict) and name in value:
            yield from _fields(f"{path}.{name}", child, value[name])


def broken_rules(stored: Any) -> Iterator[str]:
    self = typed(stored, spec_schema())
    for rule in spec_schema()["x-kubernetes-validations"]:
        if "oldSelf" in rule["rule"] or evaluate(rule["rule"], self=self):
            continue
        words = rule["message"] if "message" in rule else evaluate(rule["messageExpression"], self=self)
        yield f"spec{rule['fieldPath']}: {words}"


def without_nulls(value: Any, node: Schema) -> Any:
    if isinstance(value, dict) and "properties" in node:
        children = node["properties"]
        return {
            k: without_nulls(v, children.get(k, {}))
            for k, v in value.items()
            if v is not None or not children.get(k, {}).get("nullable")
        }
    return [without_nulls(v, node["items"]) for v in value] if isinstance(value, list) and "items" in node else value


# --- CEL --------------------------------------------------------------------------------------------------------------


def typed(value: Any, node: Schema | None = None) -> Any:
    """A JSON value as CEL sees it. `node`: its schema; without one, numbers are what they look like."""
    node = node or {}
    if isinstance(value, dict):
        children = node.get("properties", {})
        fields = {k: typed(v, children.get(k)) for k, v in value.items() if v is not None}
        return celtypes.MapType({celtypes.StringType(k): v for k, v in fields.items()})
    if isinstance(value, list):
        return celtypes.ListType([typed(v, node.get("items")) for v in value])
    if node.get("type") == "number" and isinstance(value, int | float):
        return celtypes.DoubleType(value)
    return celpy.json_to_cel(value)


def evaluate(expression: str, **variables: Any) -> Any:
    """The value of a CEL expression. Raises `celpy.CELEvalError` where it has none: a field that is not there."""
    names = {k: v if isinstance(v, celtypes.MapType) else typed(v) for k, v in variables.items()}
    result = _program(expression).evaluate(names)
    return bool(result) if isinstance(result, celtypes.BoolType) else result


@functools.cache
def _program(expression: str) -> Any:
    return _ENVIRONMENT.program(_ENVIRONMENT.compile(expression), functions=_FUNCTIONS)


def _is_sorted(items: Any) -> Any:
    return celtypes.BoolType(list(items) == sorted(items))  # of Kubernetes' own library


def _format(template: Any, values: Any) -> Any:
    words = [shortest(float(value)) if isinstance(value, float) else str(value) for value in values]
    return celtypes.StringType(str(template) % tuple(words))


def _quantity(text: Any) -> Any:
    return celtypes.IntType(parse_quantity(str(text)))


def _compare(one: Any, other: Any) -> Any:
    return celtypes.IntType((one > other) - (one < other))


def shortest(value: float) -> str:
    """As Go writes a float (%g): the fewest digits that tell it apart, no point without need."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


_ENVIRONMENT = celpy.Environment()
_FUNCTIONS = {"isSorted": _is_sorted, "format": _format, "quantity": _quantity, "compareTo": _compare}
_FUNCTIONS["asApproximateFloat"] = celtypes.DoubleType

"""The generated CRD: the file in crds/ is up to date, the schema is structural, described, says what Python says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from api_server import evaluate, fill_in, schema, spec_schema, typed
from hypothesis import given, settings
from hypothesis import strategies as st
from spec_cases import CHANGES, spec_of

from outlast.api import crd
from outlast.api.base import PATTERNS, QUANTITY
from outlast.api.immutable import EDITABLE, IMMUTABLE, changed_immutables
from outlast.api.job import read_spec
from outlast.api.rules import RULES, Rule
from outlast.api.spec import JobSpec
from outlast.api.spec_fields import ReducedRate

FILE = Path(__file__).parents[3] / "crds" / "trainingjobs.outlast.dev.yaml"


def nodes(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    if "items" in node:
        yield from nodes(node["items"], f"{path}[]")


def test_file_is_what_the_models_say() -> None:
    assert FILE.read_text() == crd.render(), "run: python -m outlast.api.crd > crds/trainingjobs.outlast.dev.yaml"


def test_every_field_has_a_description() -> None:
    bare = [
        path
        for path, node in nodes(schema())
        if not path.endswith("[]")
        and not path.startswith(".metadata")
        and not node.get("description", "").endswith(".")
    ]
    assert bare == []


def test_schema_is_structural() -> None:
    for path, node in nodes(schema()):
        free = node.get("x-kubernetes-int-or-string")
        assert free or "type" in node, path
        assert not {"$ref", "oneOf", "allOf", "title", "const", "additionalProperties"} & set(node), path
        assert "anyOf" not in node or free, path
        assert all(isinstance(node.get(key, True), bool) for key in ("exclusiveMinimum", "exclusiveMaximum")), path
        if node["type"] == "object" if "type" in node else False:
            assert "properties" in node or node.get("x-kubernetes-preserve-unknown-fields"), path


def test_every_pattern_means_the_same_to_go_and_has_a_name() -> None:
    for path, node in nodes(schema()["properties"]["spec"]):
        if "pattern" in node:
            assert "(?" not in node["pattern"], path
            assert node["pattern"] in (*PATTERNS, QUANTITY), path


def test_names_columns_and_subresources() -> None:
    definition = crd.generate()
    assert definition["metadata"]["name"] == "trainingjobs.outlast.dev"
    assert definition["spec"]["names"]["shortNames"] == ["tjob"]
    version = definition["spec"]["versions"][0]
    names = [column["name"] for column in version["additionalPrinterColumns"]]
    assert names == ["State", "Waiting", "Strategy", "Workers", "Epoch", "Version", "Accuracy", "Failovers", "Age"]
    assert set(version["subresources"]) == {"status", "scale"}
    paths = dict(nodes(schema()))
    columns = [column["jsonPath"].replace("[0]", "[]") for column in version["additionalPrinterColumns"]]
    for path in [*columns, *version["subresources"]["scale"].values()]:
        assert path in paths or path.startswith(".metadata"), path


def test_defaults_of_the_api_server_are_those_of_python() -> None:
    minimal = {"training": {"task": "a.b", "stopAfter": {"updates": 1}}}
    stored = fill_in(schema()["properties"]["spec"], minimal)
    assert stored["recovery"]["buffer"]["maxBytes"] == "1Gi"
    assert stored["workers"]["replicas"] == 2
    assert read_spec(stored) == read_spec(minimal)


def test_helm_template_is_the_resource_with_the_releases_metadata() -> None:
    text = crd.render(helm=True)
    body = text.removeprefix(crd.HEADER + crd.HELM_BEGIN).removesuffix(crd.HELM_END).replace(crd.HELM_METADATA, "")
    assert yaml.safe_load(body) == crd.generate()
    assert "{{" not in body


# --- CEL ----------------------------------------------------------------------------------------------------------


positive = st.integers(1, 3)
optional_positive = st.none() | positive
seconds = st.sampled_from([0.5, 1.0, 2.0, 30.0])
specs = st.fixed_dictionaries(
    {
        "training": st.fixed_dictionaries(
            {
                "task": st.sampled_from([None, "a.b"]),
                "script": st.sampled_from([None, "train.py"]),
                "consistency": st.sampled_from(["Sync", "Async", "BoundedStaleness"]),
                "optimizer": st.fixed_dictionaries(
                    {
                        "name": st.sampled_from(["SGD", "Adam", "AdamW"]),
                        "momentum": st.sampled_from([0.0, 0.9]),
                        "nesterov": st.booleans(),
                        "betas": st.sampled_from([[0.9, 0.999], [0.5, 0.9]]),
                        "eps": st.sampled_from([1e-8, 1e-6]),
                        "schedule": st.none()
                        | st.fixed_dictionaries(
                            {
                                "name": st.sampled_from(["Constant", "Step", "Linear", "Cosine"]),
                                "everyUpdates": optional_positive,
                                "milestones": st.none() | st.lists(positive, min_size=1, max_size=3),
                                "updates": optional_positive,
                            }
                        ),
                    }
                ),
                "stopAfter": st.fixed_dictionaries(
                    {
                        "updates": optional_positive,
                        "epochs": optional_positive,
                        "seconds": st.none() | seconds,
                        "accuracy": st.sampled_from([None, 0.5]),
                    }
                ),
                "evaluate": st.fixed_dictionaries(
                    {"everySeconds": st.none() | seconds, "everyUpdates": optional_positive}
                ),
            }
        ),
        "servers": st.fixed_dictionaries({"replicas": optional_positive}),
        "workers": st.fixed_dictionaries(
            {"replicas": positive, "minReplicas": positive, "maxReplicas": optional_positive}
        ),
        "recovery": st.fixed_dictionaries(
            {
                "strategy": st.sampled_from(["Checkpoint", "Chain", "Stateless", "Hybrid"]),
                "checkpoint": st.fixed_dictionaries(
                    {"everyUpdates": optional_positive, "everySeconds": st.none() | seconds}
                ),
                "chain": st.fixed_dictionaries(
                    {"ack": st.sampled_from(["Tail", "Successor", "Head"]), "replicateEveryUpdates": positive}
                ),
                "staleness": st.fixed_dictionaries(
                    {"outage": st.fixed_dictionaries({"mode": st.sampled_from(["StaleGradients", "LocalSteps"])})}
                ),
                "failover": st.fixed_dictionaries(
                    {"heartbeatSeconds": seconds, "timeoutSeconds": seconds, "assumeDeadSeconds": seconds}
                ),
            }
        ),
    }
)


@settings(max_examples=300, deadline=None)
@given(specs)
def test_cel_and_python_agree(raw: dict[str, Any]) -> None:
    spec = JobSpec.model_validate(raw, by_alias=True, by_name=False)  # the fields alone, without the rules
    of_spec = spec_schema()
    stored = typed(fill_in(of_spec, raw), of_spec)
    for rule in RULES:
        good = evaluate(rule.cel, self=stored)
        assert good is rule.holds(spec), f"{rule.id}: CEL says {good}"
        if not good and rule.message_cel is not None:
            assert evaluate(rule.message_cel, self=stored) == rule.words(spec), rule.id


def test_half_a_pair_in_cel() -> None:
    (rule,) = [rule for rule in RULES if rule.id == "reduced-rate-pair"]
    for pair, good in (({"above": 1}, False), ({"lr": 0.1}, False), ({}, True), ({"above": 1, "lr": 0.1}, True)):
        assert evaluate(rule.cel, self={"recovery": {"staleness": {"reducedRate": pair}}}) is good
    assert set(ReducedRate.model_fields) == {"above", "lr"}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_rule_speaks_of_fields_that_exist(rule: Rule) -> None:
    paths = dict(nodes(schema()["properties"]["spec"]))
    assert {f".{'.'.join(field)}" for field in rule.reads} <= set(paths)
    assert f".{rule.at}" in paths
    for path in re.findall(r"\{([A-Za-z.]+)\}", rule.message):
        # Present whenever the rule is broken, else the expression fails: it has a default, or the rule asks has().
        assert "default" in paths[f".{path}"] or f"has(self.{path})" in rule.cel
    assert "\n" not in rule.message
    assert "'" not in rule.message, "it would end the string in CEL"


def test_rule_ids_are_unique() -> None:
    assert len({rule.id for rule in RULES}) == len(RULES)


@pytest.mark.parametrize(("before", "after", "paths"), [c[1:] for c in CHANGES], ids=[c[0] for c in CHANGES])
def test_immutable_in_cel_and_in_python(before: str, after: str, paths: str) -> None:
    of_spec = spec_schema()
    rules = [r for r in of_spec["x-kubernetes-validations"] if "oldSelf" in r["rule"]]
    one, other = spec_of(before), spec_of(after)
    for was, becomes in ((one, other), (other, one)):
        old, new = (typed(fill_in(of_spec, spec), of_spec) for spec in (was, becomes))
        broken = [r["fieldPath"].lstrip(".") for r in rules if not evaluate(r["rule"], self=new, oldSelf=old)]
        assert broken == paths.split()
        in_python = changed_immutables(read_spec(was), read_spec(becomes))
        assert [error.path.removeprefix("spec.") for error in in_python] == paths.split()


def test_every_field_is_immutable_or_editable() -> None:
    leaves = {path.lstrip(".") for path, node in nodes(spec_schema()) if path and "properties" not in node}
    for path in leaves - {"recovery.checkpoint.claim.accessModes[]"}:
        owners = [owner for owner in (*IMMUTABLE, *EDITABLE) if f"{path}.".startswith(f"{owner}.")]
        assert len(owners) == 1 or path.endswith("[]"), f"{path}: {owners}"


def test_every_immutable_field_has_a_rule_but_opaque_objects() -> None:
    rules = schema()["properties"]["spec"]["x-kubernetes-validations"]
    covered = {r["fieldPath"].lstrip(".") for r in rules if "oldSelf" in r["rule"]}
    assert set(IMMUTABLE) - covered == {"training.args"}

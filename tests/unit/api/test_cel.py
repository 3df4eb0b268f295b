"""The schema and its rules as an API server applies them: it refuses the jobs that `outlast validate` refuses.

Where two fields contradict each other, in the same words (CEL); where one field is wrong by itself, at the same path.
"""

from __future__ import annotations

import re
from typing import Any

import celpy
import pytest
from api_server import evaluate, form_errors, refusals, shortest, spec_schema, typed
from spec_cases import INVALID, VALID, spec_of

from outlast.api.errors import SpecError
from outlast.api.job import read_spec
from outlast.api.rules import RULES


def is_of_rule(message: str) -> bool:
    """Whether the message is that of a rule between fields."""
    path, words = message.removeprefix("spec.").split(": ", 1)
    patterns = [re.sub(r"\\\{[A-Za-z.\\]+\\\}", ".+", re.escape(rule.message)) for rule in RULES if rule.at == path]
    return any(re.fullmatch(pattern, words) for pattern in patterns)


BETWEEN_FIELDS = [case for case in INVALID if is_of_rule(case[1])]
# Never reach an API server: what JSON has no number for, and unknown fields, which kubectl refuses (1.25 and later).
ELSEWHERE = ("unknown field", "not a finite number")
ONE_FIELD = [c for c in INVALID if not is_of_rule(c[1]) and not any(words in c[1] for words in ELSEWHERE)]


def test_the_table_is_long_enough_and_has_every_rule() -> None:
    assert len(BETWEEN_FIELDS) >= 25
    assert len(ONE_FIELD) >= 40
    broken = {message.split(": ")[0].removeprefix("spec.") for _, message in BETWEEN_FIELDS}
    assert {rule.at for rule in RULES} <= broken


@pytest.mark.parametrize(
    ("text", "message"), BETWEEN_FIELDS, ids=[text.replace("\n", "; ") for text, _ in BETWEEN_FIELDS]
)
def test_rules_refuse_in_the_same_words(text: str, message: str) -> None:
    assert refusals(spec_of(text)) == [message]


@pytest.mark.parametrize(("text", "message"), ONE_FIELD, ids=[text for text, _ in ONE_FIELD])
def test_schema_refuses_at_the_same_path(text: str, message: str) -> None:
    spec = spec_of(text)
    path = re.sub(r"\[(\d+)\]", r".\1", message.split(": ")[0])
    found = [error.split(": ")[0] for error in form_errors(spec)]
    # A missing field is blamed on the object that lacks it.
    assert path in found or path.rsplit(".", 1)[0] in found, found


@pytest.mark.parametrize("text", VALID, ids=[text.replace("\n", "; ") for text in VALID])
def test_good_jobs_pass(text: str) -> None:
    assert refusals(spec_of(text)) == []


def test_numbers_in_messages_read_as_the_api_server_writes_them() -> None:
    assert [shortest(v) for v in (2.0, 0.5, 0.1234567, 1e-7)] == ["2", "0.5", "0.1234567", "1e-07"]
    spec = spec_of("recovery.failover: {heartbeatSeconds: 1.2345678, timeoutSeconds: 2}")
    (message,) = refusals(spec)
    assert "two heartbeats of 1.2345678 s" in message
    assert message in errors_of(spec)


def errors_of(spec: Any) -> list[str]:
    with pytest.raises(SpecError) as caught:
        read_spec(spec)
    return [str(error) for error in caught.value.errors]


def test_the_evaluator_is_strict() -> None:
    document = typed({"a": {"b": 1, "c": None}, "d": [1, 2]})
    assert evaluate("has(self.a.b) && !has(self.a.c) && self.a.b != 2 && self.d.isSorted()", self=document) is True
    assert evaluate("'%s is 100 %%'.format([self.a.b])", self=document) == "1 is 100 %"
    with pytest.raises(celpy.CELEvalError):
        evaluate("self.a.c == 1", self=document)


def test_rules_are_cheap() -> None:
    """An API server bounds what rules may cost: no loops, and every list that is looked through is short."""
    for rule in spec_schema()["x-kubernetes-validations"]:
        assert not re.search(r"\.(all|exists|map|filter|exists_one)\(", rule["rule"])
        for path in re.findall(r"self\.([A-Za-z.]+)\.isSorted", rule["rule"]):
            node = spec_schema()
            for part in path.split("."):
                node = node["properties"][part]
            assert node["maxItems"] <= 1000

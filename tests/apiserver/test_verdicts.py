"""`outlast validate` and the API server judge alike: every spec of the table, and every change of a job."""

from __future__ import annotations

import re
from typing import Any

import pytest
from apiserver_process import ApiServer
from spec_cases import CHANGES, INVALID, NOT_JSON, VALID, document_of, job, spec_of

from outlast.api.errors import SpecError
from outlast.api.immutable import changed_immutables
from outlast.api.job import TrainingJob, read_spec
from outlast.api.rules import name_error

Json = dict[str, Any]
JOBS = "apis/outlast.dev/v1alpha1/namespaces/{}/trainingjobs"
STRICT = "fieldValidation=Strict"  # as kubectl asks for

# The words of `outlast validate` -> what the API server's own words for it must hold. `{1}`: a group of the pattern.
SUBSTANCE: list[tuple[str, str]] = [
    (r"is not one of (.+)", r"supported values: .*"),
    (r"unknown field", r"unknown field"),
    (r"is too small; use more than (\S+)", r"should be greater than {1}"),
    (
        r"is too small; use (\S+) or more",
        r"(should be greater than or equal to {1}|use {1} or more|use \d+ or more, \d+ or less)",
    ),
    (r"is too large; use less than (\S+)", r"should be less than {1}"),
    (
        r"is too large; use (\S+) or less",
        r"(should be less than or equal to {1}|use {1} or less|use \d+ or more, \d+ or less)",
    ),
    (r"is too short; give (\d+) items?", r"should have at least {1} items"),
    (r"is too long; give (\d+) items?", r"(should|must) have at most {1} items"),
    (r"is too long; use (\d+) characters?", r"may not be (more|longer) than {1}"),
    (r"is empty", r"should be at least 1 chars long"),
    (r"is not a whole number", r"must be of type int(eger|32|64)"),
    (r"is not a number", r"must be of type number"),
    (r"is not true or false", r"must be of type boolean"),
    (r"is not a string", r"must be of type string"),
    (r"is not a list", r"must be of type array"),
    (r"is not an object", r"must be of type object"),
    (r"is not a pair", r"(should|must) have at (least|most) 2 items"),
    (r"missing", r"Required value"),
    (r"is not (a|an|the) ", r"should match"),
]


def create(server: ApiServer, namespace: str, text: str, query: str = "dryRun=All") -> tuple[int, Json]:
    path = f"{JOBS.format(namespace)}?{query}&{STRICT}"
    return server.request("POST", path, document_of(text))


def said(code: int, answer: Json) -> list[tuple[str, str]]:
    """(path, words) of everything that the API server holds against an object."""
    causes = (answer.get("details") or {}).get("causes") or ()
    return [(cause["field"], cause["message"]) for cause in causes] or [("", answer.get("message", ""))]


def agrees(python: str, server: list[tuple[str, str]]) -> bool:
    """Whether one of the server's causes says what Python says: at the same path, with the same substance."""
    path, words = python.split(": ", 1)
    if any(field == path and message.endswith(words) for field, message in server):
        return True  # a rule between fields, in the same words
    for pattern, expected in SUBSTANCE:
        if (match := re.search(pattern, words)) is not None:
            wanted = re.sub(r"\{1\}", lambda _, found=match: re.escape(found[1]), expected)  # type: ignore[misc]
            return any(_at(path, field, message) and re.search(wanted, message) for field, message in server)
    return False


def _at(path: str, field: str, message: str) -> bool:
    return field == path or f'"{path}"' in message


def test_the_table_is_long_enough() -> None:
    assert len(VALID) + len(INVALID) >= 150
    assert min(len(VALID), len(INVALID), 2 * len(CHANGES)) >= 50


@pytest.mark.parametrize("text", VALID, ids=[text.replace("\n", "; ") for text in VALID])
def test_valid_for_both(server: ApiServer, namespace: str, text: str) -> None:
    ours = TrainingJob.load(job(text)).spec
    code, answer = create(server, namespace, text)
    assert code == 201, answer.get("message")
    assert read_spec(answer["spec"]) == ours, "with the same defaults"


REACHABLE = [case for case in INVALID if not any(words in case[1] for words in NOT_JSON)]


@pytest.mark.parametrize(("text", "message"), REACHABLE, ids=[text.replace("\n", "; ") for text, _ in REACHABLE])
def test_invalid_for_both(server: ApiServer, namespace: str, text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        TrainingJob.load(job(text))
    assert str(caught.value) == message
    code, answer = create(server, namespace, text)
    assert code in (400, 422), "taken"
    assert agrees(message, said(code, answer)), answer["message"]


@pytest.mark.parametrize("forwards", [True, False], ids=["forwards", "back"])
@pytest.mark.parametrize(("before", "after", "paths"), [c[1:] for c in CHANGES], ids=[c[0] for c in CHANGES])
def test_changes_of_a_job(
    server: ApiServer, namespace: str, before: str, after: str, paths: str, forwards: bool
) -> None:
    old, new = (before, after) if forwards else (after, before)
    code, stored = create(server, namespace, old, "fieldManager=test")
    assert code == 201, stored["message"]
    changed = changed_immutables(read_spec(spec_of(old)), read_spec(spec_of(new)))
    assert [error.path.removeprefix("spec.") for error in changed] == paths.split()
    path = f"{JOBS.format(namespace)}/{stored['metadata']['name']}?dryRun=All"
    code, answer = server.request("PUT", path, {**stored, "spec": spec_of(new)})
    if not paths:
        assert code == 200, answer["message"]
        return
    assert code == 422, "taken"
    assert {(f"spec.{path}", error.message) for path, error in zip(paths.split(), changed, strict=True)} == {
        (field, message.split(": ")[-1]) for field, message in said(code, answer)
    }


NAMES = ["mnist", "a", "a-1", "a" * 45, "a" * 46, "Mnist", "a.b", "1a", "a-", "-a", "a_b", "ä"]


@pytest.mark.parametrize("name", NAMES)
def test_names(server: ApiServer, namespace: str, name: str) -> None:
    document = document_of("")
    document["metadata"]["name"] = name
    code, answer = server.request("POST", f"{JOBS.format(namespace)}?dryRun=All&{STRICT}", document)
    if (problem := name_error(name)) is None:
        assert code == 201, answer["message"]
        return
    assert code == 422, problem
    assert "metadata.name" in {field for field, _ in said(code, answer)}

"""docs/explanation/invariants.md: the tests that it names exist, and so does each invariant that code cites.

Code cites an invariant in square brackets, in a comment or a docstring: [boot-id], or [one-version, history].
"""

from __future__ import annotations

import ast
import functools
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "explanation" / "invariants.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### (\S+)\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL))
TEST = re.compile(r"`(test_\w+\.py)::(test_\w+)`")
BRACKETS = re.compile(r"(?<!ignore)\[([A-Za-z-]+(?:,\s+[A-Za-z-]+)*)\]")
COMPOUND = re.compile(r"[a-z]{2,}(?:-[a-zA-Z]+)+")


def cited(text: str) -> Iterator[str]:
    """The invariants that a file cites: brackets with at least one compound word."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and token.string.startswith('"""')):
            for group in BRACKETS.findall(token.string):
                names = re.split(r",\s+", group)
                if any(COMPOUND.fullmatch(name) for name in names):
                    yield from names


@functools.cache
def functions(file: str) -> set[str]:
    """The tests in each file of this name, wherever it lies under tests/."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "tests").rglob(file)]
    return {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("name", SECTIONS)
def test_each_invariant_says_what_it_forbids_and_names_a_test(name: str) -> None:
    text = SECTIONS[name]
    assert "*Forbids:*" in text
    assert TEST.search(text) or "No test yet" in " ".join(text.split())


def test_the_tests_that_are_named_exist() -> None:
    assert len(SECTIONS) >= 33
    missing = [f"{file}::{test}" for file, test in TEST.findall(PAGE) if test not in functions(file)]
    assert not missing, missing


def test_what_code_cites_stands_on_the_page() -> None:
    found = {
        (name, str(path.relative_to(ROOT)))
        for source in ("trainer/outlast", "operator/outlast_operator")
        for path in (ROOT / source).rglob("*.py")
        for name in cited(path.read_text(encoding="utf-8"))
    }
    assert ("boot-id", "trainer/outlast/chain/replica.py") in found
    unknown = sorted(f"{name} ({path})" for name, path in found if name not in SECTIONS)
    assert not unknown, unknown


def test_a_name_that_is_not_on_the_page_is_seen() -> None:
    assert list(cited('"""As [one-version, history] has it."""\nx = y[0]  # [no-such-rule] first\n')) == [
        "one-version",
        "history",
        "no-such-rule",
    ]

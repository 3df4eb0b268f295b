"""What users read is plain technical English: phrases that were replaced once do not come back.

Read are the string literals of the product (messages, Events, conditions, --help, descriptions of fields), the pages,
and the chart's texts. Not read are comments, other docstrings, and the study, whose pages have an author.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("trainer/outlast", "operator/outlast_operator", "benchmarks/outlast_bench/promises")
HELP = (*(ROOT / "operator/outlast_operator/cli").glob("*.py"), ROOT / "benchmarks/outlast_bench/cli_bench.py")
PAGES = (
    *ROOT.glob("*.md"),
    *(page for page in (ROOT / "docs").rglob("*.md") if "study" not in str(page.relative_to(ROOT))),
    *(ROOT / "charts/outlast").rglob("*.txt"),
    ROOT / "charts/outlast/values.yaml",
    ROOT / "charts/outlast/rules/outlast.yaml",
    ROOT / "charts/outlast/dashboards/outlast.json",
)
# What is written instead: the role's name, the literature's word, the present tense.
REPLACED = {
    r"\b(whoever|nobody|somebody|everybody|anybody)\b": "the role: the operator, no server, another client, all",
    r"\b(of|by) ours\b": "Outlast's, the operator's",
    r"\b(go|goes|went|gone|going) on\b": "continue, keep training, resume",
    r"\bcomputes? on\b(?=\s*([.,;:|)]|$|through|while|and|until))": "keep computing",
    r"\banew\b": "again",
    r"\bin vain\b": "timed out",
    r"\b(mend|mends|mended)\b": "fix",
    r"\breckon(s|ed)?\b": "estimate",
    r"\blest\b": "so that … not",
    r"\bit lingers\b": "still running 30 s after it left the view",
    r"\bno server is missed\b": "no failover in progress",
    r"\bwithout a head that serves\b": "no serving head",
    r"\bwithin bounds\b": "up to a limit",
    r"\bwatches have not told\b": "watches missed",
    r"\bweights that are no more\b": "weights that were rolled back",
    r"\bled astray\b": "diverged",
    r"\bbelieve[sd]?\b": "follow, accept",
    r"\bwaiting for a word\b": "waiting for a report",
    r"\b(hopeless|needy|mute|deaf|blind|buried)\b": "what is measured",
    r"\bby haste\b": "back off",
    r"\bforesees?\b": "predict",
    r"\bleft to somebody\b": "not installed",
}


def literals(file: Path) -> Iterator[tuple[int, str]]:
    """String literals without docstrings and messages of asserts; placeholders of f-strings become {}."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    left_out = {id(node) for found in ast.walk(tree) if isinstance(found, ast.Assert) for node in ast.walk(found)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            left_out |= {id(part) for part in node.values}
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and not (isinstance(node, ast.Module) and file in HELP):
            left_out.add(id(first.value))
    for node in ast.walk(tree):
        if id(node) in left_out:
            continue
        if isinstance(node, ast.JoinedStr):
            parts = (str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
            yield node.lineno, "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def objections(text: str) -> list[str]:
    flat = " ".join(text.split())
    found = (re.search(phrase, flat, re.IGNORECASE) for phrase in REPLACED)
    return [f"{match[0]!r}: {REPLACED[match.re.pattern]}" for match in found if match]


@pytest.mark.parametrize("root", SOURCES)
def test_messages_are_plain_english(root: str) -> None:
    files = sorted((ROOT / root).rglob("*.py"))
    found = [
        f"{file.relative_to(ROOT)}:{line}: {objection}"
        for file in files
        for line, text in literals(file)
        for objection in objections(text)
    ]
    assert not found, "\n".join(found)


def test_the_help_of_the_benches_is_plain_english() -> None:
    found = [f"{file.name}:{line}: {o}" for file in HELP for line, text in literals(file) for o in objections(text)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_are_plain_english(page: Path) -> None:
    paragraphs = re.split(r"\n\s*\n", page.read_text(encoding="utf-8"))
    found = [objection for paragraph in paragraphs for objection in objections(paragraph)]
    assert not found, "\n".join(found)


def test_each_phrase_is_seen() -> None:
    assert objections("Whoever does not lead keeps its cache") == [
        "'Whoever': the role: the operator, no server, another client, all"
    ]
    assert objections("Redis is down; workers keep what they compute,\n    within bounds") == [
        "'within bounds': up to a limit"
    ]

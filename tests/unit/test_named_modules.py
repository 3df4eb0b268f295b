"""A module or function that code names in a string is there: no import statement would tell that it has moved."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

import pytest

from outlast.api.crd import GROUP

ROOT = Path(__file__).parents[2]
NAME = re.compile(r"outlast(?:_operator|_bench)?(?:\.[a-z_0-9]+)+(?::[A-Za-z_]\w*)?")


def named() -> Iterator[tuple[str, str]]:
    """Each such string with the file in which it stands. The names of loggers are no modules."""
    for root in ("trainer/outlast", "operator/outlast_operator", "benchmarks/outlast_bench", "docs", "images"):
        for file in sorted((ROOT / root).rglob("*.py")):
            tree = ast.parse(file.read_text())
            loggers = {id(arg) for call in ast.walk(tree) if _makes_a_logger(call) for arg in call.args}
            for node in ast.walk(tree):
                text = node.value if isinstance(node, ast.Constant) and id(node) not in loggers else None
                if isinstance(text, str) and NAME.fullmatch(text) and text != GROUP:
                    yield text, str(file.relative_to(ROOT))


def _makes_a_logger(node: ast.AST) -> TypeGuard[ast.Call]:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "getLogger"


def is_there(name: str) -> bool:
    """A module, a function of one, or an attribute of one, such as monkeypatch takes."""
    module, _, attribute = name.partition(":")
    if not attribute and not _module(module):
        module, _, attribute = module.rpartition(".")
    return _module(module) and (not attribute or hasattr(importlib.import_module(module), attribute))


def _module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its package
        return False


def contracts() -> Iterator[str]:
    """Each module of this repository that an import contract names."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        found = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    for contract in found:
        inside = [f"{container}." for container in contract.get("containers", [])] or [""]
        layers = [name for layer in contract.get("layers", []) for name in re.findall(r"[\w.]+", layer)]
        yield from (prefix + name for prefix in inside for name in layers)
        arrows = [name for arrow in contract.get("ignore_imports", []) for name in re.findall(r"[\w.]+\w", arrow)]
        named = [*contract.get("source_modules", []), *contract.get("forbidden_modules", []), *arrows]
        yield from (name for name in named if name.startswith("outlast"))


def test_every_module_in_an_import_contract_is_there() -> None:
    found = set(contracts())
    assert {"outlast.chain", "outlast_bench.study.page", "outlast.buffer.log"} <= found
    assert not sorted(name for name in found if not _module(name))


def test_every_module_that_is_named_in_a_string_is_there() -> None:
    found = list(named())
    assert ("outlast_bench.promises.child", "benchmarks/outlast_bench/promises/processes.py") in found
    missing = [f"{name} ({file})" for name, file in found if not is_there(name)]
    assert not missing, missing


@pytest.mark.parametrize("name", ["outlast.nowhere", "outlast.nowhere.main", "outlast_bench.promises.plain:nothing"])
def test_what_is_not_there_is_seen(name: str) -> None:
    assert not is_there(name)

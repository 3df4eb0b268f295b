"""The meaning of a strategy stands in one table; elsewhere code asks the table and compares no names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from outlast.api.errors import SpecError
from outlast.api.job import read_spec
from outlast.api.strategy import BUFFERED, CHAINED, STRATEGIES, TABLE, Consistency, strategies

ROOT = Path(__file__).resolve().parents[3]
CONSISTENCIES = get_args(Consistency)
NAMES = {*STRATEGIES, *CONSISTENCIES}
MODULES = [
    path
    for source in ("trainer", "operator", "benchmarks")
    for path in sorted((ROOT / source).rglob("*.py"))
    if "outlast/api/" not in path.as_posix()
]


def decided_by_name(tree: ast.Module) -> Iterator[ast.expr]:
    """The expressions in which a name decides: comparisons, patterns, keys, and the elements of containers."""
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    exported = {id(node.value) for node in assigned if ast.unparse(node.targets[0]) == "__all__"}
    for node in ast.walk(tree):
        match node:
            case ast.Compare():
                yield from (node.left, *node.comparators)
            case ast.MatchValue():
                yield node.value
            case ast.Dict():
                yield from (key for key in node.keys if key is not None)
            case ast.Subscript():
                yield node.slice
            case ast.Tuple() | ast.List() | ast.Set() if id(node) not in exported:
                yield from node.elts


def names_in(source: str) -> list[str]:
    found = decided_by_name(ast.parse(source))
    return [f"{e.lineno}: {e.value}" for e in found if isinstance(e, ast.Constant) and e.value in NAMES]


def test_no_name_of_a_strategy_or_consistency_decides_elsewhere() -> None:
    found = {str(path.relative_to(ROOT)): names for path in MODULES if (names := names_in(path.read_text()))}
    assert found == {}, "ask outlast.api.strategy instead"


@pytest.mark.parametrize(
    "line",
    [
        "x == 'Sync'",
        "x in ('Chain', y)",
        "{'Hybrid': 1}",
        "d['Stateless']",
        "match x:\n case 'Async': pass",
        "match x:\n case 'Async' | 'Sync': pass",
        "x = ['Checkpoint']",
    ],
)
def test_the_test_sees(line: str) -> None:
    assert names_in(line)


def test_a_name_as_an_argument_or_a_value_decides_nothing() -> None:
    assert not names_in("__all__ = ['Checkpoint']\nmake('Chain', consistency='Sync')\nx = {'strategy': 'Hybrid'}")


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("consistency", CONSISTENCIES)
def test_the_table_holds_what_the_rules_accept(strategy: str, consistency: str) -> None:
    training = {"task": "a.b", "stopAfter": {"updates": 1}, "consistency": consistency}
    raw = {"training": training, "recovery": {"strategy": strategy}}
    if (strategy, consistency) in TABLE:
        assert read_spec(raw).traits is TABLE[strategy, consistency]
    else:
        with pytest.raises(SpecError, match=f"{consistency} is refused with recovery.strategy {strategy}"):
            read_spec(raw)


def test_strategies_by_what_they_do() -> None:
    assert CHAINED == ("Chain", "Hybrid")
    assert BUFFERED == ("Stateless", "Hybrid")
    assert strategies(lambda row: row.barrier) == ("Checkpoint", "Chain", "Hybrid")


def test_hybrid_with_sync_is_chain() -> None:
    assert TABLE["Hybrid", "Sync"] == TABLE["Chain", "Sync"]

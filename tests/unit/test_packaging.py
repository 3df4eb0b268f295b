"""What the distribution promises about imports: no shadowed standard library, no torch where it is not needed."""

from __future__ import annotations

import ast
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# Distribution -> the module it brings, where that is not its name.
MODULES = {"prometheus-client": "prometheus_client", "pyyaml": "yaml"}
# Source root -> what may be imported there. `outlast run` makes its pictures with [local]'s matplotlib.
ALLOWED = {
    "trainer": PROJECT["dependencies"] + EXTRAS["trainer"],
    "operator": PROJECT["dependencies"] + EXTRAS["trainer"] + EXTRAS["operator"] + EXTRAS["local"],
}
HEAVY = ("torch", "torchvision", "redis", "kopf", "kubernetes", "matplotlib")


def run_python(code: str, cwd: Path = ROOT) -> str:
    """Standard output of `python -c code`, as a user would run it in `cwd`. Raises with stderr if it fails."""
    paths = [str(ROOT / "trainer"), str(ROOT / "operator")]
    program = f"import sys; sys.path += {paths!r}\n{code}"
    done = subprocess.run([sys.executable, "-c", program], cwd=cwd, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("cwd", [ROOT, ROOT / "operator", ROOT / "trainer"], ids=["root", "operator", "trainer"])
def test_import_operator_is_the_standard_library(cwd: Path) -> None:
    expected = Path(sysconfig.get_path("stdlib")) / "operator.py"
    # Dropped first: the interpreter has imported it long before the current directory stands on sys.path.
    found = run_python("sys.modules.pop('operator', None); import operator; print(operator.__file__)", cwd)
    assert Path(found).resolve() == expected.resolve()


def test_the_source_roots_are_no_packages() -> None:
    for root in ("operator", "trainer"):
        assert not (ROOT / root / "__init__.py").exists(), f"{root}/__init__.py would make the source root a package"


@pytest.mark.parametrize(
    "module",
    [
        "outlast",
        "outlast.api",
        "outlast.api.spec",
        "outlast.applied",
        "outlast.ledger",
        "outlast.protocol",
        "outlast.replica",
        "outlast.staleness",
        "outlast_operator",
        "outlast_operator.failover",
        "outlast_operator.membership",
        "outlast_operator.plan",
        "outlast_operator.state",
        "outlast_operator.cli.main",
    ],
)
def test_imports_without_heavy_dependencies(module: str) -> None:
    loaded = run_python(f"import {module}\nprint(*sorted(set(sys.modules) & set({HEAVY!r})))")
    assert loaded == "", f"import {module} loads {loaded}"


@pytest.mark.parametrize("module", ["outlast.server", "outlast.worker", "outlast_operator.local"])
def test_jobs_without_a_buffer_need_no_redis(module: str) -> None:
    run_python(f"sys.modules |= dict.fromkeys(('redis', 'hiredis'))  # not to be had\nimport {module}")


def test_base_and_operator_dependencies_are_free_of_torch() -> None:
    names = {_normalised(requirement) for requirement in [*PROJECT["dependencies"], *EXTRAS["operator"]]}
    assert names.isdisjoint({"torch", "torchvision", "outlast", "numpy"})


@pytest.mark.parametrize("root", ALLOWED)
def test_what_is_imported_is_declared(root: str) -> None:
    declared = {_normalised(requirement) for requirement in ALLOWED[root]}
    known = {MODULES.get(name, name) for name in declared} | {"outlast", "outlast_operator"} | sys.stdlib_module_names
    undeclared = {
        f"{path.relative_to(ROOT)}: {module}"
        for path in (ROOT / root).rglob("*.py")
        for module in _imported(ast.parse(path.read_text(encoding="utf-8")))
        if module not in known
    }
    assert undeclared == set()


def test_ranges_are_open_and_constraints_pin() -> None:
    requirements = PROJECT["dependencies"] + [r for extra in EXTRAS.values() for r in extra]
    assert [r for r in requirements if "==" in r.split(";")[0] or "<" in r.split(";")[0]] == []
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert [pin for pin in pins if pin.count("==") != 1 or "/" in pin or "@" in pin] == []
    names = {_normalised(pin.split("==")[0]) for pin in pins}
    wanted = {_normalised(r) for r in requirements} - {"outlast"}
    assert wanted <= names, f"constraints.txt lacks {sorted(wanted - names)}; run `make constraints`"


def _imported(tree: ast.AST) -> set[str]:
    """The top-level names of all absolute imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def _normalised(requirement: str) -> str:
    name = requirement.split(";")[0].split("[")[0].split(">")[0].strip()
    return name.lower().replace("_", "-").replace(".", "-")

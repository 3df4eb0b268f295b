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
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
# Distribution -> the module it brings, where that is not its name.
MODULES = {"prometheus-client": "prometheus_client", "pyyaml": "yaml"}
# Source root -> what may be imported there. `outlast run` makes its pictures with [local]'s matplotlib.
ALLOWED = {
    "trainer": PROJECT["dependencies"] + EXTRAS["trainer"],
    "operator": PROJECT["dependencies"] + EXTRAS["trainer"] + EXTRAS["operator"] + EXTRAS["local"],
    "benchmarks": PROJECT["dependencies"] + EXTRAS["trainer"] + EXTRAS["local"],
}
# Source root -> the packages of this repository that may be imported there.
OWN = {
    "trainer": {"outlast"},
    "operator": {"outlast", "outlast_operator"},
    "benchmarks": {"outlast", "outlast_operator", "outlast_bench"},
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
    for root in ("benchmarks", "operator", "trainer"):
        assert not (ROOT / root / "__init__.py").exists(), f"{root}/__init__.py would make the source root a package"


@pytest.mark.parametrize(
    "module",
    [
        "outlast",
        "outlast.api",
        "outlast.api.spec",
        "outlast.chain.applied",
        "outlast.process.ledger",
        "outlast.chain.events",
        "outlast.chain.replica",
        "outlast.chain.staleness",
        "outlast_operator",
        "outlast_operator.planner.rollback",
        "outlast_operator.planner.membership",
        "outlast_operator.planner.plan",
        "outlast_operator.planner.status",
        "outlast_operator.cli.main",
    ],
)
def test_imports_without_heavy_dependencies(module: str) -> None:
    loaded = run_python(f"import {module}\nprint(*sorted(set(sys.modules) & set({HEAVY!r})))")
    assert loaded == "", f"import {module} loads {loaded}"


@pytest.mark.parametrize("module", ["outlast.server.main", "outlast.worker.main", "outlast_operator.local.runtime"])
def test_jobs_without_a_buffer_need_no_redis(module: str) -> None:
    run_python(f"sys.modules |= dict.fromkeys(('redis', 'hiredis'))  # not to be had\nimport {module}")


def test_base_and_operator_dependencies_are_free_of_torch() -> None:
    names = {_normalised(requirement) for requirement in [*PROJECT["dependencies"], *EXTRAS["operator"]]}
    assert names.isdisjoint({"torch", "torchvision", "outlast", "numpy"})


@pytest.mark.parametrize("root", ALLOWED)
def test_what_is_imported_is_declared(root: str) -> None:
    declared = {_normalised(requirement) for requirement in ALLOWED[root]}
    known = {MODULES.get(name, name) for name in declared} | OWN[root] | sys.stdlib_module_names
    undeclared = {
        f"{path.relative_to(ROOT)}: {module}"
        for path in (ROOT / root).rglob("*.py")
        for module in _imported(ast.parse(path.read_text(encoding="utf-8")))
        if module not in known
    }
    assert undeclared == set()


def test_benches_and_study_are_in_no_wheel_and_no_image() -> None:
    targets = PYPROJECT["tool"]["hatch"]["build"]["targets"]
    assert targets["wheel"]["packages"] == ["trainer/outlast", "operator/outlast_operator"]
    assert "/benchmarks" in targets["sdist"]["include"]
    assert (ROOT / ".dockerignore").read_text().split("\n")[1] == "*", "all but what is named"
    named = [ROOT / ".dockerignore", ROOT / "scripts" / "cluster" / "images.sh", ROOT / "Dockerfile"]
    named += (ROOT / "images").rglob("Dockerfile")
    assert [str(path) for path in named if "benchmarks" in path.read_text()] == []


@pytest.mark.parametrize(
    "words", [["bench", "trace", "--json"], ["study", "--quick", "--out", "study"]], ids=lambda w: w[0]
)
def test_without_a_checkout_their_commands_say_what_to_do(words: list[str]) -> None:
    from_a_wheel = (
        "sys.modules['outlast_bench'] = None\nfrom outlast_operator.cli.main import main\nsys.stderr = sys.stdout\n"
    )
    told = run_python(f"{from_a_wheel}print(main({words!r}))")
    assert told.startswith(f"outlast {words[0]}: only in a checkout")
    assert told.endswith("2")
    assert "git clone" in told
    assert "make venv" in told
    listed = run_python(f"{from_a_wheel}main(['--help'])")
    assert f"\n    {words[0]} " in listed
    assert "only in a checkout of the repository: git clone, make venv\n" in listed


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


def test_no_two_modules_of_tests_have_one_name() -> None:
    """They are imported by their names alone: `make check` collects all directories."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert len(names) == len(set(names)), sorted(name for name in set(names) if names.count(name) > 1)

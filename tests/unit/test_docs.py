"""The documentation: links lead somewhere, jobs in it are jobs, generated parts are up to date."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from outlast.api.job import TrainingJob

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "tests").glob("*.md")])
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The fragments that a heading of the page answers to, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def snippets(language: str) -> Iterator[tuple[str, str]]:
    for page in PAGES:
        found = [body for tag, body in FENCE.findall(page.read_text(encoding="utf-8")) if tag == language]
        yield from ((f"{page.relative_to(ROOT)}-{i}", body) for i, body in enumerate(found))


JOBS = [pytest.param(body, id=name) for name, body in snippets("yaml") if "\nkind: TrainingJob" in body]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    broken = []
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (fragment and file.suffix == ".md" and fragment not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_every_page_is_reachable_from_the_readme() -> None:
    seen, pending = set(), [ROOT / "README.md"]
    while pending:
        page = pending.pop()
        if page in seen or page.suffix != ".md" or not page.exists():
            continue
        seen.add(page)
        targets = [t.partition("#")[0] for t in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in t]
        pending += [(page.parent / target).resolve() for target in targets if target]
    lost = {str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md")} - {
        str(page.relative_to(ROOT)) for page in seen if page.is_relative_to(ROOT)
    }
    assert lost - {"docs/README.md"} == set()


@pytest.mark.parametrize("text", JOBS)
def test_jobs_in_the_documentation_are_valid(text: str) -> None:
    job = TrainingJob.load(text)
    assert job.warnings == [], "an example in the documentation should not need a warning"


def test_yaml_and_python_in_the_documentation_parse() -> None:
    for _, body in snippets("yaml"):
        list(yaml.safe_load_all(body))
    for _, body in snippets("python"):
        ast.parse(body)


def scripts() -> list[str]:
    """Training scripts in the documentation: examples that make an `outlast.Optimizer`."""
    return [body for _, body in snippets("python") if "outlast.Optimizer(" in body]


def test_scripts_in_the_documentation_seed_each_step() -> None:
    """`zero_grad()` seeds nothing; without `seed_step()` a restarted worker draws other numbers."""
    assert len(scripts()) >= 2
    for body in scripts():
        loop = body[body.index("for ") :]
        assert "optimizer.seed_step()" in loop.split("optimizer.zero_grad()")[0]


def test_the_readme_shows_a_short_script_before_any_yaml() -> None:
    """It is run by tests/integration/test_script.py."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (body,) = [body for tag, body in FENCE.findall(readme) if tag == "python"]
    assert readme.index(body) < readme.index("```yaml")
    assert len([line for line in body.splitlines() if line]) <= 13


def test_the_files_of_the_walks_exist() -> None:
    page = (ROOT / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")
    files = re.findall(r"`((?:\w+/)+\w+\.py)`", page)
    roots = [ROOT / "trainer" / "outlast", ROOT / "operator" / "outlast_operator"]
    assert len(files) > 30
    assert [file for file in files if not any((root / file).exists() for root in roots)] == []


def test_generated_parts_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"],
        cwd=ROOT,
        env={"PYTHONPATH": "trainer:operator:benchmarks"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_table_of_requests_is_that_of_the_pods() -> None:
    from outlast_operator.kubernetes.manifests.children import redis_pod
    from outlast_operator.kubernetes.manifests.names import JobRef
    from outlast_operator.kubernetes.manifests.pods import RESOURCES, Images

    page = (ROOT / "docs" / "how-to" / "install.md").read_text(encoding="utf-8")
    first = re.search(r"<<'JOB'\n(.*?)\nJOB\n", page, re.DOTALL)
    assert first is not None
    spec = TrainingJob.load(first[1]).spec
    pod = redis_pod(JobRef("first", "default", "uid"), spec, Images("trainer", "redis"), None)
    (redis,) = pod["spec"]["containers"]
    values = yaml.safe_load((ROOT / "charts" / "outlast" / "values.yaml").read_text(encoding="utf-8"))
    expected = {**RESOURCES, "operator": values["resources"], "the job's own Redis": redis["resources"]}
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in re.findall(r"^\|.*\|$", page, re.MULTILINE)]
    for name, resources in expected.items():
        told = [row[1:] for row in rows if re.match(rf"{re.escape(name)}($|,| \()", row[0]) and len(row) == 5]
        assert told == [[*resources["requests"].values(), *resources["limits"].values()]], name


def test_the_reference_has_every_field() -> None:
    from outlast.api.spec import JobSpec

    page = (ROOT / "docs" / "reference" / "trainingjob.md").read_text(encoding="utf-8")
    defined = JobSpec.model_json_schema(by_alias=True)["$defs"].values()
    missing = [name for model in defined for name in model.get("properties", {}) if f"`{name}`" not in page]
    assert missing == []


def test_imports_in_the_documentation_exist() -> None:
    modules = {
        node.module
        for _, body in snippets("python")
        for node in ast.walk(ast.parse(body))
        if isinstance(node, ast.ImportFrom) and node.module
    }
    unknown = [m for m in modules if m.startswith("outlast") and importlib.util.find_spec(m) is None]
    assert unknown == []

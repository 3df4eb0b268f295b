"""The study in the documentation: one small archive, and tables and figures that are made from it."""

from __future__ import annotations

import json
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from study_builder import Made, make_report, write_backlog, write_study

from outlast_bench.study.analysis.cost import load_prices
from outlast_bench.study.analysis.load import load_study
from outlast_bench.study.analysis.run_curves import role_curves
from outlast_bench.study.analysis.summary import summarise
from outlast_bench.study.design.records import StudyError
from outlast_bench.study.figures import style as figure_style
from outlast_bench.study.page.page import assemble
from outlast_bench.study.page.tables import Table, all_tables

ROOT = Path(__file__).resolve().parents[3]
sys.path.append(str(ROOT / "docs"))
import render_study  # noqa: E402
from render_study import pack, thinned, unpacked  # noqa: E402

LINK = re.compile(r"\]\(([^)]+)\)")


@pytest.fixture(autouse=True)
def coarse_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figure_style, "PNG_DPI", 20)
    monkeypatch.setattr(figure_style, "GRID_POINTS", 40)


PAGE = """# The study

Prose by hand.

![Marks of each strategy](../study/figures/which-strategy.png)

<!-- study: which -->
old numbers
<!-- end -->

More prose.

<!-- study: failed -->
<!-- end -->
"""


def documentation(directory: Path, page: str = PAGE) -> Path:
    """Documentation in which a study can be kept."""
    path = directory / "explanation" / "study.md"
    path.parent.mkdir(parents=True)
    path.write_text(page)
    return directory


def study(directory: Path) -> Path:
    write_study(
        directory,
        seeds=(0, 1),
        kills=(1,),
        configurations=("control", "checkpoint", "stateless"),
        failed=[("stateless", 1, 1)],
    )
    return write_backlog(directory, workers=(2,), outages=(100, 375), seeds=(0, 1))


def test_a_kept_study_does_not_say_where_it_was_made(tmp_path: Path) -> None:
    whole = study(tmp_path / "whole")
    path = whole / "study.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"command": f"outlast study --out {whole} --only steep"}))
    pack(whole, tmp_path / "kept.tar.xz")
    with unpacked(tmp_path / "kept.tar.xz") as kept:
        about = load_study(kept).about
        assert about is not None
        assert about.command == "outlast study --out DIR --only steep"
        assert not [p for p in kept.rglob("*.json") if str(whole) in p.read_text()]


def test_a_kept_study_has_the_same_tables(tmp_path: Path) -> None:
    whole = study(tmp_path / "whole")
    size = pack(whole, tmp_path / "kept.tar.xz")
    assert size < sum(path.stat().st_size for path in whole.rglob("*") if path.is_file())
    with unpacked(tmp_path / "kept.tar.xz") as kept:
        one, other = (all_tables(summarise(load_study(path)), load_prices()) for path in (whole, kept))
        assert [without_commands(table) for table in one] == [without_commands(table) for table in other]
        assert load_study(kept).missing == ()


def test_the_same_study_gives_the_same_archive(tmp_path: Path) -> None:
    """At any time and place, also after unpacking."""
    pack(study(tmp_path / "whole"), tmp_path / "one.tar.xz")
    with unpacked(tmp_path / "one.tar.xz") as kept:
        pack(kept, tmp_path / "other.tar.xz")
    assert (tmp_path / "one.tar.xz").read_bytes() == (tmp_path / "other.tar.xz").read_bytes()


def without_commands(table: Table) -> Table:
    """They name where a run lies, which is elsewhere for one that is kept."""
    at = table.columns.index("command") if "command" in table.columns else len(table.columns)
    return replace(table, rows=tuple((*row[:at], *row[at + 1 :]) for row in table.rows))


def test_the_commands_of_a_kept_study_name_what_is_kept(tmp_path: Path) -> None:
    """From the directory in which it is unpacked, wherever the study was made."""
    whole = write_study(tmp_path / "elsewhere", seeds=(0,), kills=(1,), configurations=("control", "stateless"))
    for path in whole.glob("runs/*/*/*/*/run.json"):
        kills = ["head@update=235+2721ms"] if "kills-1" in str(path) else []
        path.write_text(json.dumps(json.loads(path.read_text()) | {"kill_arguments": kills}))
    pack(whole, tmp_path / "kept.tar.xz")
    with unpacked(tmp_path / "kept.tar.xz") as kept:
        commands = {run.configuration: run.command for run in load_study(kept).runs}
        folder = "runs/steep/stateless/kills-1/seed-0"
        assert commands["stateless"] == (
            f"outlast run {folder}/job.yaml --kill head@update=235+2721ms --no-figures --report {folder}"
        )
        assert all((kept / shlex.split(command)[2]).exists() for command in commands.values())


def test_thinned_samples_give_the_same_curves() -> None:
    report = make_report(Made(kills=[10.0], outage_s=5.0))
    small = thinned(report)
    assert len(small["resources"]) <= 0.55 * len(report["resources"])
    for role, field in (("worker", "cpu_s"), ("server", "rss_bytes")):
        whole, kept = dict(role_curves(report, role, field)), dict(role_curves(small, role, field))
        assert len(kept) > 20
        assert sum(kept.values()) / len(kept) == pytest.approx(sum(whole.values()) / len(whole), rel=0.03)


def test_a_counter_that_begins_anew_is_kept() -> None:
    rows = [
        {"t_s": t, "process": "server-0", "cpu_s": c, "rss_bytes": 1} for t, c in ((1.1, 5.0), (1.5, 0.1), (1.8, 0.2))
    ]
    assert [row["cpu_s"] for row in thinned({"resources": rows})["resources"]] == [5.0, 0.1]


def test_what_is_no_study_is_not_kept(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(StudyError):
        pack(tmp_path / "photos", tmp_path / "kept.tar.xz")
    assert not (tmp_path / "kept.tar.xz").exists()


def test_an_account_is_kept(tmp_path: Path) -> None:
    whole = study(tmp_path / "whole")
    (whole / "notes.md").write_text("words")
    pack(whole, tmp_path / "kept.tar.xz")
    with unpacked(tmp_path / "kept.tar.xz") as kept:
        assert (kept / "notes.md").read_text() == "words"


# --- pages ---


def test_a_page_keeps_its_prose_and_gets_its_tables_and_figures(tmp_path: Path) -> None:
    docs = documentation(tmp_path / "docs")
    pack(study(tmp_path / "whole"), docs / "study" / "runs.tar.xz")
    written = render_study.write(docs)
    page = docs / "explanation" / "study.md"
    text = page.read_text()
    assert text.startswith("# The study\n\nProse by hand.\n")
    assert "<!-- study: which -->\n| strategy | kills |" in text
    assert "old numbers" not in text
    assert "steep, stateless, kills 1, seed 1 | server-0 exited with 1 six times in a row" in text
    assert not re.search(r"\bnan\b|\bNone\b(?!\.)", text)
    figures = {path.name for path in (docs / "study" / "figures").iterdir()}
    assert figures == {"which-strategy.png", "all-steep.png", "all-backlog.png"}, "what no page shows is on a sheet"
    assert {path.name for path in written if path.suffix == ".png"} == figures
    assert render_study.stale(docs) == []
    (docs / "study" / "tables" / "runs.csv").write_text("stale")
    page.write_text(text.replace("Checkpoint", "Chequepoint"))
    assert {path.name for path in render_study.stale(docs)} == {"runs.csv", "study.md"}
    before = {path: path.read_bytes() for path in written if path.name != "runs.csv" and path != page}
    render_study.write(docs)
    assert page.read_text() == text, "the same data must give the same page"
    assert {path: path.read_bytes() for path in before} == before


def test_a_policy_that_ruined_a_training_is_counted(tmp_path: Path) -> None:
    write_backlog(tmp_path, workers=(2,), outages=(375,), seeds=(0, 1), sum_breaks_at=375)
    found = render_study.blocks(assemble(tmp_path, load_prices()))["policies"]
    (row,) = [line for line in found.splitlines() if line.startswith("| Sum |")]
    assert row.endswith("| 2 of 2 |")


@pytest.mark.parametrize(
    ("page", "told"),
    [
        ("<!-- study: nothing -->\n<!-- end -->\n", "page.md: no block is called nothing; use one of "),
        ("<!-- study: which -->\nno end\n", "page.md: a mark .* lacks its `<!-- end -->`"),
    ],
    ids=["unknown", "without an end"],
)
def test_a_mark_that_is_wrong_is_named(tmp_path: Path, page: str, told: str) -> None:
    (tmp_path / "page.md").write_text(page)
    made = assemble(write_backlog(tmp_path / "kept", workers=(2,), outages=(375,), seeds=(0,)), load_prices())
    with pytest.raises(ValueError, match=told):
        render_study.texts(tmp_path, made)


def test_what_is_tracked_is_what_the_kept_study_gives() -> None:
    """Pages and tables; every figure that a page shows is there, and no other."""
    docs = ROOT / "docs"
    assert render_study.stale(docs) == [], "python docs/render_study.py writes them anew"
    shown = {
        (page.parent / target).resolve()
        for page in docs.rglob("*.md")
        for target in LINK.findall(page.read_text(encoding="utf-8"))
        if target.endswith(".png") and "study/figures/" in target
    }
    assert shown == {path.resolve() for path in (docs / "study" / "figures").iterdir()}


def test_the_kept_study_is_small_and_one_file() -> None:
    kept = ROOT / "docs" / "study" / "runs.tar.xz"
    assert kept.stat().st_size < 10e6
    assert {path.name for path in kept.parent.iterdir()} == {"runs.tar.xz", "figures", "tables"}

"""The study in the documentation: kept small, and the same as the study it was kept from."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from study_builder import Made, make_report, write_backlog, write_study

from outlast_bench.study.analysis.cost import load_prices
from outlast_bench.study.analysis.load import load_study
from outlast_bench.study.analysis.run_curves import role_curves
from outlast_bench.study.analysis.summary import summarise
from outlast_bench.study.design.records import StudyError
from outlast_bench.study.figures import style as figure_style
from outlast_bench.study.page import docs_choice
from outlast_bench.study.page.keep import keep, thinned
from outlast_bench.study.page.tables import Table, all_tables

ROOT = Path(__file__).resolve().parents[2]
PICTURE = re.compile(r"!\[[^\]]+\]\(([^)]+)\)")


@pytest.fixture(autouse=True)
def coarse_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figure_style, "PNG_DPI", 20)
    monkeypatch.setattr(figure_style, "GRID_POINTS", 40)


def renderer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("render_study", ROOT / "docs" / "render_study.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CHOICE = "# Choose\n\n<!-- study:begin -->\nold numbers\n<!-- study:end -->\n\nWhich is best depends.\n"


def documentation(directory: Path) -> Path:
    """Documentation in which a study can be kept."""
    page = directory / "how-to" / "choose-a-strategy.md"
    page.parent.mkdir(parents=True)
    page.write_text(CHOICE)
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
    keep(whole, tmp_path / "kept")
    about = load_study(tmp_path / "kept").about
    assert about is not None
    assert about.command == "outlast study --out DIR --only steep"
    assert not [p for p in (tmp_path / "kept").rglob("*.json") if str(whole) in p.read_text()]


def test_a_kept_study_has_the_same_tables(tmp_path: Path) -> None:
    size = keep(study(tmp_path / "whole"), tmp_path / "kept")
    assert size < sum(path.stat().st_size for path in (tmp_path / "whole").rglob("*") if path.is_file())
    one, other = (
        all_tables(summarise(load_study(tmp_path / name)), load_prices()) for name in ("whole", "kept")
    )  # fmt: skip
    assert [without_commands(table) for table in one] == [without_commands(table) for table in other]
    assert load_study(tmp_path / "kept").missing == ()


def without_commands(table: Table) -> Table:
    """They name where a run lies, which is elsewhere for one that is kept."""
    at = table.columns.index("command") if "command" in table.columns else len(table.columns)
    return replace(table, rows=tuple((*row[:at], *row[at + 1 :]) for row in table.rows))


def test_the_commands_of_a_kept_study_name_what_is_kept(tmp_path: Path) -> None:
    """From the repository's root, wherever the study was made."""
    whole = write_study(tmp_path / "elsewhere", seeds=(0,), kills=(1,), configurations=("control", "stateless"))
    for path in whole.glob("runs/*/*/*/*/run.json"):
        kills = ["head@update=235+2721ms"] if "kills-1" in str(path) else []
        path.write_text(json.dumps(json.loads(path.read_text()) | {"kill_arguments": kills}))
    root = tmp_path / "repository"
    keep(whole, root / "docs" / "study", root)
    commands = {run.configuration: run.command for run in load_study(root / "docs" / "study").runs}
    folder = "docs/study/runs/steep/stateless/kills-1/seed-0"
    assert commands["stateless"] == (
        f"outlast run {folder}/job.yaml --kill head@update=235+2721ms --no-figures --report {folder}"
    )
    assert all((root / shlex.split(command)[2]).exists() for command in commands.values())


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


def test_nothing_else_is_overwritten(tmp_path: Path) -> None:
    source = study(tmp_path / "whole")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("a cat")
    with pytest.raises(ValueError, match="holds something else"):
        keep(source, tmp_path / "photos")
    with pytest.raises(ValueError, match="is the study itself"):
        keep(source, source)
    (source.parent / "study.json").write_text("{}")  # as if a study had been kept around this one
    with pytest.raises(ValueError, match="or holds it"):
        keep(source, source.parent)
    assert (source / "study.json").exists()
    with pytest.raises(StudyError):
        keep(tmp_path / "photos", tmp_path / "kept")
    assert (tmp_path / "photos" / "cat.jpg").exists()


def test_the_page_has_every_figure_and_what_failed(tmp_path: Path) -> None:
    docs = documentation(tmp_path / "docs")
    keep(study(tmp_path / "whole"), docs / "study")
    written = renderer().write(docs)
    page = docs / "explanation" / "study.md"
    text = page.read_text()
    pictures = [(page.parent / target).resolve() for target in PICTURE.findall(text)]
    assert sorted(pictures) == sorted(path.resolve() for path in written if path.suffix == ".png")
    assert all(path.exists() for path in pictures)
    assert not list(docs.rglob("*.svg"))
    assert "steep, stateless, kills 1, seed 1 | server-0 exited with 1 six times in a row" in text
    assert not re.search(r"\bnan\b|\bNone\b(?!\.)", text)
    assert renderer().write(docs) == written
    assert page.read_text() == text, "the same data must give the same page"


def test_every_part_of_the_page_is_in_its_contents(tmp_path: Path) -> None:
    docs = documentation(tmp_path / "docs")
    keep(study(tmp_path / "whole"), docs / "study")
    renderer().write(docs)
    text = (docs / "explanation" / "study.md").read_text()
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert re.findall(r"^- \[([^\]]+)\]\(#", text, re.MULTILINE) == headings
    assert headings[:4] == ["Which strategy", "Words", "The answer", "The kill where it hurts"]
    assert len(set(re.findall(r"^#+ .+$", text, re.MULTILINE))) == len(re.findall(r"^#+ ", text, re.MULTILINE))
    assert "(../how-to/choose-a-strategy.md)" in text


def test_an_account_is_kept_and_shown(tmp_path: Path) -> None:
    whole, docs = study(tmp_path / "whole"), documentation(tmp_path / "docs")
    runs = len(list(whole.glob("runs/*/*/*/*/run.json")))
    notes = f"<!-- of the study begun 2024-05-01T10:00:00, {runs} runs -->\n**Why.** Because 1 < 2.\n"
    (whole / "notes.md").write_text(notes)
    keep(whole, docs / "study")
    assert (docs / "study" / "notes.md").read_text() == notes
    renderer().write(docs)
    text = (docs / "explanation" / "study.md").read_text()
    assert "## Reading the results\n\n**Why.** Because 1 &lt; 2.\n" in text
    assert "Written by hand: [notes.md](../study/notes.md)." in text


# --- what the page about strategies says of the study ---


def test_its_marked_part_is_made_from_the_kept_study(tmp_path: Path) -> None:
    """Of the control's gain LocalSteps keeps 0.85 and Sum 0.9, whatever the outage."""
    docs = documentation(tmp_path / "docs")
    keep(study(tmp_path / "whole"), docs / "study")
    assert docs / "how-to" / "choose-a-strategy.md" in renderer().write(docs)
    text = (docs / "how-to" / "choose-a-strategy.md").read_text()
    assert text.startswith("# Choose\n\n<!-- study:begin -->\nMeasured for an outage of 375 gradients")
    assert text.endswith("<!-- study:end -->\n\nWhich is best depends.\n")
    assert "old numbers" not in text
    assert "| LocalSteps (default) | 0.85 (0.85 to 0.85, n = 2) | 0.85 (0.85 to 0.85, n = 2) |  |" in text
    assert "2 seeds, each judged by the mean of 2 evaluations over the 35 gradients" in text
    assert "Stateless after one kill" in text
    (figure,) = PICTURE.findall(text)
    assert (docs / "how-to" / figure).resolve() == (docs / "study" / "figures" / "backlog-lines.png").resolve()
    assert (docs / "how-to" / figure).exists()


def test_a_policy_that_ruined_a_training_is_named(tmp_path: Path) -> None:
    write_backlog(tmp_path, workers=(2,), outages=(375,), seeds=(0, 1), sum_breaks_at=375)
    text = docs_choice.block(summarise(load_study(tmp_path)), tmp_path / "page.md")
    (row,) = [line for line in text.splitlines() if line.startswith("| Sum |")]
    assert row.endswith("| 2 of 2 |")


@pytest.mark.parametrize(
    "text",
    ["no marks", "<!-- study:end --><!-- study:begin -->", CHOICE + CHOICE, CHOICE.replace("study:end", "end")],
    ids=["none", "in the wrong order", "twice", "only the first"],
)
def test_a_page_without_its_marks_is_not_written_to(text: str) -> None:
    with pytest.raises(ValueError, match="must stand once each, in this order"):
        docs_choice.rewritten(text, "new\n")


def test_the_marked_part_in_the_repository_is_what_the_kept_study_gives() -> None:
    page = ROOT / "docs" / "how-to" / "choose-a-strategy.md"
    text = page.read_text(encoding="utf-8")
    block = docs_choice.block(summarise(load_study(ROOT / "docs" / "study")), page)
    assert docs_choice.rewritten(text, block) == text, "python docs/render_study.py writes it anew"

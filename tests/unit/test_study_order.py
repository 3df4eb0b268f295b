"""What a study's page shows where: the answer first, what repeats it last, and an account only of this study."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from study_builder import Made, make_report, several_models, write_backlog, write_run
from test_study_page import quick_study, read

from outlast_bench.study.analysis.cost import load_prices
from outlast_bench.study.analysis.load import load_study
from outlast_bench.study.analysis.summary import summarise
from outlast_bench.study.figures import style as figure_style
from outlast_bench.study.page.page import Study, contents, render


@dataclass(frozen=True)
class Shown:
    directory: Path
    html: str
    text: str
    drawn: set[str]


def show(directory: Path) -> Shown:
    """Its page, with coarse pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figure_style, "PNG_DPI", 20)
        patch.setattr(figure_style, "GRID_POINTS", 40)
        drawn = {path.stem for path in render(directory) if path.suffix == ".svg"}
    return Shown(directory, (directory / "index.html").read_text(), read(directory).text, drawn)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    return show(everything(tmp_path_factory.mktemp("study")))


ACCOUNT = "**Why.** Because 1 < 2.\n\n<script>alert(1)</script>\n"


def first_line(directory: Path) -> str:
    runs = len(list(directory.glob("runs/*/*/*/*/run.json")))
    return f"<!-- of the study begun 2024-05-01T10:00:00, {runs} runs -->\n"


def everything(directory: Path) -> Path:
    """A bit of each experiment, and an account of them."""
    several_models(quick_study(directory))
    for experiment in ("paper-times", "one-worker"):
        write_run(directory, experiment, "control", 0, 0, make_report(Made()))
        write_run(directory, experiment, "chain", 1, 0, make_report(Made("Chain", kills=[20.0])))
    write_backlog(directory, workers=(2,), outages=(100, 375), seeds=(0,))
    (directory / "notes.md").write_text(first_line(directory) + ACCOUNT)
    return directory


ORDER = (
    "which", "words", "answer", "reading", "steep", "backlog", "cost", "models", "one-worker", "different",
    "definitions", "limits", "tables", "machine", "appendix", "paper-times", "models-net", "models-net-plain",
)  # fmt: skip


def test_what_answers_the_question_comes_first_and_what_repeats_it_last(shown: Shown) -> None:
    assert tuple(re.findall(r'<section id="([^"]+)"', shown.html)) == ORDER
    assert tuple(re.findall(r'<li><a href="#([^"]+)">', shown.html)) == ORDER, "the contents name every part, in order"


def test_an_account_is_shown_as_text(shown: Shown) -> None:
    assert "<p><b>Why.</b> Because 1 &lt; 2.</p>" in shown.html
    assert "<script>" not in shown.html
    assert "<script>alert(1)</script>" in shown.text


def test_time_to_the_target_has_no_figure_where_the_control_passed_it_before_the_kill(shown: Shown) -> None:
    assert {"steep-time-to-target", "paper-times-against-control"} <= shown.drawn
    assert "paper-times-time-to-target" not in shown.drawn
    assert "before the first kill in 1 of 1 seeds: time and cost" in shown.text


def test_what_makes_a_figure_again_can_be_pasted(shown: Shown) -> None:
    commands = re.findall(r"Made again by: <code>(.*?)</code>", shown.html)
    assert "outlast study --quick --only steep --out DIR &amp;&amp; outlast study --render DIR" in commands
    assert all(re.fullmatch(r"outlast study .* --out DIR &amp;&amp; outlast study --render DIR", c) for c in commands)


def test_an_account_of_another_study_is_left_out_and_said_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick_study(tmp_path)
    (tmp_path / "notes.md").write_text(first_line(tmp_path).replace("2024-05-01", "2023-05-01") + ACCOUNT)
    stale = show(tmp_path)
    assert "it is not about this study" in stale.text
    assert "Because 1 < 2" not in stale.text
    assert "reading" not in re.findall(r'href="#([^"]+)"', stale.html)
    assert capsys.readouterr().err.count("left out: notes.md: it is not about this study") == 1


def test_the_contents_leave_out_what_is_not_there(tmp_path: Path) -> None:
    summary = summarise(load_study(quick_study(tmp_path)))
    keys = [key for key, _ in contents(Study(summary, load_prices(), (), (), (), (), None, (), "steep"))]
    assert keys == ["words", "answer", "cost", "different", "definitions", "limits", "tables", "machine"]

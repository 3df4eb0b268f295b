"""A study's page, figures and tables: from whole studies, and from whatever an interrupted one has left.

The answer comes first, what repeats it last, and an account only of this study.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import pytest
from study_builder import Made, make_report, several_models, write_about, write_backlog, write_run, write_study

from outlast_bench.study.analysis.cost import load_prices
from outlast_bench.study.analysis.load import load_study
from outlast_bench.study.analysis.summary import Summary, final_accuracy, summarise
from outlast_bench.study.design.records import StudyError
from outlast_bench.study.figures import curves as figures_curves
from outlast_bench.study.figures import points as figures_points
from outlast_bench.study.figures import style as figure_style
from outlast_bench.study.figures.style import STRATEGY_COLOURS, colour_of, strategy_of
from outlast_bench.study.page import machines
from outlast_bench.study.page.grids import counts, results
from outlast_bench.study.page.page import Study, contents, html, render
from outlast_bench.study.page.tables import all_tables, write
from outlast_bench.study.verdicts.cost import verdicts


@pytest.fixture(autouse=True)
def coarse_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of a page's time is the resolution of its pictures."""
    monkeypatch.setattr(figure_style, "PNG_DPI", 20)
    monkeypatch.setattr(figure_style, "GRID_POINTS", 40)


FEW = ("control", "checkpoint", "stateless", "hybrid")


def quick_study(directory: Path) -> Path:
    return write_study(directory, seeds=(0, 1), kills=(1,), configurations=FEW, quick=True, noise=0.005)


def one_seed(directory: Path) -> Path:
    return write_study(directory, seeds=(3,), kills=(1, 2), configurations=FEW)


def with_failures(directory: Path) -> Path:
    broken = [("hybrid", 1, 0), ("hybrid", 1, 1), ("checkpoint", 1, 1)]
    return write_study(directory, seeds=(0, 1), kills=(1,), configurations=FEW, failed=broken)


def interrupted(directory: Path) -> Path:
    """The third configuration was on its way: no run.json."""
    quick_study(directory)
    shutil.rmtree(directory / "runs" / "steep" / "hybrid")
    (directory / "runs" / "steep" / "stateless" / "kills-1" / "seed-1" / "run.json").unlink()
    return directory


def control_alone(directory: Path) -> Path:
    return write_study(directory, seeds=(0,), kills=(0,), configurations=("control",))


def no_control(directory: Path) -> Path:
    return write_study(directory, seeds=(0, 1), kills=(1,), configurations=("checkpoint", "chain"))


def only_backlog(directory: Path) -> Path:
    return write_backlog(directory, workers=(2,), outages=(100, 375), seeds=(0, 1))


def nothing_yet(directory: Path) -> Path:
    write_about(directory, "steep", [{"experiment": "steep", "configuration": "chain", "kills": 1, "seed": 0}])
    return directory


def unreadable(directory: Path) -> Path:
    quick_study(directory)
    (directory / "runs" / "steep" / "hybrid" / "kills-1" / "seed-0" / "report.json").write_text("{")
    (directory / "calibration.json").write_text("[]")
    write_backlog(directory, workers=(2,), outages=(100,), seeds=(0,))
    (directory / "backlog" / "workers-2" / "outage-100" / "seed-0.json").write_text('{"workers": 2}')
    return directory


def own_task(directory: Path) -> Path:
    """Another model, other names, an accuracy nobody planned."""
    for seed in range(3):
        write_run(directory, "mine", "control", 0, seed, make_report(Made(seed=seed)), label="reference")
        report = make_report(Made("Chain", kills=[4.0], seed=seed))
        write_run(directory, "mine", "big-chain", 1, seed, report, label="<b>big</b> & chained")
    return directory


class Reader(HTMLParser):
    """Counts tags, keeps text, and fails on what is not closed."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "img":
            self.images.append(found["src"] or "")
            assert found.get("alt"), "a picture without words for those who cannot see it"
        for name in ("src", "href"):
            value = found.get(name) or ""
            assert not value.startswith(("http", "//")), f"{value}: the page must need nothing from elsewhere"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(directory: Path) -> Reader:
    reader = Reader()
    reader.feed((directory / "index.html").read_text(encoding="utf-8"))
    assert reader.open == []
    return reader


def never_evaluated(directory: Path) -> Path:
    """A task without an accuracy: curves of gradients, CPU and memory are all there is."""
    for configuration, kills in (("control", 0), ("stateless", 1)):
        for seed in range(2):
            made = Made("Stateless" if kills else "Checkpoint", kills=[4.0] * kills, seed=seed)
            report = make_report(made)
            report["series"] = [s for s in report["series"] if s["accuracy"] is None]
            report["final"] = {"accuracy": None, "loss": None, "version": 0, "digest": ""}
            write_run(directory, "mine", configuration, kills, seed, report)
    return directory


def not_calibrated(directory: Path) -> Path:
    """No control trained: nothing is known but why."""
    nothing_yet(directory)
    raw = {"schema": 1, "experiments": {}, "failed": {"steep": "the control <failed>"}}
    (directory / "calibration.json").write_text(json.dumps(raw))
    return directory


PARTIAL = (
    quick_study, one_seed, with_failures, interrupted, control_alone, no_control, only_backlog, nothing_yet, unreadable,
    own_task, several_models, never_evaluated, not_calibrated,
)  # fmt: skip


@pytest.mark.parametrize("make", PARTIAL, ids=lambda make: make.__name__)
def test_a_page_comes_from_whatever_there_is(make: Callable[[Path], Path], tmp_path: Path) -> None:
    written = render(make(tmp_path / "study"))
    assert all(path.stat().st_size > 0 for path in written)
    page = read(tmp_path / "study")
    pictures = [path for path in written if path.suffix == ".svg"]
    assert len(page.images) == len(pictures)
    assert all(image.startswith("data:image/svg+xml;base64,") for image in page.images)
    assert {path.stem for path in pictures} == {path.stem for path in written if path.suffix == ".png"}
    assert not re.search(r"\bnan\b|\binf\b|None|Traceback", page.text), "a value that was not measured shows through"


def test_a_directory_without_a_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="give what `outlast study --out` was given"):
        render(tmp_path)


def test_failed_runs_are_named_and_in_no_mean(tmp_path: Path) -> None:
    summary = summarise(load_study(with_failures(tmp_path)))
    assert ("failed", 3) in counts(summary.data)
    made = {table.name: write(table, tmp_path) for table in all_tables(summary, load_prices())}
    assert made["failed"].read_text().count("server-0 exited with 1 six times in a row") == 3
    rows = list(csv.DictReader(made["measures"].open()))
    final = {r["configuration"]: r for r in rows if r["measure"] == "final accuracy"}
    assert (final["checkpoint"]["n"], final["checkpoint"]["failed"], final["checkpoint"]["seeds"]) == ("1", "1", "0")
    assert "hybrid" not in final
    assert [r["failed"] for r in rows if r["measure"] == "(no run succeeded)"] == ["2"]


def test_what_is_not_made_yet_is_missing_and_not_failed(tmp_path: Path) -> None:
    data = load_study(interrupted(tmp_path))
    assert {(run.configuration, run.seed) for run in data.missing} == {("hybrid", 0), ("hybrid", 1), ("stateless", 1)}
    assert all(run.ok for run in data.runs)


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    data = load_study(unreadable(tmp_path))
    assert [run.configuration for run in data.runs if not run.ok] == ["hybrid"]
    assert len(data.problems) == 2
    render(tmp_path)
    assert "calibration.json: a JSON object is expected" in read(tmp_path).text


def test_an_experiment_that_was_left_out_is_told_with_its_reason(tmp_path: Path) -> None:
    render(not_calibrated(tmp_path))
    assert "Experiments that could not be calibrated" in read(tmp_path).text
    assert "the control <failed>" in read(tmp_path).text


def test_runs_of_different_code_and_earlier_failures_are_told(tmp_path: Path) -> None:
    quick_study(tmp_path)
    for i, path in enumerate(sorted((tmp_path / "runs").glob("*/*/*/*/run.json"))):
        more = {"commit": "fff0000" if i == 0 else "abc1234", "earlier_errors": ["it hung <twice>"] if i == 1 else []}
        path.write_text(json.dumps(json.loads(path.read_text()) | more))
    summary = summarise(load_study(tmp_path))
    different = dict(machines.machine(summary.data))["Different code"]
    assert different == "7 records by abc1234 and 1 record by fff0000"
    assert ("made again after a failure", 1) in counts(summary.data)
    (retried,) = [table for table in all_tables(summary, load_prices()) if table.name == "retried"]
    assert [row[-2:] for row in retried.rows] == [("it hung <twice>", "ok")]
    study = Study(summary, load_prices(), "steep", tables=(retried,))
    assert "it hung &lt;twice&gt;" in html(study, {})


def test_runs_of_one_commit_and_machine_need_no_words_about_it(tmp_path: Path) -> None:
    data = load_study(quick_study(tmp_path))
    assert not [name for name, _ in machines.machine(data) if name.startswith(("Different", "Machine ", "Runs"))]
    assert counts(data) == [("runs", 8)]


def test_labels_from_files_reach_the_page_as_text(tmp_path: Path) -> None:
    render(own_task(tmp_path))
    assert "<b>big</b> & chained" in read(tmp_path).text
    assert "<b>big</b>" not in (tmp_path / "index.html").read_text()


def test_the_same_data_give_the_same_figures(tmp_path: Path) -> None:
    summary = summarise(load_study(quick_study(tmp_path)))
    for name in ("a", "b"):
        drawn = (figures_curves.accuracy(summary, "steep", 1), figures_points.kept(summary, "steep"))
        for figure in drawn:
            assert figure is not None
            figure_style.save(figure, tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_prices_of_the_users_own_change_costs_alone(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    text = Path(load_prices.__code__.co_filename).with_name("prices.yaml").read_text()
    mine.write_text(text.replace("on-demand: 0.90", "on-demand: 90.0"))
    summary = summarise(load_study(quick_study(tmp_path / "study")))
    before, after = ({t.name: t for t in all_tables(summary, load_prices(p))} for p in (None, mine))
    assert {name for name in before if before[name] != after[name]} == {"cost"}


def test_a_mean_of_fewer_runs_than_there_are_says_so(tmp_path: Path) -> None:
    quick_study(tmp_path)
    path = tmp_path / "runs/steep/stateless/kills-1/seed-1/report.json"
    report = json.loads(path.read_text())
    report["failures"][0] |= {"t_backlog_applied_s": None, "backlog_peak": 30}
    path.write_text(json.dumps(report))
    (grid,) = results(summarise(load_study(tmp_path)), "steep")
    (line,) = [line for line in grid.lines if line.label == "Stateless"]
    assert line.cells[grid.columns.index("progress kept") - 1][1] == "(1 of 2 runs)"


# --- what stands where ---


@dataclass(frozen=True)
class Shown:
    directory: Path
    html: str
    text: str
    drawn: set[str]

    @property
    def account(self) -> str:
        return self.html.partition('id="reading"')[2].partition("</section>")[0]


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
    "which", "words", "answer", "reading", "experiments", "steep", "backlog", "cost", "models", "one-worker", "tables",
    "machine", "appendix", "paper-times", "models-net", "models-net-plain",
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


def test_programs_write_no_sentences(shown: Shown) -> None:
    """What stands in paragraphs is fixed in the template, or the user's own."""
    template = resources.files("outlast_bench.study.page").joinpath("study.html.j2").read_text("utf-8")
    for paragraph in re.findall(r"<p>(.*?)</p>", shown.html):
        fixed = paragraph in template or paragraph.startswith(('<span class="badge">', "Planned", "Left out"))
        assert fixed or paragraph in shown.account, paragraph


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
    keys = [key for key, _ in contents(Study(summary, load_prices(), "steep"))]
    assert keys == ["words", "answer", "cost", "tables", "machine"]


# --- colours ---


def test_a_strategy_has_one_colour_everywhere(tmp_path: Path) -> None:
    summary = summarise(load_study(write_study(tmp_path, seeds=(0,), kills=(1,))))
    colours: dict[str, set[str]] = {}
    for group in summary.groups:
        colours.setdefault(strategy_of(group.configuration), set()).add(colour_of(group))
    assert {strategy: {colour} for strategy, colour in STRATEGY_COLOURS.items()}.items() <= colours.items()
    assert len({colour for some in colours.values() for colour in some}) == len(STRATEGY_COLOURS) + 1


# --- verdicts ---


def judged(directory: Path) -> tuple[Summary, list[bool | None]]:
    summary = summarise(load_study(directory))
    return summary, [v.holds for v in verdicts(summary, load_prices(), "steep")]


def test_verdicts_of_a_study_in_which_everything_is_as_the_paper_says(tmp_path: Path) -> None:
    """At a kill after 450 updates checkpointing loses 50; the backlog is applied as if there had been no outage."""
    write_study(tmp_path, seeds=range(3), checkpoint_every=400, evaluate_at=[7.00001, 13.00001])
    write_backlog(tmp_path, workers=(2,))
    summary, found = judged(tmp_path)
    hybrid = summary.group("steep", "hybrid", 1)
    assert hybrid is not None
    around = summary.against_control(hybrid, final_accuracy)
    assert around is not None
    assert -0.01 < around.mean < 0.0  # a tenth slower
    assert found[1:4] == [True, True, True]


def test_verdicts_without_the_runs_they_need_are_left_open(tmp_path: Path) -> None:
    _, found = judged(control_alone(tmp_path))
    assert found == [None] * 5


def test_a_hybrid_that_ends_two_points_below_does_not_hold(tmp_path: Path) -> None:
    write_study(tmp_path, seeds=range(3), configurations=("control", "chain", "hybrid"))
    for path in (tmp_path / "runs" / "steep" / "hybrid" / "kills-2").glob("*/report.json"):
        report = json.loads(path.read_text())
        for sample in report["series"]:
            sample["accuracy"] = None if sample["accuracy"] is None else sample["accuracy"] - 0.02
        path.write_text(json.dumps(report))
    assert judged(tmp_path)[1][1] is False

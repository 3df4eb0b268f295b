"""The tables of a study's page: results and costs by number of kills, where backlog policies break; headline, notes."""

from __future__ import annotations

from pathlib import Path

import pytest
from study_builder import write_backlog, write_study

from outlast_bench.study.analysis.cost import load_prices
from outlast_bench.study.analysis.load import load_study
from outlast_bench.study.analysis.summary import summarise
from outlast_bench.study.backlog.records import load_all
from outlast_bench.study.page import notes, story, story_backlog
from outlast_bench.study.page.cells import Grid, Line
from outlast_bench.study.page.notes import Notes, Paragraph, read_notes
from outlast_bench.study.page.story_costs import costs
from outlast_bench.study.page.story_results import results
from outlast_bench.study.verdicts.verdict import Verdict

FEW = ("control", "checkpoint", "hybrid")


def test_results_are_a_table_for_each_number_of_kills_under_the_control(tmp_path: Path) -> None:
    found = results(summarise(load_study(write_study(tmp_path, configurations=FEW))), "steep")
    assert [grid.title for grid in found] == ["Without a kill", "One kill", "Two kills"]
    assert [[line.label for line in grid.lines] for grid in found] == 3 * [["control", "Checkpoint", "Hybrid"]]


def test_what_is_compared_stands_beside_its_difference_and_the_final_accuracy_last(tmp_path: Path) -> None:
    _, one, _ = results(summarise(load_study(write_study(tmp_path, configurations=FEW))), "steep")
    assert one.columns[1:3] == ("late accuracy (%)", "against the control (points)")
    assert one.columns[-1] == "final accuracy (%)"
    control, checkpoint = ({c: line.cells[i] for i, c in enumerate(one.columns[1:])} for line in one.lines[:2])
    late, less = (checkpoint[name][0] for name in one.columns[1:3])
    assert float(late) - float(control["late accuracy (%)"][0]) == pytest.approx(
        float(less.replace("−", "-")), abs=0.11
    )


def test_a_column_that_nobody_fills_is_left_out(tmp_path: Path) -> None:
    without, one, _ = results(summarise(load_study(write_study(tmp_path, configurations=FEW))), "steep")
    assert {"progress kept", "change at the kill (points)"} <= set(one.columns) - set(without.columns)
    assert "failed" not in one.columns
    grid = Grid("t", ("who", "a", "b"), (Line("x", (("", ""), ("1", ""))), Line("y", (("", ""), ("", "")))))
    assert grid.filled == Grid("t", ("who", "b"), (Line("x", (("1", ""),)), Line("y", (("", ""),))))


def test_failed_runs_keep_their_line_and_their_count(tmp_path: Path) -> None:
    broken = [("hybrid", 1, 0), ("hybrid", 1, 1)]
    summary = summarise(load_study(write_study(tmp_path, (0, 1), (1,), FEW, failed=broken)))
    (grid,) = results(summary, "steep")
    cells = dict(zip(grid.columns[1:], grid.lines[-1].cells, strict=True))
    assert (grid.lines[-1].label, cells["n"], cells["failed"]) == ("Hybrid", ("0", "(of 2)"), ("2", ""))


def test_costs_have_the_control_and_every_number_of_kills(tmp_path: Path) -> None:
    """Two workers for 30 s; with one kill Checkpoint's stand idle for 3 s each."""
    found = costs(summarise(load_study(write_study(tmp_path, configurations=FEW))), "steep", load_prices())
    assert [grid.title for grid in found] == [f"{k}: what it cost" for k in ("Without a kill", "One kill", "Two kills")]
    assert found[1].columns[1:5] == (
        "USD an hour (small GPUs, on-demand)", "worker seconds useful", "idle", "recomputed or lost",
    )  # fmt: skip
    control, checkpoint, hybrid = (tuple(cell[0] for cell in line.cells) for line in found[1].lines)
    assert control[:4] == ("2.00", "60.0", "0.0", "0.0")
    assert checkpoint[:4] == ("2.00", "54.0", "6.0", "0.0")
    assert hybrid[:4] == ("2.60", "60.0", "0.0", "0.0")
    assert found[1].columns[5:] == tuple(f"cents to 0.80, {term}" for term in ("fixed-term", "on-demand", "spot"))


# --- where policies break ---


def test_where_each_policy_breaks(tmp_path: Path) -> None:
    """Sum keeps 0.9 until it ruins the training, from 1,000 gradients on; nothing is ruined by the others."""
    grid = story_backlog.limits(load_all(write_backlog(tmp_path, workers=(1, 2))))
    assert grid is not None
    assert grid.columns == (
        "policy", "1 worker: keeps 0.7 up to", "ruined first at", "2 workers: keeps 0.7 up to", "ruined first at",
    )  # fmt: skip
    told = {line.label: tuple(cell[0] for cell in line.cells[2:]) for line in grid.lines}
    assert told["Sum"] == ("375 (n = 3)", "1,000 (3 of 3 seeds)")
    assert told["LocalSteps (default)"] == ("10,000 (n = 3)", "none up to 10,000")
    assert told["Mean"] == ("none", "none up to 10,000")
    assert "Idle" not in " ".join(told)


def test_a_shorter_outage_that_is_not_kept_is_named(tmp_path: Path) -> None:
    found = story_backlog.cells(load_all(write_backlog(tmp_path, workers=(2,), outages=(100, 375), seeds=(0,))))
    mean = [c for c in found if c.policy == "Mean" and c.outage == 100]
    steps = [c for c in found if c.policy == "LocalSteps" and c.outage == 375]
    assert story_backlog.longest_kept([*mean, *steps]) == "375 (n = 1; not at 100)"
    assert story_backlog.longest_kept([]) == "not measured"


def test_the_limits_in_words(tmp_path: Path) -> None:
    records = load_all(write_backlog(tmp_path))
    assert story_backlog.in_words(records) == (
        "With 2 workers LocalSteps (default) keeps 0.7 or more up to outages of 10,000 gradients (n = 3), and ruins "
        'none up to 10,000. The first to ruin one, at 1,000: "Sum".'
    )
    assert story_backlog.in_words([]) == ""
    assert story_backlog.limits([]) is None


# --- the headline ---


def test_the_headline_counts_open_verdicts_by_their_own_words() -> None:
    found = [Verdict("a", True, ""), Verdict("b", False, ""), Verdict("c", None, ""), Verdict("d", None, "")]
    assert story.headline(found) == "1 of 4 expectations hold; 2 cannot be told"
    assert story.headline(found[:2]) == "1 of 2 expectations hold"


# --- what somebody wrote ---

BEGUN = "2024-05-01T10:00:00"
RUNS = 7
FIRST = f"<!-- of the study begun {BEGUN}, {RUNS} runs -->\n"


def test_an_account_is_read_as_paragraphs(tmp_path: Path) -> None:
    (tmp_path / notes.NAME).write_text(f"{FIRST}\n**A title.** One\nparagraph.\n \nAnother with **bold** in it.\n")
    assert read_notes(tmp_path, BEGUN, RUNS) == Notes(
        (Paragraph("A title.", "One paragraph."), Paragraph("", "Another with **bold** in it."))
    )
    assert read_notes(tmp_path / "elsewhere", BEGUN, RUNS) == Notes()


@pytest.mark.parametrize(
    ("text", "started", "why"),
    [
        ("One paragraph.\n", BEGUN, "its first line must be <!-- of the study begun 2024-05-01T10:00:00, 7 runs -->"),
        (f"\n{FIRST}One.\n", BEGUN, "it is not about this study"),
        (FIRST + "One.\n", "2024-05-02T10:00:00", "it is not about this study"),
        (FIRST + "One.\n", None, "there is no study.json"),
        ("", BEGUN, "it is not about this study"),
    ],
    ids=["no first line", "not first", "another study", "no study.json", "empty"],
)
def test_an_account_of_another_study_is_left_out_with_the_reason(
    tmp_path: Path, text: str, started: str | None, why: str
) -> None:
    (tmp_path / notes.NAME).write_text(text)
    found = read_notes(tmp_path, started, RUNS)
    assert found.paragraphs == ()
    assert why in found.left_out


def test_an_account_of_fewer_runs_is_left_out(tmp_path: Path) -> None:
    """Numbers have changed since, and its words have not."""
    (tmp_path / notes.NAME).write_text(FIRST + "One.\n")
    assert read_notes(tmp_path, BEGUN, RUNS).paragraphs
    assert "it is not about this study" in read_notes(tmp_path, BEGUN, RUNS + 1).left_out


def test_an_account_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    (tmp_path / notes.NAME).write_bytes(b"\xff\xfe")
    assert read_notes(tmp_path, BEGUN, RUNS).left_out.startswith("notes.md: ")

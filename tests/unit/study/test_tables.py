"""The tables of a study's page: which strategy, results and costs by number of kills, where policies break; notes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from study_builder import Made, make_report, write_about, write_backlog, write_run, write_study

from outlast_bench.study.analysis.backlog import cells
from outlast_bench.study.analysis.cells import Grid, Line
from outlast_bench.study.analysis.cost import load_prices
from outlast_bench.study.analysis.load import load_study
from outlast_bench.study.analysis.summary import Summary, later_than_control, summarise, target_is_told
from outlast_bench.study.page import notes
from outlast_bench.study.page.grids import costs, expected, first_ruined, limits, longest_kept, results
from outlast_bench.study.page.notes import Notes, Paragraph, read_notes
from outlast_bench.study.page.tables import all_tables
from outlast_bench.study.verdicts.choice import which
from outlast_bench.study.verdicts.verdict import Row, Verdict

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
    grid = limits(load_study(write_backlog(tmp_path, workers=(1, 2))).backlog)
    assert grid is not None
    assert grid.columns == (
        "policy", "1 worker: keeps 0.7 up to", "ruined first at", "2 workers: keeps 0.7 up to", "ruined first at",
    )  # fmt: skip
    told = {line.label: line.cells[2:] for line in grid.lines}
    assert told["Sum"] == (("375", "(n = 3)"), ("1,000", "(3 of 3 seeds)"))
    assert told["LocalSteps (default)"] == (("10,000", "(n = 3)"), ("none up to 10,000", ""))
    assert told["Mean"] == (("none", ""), ("none up to 10,000", ""))
    assert "Idle" not in " ".join(told)
    assert limits([]) is None


def test_a_shorter_outage_that_is_not_kept_is_named(tmp_path: Path) -> None:
    records = load_study(write_backlog(tmp_path, workers=(2,), outages=(100, 375), seeds=(0,))).backlog
    found = cells(records)
    mean = [c for c in found if c.policy == "Mean" and c.outage == 100]
    steps = [c for c in found if c.policy == "LocalSteps" and c.outage == 375]
    assert longest_kept([*mean, *steps]) == ("375", "(n = 1; not at 100)")
    assert (longest_kept([]), first_ruined([])) == (("", ""), ("", ""))


def test_every_expectation_has_its_verdict_and_how_many_comparisons_are_met() -> None:
    rows = (Row("x", (), met=True), Row("y", (), met=None), Row("z", (), decides=False))
    missed = Verdict("b", False, (), (Row("x", (), met=False),))
    found = expected([Verdict("a", None, ("c",), rows), missed, Verdict("d", None)])
    assert [(line.label, *(text for text, _ in line.cells)) for line in found.lines] == [
        ("a", "cannot be told", "1 of 2"), ("b", "does not hold", "0 of 1"), ("d", "cannot be told", ""),
    ]  # fmt: skip


# --- which strategy ---

OURS = ("control", "checkpoint", "chain", "stateless", "hybrid")


def summary_of(directory: Path, **settings: object) -> Summary:
    return summarise(load_study(write_study(directory, configurations=OURS, **settings)))  # type: ignore[arg-type]


def chosen(summary: Summary) -> Grid:
    found = which(summary, load_prices(), "steep")
    assert found is not None
    return found


def column(grid: Grid, name: str) -> list[str]:
    at = next(i for i, title in enumerate(grid.columns) if title.startswith(name))
    return [line.cells[at - 1][0] for line in grid.lines]


def test_the_four_stand_side_by_side_after_one_and_two_kills(tmp_path: Path) -> None:
    """Two workers at 0.90, a server 0.20, a Redis 0.20."""
    choice = chosen(summary_of(tmp_path))
    assert [line.label for line in choice.lines] == 2 * ["Checkpoint", "Chain", "Stateless", "Hybrid"]
    assert column(choice, "kills") == 4 * ["1"] + 4 * ["2"]
    assert column(choice, "money an hour, small GPUs on-demand") == 2 * ["1.00", "1.20", "1.10", "1.30"]
    assert column(choice, "needs")[:4] == [
        "1 server a shard", "3 servers a shard", "1 server a shard, Redis", "3 servers a shard, Redis",
    ]  # fmt: skip
    assert column(choice, "goodput without a kill")[:4] == ["1.00", "0.95", "1.00", "0.90"]
    assert column(choice, "without an update")[:4] == ["3.00", "0.05", "3.00", "0.05"]
    later = column(choice, "0.80 later than the control by (s) (the control: 13.")
    assert float(later[0]) == pytest.approx(3.0, abs=0.11)
    assert float(later[2].replace("−", "-")) == pytest.approx(0.0, abs=0.11)
    assert [line.cells[-1] for line in choice.lines] == 8 * [("5", "")]


def test_how_far_below_the_best_each_ends_is_paired_by_seed(tmp_path: Path) -> None:
    """Stateless loses nothing here, Checkpoint its outages, Chain and Hybrid a part of every second."""
    below = column(chosen(summary_of(tmp_path)), "below the best")
    assert (below[0], below[2]) == ("0.5", "")
    assert all(float(text) > 0.0 for text in (below[1], below[3]))


def two_strategies(directory: Path, rates: Mapping[str, tuple[float, ...]]) -> Summary:
    """One kill; each seed at a rate of its own."""
    for seed in range(len(rates["Checkpoint"])):
        write_run(directory, "steep", "control", 0, seed, make_report(Made(seed=seed)))
        for strategy, each in rates.items():
            made = Made(strategy, kills=[4.0], rate=each[seed], seed=seed)
            write_run(directory, "steep", strategy.lower(), 1, seed, make_report(made))
    write_about(directory, "steep", [])
    return summarise(load_study(directory))


def test_what_the_seeds_do_not_tell_apart_has_0_inside(tmp_path: Path) -> None:
    """Stateless is ahead in two seeds, behind in two."""
    rates = {"Checkpoint": (100.0,) * 5, "Stateless": (60.0, 80.0, 120.0, 140.0, 100.0)}
    choice = chosen(two_strategies(tmp_path, rates))
    assert column(choice, "below the best")[0] == ""
    assert choice.lines[1].cells[2][1].startswith("(−")
    assert not [title for title in choice.columns if title.startswith("goodput")]


def test_who_ends_highest_is_decided_by_the_seeds_that_all_have(tmp_path: Path) -> None:
    """Stateless is ahead in the seeds of both; the one it lacks would have put Checkpoint first."""
    two_strategies(tmp_path, {"Checkpoint": (60.0, 60.0, 400.0), "Stateless": (70.0, 70.0, 70.0)})
    shutil.rmtree(tmp_path / "runs" / "steep" / "stateless" / "kills-1" / "seed-2")
    choice = chosen(summarise(load_study(tmp_path)))
    assert [text == "" for text in column(choice, "below the best")] == [False, True]


def test_failed_and_missing_runs_are_counted_in_the_table(tmp_path: Path) -> None:
    broken = [("hybrid", 1, seed) for seed in range(2)]
    choice = chosen(summary_of(tmp_path, seeds=(0, 1), kills=(1,), failed=broken))
    hybrid = choice.lines[-1]
    assert (hybrid.label, hybrid.failed, hybrid.cells[-1]) == ("Hybrid", True, ("0", "(of 2)"))


def test_without_a_kill_there_is_nothing_to_choose(tmp_path: Path) -> None:
    assert which(summary_of(tmp_path, kills=(0,)), load_prices(), "steep") is None


# --- time to the target ---


def killed_at(directory: Path, *kills: float) -> Summary:
    """At the paper's own times, a seed a kill; the control passes 0.80 after 13.7 s."""
    for seed, at in enumerate(kills):
        write_run(directory, "paper-times", "control", 0, seed, make_report(Made(seed=seed)))
        for name in ("checkpoint", "stateless"):
            made = Made(name.capitalize(), kills=[at], seed=seed)
            write_run(directory, "paper-times", name, 1, seed, make_report(made))
    write_about(directory, "paper-times", [])
    return summarise(load_study(directory))


@pytest.mark.parametrize(
    ("kills", "told"), [((15.0, 15.0, 4.0), False), ((15.0, 4.0, 4.0), True), ((15.0, 4.0), True), ((4.0,), True)]
)
def test_a_time_is_told_unless_the_control_was_there_before_the_kill(
    tmp_path: Path, kills: tuple[float, ...], told: bool
) -> None:
    """In most seeds."""
    summary = killed_at(tmp_path, *kills)
    assert target_is_told(summary, "paper-times", 1) is told
    assert target_is_told(summary, "paper-times", 0), "without a kill it says what it says anywhere"
    (grid,) = results(summary, "paper-times")
    assert any(title.startswith("time to") for title in grid.columns) is told
    (cost,) = costs(summary, "paper-times", load_prices())
    assert any(title.startswith("cents to") for title in cost.columns) is told
    tables = {table.name: table for table in all_tables(summary, load_prices())}
    measured = [row for row in tables["measures"].rows if row[2] == "1" and row[3].startswith("time to")]
    paid = [row for row in tables["cost"].rows if row[2] == "1" and row[6].startswith("to reach")]
    assert (bool(measured), bool(paid)) == (told, told)


def test_how_much_later_than_the_control_is_paired_by_seed(tmp_path: Path) -> None:
    """1,366 updates: 13.7 s at 100 a second, 18.2 s at 75; and an outage of 3 s."""
    summary = two_strategies(tmp_path, {"Checkpoint": (100.0, 75.0)})
    group = summary.group("steep", "checkpoint", 1)
    assert group is not None
    found = later_than_control(summary, group)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((3.0, 7.6), abs=0.2)


def test_a_run_that_never_got_there_is_a_lower_bound(tmp_path: Path) -> None:
    """The runs end after 15 s; with its outage Checkpoint would need 16.7 s."""
    summary = summary_of(tmp_path, seconds=15.0)
    group = summary.group("steep", "checkpoint", 1)
    assert group is not None
    found = later_than_control(summary, group)
    assert found is not None
    assert (found.censored, found.mean) == (5, pytest.approx(1.3, abs=0.2))
    (times,) = [i for i, title in enumerate(chosen(summary).columns) if title.startswith("0.80 later")]
    assert chosen(summary).lines[0].cells[times - 1][0].startswith("≥ +1.")


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

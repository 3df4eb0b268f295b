"""What a study's verdicts may say, and when they must say that it cannot be told."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from study_builder import SECONDS, write_backlog, write_study

from outlast_bench.study.analysis.cost import load_prices
from outlast_bench.study.analysis.load import load_study
from outlast_bench.study.analysis.statistics import Estimate
from outlast_bench.study.analysis.summary import summarise
from outlast_bench.study.run.execute import _judge
from outlast_bench.study.verdicts.backlog import backlog_kept
from outlast_bench.study.verdicts.cost import cost_claim
from outlast_bench.study.verdicts.ordering import fallen, first_kills, ordering
from outlast_bench.study.verdicts.verdict import Bound, Row, Verdict, ahead_of_checkpointing, close_to_control

FEW = ("control", "paper-async-checkpoint", "chain", "hybrid")


def test_a_configuration_of_which_all_runs_failed_keeps_its_row_and_leaves_the_verdict_open(tmp_path: Path) -> None:
    broken = [("chain", 1, seed) for seed in range(3)]
    write_study(tmp_path, seeds=(0, 1, 2), kills=(1,), configurations=FEW, failed=broken)
    summary = summarise(load_study(tmp_path))
    for verdict in (ordering, close_to_control, ahead_of_checkpointing):
        found = verdict(summary, "steep")
        (row,) = [row for row in found.rows if "3 of 3 runs failed" in row.figure]
        assert row.met is None
        assert found.holds is not True, f"{found.question} cannot hold over those that are left"


def test_where_some_runs_failed_the_others_do_not_decide(tmp_path: Path) -> None:
    write_study(tmp_path, seeds=(0, 1, 2), kills=(1,), configurations=FEW, failed=[("hybrid", 1, 1)])
    found = ordering(summarise(load_study(tmp_path)), "steep")
    (row,) = [row for row in found.rows if "1 of 3 runs failed" in row.figure]
    assert row.met is None


@pytest.mark.parametrize(
    ("sign", "around", "mark", "doubt"),
    [
        (-1, Estimate(-0.05, -0.09, -0.01, 5, "interval"), "✓", ""),
        (-1, Estimate(-0.05, -0.12, 0.02, 5, "interval"), "(✓)", "; the interval does not exclude the contrary"),
        (-1, Estimate(0.01, -0.02, 0.04, 3, "range"), "(✗)", "; the range does not exclude the contrary"),
        (1, Estimate(0.05, 0.01, 0.09, 5, "interval"), "✓", ""),
        (1, Estimate(-0.05, -0.09, -0.01, 5, "interval"), "✗", ""),
        (1, Estimate(-0.05, -0.05, -0.05, 1, "none"), "·", ""),
        (1, Estimate(-0.05, -0.09, -0.01, 4, "range"), "·", ""),  # one of five is missing
    ],
)
def test_a_mean_is_held_against_its_bound_and_doubted_by_what_surrounds_it(
    sign: int, around: Estimate, mark: str, doubt: str
) -> None:
    row = Bound(0.0, sign).row("x", "figure", around, 5 if around.n > 3 else around.n)
    assert (row.mark, row.figure) == (mark, f"figure{doubt}")


@pytest.mark.parametrize(
    ("holds", "marks", "word"),
    [
        (True, "++", "holds"),
        (True, "+p", "holds, by the means alone"),
        (False, "+-", "does not hold"),
        (False, "p-", "does not hold"),
        (False, "+m", "does not hold, by the means alone"),
        (None, "+p", "cannot be told"),
    ],
)
def test_a_verdict_says_when_means_alone_decide_it(holds: bool | None, marks: str, word: str) -> None:
    """+ and -: surely met and surely not; p and m: by the mean. What decides nothing has no say."""
    rows = [Row("x", "", met=m in "+p", sure=m in "+-") for m in marks]
    beside = Row("x", "", met=None, decides=False, sure=False)
    assert Verdict("q", holds, "", rows=(*rows, beside)).word == word


def test_the_first_kill_of_runs_with_one_and_two_kills_counts_once_a_seed(tmp_path: Path) -> None:
    """It is the same event twice; ten runs are no ten seeds."""
    write_study(tmp_path, seeds=(0, 1), configurations=("control", "chain"))
    for kills, change in ((1, -0.30), (2, -0.10)):
        shift_after_the_kill(tmp_path, "chain", kills, change)
    summary = summarise(load_study(tmp_path))
    groups = [summary.group("steep", "chain", kills) for kills in (1, 2)]
    alone = [g.estimate(fallen) for g in groups if g is not None]
    both = first_kills(summary, "steep", "chain", fallen)
    assert both is not None
    assert both.found is not None
    assert (both.found.n, both.runs, both.wanted) == (2, 4, 2)
    assert both.found.mean == pytest.approx(sum(e.mean for e in alone if e is not None) / 2)
    assert both.found.mean == pytest.approx(-0.2, abs=0.02)


def shift_after_the_kill(directory: Path, configuration: str, kills: int, by: float) -> None:
    for path in (directory / f"runs/steep/{configuration}/kills-{kills}").glob("*/report.json"):
        report = json.loads(path.read_text())
        killed = report["failures"][0]["t_killed_s"]
        for sample in report["series"]:
            if sample["accuracy"] is not None and sample["t_s"] > killed:
                sample["accuracy"] += by
        path.write_text(json.dumps(report))


def test_a_failed_run_with_two_kills_leaves_what_is_averaged_with_it_open(tmp_path: Path) -> None:
    write_study(tmp_path, seeds=(0, 1), configurations=("control", "chain"), failed=[("chain", 2, 1)])
    (row,) = ordering(summarise(load_study(tmp_path)), "steep").rows
    assert row.met is None
    assert row.figure.endswith("n = 2); lost 0; 1 of 4 runs failed")


def test_a_relaxed_chain_says_what_it_loses_by_construction(tmp_path: Path) -> None:
    write_study(tmp_path, seeds=(0, 1), kills=(1,), configurations=("control", "paper-async-chain", "chain"))
    figures = {row.label: row.figure for row in ordering(summarise(load_study(tmp_path)), "steep").rows}
    told = "replicated every 100 updates, it loses up to 100 of them by construction"
    assert told in figures["async chain (paper) does not fall"]
    assert told not in figures["Chain does not fall"]


@pytest.mark.parametrize(("first_update", "error"), [(12.5, ""), (None, "did not recover")])
def test_a_run_that_never_recovered_has_failed(tmp_path: Path, first_update: float | None, error: str) -> None:
    failure = {"target": "server-0", "signal": "KILL", "t_killed_s": 10.0, "t_first_update_s": first_update}
    report = {"failures": [failure], "final": {"accuracy": 0.5, "loss": 1.0}}
    (tmp_path / "report.json").write_text(json.dumps(report))
    found = _judge(0, json.dumps({"outcome": "Succeeded"}), 1, tmp_path)
    assert (error in found) if error else found == ""


def test_what_was_planned_and_is_not_made_yet_keeps_its_row(tmp_path: Path) -> None:
    write_study(tmp_path, seeds=(0, 1, 2), kills=(1,), configurations=FEW)
    for seed in range(3):
        (tmp_path / f"runs/steep/hybrid/kills-1/seed-{seed}/run.json").unlink()
    (tmp_path / "runs/steep/chain/kills-1/seed-2/run.json").unlink()
    found = ordering(summarise(load_study(tmp_path)), "steep")
    figures = {row.label: (row.figure, row.met) for row in found.rows}
    assert figures["Hybrid does not fall"] == ("not measured; 3 of 3 not made yet", None)
    assert figures["Chain does not fall"][0].endswith("; 1 of 3 not made yet")
    assert figures["Chain does not fall"][1] is None


def test_a_seed_that_was_not_measured_leaves_its_comparison_open(tmp_path: Path) -> None:
    """Its run succeeded, but nobody evaluated it."""
    write_study(tmp_path, seeds=(0, 1, 2), kills=(1,), configurations=FEW)
    path = tmp_path / "runs/steep/hybrid/kills-1/seed-1/report.json"
    report = json.loads(path.read_text())
    for sample in report["series"]:
        sample["accuracy"] = None
    path.write_text(json.dumps(report))
    found = close_to_control(summarise(load_study(tmp_path)), "steep")
    (row,) = [row for row in found.rows if row.label.startswith("Hybrid")]
    assert row.figure.endswith("; 1 of 3 not measured")
    assert row.met is None


def test_what_a_core_to_spare_changes_stands_beside_the_verdict(tmp_path: Path) -> None:
    alone = close_to_control(summarise(load_study(write_study(tmp_path / "a", seeds=(0, 1, 2), kills=(1, 2)))), "steep")
    write_study(tmp_path / "b", seeds=(0, 1, 2), kills=(1, 2))
    write_study(tmp_path / "b", seeds=(0, 1, 2), kills=(1, 2), experiment="one-worker", failed=[("chain", 1, 0)])
    found = close_to_control(summarise(load_study(tmp_path / "b")), "steep")
    beside = found.rows[len(alone.rows) :]
    kills = ["Hybrid, one kill", "Hybrid, two kills", "Chain, one kill", "Chain, two kills"]
    assert [row.label.removesuffix(", one worker and a core for the servers") for row in beside] == kills
    assert "goodput 0.8" in beside[0].figure or "goodput 0.9" in beside[0].figure, beside
    assert [row.figure.endswith("; 1 of 3 runs failed") for row in beside] == [False, False, True, False]
    assert [row.met for row in beside] == [None] * 4
    assert found.holds == alone.holds


def test_like_is_compared_with_like(tmp_path: Path) -> None:
    write_study(tmp_path, seeds=(0, 1), kills=(1,))
    found = ahead_of_checkpointing(summarise(load_study(tmp_path)), "steep")
    pairs = {row.label.removesuffix(", one kill") for row in found.rows}
    assert pairs == {
        "sync chain (paper) over sync checkpointing (paper)",
        "async chain (paper) over async checkpointing (paper)",
        "stateless (paper) over async checkpointing (paper)",
        "Chain over Checkpoint",
        "Stateless over Checkpoint",
        "Hybrid over Checkpoint",
    }


def test_how_far_ahead_one_can_be_stands_beside_how_far_one_is(tmp_path: Path) -> None:
    """Checkpointing that stood still for 3 s of 300 updates is behind the control by these, and Hybrid by its pace."""
    write_study(tmp_path, seeds=(0, 1), kills=(1,), configurations=("control", "checkpoint", "stateless"))
    (row,) = ahead_of_checkpointing(summarise(load_study(tmp_path)), "steep").rows
    ahead, most = (float(n) for n in re.findall(r"\+([\d.]+) points", row.figure)[:2])
    assert row.figure.index("[the control +") > 0
    assert ahead == pytest.approx(most, abs=0.2), "idealised, Stateless loses nothing"


def test_what_the_kill_costs_stands_apart_from_what_the_strategy_costs(tmp_path: Path) -> None:
    """Idealised, a chain at 0.95 of the control's pace loses nothing to its kill, and 5 % of the gradients without."""
    write_study(tmp_path, seeds=(0, 1), configurations=("control", "chain", "hybrid"))
    found = close_to_control(summarise(load_study(tmp_path)), "steep")
    chain = [row.figure for row in found.rows if row.label.startswith("Chain")]
    assert len(chain) == 2
    for figure in chain:
        assert "; less its own without a kill +0.0 points" in figure
        assert "; goodput without a kill 0.95 (0.95 to 0.95, n = 2)" in figure


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)], ids=["some failed", "all failed"])
def test_money_is_not_decided_by_the_runs_that_are_left(tmp_path: Path, seeds: tuple[int, ...]) -> None:
    broken = [("stateless", 1, seed) for seed in seeds]
    write_study(tmp_path, seeds=(0, 1, 2), kills=(1,), failed=broken)
    found = cost_claim(summarise(load_study(tmp_path)), load_prices(), "steep")
    ours = [row for row in found.rows if row.label.startswith("As recommended")]
    assert ours
    assert all(row.met is None and f"{len(seeds)} runs of the two failed" in row.figure for row in ours)
    assert found.holds is not True


def test_whole_runs_of_the_default_that_failed_leave_the_backlogs_verdict_open(tmp_path: Path) -> None:
    write_study(tmp_path, seeds=(0, 1, 2), kills=(1,), failed=[("stateless", 1, seed) for seed in range(3)])
    write_backlog(tmp_path, workers=(2,))
    found = backlog_kept(summarise(load_study(tmp_path)), "steep")
    assert found.holds is None, "a simulation alone does not decide"


def test_how_long_a_run_was_to_train_is_read_from_its_job(tmp_path: Path) -> None:
    write_study(tmp_path, seeds=(0,), kills=(1,), configurations=FEW)
    assert {run.planned_s for run in load_study(tmp_path).runs} == {SECONDS}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "agree on whether that is 0.7 or more, and both put Sum first"),
        ({"LocalSteps": 0.5}, "do not agree on whether that is 0.7 or more, and both put Sum first"),
        ({"Mean": 2.0}, "agree on whether that is 0.7 or more; accuracy puts Sum first, loss Mean"),
    ],
    ids=["they agree", "not on the bound", "not on the order"],
)
def test_the_backlogs_verdict_says_whether_accuracy_and_loss_agree(
    tmp_path: Path, changes: dict[str, float], says: str
) -> None:
    write_backlog(tmp_path, workers=(2,), by_loss=changes)
    found = backlog_kept(summarise(load_study(tmp_path)), "steep")
    assert says in found.notes[-1]
    (default,) = [row for row in found.rows if row.decides]
    assert default.met is True, "accuracy decides"
    assert f"by loss {changes.get('LocalSteps', 0.85):.2f}" in default.figure

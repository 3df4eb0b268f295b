"""What a study's verdicts may say, when it cannot be told; models compared by seed, a divergence counted."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from study_builder import SECONDS, several_models, write_backlog, write_run, write_study

from outlast.worker.errors import TrainingError
from outlast.worker.remote_optimizer import RemoteOptimizer
from outlast_bench.study.analysis.cost import load_prices
from outlast_bench.study.analysis.load import StudyRun, load_study
from outlast_bench.study.analysis.statistics import Estimate
from outlast_bench.study.analysis.summary import summarise
from outlast_bench.study.run.execute import _judge
from outlast_bench.study.verdicts.backlog import backlog_kept
from outlast_bench.study.verdicts.cost import cost_claim
from outlast_bench.study.verdicts.models import decided, normalisation
from outlast_bench.study.verdicts.ordering import fallen, first_kills, ordering
from outlast_bench.study.verdicts.verdict import Bound, Row, Verdict, ahead_of_checkpointing, close_to_control

FEW = ("control", "paper-async-checkpoint", "chain", "hybrid")


def lacking(row: Row) -> str:
    """Which planned runs are not in it."""
    return row.cells[-1][1]


def cells_of(verdict: Verdict, row: Row) -> dict[str, tuple[str, str]]:
    return dict(zip(verdict.columns, row.cells, strict=True))


def test_a_configuration_of_which_all_runs_failed_keeps_its_row_and_leaves_the_verdict_open(tmp_path: Path) -> None:
    broken = [("chain", 1, seed) for seed in range(3)]
    write_study(tmp_path, seeds=(0, 1, 2), kills=(1,), configurations=FEW, failed=broken)
    summary = summarise(load_study(tmp_path))
    for verdict in (ordering, close_to_control, ahead_of_checkpointing):
        found = verdict(summary, "steep")
        (row,) = [row for row in found.rows if lacking(row).startswith("(3 of ") and "failed" in lacking(row)]
        assert row.met is None
        assert found.holds is not True, f"{found.question} cannot hold over those that are left"


def test_where_some_runs_failed_the_others_do_not_decide(tmp_path: Path) -> None:
    write_study(tmp_path, seeds=(0, 1, 2), kills=(1,), configurations=FEW, failed=[("hybrid", 1, 1)])
    found = ordering(summarise(load_study(tmp_path)), "steep")
    (row,) = [row for row in found.rows if lacking(row) == "(1 of 3 failed)"]
    assert row.met is None


@pytest.mark.parametrize(
    ("sign", "around", "mark"),
    [
        (-1, Estimate(-0.05, -0.09, -0.01, 5, "interval"), "✓"),
        (-1, Estimate(-0.05, -0.12, 0.02, 5, "interval"), "(✓)"),
        (-1, Estimate(0.01, -0.02, 0.04, 3, "range"), "(✗)"),
        (1, Estimate(0.05, 0.01, 0.09, 5, "interval"), "✓"),
        (1, Estimate(-0.05, -0.09, -0.01, 5, "interval"), "✗"),
        (1, Estimate(-0.05, -0.05, -0.05, 1, "none"), "·"),
        (1, Estimate(-0.05, -0.09, -0.01, 4, "range"), "·"),  # one of five is missing
    ],
)
def test_a_mean_is_held_against_its_bound_and_doubted_by_what_surrounds_it(
    sign: int, around: Estimate, mark: str
) -> None:
    assert Bound(0.0, sign).row("x", (), around, 5 if around.n > 3 else around.n).mark == mark


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
    rows = [Row("x", (), met=m in "+p", sure=m in "+-") for m in marks]
    beside = Row("x", (), met=None, decides=False, sure=False)
    found = Verdict("q", holds, rows=(*rows, beside))
    assert found.word == word
    assert found.count == f"{sum(m in '+p' for m in marks)} of {len(marks)}"


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
    assert row.cells[1:] == (("0", ""), ("2", "(1 of 4 failed)"))


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
    seeds = {row.label: (row.cells[-1], row.met) for row in found.rows}
    assert seeds["Hybrid does not fall"] == (("0", "(3 of 3 not made yet)"), None)
    assert seeds["Chain does not fall"] == (("2", "(1 of 3 not made yet)"), None)


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
    assert lacking(row) == "(1 of 3 not measured)"
    assert row.met is None


def test_what_a_core_to_spare_changes_stands_beside_the_verdict(tmp_path: Path) -> None:
    alone = close_to_control(summarise(load_study(write_study(tmp_path / "a", seeds=(0, 1, 2), kills=(1, 2)))), "steep")
    write_study(tmp_path / "b", seeds=(0, 1, 2), kills=(1, 2))
    write_study(tmp_path / "b", seeds=(0, 1, 2), kills=(1, 2), experiment="one-worker", failed=[("chain", 1, 0)])
    found = close_to_control(summarise(load_study(tmp_path / "b")), "steep")
    beside = found.rows[len(alone.rows) :]
    kills = ["Hybrid, one kill", "Hybrid, two kills", "Chain, one kill", "Chain, two kills"]
    assert [row.label.removesuffix(", one worker and a core for the servers") for row in beside] == kills
    assert [lacking(row) for row in beside] == ["", "", "(1 of 3 failed)", ""]
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
    found = ahead_of_checkpointing(summarise(load_study(tmp_path)), "steep")
    ahead, most = (float(mean) for mean, _ in found.rows[0].cells[:2])
    assert found.columns[1] == "the control by then (points)"
    assert ahead == pytest.approx(most, abs=0.2), "idealised, Stateless loses nothing"


def test_what_the_kill_costs_stands_apart_from_what_the_strategy_costs(tmp_path: Path) -> None:
    """Idealised, a chain at 0.95 of the control's pace loses nothing to its kill, and 5 % of the gradients without."""
    write_study(tmp_path, seeds=(0, 1), configurations=("control", "chain", "hybrid"))
    found = close_to_control(summarise(load_study(tmp_path)), "steep")
    chain = [cells_of(found, row) for row in found.rows if row.label.startswith("Chain")]
    assert len(chain) == 2
    for cells in chain:
        assert cells["less its own without a kill (points)"][0] == "+0.0"
        assert cells["goodput without a kill"] == ("0.95", "(0.95 to 0.95)")


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)], ids=["some failed", "all failed"])
def test_money_is_not_decided_by_the_runs_that_are_left(tmp_path: Path, seeds: tuple[int, ...]) -> None:
    broken = [("stateless", 1, seed) for seed in seeds]
    write_study(tmp_path, seeds=(0, 1, 2), kills=(1,), failed=broken)
    found = cost_claim(summarise(load_study(tmp_path)), load_prices(), "steep")
    ours = [row for row in found.rows if row.label.startswith("As recommended")]
    assert ours
    assert all(row.met is None and lacking(row) == f"({len(seeds)} of 6 failed)" for row in ours)
    assert found.holds is not True


def test_whole_runs_of_the_default_that_failed_leave_the_backlogs_verdict_open(tmp_path: Path) -> None:
    write_study(tmp_path, seeds=(0, 1, 2), kills=(1,), failed=[("stateless", 1, seed) for seed in range(3)])
    write_backlog(tmp_path, workers=(2,))
    found = backlog_kept(summarise(load_study(tmp_path)), "steep")
    assert found.holds is None, "a simulation alone does not decide"


def test_how_long_a_run_was_to_train_is_read_from_its_job(tmp_path: Path) -> None:
    write_study(tmp_path, seeds=(0,), kills=(1,), configurations=FEW)
    assert {run.planned_s for run in load_study(tmp_path).runs} == {SECONDS}


def test_loss_stands_beside_accuracy_which_decides(tmp_path: Path) -> None:
    write_backlog(tmp_path, workers=(2,), by_loss={"LocalSteps": 0.5})
    found = backlog_kept(summarise(load_study(tmp_path)), "steep")
    (default,) = [row for row in found.rows if row.decides]
    assert default.met is True
    assert (default.cells[0][0], default.cells[1][0]) == ("0.85", "0.50")


# --- models with and without normalisation ---

PLAIN = "models-net-plain"


def of_models(directory: Path) -> Verdict:
    found = normalisation(summarise(load_study(directory)))
    assert found is not None
    return found


def deciding(found: Verdict) -> list[Row]:
    return [row for row in found.rows if row.decides]


def words_of_a_divergence() -> str:
    """As `outlast run` tells it, in the trainer's words: were these changed, a divergence would pass for a crash."""
    worker = SimpleNamespace(_step=7, _config=SimpleNamespace(slot=1))
    with pytest.raises(TrainingError) as caught:
        RemoteOptimizer._checked(cast(Any, worker), math.nan)
    return f"Failed: worker-1: {caught.value}"


def test_models_with_and_without_normalisation_are_compared(tmp_path: Path) -> None:
    found = of_models(several_models(tmp_path))
    assert found.holds is True  # the plain one keeps nothing
    assert len(deciding(found)) == 1  # checkpointing applies no backlog
    assert cells_of(found, deciding(found)[0])["difference"][0]
    write_study(tmp_path / "other", seeds=(0,), kills=(1,), configurations=("control", "stateless"))
    assert normalisation(summarise(load_study(tmp_path / "other"))) is None


def test_models_of_which_runs_failed_are_not_compared_by_the_rest(tmp_path: Path) -> None:
    several_models(tmp_path)
    write_run(tmp_path, PLAIN, "stateless", 1, 3, None, model=PLAIN)
    found = of_models(tmp_path)
    assert found.holds is None
    assert cells_of(found, deciding(found)[0])["runs without"][1] == "(1 of 4 failed)"


def test_a_run_that_diverged_keeps_less_and_is_named(tmp_path: Path) -> None:
    several_models(tmp_path)
    write_run(tmp_path, PLAIN, "stateless", 1, 2, None, model=PLAIN, error=words_of_a_divergence())
    (tmp_path / f"runs/{PLAIN}/stateless/kills-1/seed-2/report.json").unlink()
    found = of_models(tmp_path)
    assert found.holds is True
    cells = cells_of(found, deciding(found)[0])
    assert cells["runs without"] == ("2", "(1 of 3 failed, 1 diverged)")
    assert cells["difference"][0] == "", "the two shares are not of the same seeds"
    assert re.fullmatch(r"\([−\d.]+ to [−\d.]+; 2 of 3 runs\)", cells["difference"][1])


def test_the_difference_is_that_of_the_two_shares_beside_it(tmp_path: Path) -> None:
    """And not the mean of three ratios: a seed whose control gained little would decide that."""
    several_models(tmp_path)
    path = tmp_path / "runs/models-net/control/kills-0/seed-2/report.json"
    report = json.loads(path.read_text())
    for sample in report["series"]:  # it gained a sixth of what the others did
        if sample["accuracy"] is not None:
            sample["accuracy"] = 0.45 + sample["accuracy"] / 6
    path.write_text(json.dumps(report))
    found = of_models(tmp_path)
    with_, without, difference = (float(mean.replace("−", "-")) for mean, _ in deciding(found)[0].cells[:3])
    assert difference == pytest.approx(with_ - without, abs=0.011)


def test_how_far_each_model_ends_from_its_own_control_stands_beside_the_verdict(tmp_path: Path) -> None:
    several_models(tmp_path)
    write_run(tmp_path, PLAIN, "stateless", 1, 2, None, model=PLAIN, error=words_of_a_divergence())
    (tmp_path / f"runs/{PLAIN}/stateless/kills-1/seed-2/report.json").unlink()
    found = of_models(tmp_path)
    rows = {row.label: cells_of(found, row) for row in found.rows}
    assert list(rows) == ["net, Checkpoint", "net, Stateless"]
    assert rows["net, Checkpoint"]["kept with"] == ("", ""), "it applies no backlog"
    for cells in rows.values():
        assert re.fullmatch(r"[−+][\d.]+", cells["ends with (points)"][0])
        assert re.fullmatch(r"[−+][\d.]+", cells["ends without (points)"][0])


@pytest.mark.parametrize(
    ("error", "diverged"),
    [
        ("Failed: worker-0: the gradient of step 3 (slot 0) is not finite (norm nan); lower the rate", True),
        ("Failed: server-0 exited with 1 six times in a row", False),
        ("Failed: spec.training.optimizer.lr: nan is not a finite number", False),
        ("", False),
    ],
)
def test_a_divergence_is_told_by_the_recorded_error(error: str, diverged: bool) -> None:
    assert StudyRun("e", "stateless", 1, 0, status="failed", error=error).diverged is diverged
    assert StudyRun("e", "stateless", 1, 0, status="ok", error=error).diverged is False


@pytest.mark.parametrize(
    ("differences", "less"),
    [
        ([0.2, 0.1, 0.3], True),  # also where the two ranges overlap
        ([-0.2, -0.1, -0.3], False),
        ([0.2, -0.1, 0.3], None),
        ([math.inf, 0.1, 0.3], True),  # the plain one diverged once
        ([math.inf, -0.1, 0.3], None),
        ([-math.inf, -0.1, -0.3], False),
        ([math.inf, 0.0, 0.3], None),  # both diverged once
        ([0.2], None),
        ([], None),
        ([0.3, 0.4, 0.3, 0.4, -0.01], True),  # of five seeds the interval decides
    ],
)
def test_pairs_decide(differences: list[float], less: bool | None) -> None:
    assert decided(dict(enumerate(differences))) is less

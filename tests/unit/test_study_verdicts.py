"""What a study's verdicts may say, and when they must say that it cannot be told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from study_builder import write_study

from outlast_operator.study.execute import _judge
from outlast_operator.study.load import load_study
from outlast_operator.study.statistics import Estimate
from outlast_operator.study.summary import summarise
from outlast_operator.study.verdicts import above, ahead_of_checkpointing, below, close_to_control, ordering

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
    ("low", "high", "is_below", "is_above"), [(-3, -1, True, False), (-1, 1, None, None), (1, 3, False, True)]
)
def test_a_direction_is_told_by_the_whole_interval(
    low: float, high: float, is_below: bool | None, is_above: bool | None
) -> None:
    found = Estimate((low + high) / 2, low, high, 5, "interval")
    assert (below(found, 0.0), above(found, 0.0)) == (is_below, is_above)


@pytest.mark.parametrize(("first_update", "error"), [(12.5, ""), (None, "did not recover")])
def test_a_run_that_never_recovered_has_failed(tmp_path: Path, first_update: float | None, error: str) -> None:
    failure = {"target": "server-0", "signal": "KILL", "t_killed_s": 10.0, "t_first_update_s": first_update}
    report = {"failures": [failure], "final": {"accuracy": 0.5, "loss": 1.0}}
    (tmp_path / "report.json").write_text(json.dumps(report))
    found = _judge(0, json.dumps({"outcome": "Succeeded"}), 1, tmp_path)
    assert (error in found) if error else found == ""

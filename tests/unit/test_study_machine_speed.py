"""The machine's own speed, told by the evaluator, and what comparisons are without it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from study_builder import SECONDS, START_S, write_study

from outlast_bench.study.analysis.load import load_study
from outlast_bench.study.analysis.machine_speed import (
    at_the_controls_speed,
    range_of,
    slope_of,
    within,
)
from outlast_bench.study.analysis.summary import Summary, late_accuracy, summarise
from outlast_bench.study.verdicts.verdict import close_to_control

CONFIGURATIONS = ("control", "checkpoint", "chain", "hybrid")
SEEDS = (0, 1, 2)
POINTS_A_LOG = -0.12  # accuracy that a machine e times as slow costs at the end


def cost_of(configuration: str, kills: int, seed: int) -> float:
    """CPU seconds an evaluation: some runs met a slow machine, the controls a quick one."""
    slow = (CONFIGURATIONS.index(configuration) * 3 + kills * 5 + seed * 7) % 4
    return 0.100 * (1.0 + 0.03 * seed if configuration == "control" else 1.05 + 0.08 * slow)


def rewritten(directory: Path, configuration: str, kills: int, seed: int) -> dict[str, Any]:
    """The run on such a machine: the evaluator's CPU seconds, and accuracies lower by what they say."""
    path = directory / f"runs/steep/{configuration}/kills-{kills}/seed-{seed}/report.json"
    report: dict[str, Any] = json.loads(path.read_text())
    cost, told = cost_of(configuration, kills, seed), 0
    rows = []
    for sample in sorted((s for s in report["series"] if s["accuracy"] is not None), key=lambda s: s["t_s"]):
        told += 1
        rows.append({"t_s": sample["t_s"], "process": "evaluator", "cpu_s": 4.0 + cost * told, "rss_bytes": 1})
        sample["accuracy"] += POINTS_A_LOG * math.log(cost / 0.100)
    # the last evaluation is of all test images, and costs as much as twenty others
    rows.append({"t_s": START_S + SECONDS + 2.0, "process": "evaluator", "cpu_s": 6.0 + cost * told, "rss_bytes": 1})
    report["resources"] += rows
    path.write_text(json.dumps(report))
    return report


@pytest.fixture
def drifting(tmp_path: Path) -> Summary:
    write_study(tmp_path, seeds=SEEDS, configurations=CONFIGURATIONS)
    for configuration in CONFIGURATIONS:
        for kills in (0,) if configuration == "control" else (0, 1, 2):
            for seed in SEEDS:
                rewritten(tmp_path, configuration, kills, seed)
    return summarise(load_study(tmp_path))


def test_the_evaluator_tells_the_machines_speed(drifting: Summary) -> None:
    found = {
        (g.configuration, g.kills, run.run.seed): run.evaluation_cpu_s for g in drifting.of("steep") for run in g.runs
    }
    assert found == {cell: pytest.approx(cost_of(*cell)) for cell in found}
    assert range_of(drifting, "steep") == (pytest.approx(0.100), pytest.approx(0.129), 30)


def test_what_the_machine_did_is_taken_out_of_a_comparison(drifting: Summary, tmp_path: Path) -> None:
    even = summarise(load_study(write_study(tmp_path / "even", seeds=SEEDS, configurations=CONFIGURATIONS)))
    assert slope_of(drifting, "steep", late_accuracy) == pytest.approx(POINTS_A_LOG, abs=0.01)
    for name in ("chain", "hybrid"):
        mine, unmoved = drifting.group("steep", name, 1), even.group("steep", name, 1)
        assert mine is not None
        assert unmoved is not None
        truth, raw = (s.against_control(g, late_accuracy) for s, g in ((even, unmoved), (drifting, mine)))
        moved = at_the_controls_speed(drifting, mine, late_accuracy)
        assert truth is not None
        assert raw is not None
        assert moved is not None
        assert raw.mean < truth.mean - 0.01, "slower machines cost it more than a point"
        assert moved.mean == pytest.approx(truth.mean, abs=0.002)


def test_it_stands_beside_the_verdict_and_decides_nothing(drifting: Summary, tmp_path: Path) -> None:
    """The slow machines alone put the means more than a point below: that is what was measured, and decides."""
    found = close_to_control(drifting, "steep")
    even = summarise(load_study(write_study(tmp_path / "even", seeds=SEEDS, configurations=CONFIGURATIONS)))
    assert (close_to_control(even, "steep").holds, found.holds) == (True, False)
    beside = [row for row in found.rows if row.label.endswith("at the control's machine speed")]
    assert [row.label.split(",")[0] for row in beside] == ["Hybrid", "Hybrid", "Chain", "Chain"]
    assert not any(row.decides for row in beside)


def test_runs_that_tell_no_speed_leave_the_comparison_unmoved(tmp_path: Path) -> None:
    summary = summarise(load_study(write_study(tmp_path, seeds=SEEDS, configurations=CONFIGURATIONS)))
    group = summary.group("steep", "chain", 1)
    assert group is not None
    assert range_of(summary, "steep") is None
    assert at_the_controls_speed(summary, group, late_accuracy) is None
    assert not [row for row in close_to_control(summary, "steep").rows if "machine speed" in row.label]


def test_means_are_subtracted_also_where_a_run_is_missing() -> None:
    whole = {(name, 0, seed): 3.0 * seed + ord(name) for name in "abc" for seed in range(4)}
    for table in (whole, {cell: v for cell, v in whole.items() if cell != ("b", 0, 2)}):
        assert within(table) == {cell: pytest.approx(0.0, abs=1e-6) for cell in table}

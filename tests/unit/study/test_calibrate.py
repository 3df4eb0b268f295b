"""From the control's curve to a kill and an outage that all configurations share."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from outlast_bench.study.design import experiments
from outlast_bench.study.design.records import StudyError
from outlast_bench.study.run import calibrate
from outlast_bench.study.run.calibrate import (
    ControlRun,
    calibration,
    crossing,
    kill_arguments,
    kill_offset,
    read_control,
)
from outlast_operator.local.kills import check_order, parse_kill

STEEP, PAPER_TIMES = experiments.full()[:2]


def report(rate: float, seconds: float, accuracies: dict[int, float | None], begin_s: float = 3.0) -> dict[str, Any]:
    """A control that starts after `begin_s` and makes `rate` updates a second; {version: accuracy} was evaluated."""
    curve: list[dict[str, Any]] = [
        {"t_s": t / 2, "version": int(max(0.0, t / 2 - begin_s) * rate), "accuracy": None, "loss": None}
        for t in range(int((begin_s + seconds) * 2) + 1)
    ]
    # A result arrives a second after its parameters were pulled.
    evaluated = [
        {"t_s": begin_s + version / rate + 1.0, "version": version, "accuracy": accuracy, "loss": 1.0}
        for version, accuracy in accuracies.items()
    ]
    return {"seed": 1000, "series": sorted([*curve, *evaluated], key=lambda p: p["t_s"])}


def test_reads_where_the_control_reaches_the_accuracies() -> None:
    found = read_control(report(100.0, 30.0, {100: 0.1, 200: 0.4, 300: 0.6, 1500: 0.79, 1600: 0.81}), 0.5, 0.8)
    assert found.rate_per_s == pytest.approx(100.0, rel=0.02)
    assert found.to_kill is not None
    assert found.to_kill == (pytest.approx(2.5, abs=0.1), pytest.approx(250.0))
    assert found.to_target_s == pytest.approx(15.5, abs=0.1), "when the parameters were pulled, not when judged"
    assert found.updates == 3000


def test_the_last_evaluation_does_not_slow_the_control() -> None:
    made = report(100.0, 10.0, {})
    last = made["series"][-1]
    made["series"] += [{**last, "t_s": last["t_s"] + 0.5 * i} for i in range(1, 30)]
    assert read_control(made, None, None).rate_per_s == pytest.approx(100.0)


def test_an_accuracy_that_nobody_measures_is_not_reached() -> None:
    found = read_control(report(100.0, 10.0, {100: None, 200: float("nan")}), 0.5, None)
    assert (found.to_kill, found.to_target_s) == (None, None)


def test_a_control_that_trained_nothing_is_refused() -> None:
    with pytest.raises(StudyError, match="trained nothing"):
        read_control(report(0.0, 5.0, {}), 0.5, 0.8)


@pytest.mark.parametrize(
    ("points", "version"),
    [
        ([(0, 0.1), (100, 0.3), (200, 0.7)], 150.0),
        ([(100, 0.6)], 100.0),
        ([(0, 0.1), (100, 0.5)], 100.0),
        ([(0, 0.1), (100, 0.4)], None),
        ([], None),
    ],
)
def test_crossing_lies_between_two_evaluations(points: list[tuple[int, float]], version: float | None) -> None:
    assert crossing(points, 0.5) == (None if version is None else pytest.approx(version))


def run(rate: float = 150.0, to_kill: tuple[float, float] | None = (2.0, 300.0), target: float | None = 12.0) -> Any:
    return ControlRun(1000, round(rate * 30), rate, to_kill, target)


def test_an_outage_is_as_long_in_gradients_as_the_papers() -> None:
    scale = calibration(STEEP, [run(100.0, (3.0, 310.0)), run(150.0, (2.0, 300.0)), run(200.0, (1.0, 290.0))])
    assert (scale.kill_update, scale.outage_s, scale.second_kill_after_s) == (300, 2.5, 5.0)
    assert scale.outage_gradients == pytest.approx(375.0)
    assert scale.seconds == STEEP.seconds
    assert "0.5" in scale.kill_rule


def test_a_slow_machine_gets_longer_runs_in_which_the_control_reaches_the_target() -> None:
    assert calibration(STEEP, [run(50.0, target=32.0)]).seconds == 40.0
    assert calibration(STEEP, [run(5.0, target=400.0)]).seconds == STEEP.longest_s, "but not for ever"


def test_where_the_target_is_never_reached_runs_are_as_long_as_may_be() -> None:
    assert calibration(STEEP, [run(50.0, target=32.0), run(50.0, target=None)]).seconds == STEEP.longest_s
    own = experiments.own_task("my.task", {}, {}, False, 20.0)[0]
    assert calibration(own, [run(50.0, target=None)]).seconds == 20.0, "it has no target to reach"


def test_a_kill_leaves_half_of_the_run_to_see_what_it_did() -> None:
    scale = calibration(STEEP, [run(10.0, (30.0, 300.0), target=None)])
    assert scale.kill_update == 105, "a fifth of 52.5 s at 10 a second"
    assert "in its second half" in scale.kill_rule
    assert calibration(STEEP, [run(10.0, (26.0, 260.0), target=None)]).kill_update == 260


def test_a_quick_study_takes_as_long_on_a_slow_machine() -> None:
    (quick,) = experiments.quick()
    assert calibration(quick, [run(20.0, target=60.0)]).seconds == quick.seconds


def test_without_an_accuracy_the_kill_falls_after_a_fifth_of_the_control() -> None:
    own = experiments.own_task("my.task", {}, {}, True, 20.0)[0]
    scale = calibration(own, [run(10.0, None, None)])
    assert scale.kill_update == 60
    assert scale.outage_s == 5.0, "375 gradients of a slow model would leave nothing of the run"


def test_a_task_that_is_good_at_once_is_not_killed_at_once() -> None:
    assert calibration(STEEP, [run(100.0, (0.0, 1.0))]).kill_update == 150


def test_no_kill_falls_before_the_first_checkpoint() -> None:
    scale = calibration(STEEP, [run(60.0, (1.5, 90.0))])
    assert scale.kill_update == 100
    assert scale.kill_rule.endswith("but not before the first checkpoint")


def test_the_papers_own_times_need_no_calibration() -> None:
    scale = calibration(PAPER_TIMES, [])
    assert kill_arguments(scale, 2, seed=3) == ["head@15s+15s", "head@after=30s+15s"]
    assert (scale.seconds, scale.kill_update) == (PAPER_TIMES.seconds, None)


@pytest.mark.parametrize("kills", [0, 1, 2])
def test_kills_are_what_outlast_run_understands(kills: int) -> None:
    scale = calibration(STEEP, [run()])
    orders = [parse_kill(text) for text in kill_arguments(scale, kills, seed=1)]
    check_order(orders)
    assert len(orders) == kills
    assert all(order.down_s == scale.outage_s for order in orders)


def test_kills_fall_all_over_the_time_between_two_checkpoints() -> None:
    offsets = [kill_offset(seed) for seed in range(5)]
    assert offsets[0] == 0
    assert all(0 <= offset < 100 for offset in offsets)
    phases = sorted(offsets)
    gaps = [b - a for a, b in pairwise([*phases, phases[0] + 100])]
    assert max(gaps) <= 40, "five seeds leave no large part of the hundred out"
    scale = calibration(STEEP, [run()])
    assert scale.kill_update is not None
    assert kill_arguments(scale, 1, seed=2)[0].startswith(f"head@update={scale.kill_update + kill_offset(2)}+")


def test_calibration_ends_at_the_target_or_with_the_run() -> None:
    assert calibrate.stop_after(STEEP) == {"seconds": STEEP.longest_s, "accuracy": 0.8}
    assert calibrate.stop_after(replace(STEEP, target_accuracy=None)) == {"seconds": STEEP.seconds}

"""What a run came to: every measure on runs whose answers follow from arithmetic."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from study_builder import START_S, Made, linear, make_report

from outlast_bench.study.analysis.load import StudyRun
from outlast_bench.study.analysis.measures import RunMeasures, measure, time_to
from outlast_bench.study.analysis.measures_outage import pace_before
from outlast_bench.study.analysis.run_curves import first_update, placed, role_curves, run_curves

CONTROL = Made(accuracy=linear)


def run(made: Made, configuration: str = "x", kills: int | None = None) -> StudyRun:
    count = len(made.kills) if kills is None else kills
    return StudyRun("steep", configuration, count, made.seed, report=make_report(made))


def measured(made: Made, ordered_s: float = 3.0, target: float = 0.8) -> RunMeasures:
    return measure(run(made), run(CONTROL, "control"), [], ordered_s, target)


# --- curves ---


def test_time_zero_is_the_first_update() -> None:
    curves = run_curves(make_report(CONTROL))
    assert curves.zero_s == pytest.approx(START_S, abs=0.01)
    assert curves.end == pytest.approx(30.0, abs=0.01)
    assert first_update([(1.0, 0.0), (2.0, 0.0), (3.0, 50.0), (4.0, 150.0)]) == pytest.approx(2.5)
    assert first_update([]) == 0.0


@pytest.mark.parametrize("lag_s", [0.0, 0.4, 2.3])
def test_an_evaluation_stands_where_its_parameters_were_held(lag_s: float) -> None:
    curves = run_curves(make_report(Made(accuracy=linear, lag_s=lag_s)))
    for evaluation in curves.evaluations[1:-1]:
        assert evaluation.t == pytest.approx(evaluation.version / 100.0, abs=0.02)


def test_a_late_result_is_not_taken_for_what_followed_the_rollback() -> None:
    """Evaluated at version 450 before the kill, told after the rollback to 400: 450 comes again later."""
    made = Made(kills=[4.6], outage_s=1.0, lag_s=1.3, accuracy=linear, evaluate_every_s=0.25)
    before = [e for e in run_curves(make_report(made)).evaluations if 430 <= e.version <= 455]
    assert [round(e.t, 1) for e in before] == [4.5, 6.0]


def test_versions_between_samples_are_interpolated_and_not_across_a_rollback() -> None:
    curves = run_curves(make_report(Made(kills=[4.3], accuracy=linear)))
    assert curves.version_at(4.3) == pytest.approx(430, abs=1)
    assert curves.time_of(430) == pytest.approx(4.3, abs=0.01)
    assert curves.time_of(10**6) is None


def test_the_cores_of_a_role_are_added_up() -> None:
    report = make_report(Made(kills=[10.0], outage_s=5.0))
    cores = dict(role_curves(report, "worker", "cpu_s"))
    assert cores[5.5] == pytest.approx(1.6)
    assert cores[12.5] == pytest.approx(0.3)
    memory = dict(role_curves(make_report(Made("Chain")), "server", "rss_bytes"))
    assert memory[0.5] == pytest.approx(3 * 200.5, abs=2)


# --- around an outage ---


def test_a_drop_of_exactly_a_fifth() -> None:
    """Killed at 900 with a checkpoint every 500: 400 updates, half a thousandth each, are lost."""
    made = Made(kills=[9.0], checkpoint_every=500, accuracy=linear, evaluate_at=[12.00001])
    found = measured(made).outages[0]
    assert found.drop == pytest.approx(0.2, abs=1e-6)
    assert found.outage_s == pytest.approx(3.0)


def test_stateless_rises_through_its_outage() -> None:
    found = measured(Made("Stateless", kills=[9.0], accuracy=linear, evaluate_at=[12.00001])).outages[0]
    assert found.drop == pytest.approx(-0.15, abs=0.001)


@pytest.mark.parametrize(
    ("made", "kept"),
    [
        (Made("Chain", kills=[9.0], accuracy=linear), 1.0),
        (Made("Hybrid", kills=[9.0], accuracy=linear), 1.0),
        (Made("Stateless", kills=[9.0], accuracy=linear), 1.0),
        (Made("Checkpoint", kills=[9.0], accuracy=linear), 0.0),  # at a checkpoint: nothing lost, nothing gained
        (Made("Checkpoint", kills=[9.0], accuracy=linear, checkpoint_every=500), -400 / 300),
        (Made("Stateless", kills=[9.0], accuracy=linear, seconds=11.0), None),  # it never came back
    ],
    ids=["chain", "hybrid", "stateless", "checkpoint", "checkpoint-falls-back", "never-back"],
)
def test_progress_kept(made: Made, kept: float | None) -> None:
    gains = measured(replace(made, evaluate_at=[12.00001, 12.20001])).gains
    if kept is None:
        assert gains is None
        return
    assert gains is not None
    assert gains[0] / gains[1] == pytest.approx(kept, abs=0.001)


def test_the_window_is_as_long_as_the_outage_was_ordered_even_where_a_successor_took_over_at_once() -> None:
    found = measured(Made("Chain", kills=[9.0], accuracy=linear), ordered_s=3.0).outages[0]
    assert found.outage_s == pytest.approx(0.05, abs=0.01)
    assert found.window_s == pytest.approx(3.0)


def test_the_accuracy_at_the_kill_is_carried_forward_from_an_old_evaluation() -> None:
    made = Made("Chain", kills=[9.0], accuracy=linear, evaluate_every_s=2.0)
    found = measure(run(made), run(CONTROL, "control"), [run(Made("Chain", accuracy=linear))], 3.0).outages[0]
    assert found.gained == pytest.approx(0.15, abs=0.001)  # as if evaluated at 900 and 1,200


def off(report: dict[str, Any], by: float, until_s: float = math.inf) -> dict[str, Any]:
    """The same run with every evaluation up to then so much higher: what one of SGD's snapshots may be off."""
    for sample in report["series"]:
        if sample["accuracy"] is not None and sample["t_s"] - START_S <= until_s:
            sample["accuracy"] += by
    return report


def test_runs_of_a_configuration_and_seed_are_one_training_until_the_first_kill() -> None:
    """Three runs with the same kill, off by +9, 0 and -3 points before it: at the kill they are off by 2, all three."""
    made = Made("Chain", kills=[9.0], accuracy=linear)
    one, two, none = (
        StudyRun("steep", "x", kills, 0, report=off(make_report(shape), by, until_s))
        for kills, shape, by, until_s in (
            (1, made, 0.09, 9.5),
            (2, replace(made, kills=[9.0, 15.0]), 0.0, 9.5),
            (0, replace(made, kills=()), -0.03, math.inf),
        )
    )
    control = run(CONTROL, "control")
    alone = measure(one, control, [], 3.0).outages[0]
    together = [measure(a, control, others, 3.0).outages[0] for a, others in ((one, [two, none]), (two, [one, none]))]
    assert alone.gained == pytest.approx(0.15 - 0.09, abs=0.001)
    # within a second's updates of 900 lie 3, 3 and 5 evaluations: from 8.0 to 9.0, of the one without a kill to 10.0
    pooled = (3 * 0.09 + 5 * -0.03) / 11
    assert [o.gained for o in together] == [pytest.approx(0.15 - pooled, abs=0.001)] * 2


def test_a_kill_before_the_second_sample_of_the_version_has_a_pace_too() -> None:
    """At 1.1 s, and nothing told of the version before 0.5 s: 110 updates after 0, so 100 a second."""
    report = make_report(Made(kills=[1.1], accuracy=linear, checkpoint_every=100))
    first = next(s for s in report["series"] if s["accuracy"] is None)
    first["t_s"] -= 0.2  # at 0 still, so that the first update lies between it and the next
    curves = run_curves(report)
    assert curves.version[0][0] == pytest.approx(0.5, abs=0.01)
    assert curves.version_at(0.1) == pytest.approx(10, abs=1)
    assert pace_before(curves, curves.outages[0]) == pytest.approx(100, abs=2)
    early = replace(curves.outages[0], killed=0.6)
    assert pace_before(curves, early) == pytest.approx(100, abs=2)
    found = measure(StudyRun("steep", "x", 1, 0, report=report), run(CONTROL, "control"), [], 3.0).outages[0]
    assert found.drop == pytest.approx(linear(110) - linear(100), abs=0.002)


def test_what_comes_after_a_siblings_own_kill_is_not_of_the_same_training() -> None:
    made = Made(kills=[9.0], accuracy=linear, checkpoint_every=100)
    earlier = run(replace(made, kills=[5.0, 20.0]), kills=2)  # falls back to 500 and passes 900 another time
    wrong = StudyRun("steep", "x", 2, 0, report=off(earlier.report, 0.5))
    assert measure(run(made), run(CONTROL, "control"), [wrong], 3.0).outages[0].gained == pytest.approx(0.0, abs=0.001)


def test_a_restored_server_that_is_evaluated_before_its_first_update_shows_the_fall() -> None:
    """At 450 of a checkpoint at 400: evaluated once in the outage, when it is back at 400, and much later again."""
    report = make_report(Made(kills=[4.5], accuracy=linear, evaluate_every_s=0.5))
    zero, back = START_S + 4.5, START_S + 7.5
    keep = [s for s in report["series"] if not zero < s["t_s"] < back + 4]
    restored = {"t_s": back - 0.2, "version": 400, "accuracy": None, "loss": None, "gradients": 450}
    told = restored | {"t_s": back - 0.1, "accuracy": linear(400), "loss": 1 - linear(400)}
    report["series"] = sorted([*keep, restored, told], key=lambda s: s["t_s"])
    found = measure(StudyRun("steep", "x", 1, 0, report=report), run(CONTROL, "control"), [], 3.0).outages[0]
    assert found.drop == pytest.approx(linear(450) - linear(400), abs=0.002)


def test_an_evaluation_is_carried_in_updates_however_slowly_a_configuration_makes_them() -> None:
    """A chain at half the control's pace, evaluated once in two seconds: its fall is none, by the control's growth."""
    made = Made("Chain", kills=[9.0], rate=50.0, accuracy=linear, evaluate_every_s=2.0)
    found = measure(run(made), run(CONTROL, "control"), [], 3.0).outages[0]
    assert found.drop == pytest.approx(0.0, abs=0.002)


def test_local_steps_count_as_the_gradients_they_hold() -> None:
    """300 gradients of the first outage are 2 updates: the second kill falls at 1,202 of 1,500 that the model holds."""
    bend = Made(accuracy=lambda version: 0.0005 * min(version, 1300.0))
    made = replace(bend, strategy="Stateless", kills=[6.0, 15.0], local_steps=True, evaluate_at=[18.00001, 18.20001])
    found = measure(run(made), run(bend, "control"), [], 3.0).outages[1]
    assert found.version == pytest.approx(1202, abs=1)
    assert found.control_gained == pytest.approx(0.0, abs=0.001)  # from 1,500 on nothing is gained, from 1,202 much


def test_a_moment_is_too_short_to_keep_progress_in() -> None:
    """Nobody said how long the outage was to be, and a successor took over at once."""
    assert measured(Made("Chain", kills=[9.0], accuracy=linear), ordered_s=0.0).gains is None


def test_two_kills_are_measured_apart() -> None:
    found = measured(Made(kills=[6.0, 14.0], accuracy=linear)).outages
    assert [o.outage_s for o in found] == [pytest.approx(3.0), pytest.approx(3.0)]
    assert found[0].version == pytest.approx(600, abs=1)
    assert found[1].version == pytest.approx(1100, abs=1)


def test_a_backlog_that_was_cut_off_leaves_progress_unknown_and_the_drop_known() -> None:
    """The second kill came while the first one's backlog was being applied: no moment is its end."""
    report = make_report(Made("Stateless", kills=[6.0, 14.0], accuracy=linear, evaluate_at=[9.00001]))
    report["failures"][0] |= {"t_backlog_applied_s": None, "backlog_peak": 30}
    found = measure(StudyRun("steep", "x", 2, 0, report=report), run(CONTROL, "control"), [], 3.0)
    assert found.gains is None, "not the progress of a window that ends with the first update"
    first, second = found.outages
    assert (first.gained, first.window_s) == (None, None)
    assert first.drop == pytest.approx(-0.15, abs=0.001)
    assert second.gained is not None
    report["failures"][0]["backlog_peak"] = 0  # nothing had been buffered
    found = measure(StudyRun("steep", "x", 2, 0, report=report), run(CONTROL, "control"), [], 3.0)
    assert found.gains is not None


def test_an_outage_that_nobody_recovered_from_has_no_progress() -> None:
    report = make_report(Made(kills=[9.0], accuracy=linear))
    report["failures"][0]["t_first_update_s"] = None
    found = measure(StudyRun("steep", "x", 1, 0, report=report), run(CONTROL, "control"), [], 3.0)
    assert found.gains is None
    assert found.outages[0].outage_s is None


def test_the_loss_of_a_worker_is_no_outage_of_the_parameters() -> None:
    report = make_report(Made(kills=[9.0]))
    report["failures"][0]["target"] = "worker-0"
    assert run_curves(report).outages == ()


# --- the whole run ---


def test_a_run_that_stands_still_ends_when_it_was_planned_to() -> None:
    """Nothing is applied after the kill at 10 s of 30: what came before it is not the end, nor its pace the run's."""
    made = Made(kills=[10.0], outage_s=20.0, accuracy=linear)
    job = replace(run(made), planned_s=30.0)
    found = measure(job, replace(run(CONTROL, "control"), planned_s=30.0), [], 3.0)
    assert found.trained_s == pytest.approx(30.0, abs=0.01)
    assert found.late_accuracy is None, "not that of the seconds before the kill"
    assert found.goodput == pytest.approx(1 / 3, abs=0.01)


def test_a_run_that_was_cut_short_ends_with_its_last_sample() -> None:
    assert run_curves(make_report(CONTROL), planned_s=60.0).end == pytest.approx(30.0, abs=0.01)


def test_the_time_to_the_target_and_not_reaching_it() -> None:
    assert measured(Made(accuracy=linear), target=0.8).time_to_target_s == pytest.approx(16.0, abs=0.01)
    assert measured(Made(accuracy=linear, seconds=10.0), target=0.8).time_to_target_s is None


def test_one_evaluation_that_is_off_does_not_decide_when_the_target_was_reached() -> None:
    report = make_report(Made(accuracy=linear, evaluate_every_s=0.5))
    lucky = next(s for s in report["series"] if s["accuracy"] is not None and s["version"] == 1450)
    lucky["accuracy"] += 0.08
    found = run_curves(report)
    assert time_to(found, 0.8) == pytest.approx(16.0, abs=0.3)


def test_the_target_is_reached_between_two_evaluations_however_rare_they_are() -> None:
    found = [time_to(run_curves(make_report(Made(accuracy=linear, evaluate_every_s=s))), 0.8) for s in (0.3, 0.7, 1.1)]
    assert found == [pytest.approx(16.0, abs=0.02)] * 3


def test_no_line_goes_through_an_outage() -> None:
    """At 0.795 when it is killed, 0.945 when it comes back: reached then, and not before or meanwhile."""
    made = Made("Stateless", kills=[15.9], outage_s=3.0, accuracy=linear, evaluate_at=[18.91])
    assert time_to(run_curves(make_report(made)), 0.8) == pytest.approx(18.91, abs=0.02)


@pytest.mark.parametrize("t", [30.0, 30.4])
def test_the_last_evaluation_of_all_test_images_is_in_no_curve(t: float) -> None:
    """It is told within a second of the end of some runs, and later in others; and it is of other images."""
    report = make_report(Made(accuracy=linear))
    report["final"] |= {"accuracy": 0.2, "loss": 0.8}
    whole = {"version": report["final"]["version"], "accuracy": 0.2, "loss": 0.8, "gradients": 3000}
    clean = measure(StudyRun("steep", "x", 0, 0, report=report), None, [], 3.0)
    report["series"].append({"t_s": START_S + t + 0.6, **whole})
    found = measure(StudyRun("steep", "x", 0, 0, report=report), None, [], 3.0)
    assert found.late_accuracy == clean.late_accuracy
    assert found.curves.evaluations == clean.curves.evaluations
    assert found.final_accuracy == 0.2


def test_goodput_counts_what_the_final_parameters_hold() -> None:
    assert measured(Made("Chain", kills=[9.0])).goodput == pytest.approx(1.0, abs=0.001)
    lost = measured(Made(kills=[9.5], checkpoint_every=100)).goodput  # 3 s idle, 50 lost, of 3,000
    assert lost == pytest.approx((3000 - 300 - 50) / 3000, abs=0.001)


def test_worker_seconds_come_from_the_report_at_its_own_price() -> None:
    found = measured(Made(kills=[9.5]))
    assert found.worker_s == pytest.approx(60.0, abs=0.1)
    assert found.idle_s == pytest.approx(6.0, abs=0.01)
    assert found.recomputed_s == pytest.approx(1.0, abs=0.01)
    assert found.useful_s == pytest.approx(53.0, abs=0.1)


@pytest.mark.parametrize(
    "report",
    [
        {},
        {"series": [], "failures": []},
        {"series": [{"t_s": 1.0, "version": None, "accuracy": math.nan}], "failures": [{"target": "server-0"}]},
        {"series": [{"t_s": 1.0, "version": 5, "accuracy": 0.3}], "final": {"accuracy": None}, "resources": [{}]},
    ],
    ids=["nothing", "empty", "nulls", "one-evaluation"],
)
def test_a_report_in_parts_is_measured_as_far_as_it_goes(report: dict[str, Any]) -> None:
    found = measure(StudyRun("steep", "x", 1, 0, report=report), None, [], 3.0)
    assert found.goodput is None
    assert found.gains is None
    assert placed(report, []) is not None

"""What a study's figures draw and say, read from the drawings themselves."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from study_builder import OUTAGE_S, Made, make_report, write_backlog, write_run, write_study

from outlast_bench.study.analysis.backlog import cells, label_of
from outlast_bench.study.analysis.cost import load_prices
from outlast_bench.study.analysis.load import load_study
from outlast_bench.study.analysis.run_curves import Evaluated, Outage, RunCurves, interpolated
from outlast_bench.study.analysis.summary import Summary, late_accuracy, summarise
from outlast_bench.study.backlog.records import BacklogRecord
from outlast_bench.study.figures import all as figures
from outlast_bench.study.figures import backlog as figures_backlog
from outlast_bench.study.figures import cost as figures_cost
from outlast_bench.study.figures import curves as figures_curves
from outlast_bench.study.figures import overview as figures_overview
from outlast_bench.study.figures import points as figures_points
from outlast_bench.study.figures import resources as figures_resources
from outlast_bench.study.figures import style as figure_style
from outlast_bench.study.figures import time as figures_time
from outlast_bench.study.figures.style import Drawn


@pytest.fixture(autouse=True)
def coarse_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figure_style, "GRID_POINTS", 40)


def summary_of(directory: Path) -> Summary:
    return summarise(load_study(directory))


def every_configuration(directory: Path) -> Summary:
    return summary_of(write_study(directory, seeds=(0,), kills=(1, 2)))


def unlike_seeds(directory: Path, kills: int = 1) -> Summary:
    """Two seeds, killed 80 updates apart, at unlike rates; the first run is there for what experiments have."""
    write_study(directory, seeds=(), kills=(1,))
    for seed, (killed, rate) in enumerate([(4.0, 100.0), (4.0, 120.0)]):
        at = [killed, killed + 2 * OUTAGE_S + seed][:kills]
        write_run(directory, "steep", "control", 0, seed, make_report(Made(rate=rate, seed=seed)))
        for name, strategy in (("checkpoint", "Checkpoint"), ("stateless", "Stateless")):
            made = Made(strategy, kills=at, rate=rate, seed=seed)
            write_run(directory, "steep", name, kills, seed, make_report(made))
    return summary_of(directory)


def drawn(found: Drawn | None) -> Drawn:
    assert found is not None
    return found


def panels(found: Drawn | None) -> list[Any]:
    return [ax for ax in drawn(found).figure.axes if ax.get_visible()]


def texts(ax: Any) -> list[str]:
    return [text.get_text().strip() for text in ax.texts]


def titles(axes: list[Any]) -> list[str]:
    return [ax.get_title(loc="left") for ax in axes]


def bands(ax: Any) -> int:
    return len(ax.collections)


# --- curves ---


def curves(*evaluations: tuple[float, float], outages: Iterable[Outage] = ()) -> RunCurves:
    found = tuple(Evaluated(t, 0, v) for t, v in evaluations)
    return RunCurves(0.0, 20.0, [], found, [], tuple(outages), None)


OUTAGE = Outage(killed=2.0, back=5.0, drained=None)


@pytest.mark.parametrize(
    ("evaluations", "expected"),
    [
        ([(1, 0.3), (6, 0.5)], {1.9: 0.3, 4.9: 0.3, 5.5: 0.4}),
        ([(1, 0.3), (4.5, 0.5), (6, 0.6)], {1.9: 0.3, 4.49: 0.3, 4.51: 0.5, 4.99: 0.5, 5.5: 0.55}),
        ([(1, 0.3), (2, 0.4), (6, 0.5)], {1.5: 0.35, 2.5: 0.4, 4.9: 0.4}),
        ([(1, 0.3)], {4.9: 0.3}),
        ([(3, 0.3), (6, 0.5)], {3.5: 0.3, 4.9: 0.3, 5.5: 0.4}),
    ],
    ids=["none inside", "the restored server's inside", "at the kill", "none after", "none before"],
)
def test_a_curve_stands_still_until_the_next_evaluation_of_an_outage(
    evaluations: list[tuple[float, float]], expected: dict[float, float]
) -> None:
    found = figures_time.held(curves(*evaluations, outages=[OUTAGE]), scale=1.0)
    assert {t: interpolated(found, t) for t in expected} == pytest.approx(expected)
    assert found == sorted(found, key=lambda p: p[0])


def test_a_promotion_leaves_no_step() -> None:
    quick = Outage(killed=2.0, back=2.1, drained=None)
    assert figures_time.held(curves((1, 0.3), (3, 0.5), outages=[quick]), 1.0) == [(1, 0.3), (3, 0.5)]


def test_curves_are_smoothed_on_either_side_of_an_outage_alone() -> None:
    jumping = [(t / 4, 0.5 + (0.02 if t % 2 else -0.02)) for t in range(9)]
    fallen = [(4.75 + t / 4, 0.2) for t in range(9)]  # the first: of the restored server, before it serves
    found = figures_time.smoothed(curves(*jumping, *fallen, outages=[OUTAGE])).evaluations
    assert [e.accuracy for e in found[-9:]] == pytest.approx([0.2] * 9)
    assert max(abs(e.accuracy - 0.5) for e in found[:8]) < 0.012


def test_a_panel_tells_the_accuracy_that_is_compared_with_the_control(tmp_path: Path) -> None:
    write_study(tmp_path, seeds=(0, 1), kills=(1,), configurations=("control", "checkpoint"))
    for path in tmp_path.glob("runs/steep/checkpoint/*/*/report.json"):
        report = json.loads(path.read_text())
        report["final"]["accuracy"] = 0.5
        path.write_text(json.dumps(report))
    summary = summary_of(tmp_path)
    group = summary.group("steep", "checkpoint", 1)
    assert group is not None
    late = group.estimate(late_accuracy)
    assert late is not None
    found = figures_curves.accuracy(summary, "steep", 1)
    assert texts(panels(found)[0]) == [f"{100 * late.mean:.1f} %"]
    assert late.mean > 0.8


# --- the close-up ---


def test_each_control_stands_at_the_update_at_which_its_own_seeds_runs_were_killed(tmp_path: Path) -> None:
    summary = unlike_seeds(tmp_path)
    control, groups = summary.control("steep"), summary.of("steep", 1, control=False)
    assert control is not None
    zeros = figures_curves.control_zeros(control, groups, 0)
    assert zeros == pytest.approx({0: 4.0, 1: 4.0}, abs=0.02)  # one update for both would be 0.4 s off
    assert {r.run.seed: r.curves.version_at(zeros[r.run.seed]) for r in control.runs} == pytest.approx(
        {0: 400, 1: 480}, abs=2
    )


def test_beside_the_second_kill_the_control_stands_at_the_same_second(tmp_path: Path) -> None:
    summary = unlike_seeds(tmp_path, kills=2)
    control, groups = summary.control("steep"), summary.of("steep", 2, control=False)
    assert control is not None
    assert figures_curves.control_zeros(control, groups, 1) == pytest.approx({0: 10.0, 1: 11.0})


def test_a_second_close_up_is_drawn_where_runs_have_two_kills(tmp_path: Path) -> None:
    names = {}
    for kills in (1, 2):
        made = write_study(tmp_path / str(kills), seeds=(0, 1), kills=(kills,), configurations=("control", "chain"))
        found = figures.of_experiment(summary_of(made), "steep", load_prices())
        names[kills] = [figure.name for figure in found if "close-up" in figure.name]
    assert names == {1: ["steep-close-up"], 2: ["steep-close-up-second-kill"]}


def test_few_lines_have_bands_and_many_have_none(tmp_path: Path) -> None:
    summary = summary_of(write_study(tmp_path, seeds=(0, 1), kills=(1,), noise=0.02))
    found = figures_curves.close_up(summary, "steep")
    assert [bands(ax) for ax in panels(found)] == [0, 5]  # four and the control


# --- gradients and machines ---


def test_gradients_have_bands_and_outages_in_a_panel_each(tmp_path: Path) -> None:
    found = panels(figures_resources.gradients(unlike_seeds(tmp_path), "steep", 1))
    assert titles(found) == ["Checkpoint", "Stateless"]
    for ax in found:
        assert bands(ax) == 1
        assert len(ax.patches) == 2, "the outage as ordered, and until the next update"
        assert len(ax.get_lines()) == 3, "the control, the mean, the kill"


def test_what_became_of_gradients_is_counted(tmp_path: Path) -> None:
    summary = summary_of(write_study(tmp_path, seeds=(0,), kills=(1,), checkpoint_every=300))
    (ax,) = panels(figures_resources.fates(summary, "steep", 1))
    assert texts(ax)[:2] == ["3,000", "2,700, 100 lost"]


def test_the_control_comes_after_the_papers_and_ours(tmp_path: Path) -> None:
    found = panels(figures_resources.cpu(every_configuration(tmp_path), "steep", 2))
    assert titles(found)[-2:] == ["Hybrid", "control"]
    assert len(found) == 10
    assert all(ax.patches for ax in found[:-1])


def test_worker_seconds_are_seconds(tmp_path: Path) -> None:
    summary = summary_of(write_study(tmp_path, seeds=(0, 1), kills=(1,), configurations=("control", "checkpoint")))
    group = summary.group("steep", "checkpoint", 1)
    assert group is not None
    assert sum(figures_cost.mean_seconds(name, group) for name, _ in figures_cost.PARTS) == pytest.approx(60.0)
    (ax,) = panels(figures_cost.worker_seconds(summary, "steep", 1))
    assert texts(ax)[1] == "6.0 s idle (10.0 %)"
    assert ax.get_xlim()[1] > 60.0


# --- cost ---


def test_accuracy_is_drawn_over_the_money_of_the_usual_way_of_paying(tmp_path: Path) -> None:
    found = figures_cost.accuracy_against_cost(every_configuration(tmp_path), "steep", 1, load_prices())
    assert titles(panels(found)) == ["As the paper ran them", "As recommended"]
    assert "small GPUs, on-demand" in drawn(found).caption
    assert panels(found)[0].get_ylim()[0] == pytest.approx(60.0)
    labels = [text.get_text() for ax in panels(found) for text in ax.get_legend().get_texts()]
    assert {"sync checkpointing (paper)", "sync chain (paper)", "Hybrid"} <= set(labels)


# --- which strategy ---


def test_one_figure_has_what_a_kill_costs_and_what_its_insurance_costs(tmp_path: Path) -> None:
    """Chain at 0.95 of the control's pace and Hybrid at 0.9; an hour with three servers and a Redis is 1.30 times."""
    names = ("control", "checkpoint", "chain", "stateless", "hybrid")
    summary = summary_of(write_study(tmp_path, seeds=(0, 1), configurations=names))
    accuracy, stopped, goodput, money = panels(figures_overview.which(summary, "steep", load_prices()))
    assert [tick.get_text() for tick in accuracy.get_yticklabels()] == ["Checkpoint", "Chain", "Stateless", "Hybrid"]
    assert len(texts(accuracy)) == len(texts(stopped)) == 8, "one and two kills"
    assert texts(goodput) == ["1.00", "0.95", "1.00", "0.90"]
    assert texts(money) == ["1.00", "1.20", "1.10", "1.30"]


# --- progress kept ---


def test_a_configuration_that_was_not_measured_says_so_and_leaves_the_panels_their_room(tmp_path: Path) -> None:
    """Of two kills neither of which was drained before the next."""
    write_study(tmp_path, seeds=(0, 1), kills=(1, 2), configurations=("control", "checkpoint", "stateless"))
    for path in tmp_path.glob("runs/steep/stateless/kills-2/*/report.json"):
        report = json.loads(path.read_text())
        for failure in report["failures"]:
            failure |= {"t_backlog_applied_s": None, "backlog_peak": 30}
        path.write_text(json.dumps(report))
    found = figures_points.kept(summary_of(tmp_path), "steep")
    assert ["not measured" in texts(ax) for ax in panels(found)] == [False, True]
    drawn(found).figure.draw_without_rendering()
    assert all(ax.get_position().width > 0.3 for ax in panels(found))


# --- the backlog ---


def backlog(directory: Path, **settings: Any) -> list[BacklogRecord]:
    """With the candidates that the builder leaves out, which keep what clipping keeps."""
    records = load_study(write_backlog(directory, **settings)).backlog
    more = ("DelayCompensationCopies", "SumCapped", "InverseSqrt", "LocalStepsUnscaled", "LocalStepsSum")
    return [replace(r, policies={**r.policies, **dict.fromkeys(more, r.policies["SumClipped"])}) for r in records]


def test_policies_have_names_that_say_what_they_do_and_whether_a_job_has_them(tmp_path: Path) -> None:
    found = {c.policy: c.label for c in cells(backlog(tmp_path, workers=(2,), seeds=(0,)))}
    assert {label for label in found.values() if label.endswith("*")} == {
        "Sum, capped at 50 *", "Sum, the k-th weighs 1/√k *", "LocalSteps, added up *",
    }  # fmt: skip
    assert found["LocalSteps"] == "LocalSteps (default)"
    assert label_of("ATaskOfTheUsers") == "ATaskOfTheUsers"


def test_the_default_and_the_papers_rule_have_colours_of_their_own(tmp_path: Path) -> None:
    found = panels(figures_backlog.lines(backlog(tmp_path)))
    assert len(found) == 3
    for ax in found:
        colours = {line.get_label(): line.get_color() for line in ax.get_lines() if line.get_label()[0] != "_"}
        named = [colours.pop("LocalSteps (default)"), colours.pop("Sum, reduced rate (paper)")]
        assert len(set(named)) == 2
        assert not set(named) & set(colours.values())
        assert set(colours) <= set(texts(ax)), "each grey line is named at its end"


def test_cells_of_fewer_seeds_have_a_ring(tmp_path: Path) -> None:
    records = backlog(tmp_path, workers=(2,), outages=(100, 10_000), seeds=range(5))
    few = [r for r in records if r.outage == 100 or r.seed == 0]
    found = figures_backlog.heat_map(few)
    policies = len(records[0].policies)
    assert [sum(line.get_marker() == "o" for line in ax.get_lines()) for ax in panels(found)[:1]] == [policies]
    whole = panels(figures_backlog.heat_map(records))[0]
    assert not any(line.get_marker() == "o" for line in whole.get_lines())


@pytest.mark.parametrize(
    ("mean", "diverged", "text"),
    [(-0.001, 0, "0.00"), (0.004, 0, "0.00"), (-0.41, 2, "−0.41×"), (-12.0, 1, "< −10×"), (None, 0, "–")],
)
def test_a_cell_in_words(mean: float | None, diverged: int, text: str, tmp_path: Path) -> None:
    cell = cells(backlog(tmp_path, workers=(2,), outages=(100,)))[0]
    assert cell.kept is not None
    kept = None if mean is None else replace(cell.kept, mean=mean)
    assert figures_backlog.text_of(replace(cell, kept=kept, diverged=diverged)) == text


@pytest.mark.parametrize(
    ("heights", "expected"),
    [
        ([], []),
        ([0.2, 0.5], [0.2, 0.5]),
        ([0.5, 0.5], [0.45, 0.55]),
        ([0.0, 0.0, 0.05], [0.0, 0.1, 0.2]),
        ([0.1, 0.15, 0.32, 0.33], [0.075, 0.175, 0.275, 0.375]),
        ([0.99, 1.0], [0.9, 1.0]),
    ],
)
def test_names_are_moved_apart_as_little_as_it_takes(heights: list[float], expected: list[float]) -> None:
    assert figures_backlog.apart(heights, 0.1) == pytest.approx(expected)


# --- nothing collides ---


def colliding(found: Drawn | None, of: str) -> list[tuple[str, str]]:
    """Pairs of texts of one kind that lie over each other: names, panels' titles, ticks of the x axes."""
    from matplotlib.text import Text  # whose extent leaves out an annotation's hair to its line

    figure = drawn(found).figure
    figure.draw_without_rendering()
    axes = [ax for ax in figure.axes if ax.get_visible()]
    kinds = {
        "texts": [text for ax in axes for text in ax.texts],
        "titles": [ax._left_title for ax in axes],
        "ticks": [text for ax in axes for text in ax.get_xticklabels() if text.get_visible()],
    }
    boxes = [(text.get_text(), Text.get_window_extent(text)) for text in kinds[of] if text.get_text()]
    assert len(boxes) > 2
    return [(a, b) for (a, one), (b, other) in combinations(boxes, 2) if one.overlaps(other)]


def test_eighteen_columns_have_room_for_their_numbers(tmp_path: Path) -> None:
    records = backlog(tmp_path, outages=(10, 100, 375, 1000, 3000, 10_000), seeds=(0,))
    found = figures_backlog.heat_map(records)
    assert colliding(found, "ticks") == []
    assert colliding(found, "texts") == []


def test_names_at_the_ends_of_lines_do_not_lie_over_each_other(tmp_path: Path) -> None:
    assert colliding(figures_backlog.lines(backlog(tmp_path, seeds=(0,))), "texts") == []


def test_titles_of_small_panels_have_room(tmp_path: Path) -> None:
    write_study(tmp_path, seeds=(0,), kills=(1,))
    name = "paper-async-checkpoint-none-yet"
    write_run(tmp_path, "steep", name, 1, 0, make_report(Made(kills=[4.0])))
    found = figures_curves.accuracy(summary_of(tmp_path), "steep", 1)
    assert len(panels(found)) == 10
    assert colliding(found, "titles") == []

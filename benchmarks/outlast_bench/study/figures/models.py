"""Other models: what each strategy keeps on a model with normalisation and on the same one without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from outlast_bench.study.analysis.load import is_control
from outlast_bench.study.analysis.models import Pair, configurations, kills_of, pairs
from outlast_bench.study.analysis.statistics import Estimate
from outlast_bench.study.analysis.summary import Group, Summary, late_accuracy
from outlast_bench.study.figures import style
from outlast_bench.study.figures.style import Drawn

LIMITS = (-1.6, 2.2)  # of progress kept, as drawn


def normalisation(summary: Summary) -> Drawn | None:
    """Progress kept and accuracy at the end, filled: with normalisation, hollow: without."""
    found = pairs(summary)
    if not found:
        return None
    rows = list(dict.fromkeys(name for pair in found for name in configurations(summary, pair)))
    if not rows:
        return None
    with style.styled():
        figure = style.new_figure(2 * (0.44 * len(rows) + 0.9))
        axes = figure.subplots(2, len(found), squeeze=False, sharey=True, sharex="row")
        for column, pair in enumerate(found):
            _kept(axes[0][column], summary, pair, rows)
            _against(axes[1][column], summary, pair, rows)
            axes[0][column].set_title(pair.name)
        for row in axes:
            row[0].set_yticks(range(len(rows)), [summary.data.label(name) for name in rows])
            row[0].set_ylim(len(rows) - 0.4, -0.6)
        _legend(figure)
    groups = [g for pair in found for name in rows for g in kills_of(summary, pair, name) if g is not None]
    return Drawn(
        name="models-normalisation",
        title="Models with and without normalisation",
        caption=(
            "One kill, each model against its own control. Above: progress kept through the outage, ratio of means; "
            "below: mean of the evaluations of the last 5 s less the control's. Lines: intervals (solid) or ranges "
            f"(dotted); {style.seeds_in_words(groups)}."
        ),
        figure=figure,
        alt="Marks of what each strategy keeps, filled with normalisation, hollow without",
    )


def _kept(ax: Any, summary: Summary, pair: Pair, rows: Sequence[str]) -> None:
    for y, name in enumerate(rows):
        for shift, filled, group in _sides(kills_of(summary, pair, name)):
            if group is not None and group.kept is not None:
                _mark(ax, y + shift, group, group.kept, filled, 1.0, LIMITS)
    for at, dash in ((1.0, "-"), (0.7, (0, (4, 3)))):
        ax.axvline(at, color=style.CONTROL_COLOUR, linewidth=1.0, linestyle=dash, zorder=1)
    ax.set_xlabel("Progress kept")
    ax.tick_params(axis="y", length=0)


def _against(ax: Any, summary: Summary, pair: Pair, rows: Sequence[str]) -> None:
    for y, name in enumerate(rows):
        for shift, filled, group in _sides(kills_of(summary, pair, name)):
            around = None if group is None else summary.against_control(group, late_accuracy)
            if group is not None and around is not None:
                _mark(ax, y + shift, group, around, filled, 100.0, None)
    ax.axvline(0.0, color=style.CONTROL_COLOUR, linewidth=1.0, zorder=1)
    ax.set_xlabel("Accuracy at the end less the control's (points)")
    ax.tick_params(axis="y", length=0)


def _sides(both: tuple[Group | None, Group | None]) -> list[tuple[float, bool, Group | None]]:
    return [(-0.15, True, both[0]), (0.15, False, both[1])]


def _mark(
    ax: Any, y: float, group: Group, around: Estimate, filled: bool, scale: float, limits: tuple[float, float] | None
) -> None:
    assert not is_control(group.configuration)
    colour = style.colour_of(group)
    low, mean, high = (scale * v for v in (around.low, around.mean, around.high))
    if limits is not None:
        low, mean, high = (min(max(v, limits[0]), limits[1]) for v in (low, mean, high))
    dash = "-" if around.kind == "interval" else ":"
    ax.plot([low, high], [y, y], color=colour, linewidth=2.0, linestyle=dash, solid_capstyle="butt", zorder=2)
    face = colour if filled else "white"
    marker = style.marker_of(group.configuration)
    ax.plot([mean], [y], marker, color=colour, markerfacecolor=face, markersize=7, markeredgewidth=1.6, zorder=3)


def _legend(figure: Any) -> None:
    from matplotlib.lines import Line2D

    marks = [
        Line2D([], [], marker="o", linestyle="none", color=style.MUTED, markerfacecolor=face, markeredgewidth=1.6)
        for face in (style.MUTED, "white")
    ]
    figure.legend(marks, ["with normalisation", "without"], loc="outside upper right", ncols=2)

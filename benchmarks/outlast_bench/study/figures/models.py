"""Other models: what each strategy keeps on a model with normalisation and on the same one without."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from outlast_bench.study.analysis.statistics import Estimate
from outlast_bench.study.analysis.summary import Group, Summary, late_accuracy
from outlast_bench.study.figures import style
from outlast_bench.study.figures.style import Drawn
from outlast_bench.study.verdicts.models import Pair, configurations, kills_of, pairs

LIMITS = (-1.6, 2.2)  # of progress kept, as drawn


@dataclass(frozen=True)
class Shown:
    """What a row of panels shows; `lines`: vertical ones, with their dashes."""

    axis: str
    around: Callable[[Group], Estimate | None]
    lines: Sequence[tuple[float, Any]]
    scale: float = 1.0
    limits: tuple[float, float] = (-math.inf, math.inf)


def normalisation(summary: Summary) -> Drawn | None:
    """Progress kept and accuracy at the end, filled: with normalisation, hollow: without."""
    found = pairs(summary)
    if not found:
        return None
    rows = list(dict.fromkeys(name for pair in found for name in configurations(summary, pair)))
    if not rows:
        return None
    kept = Shown("Progress kept", lambda g: g.kept, ((1.0, "-"), (0.7, (0, (4, 3)))), limits=LIMITS)
    against = Shown(
        "Accuracy at the end less the control's (points)",
        lambda g: summary.against_control(g, late_accuracy),
        ((0.0, "-"),),
        100.0,
    )
    with style.styled():
        figure = style.new_figure(2 * (0.44 * len(rows) + 0.9))
        axes = figure.subplots(2, len(found), squeeze=False, sharey=True, sharex="row")
        for column, pair in enumerate(found):
            _panel(axes[0][column], summary, pair, rows, kept)
            _panel(axes[1][column], summary, pair, rows, against)
            axes[0][column].set_title(pair.name)
        for row in axes:
            row[0].set_yticks(range(len(rows)), [summary.data.label(name) for name in rows])
            row[0].set_ylim(len(rows) - 0.4, -0.6)
        style.legend_of_two(figure, "with normalisation", "without", "outside upper right")
    groups = [g for pair in found for name in rows for g in kills_of(summary, pair, name) if g is not None]
    return Drawn(
        name="models-normalisation",
        title="Models with and without normalisation",
        caption=(
            "One kill, each model against its own control. Above: progress kept through the outage, ratio of means; "
            "below: mean of the evaluations of the last 5 s less the control's. Lines: intervals (solid) or ranges "
            f"(dotted); {style.seeds_label(groups)}."
        ),
        figure=figure,
        alt="Marks of what each strategy keeps, filled with normalisation, hollow without",
    )


def _panel(ax: Any, summary: Summary, pair: Pair, rows: Sequence[str], shown: Shown) -> None:
    for y, name in enumerate(rows):
        for shift, filled, group in zip((-0.15, 0.15), (True, False), kills_of(summary, pair, name), strict=True):
            around = None if group is None else shown.around(group)
            if group is not None and around is not None:
                _mark(ax, y + shift, group, around, filled, shown)
    for at, dash in shown.lines:
        ax.axvline(at, color=style.CONTROL_COLOUR, linewidth=1.0, linestyle=dash, zorder=1)
    ax.set_xlabel(shown.axis)
    ax.tick_params(axis="y", length=0)


def _mark(ax: Any, y: float, group: Group, around: Estimate, filled: bool, shown: Shown) -> None:
    colour = style.colour_of(group)
    within = [min(max(v, shown.limits[0]), shown.limits[1]) for v in (around.low, around.mean, around.high)]
    low, mean, high = (shown.scale * v for v in within)
    dash = "-" if around.kind == "interval" else ":"
    ax.plot([low, high], [y, y], color=colour, linewidth=2.0, linestyle=dash, solid_capstyle="butt", zorder=2)
    face = colour if filled else "white"
    marker = style.marker_of(group.configuration)
    ax.plot([mean], [y], marker, color=colour, markerfacecolor=face, markersize=7, markeredgewidth=1.6, zorder=3)

"""Accuracy over time through one and two kills (the paper's Figures 4 and 5).

Each configuration has a panel of its own with the control behind it: kills fall at an update, hence at another second
for each, and one shading could not be right for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from outlast_bench.study.analysis.measures import LATE_S
from outlast_bench.study.analysis.summary import Group, Summary, curves_of, kills_in_words, late_accuracy
from outlast_bench.study.figures import style
from outlast_bench.study.figures.style import Drawn
from outlast_bench.study.figures.time import (
    SHADING,
    draw_control,
    held,
    shade,
    spread_in_words,
    standing_in_words,
)

PAPER_FIGURE = {1: "4", 2: "5"}


def accuracy(summary: Summary, experiment: str, kills: int) -> Drawn | None:
    """Figures 4 and 5: accuracy over time with so many kills, in %."""
    groups = summary.of(experiment, kills, control=False)
    if not kills or not any(c.evaluations for g in groups for c in curves_of(g)):
        return None
    with style.styled():
        figure, axes = style.grid_of_panels(len(groups))
        end = max(c.end for g in groups for c in curves_of(g))
        for ax, group in zip(axes, groups, strict=True):
            shade(ax, group, summary.data.outage_s(experiment))
            control = summary.control(experiment, group)
            draw_control(ax, [held(c) for c in curves_of(control)] if control is not None else [], end)
            found = style.band([held(c) for c in curves_of(group)], end)
            if found is not None:
                style.draw_band(ax, found, style.colour_of(group))
                _late(ax, group)
            ax.set_title(style.wrapped(group.label))
        axes[0].set_xlim(0, end * 1.02)
        axes[0].set_ylim(*_limits(groups))
        figure.supylabel("Test accuracy (%)", fontsize=9, color=style.MUTED)
        figure.supxlabel("Time since the first update (s)", fontsize=9, color=style.MUTED)
    number = kills_in_words(kills)
    return Drawn(
        name=f"{experiment}-accuracy-{kills}-kill{'s' if kills > 1 else ''}",
        title=f"Accuracy with {number} (the paper's Figure {PAPER_FIGURE.get(kills, '5')})",
        caption=(
            f"{summary.data.title(experiment)}: mean over seeds (line) and their range (band); grey: the control "
            f"without failure, same seeds. {SHADING}. The number in a panel is the mean of the evaluations of the last "
            f"{LATE_S:g} s, over seeds: about where the line ends, and what is compared with the control (the final "
            f"accuracy on all test images, one snapshot, is in the table). {standing_in_words(groups)}"
            f"{spread_in_words(groups)} {style.seeds_in_words(groups)}."
        ),
        figure=figure,
        runs=experiment,
        alt=f"Small panels of accuracy over time, one a configuration, with {number}",
    )


def _limits(groups: Sequence[Group]) -> tuple[float, float]:
    values = [100.0 * e.accuracy for g in groups for c in curves_of(g) for e in c.evaluations]
    return (max(0.0, min(values) - 4.0), min(100.0, max(values) + 4.0)) if values else (0.0, 100.0)


def _late(ax: Any, group: Group) -> None:
    """The late accuracy, mean over seeds."""
    around = group.estimate(late_accuracy)
    if around is not None:
        ax.annotate(
            f"{100 * around.mean:.1f} %",
            (0.98, 0.06),
            xycoords="axes fraction",
            ha="right",
            color=style.colour_of(group),
            fontweight="bold",
        )

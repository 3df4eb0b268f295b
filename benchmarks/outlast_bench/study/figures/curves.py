"""Accuracy over time through one and two kills (the paper's Figures 4 and 5).

Each configuration has a panel of its own with the control behind it: kills fall at an update, hence at another second
for each, and one shading could not be right for all. In the close-up every run is moved so that its kill is at 0. Ours
have bands over seeds there; the paper's six lines, three of one colour, would lie in one another's bands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from outlast_bench.study.analysis.load import is_control
from outlast_bench.study.analysis.summary import Group, Summary, curves_of, kills_label, late_accuracy
from outlast_bench.study.figures import style
from outlast_bench.study.figures.style import Drawn
from outlast_bench.study.figures.time import LATE, MEAN_AND_BAND, SHADING, draw_control, held, shade, sides

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
                late = group.estimate(late_accuracy)
                style.in_the_corner(ax, group, "" if late is None else f"{100 * late.mean:.1f} %")
            ax.set_title(style.wrapped(group.label))
        axes[0].set_xlim(0, end * 1.02)
        axes[0].set_ylim(*_limits(groups))
        figure.supylabel("Test accuracy (%)", fontsize=9, color=style.MUTED)
        figure.supxlabel("Time since the first update (s)", fontsize=9, color=style.MUTED)
    number = kills_label(kills)
    return Drawn(
        name=f"{experiment}-accuracy-{kills}-kill{'s' if kills > 1 else ''}",
        title=f"Accuracy with {number} (the paper's Figure {PAPER_FIGURE.get(kills, '5')})",
        caption=f"{MEAN_AND_BAND}; grey: the control. {SHADING}. Number: {LATE}; {style.seeds_label(groups)}.",
        figure=figure,
        alt=f"Small panels of accuracy over time, one a configuration, with {number}",
    )


def _limits(groups: Sequence[Group]) -> tuple[float, float]:
    values = [100.0 * e.accuracy for g in groups for c in curves_of(g) for e in c.evaluations]
    return (max(0.0, min(values) - 4.0), min(100.0, max(values) + 4.0)) if values else (0.0, 100.0)


# --- in close-up ---

BEFORE, AFTER = 1.0, 3.0  # of the outage's length
BAND = 0.13
FEW = 4  # lines in a panel of which the bands can still be told apart
ORDINALS = ("first", "second", "third")


def close_up(summary: Summary, experiment: str, kills: int = 1, index: int = 0) -> Drawn | None:
    """Around the kill of that index (from 0), of the runs with so many kills; None where there is none.

    Beside the first kill the control stands at the update at which the run was killed, beside a later one at the
    second: by then the configurations hold different updates.
    """
    groups = [g for g in summary.of(experiment, kills, control=False) if g.runs and g.kills > index]
    ordered_s = summary.data.outage_s(experiment)
    if ordered_s <= 0 or not any(c.evaluations for g in groups for c in curves_of(g)):
        return None
    found = sides(groups)
    start, end = -BEFORE * ordered_s, AFTER * ordered_s
    with style.styled():
        figure = style.new_figure(5.4)
        axes = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
        for ax, (title, some) in zip(axes, found, strict=True):
            ax.axvspan(0, ordered_s, color=style.OUTAGE_COLOUR, alpha=0.22, lw=0)
            ax.axvline(0, color=style.INK, linewidth=0.9)
            alpha = BAND if len(some) <= FEW else 0.0
            control = summary.control(experiment, some[0])
            if control is not None:
                _draw(ax, control, "control, no failure", (start, end), control_zeros(control, some, index), alpha)
            for group in some:
                _draw(ax, group, group.label, (start, end), _kills(group, index), alpha)
            ax.set_title(title)
            ax.set_xlim(start, end)
            ax.set_xlabel(f"Time since the {_which(kills, index)}kill (s)")
            style.legend_below(ax)
        axes[0].set_ylabel("Test accuracy (%)")
    which = _which(kills, index)
    return Drawn(
        name=f"{experiment}-close-up" + (f"-{which.strip()}-kill" if index else ""),
        title=f"The {which}outage in close-up",
        caption=(
            f"Every run moved so that its {which}kill is at 0. The control stands at the same "
            f"{'second' if index else 'update'}. Shaded: the server is held back. {MEAN_AND_BAND}, where lines are "
            f"few; {style.seeds_label(groups)}."
        ),
        figure=figure,
        alt=f"Accuracy around the {which}kill, all configurations over each other",
    )


def _which(kills: int, index: int) -> str:
    """`second `; `` for the only kill."""
    return f"{ORDINALS[min(index, len(ORDINALS) - 1)]} " if kills > 1 else ""


def _kills(group: Group, index: int) -> dict[int, float]:
    """Seed -> when its run was killed."""
    return {r.run.seed: r.curves.outages[index].killed for r in group.runs if index < len(r.curves.outages)}


def control_zeros(control: Group, groups: Sequence[Group], index: int) -> dict[int, float]:
    """Seed -> the moment of its control that stands at 0; seeds without one are left out."""
    zeros: dict[int, float | None] = {}
    for run in control.runs:
        others = [o for g in groups for o in g.runs if o.run.seed == run.run.seed and index < len(o.outages)]
        if index == 0:
            versions = [o.outages[0].version for o in others]
            known = [v for v in versions if v is not None]
            zeros[run.run.seed] = run.curves.time_of(sum(known) / len(known)) if known else None
        else:
            killed = [o.curves.outages[index].killed for o in others]
            zeros[run.run.seed] = sum(killed) / len(killed) if killed else None
    return {seed: t for seed, t in zeros.items() if t is not None}


def _draw(
    ax: Any, group: Group, label: str, within: tuple[float, float], zeros: Mapping[int, float], alpha: float
) -> None:
    moved = [
        [(t - zeros[run.run.seed], v) for t, v in held(run.curves)] for run in group.runs if run.run.seed in zeros
    ]  # fmt: skip
    found = style.band(moved, within[1], within[0])
    if found is not None:
        width = 1.2 if is_control(group.configuration) else 2.0
        colour, dash = style.colour_of(group), style.dash_of(group.configuration)
        style.draw_band(ax, found, colour, dash, label, width, alpha)

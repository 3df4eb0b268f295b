"""Accuracy around a kill, every run moved so that its kill is at 0, with the control beside it.

Ours have bands over seeds. The paper's six lines, three of one colour, would lie in one another's bands and have none;
their bands are in the panels over the whole run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from outlast_bench.study.analysis.load import is_control
from outlast_bench.study.analysis.summary import Group, Summary, curves_of, kills_in_words
from outlast_bench.study.figures import style
from outlast_bench.study.figures.style import Drawn
from outlast_bench.study.figures.time import held, sides, standing_in_words

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
    banded = [title.lower() for title, some in found if len(some) <= FEW]
    return Drawn(
        name=f"{experiment}-close-up" + (f"-{which.strip()}-kill" if index else ""),
        title=f"The {which}outage in close-up",
        caption=(
            f"{summary.data.title(experiment)}, {kills_in_words(kills)}: every run moved so that its {which}kill is at "
            f"0. {_control_in_words(index)} Shaded: the server is held back for {ordered_s:.1f} s. Mean over seeds"
            f"{_bands_in_words(banded, len(found))}. {standing_in_words(groups)} {style.seeds_in_words(groups)}."
        ),
        figure=figure,
        runs=experiment,
        alt=f"Accuracy around the {which}kill, all configurations over each other",
    )


def _which(kills: int, index: int) -> str:
    """`second `; `` for the only kill."""
    return f"{ORDINALS[min(index, len(ORDINALS) - 1)]} " if kills > 1 else ""


def _control_in_words(index: int) -> str:
    if index == 0:
        return "The control of each seed holds there the update at which that seed's runs were killed (their mean)."
    return (
        "The control of each seed is there at the second at which that seed's runs were killed (mean): what it is "
        "ahead at 0 is what the kill before has left."
    )


def _bands_in_words(banded: Sequence[str], count: int) -> str:
    if not banded:
        return ", without their range, which would hide the lines"
    return " and their range (band)" + (
        f", {' and '.join(banded)} alone: more bands would hide the lines" if len(banded) < count else ""
    )


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

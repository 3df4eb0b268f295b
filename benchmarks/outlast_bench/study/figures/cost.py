"""What accuracy costs: accuracy against money, and what workers' paid seconds were spent on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from outlast_bench.study.analysis.cost import PriceTable, hourly_of, usual
from outlast_bench.study.analysis.load import is_control
from outlast_bench.study.analysis.summary import Group, Summary, curves_of, kills_label
from outlast_bench.study.figures import style
from outlast_bench.study.figures.style import Drawn
from outlast_bench.study.figures.time import held, sides, smoothed

BELOW_TARGET = 20.0  # points: what is drawn


def accuracy_against_cost(summary: Summary, experiment: str, kills: int, prices: PriceTable) -> Drawn | None:
    """At the usual way of paying for the price table's first set of machines; others change little but the scale."""
    groups = summary.of(experiment, kills)
    if not any(g.kills for g in groups) or not any(c.evaluations for g in groups for c in curves_of(g)):
        return None
    setup, term = usual(prices)
    target = 100.0 * summary.data.target(experiment)
    found = sides([g for g in groups if not is_control(g.configuration)])
    with style.styled():
        figure = style.new_figure(5.2)
        axes = figure.subplots(1, len(found), squeeze=False, sharex=True, sharey=True)[0]
        for ax, (title, some) in zip(axes, found, strict=True):
            control = summary.control(experiment, some[0])
            for group in [*([control] if control is not None else []), *some]:
                _cost_curve(ax, group, hourly_of(group.runs[0], prices, setup, term))
            ax.axhline(target, color=style.CONTROL_COLOUR, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
            ax.set_title(title)
            ax.set_xlabel(f"Cost so far ({prices.currency} cents)")
            style.legend_below(ax)
        axes[0].set_xlim(left=0)
        axes[0].set_ylabel("Test accuracy (%)")
        axes[0].set_ylim(*_limits(groups, target))
    return Drawn(
        name=f"{experiment}-cost",
        title="Accuracy against cost",
        caption=(
            f"{kills_label(kills).capitalize()}, {setup}, {term}: every machine paid for from a run's first update on. "
            f"Mean over seeds, smoothed over 2 s to either side. Dashed: {target:.0f} %; {style.seeds_label(groups)}."
        ),
        figure=figure,
        alt="Accuracy over the money spent so far, around the accuracy to be reached",
    )


def _limits(groups: Sequence[Group], target: float) -> tuple[float, float]:
    most = max((100.0 * e.accuracy for g in groups for c in curves_of(g) for e in smoothed(c).evaluations), default=0.0)
    return max(0.0, target - BELOW_TARGET), min(100.0, max(most, target) + 2.0)


def _cost_curve(ax: Any, group: Group, hourly: float) -> None:
    cents = 100.0 * hourly / 3600.0
    curves = [[(t * cents, v) for t, v in held(smoothed(run.curves))] for run in group.runs]
    found = style.band(curves, max(c.curves.end for c in group.runs) * cents)
    if found is not None:
        width = 1.2 if is_control(group.configuration) else 1.9
        dash = style.dash_of(group.configuration)
        style.draw_band(ax, found, style.colour_of(group), dash, group.label, width, alpha=0.0)


PARTS = (("useful", 1.0), ("recomputed", 0.5), ("idle", 0.2))  # of paid time, and how strongly it is drawn


def worker_seconds(summary: Summary, experiment: str, kills: int) -> Drawn | None:
    """Of the workers' paid time: useful, recomputed, idle, in seconds a run."""
    groups = summary.of(experiment, kills)
    if not any(g.kills for g in groups):
        return None
    with style.styled():
        parts: list[style.Part] = [(name, alpha, partial(mean_seconds, name)) for name, alpha in PARTS]
        axis = "Paid seconds of all workers of a run, mean over seeds (s)"
        figure = style.stacked(groups, parts, "recomputed", _waste, axis)
    return Drawn(
        name=f"{experiment}-worker-seconds",
        title="What the workers' seconds were spent on",
        caption=(
            f"{kills_label(kills).capitalize()}: useful (solid), recomputed or lost (hatched), idle (pale); mean over "
            f"seeds, {style.seeds_label(groups)}."
        ),
        figure=figure,
        alt="Bars of useful, recomputed and idle worker seconds, one a configuration",
    )


def mean_seconds(name: str, group: Group) -> float:
    """Seconds a run that were spent on `name`, mean over seeds."""
    return float(sum(getattr(run, f"{name}_s") for run in group.runs) / group.n)


def _waste(group: Group) -> str:
    whole = sum(mean_seconds(name, group) for name, _ in PARTS)
    idle, again = mean_seconds("idle", group), mean_seconds("recomputed", group)
    told = [("idle", idle), *([("again", again)] if again >= 0.05 else [])]
    return ", ".join(f"{s:.1f} s {name} ({100 * s / whole if whole else 0:.1f} %)" for name, s in told)

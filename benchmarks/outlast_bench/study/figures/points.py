"""One mark a configuration: progress kept, time to the target accuracy, goodput, final accuracy against the control.

Every seed is a small dot, the mean a large mark, the interval a line: nothing is hidden behind a bar. Read from top to
bottom in the order of the study's list.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from outlast_bench.study.analysis.load import is_control
from outlast_bench.study.analysis.statistics import LEAST_FOR_INTERVAL, Estimate
from outlast_bench.study.analysis.summary import Group, Summary, goodput, kills_label, late_accuracy
from outlast_bench.study.figures import style
from outlast_bench.study.figures.style import Drawn
from outlast_bench.study.figures.time import LATE

AROUND = f"Lines: 95 % bootstrap intervals, or dotted ranges (fewer than {LEAST_FOR_INTERVAL} seeds)"


@dataclass(frozen=True)
class Points:
    """What one column of marks shows. `by_seed` and the estimate are in one unit; both are scaled by `scale`."""

    name: str
    title: str
    remark: str
    axis: str
    by_seed: Callable[[Group], Mapping[int, float]]
    around: Callable[[Group], Estimate | None]
    scale: float = 1.0
    reference: float | None = None  # a vertical line, in the axis' unit
    threshold: float | None = None  # what ought to be reached, dashed
    digits: int = 2
    unit: str = ""
    signed: bool = False
    with_zero: bool = False  # runs without a kill as well
    limits: tuple[float, float] | None = None


def kept(summary: Summary, experiment: str) -> Drawn | None:
    """Progress kept through the outages, with one and with two kills."""
    shown = Points(
        "kept",
        "Progress kept through the outage",
        "Accuracy gained from the kill to the end of outage and drain, over the control's in as long from the same "
        "update. Solid line: as much as without failure; dashed: 0.7. Dots: seeds, those beyond the frame at its edge",
        "Progress kept (1: as much as without failure)",
        Group.kept_by_seed,
        lambda g: g.kept,
        reference=1.0,
        threshold=0.7,
        limits=(-1.6, 2.2),
    )
    return _columns(summary, experiment, shown)


def time_to_target(summary: Summary, experiment: str) -> Drawn | None:
    """Seconds to the target accuracy, with 0, 1 and 2 kills."""
    target = summary.data.target(experiment)
    control = summary.control(experiment)
    known = control.time_to_target if control is not None else None
    shown = Points(
        "time-to-target",
        f"Time to reach {target:.2f}",
        "Solid line: the control. ≥: some runs did not reach it, and count with their whole time",
        f"Time to accuracy {target:.2f} (s)",
        lambda g: {r.run.seed: r.trained_s if r.time_to_target_s is None else r.time_to_target_s for r in g.runs},
        lambda g: g.time_to_target,
        reference=known.mean if known is not None else None,
        digits=1,
        unit=" s",
        with_zero=True,
    )
    return _columns(summary, experiment, shown)


def goodputs(summary: Summary, experiment: str) -> Drawn | None:
    """Useful gradients over the control's rate."""
    shown = Points(
        "goodput",
        "Goodput",
        "Gradients that the final parameters hold, over the control's in the same time",
        "Goodput (share of the control's gradients)",
        lambda g: g.values(goodput),
        lambda g: g.estimate(goodput),
        reference=1.0,
        with_zero=True,
    )
    return _columns(summary, experiment, shown)


def against_control(summary: Summary, experiment: str) -> Drawn | None:
    """Accuracy at the end, at equal wall time, less the control's, in points, pair by pair."""

    def by_seed(group: Group) -> dict[int, float]:
        control = summary.control(experiment, group)
        theirs = control.values(late_accuracy) if control is not None else {}
        return {seed: v - theirs[seed] for seed, v in group.values(late_accuracy).items() if seed in theirs}

    shown = Points(
        "against-control",
        "Accuracy at the end, at equal wall time, against the control",
        f"Less the control's {LATE}, paired by seed. Solid line: the control; dashed: one point below it",
        "Accuracy at the end less the control's (points)",
        by_seed,
        lambda g: summary.against_control(g, late_accuracy),
        scale=100.0,
        reference=0.0,
        threshold=-1.0,
        signed=True,
        with_zero=True,
    )
    return _columns(summary, experiment, shown)


def _columns(summary: Summary, experiment: str, points: Points) -> Drawn | None:
    groups = [g for g in summary.of(experiment) if not is_control(g.configuration)]
    kills = sorted({g.kills for g in groups if (g.kills or points.with_zero) and points.around(g) is not None})
    shown = [g for g in groups if g.kills in kills]
    if not shown:
        return None
    rows = list(dict.fromkeys(g.configuration for g in shown))
    with style.styled():
        figure = style.new_figure(0.36 * len(rows) + 1.15)
        axes = figure.subplots(1, len(kills), squeeze=False, sharex=True, sharey=True)[0]
        for ax, k in zip(axes, kills, strict=True):
            _marks(ax, [g for g in shown if g.kills == k], rows, points)
            ax.set_title(kills_label(k).capitalize())
        labels = {g.configuration: g.label for g in shown}
        axes[0].set_yticks(range(len(rows)), [labels[row] for row in rows])
        axes[0].set_ylim(len(rows) - 0.4, -0.6)
        figure.supxlabel(points.axis, fontsize=9, color=style.MUTED)
    return Drawn(
        name=f"{experiment}-{points.name}",
        title=points.title,
        caption=f"{points.remark}. {AROUND}; {style.seeds_label(shown)}.",
        figure=figure,
        alt=f"{points.axis} of every configuration, by number of kills",
    )


def clipped(around: Estimate, limits: tuple[float, float] | None) -> Estimate:
    if limits is None:
        return around
    mean, low, high = (min(max(v, limits[0]), limits[1]) for v in (around.mean, around.low, around.high))
    return replace(around, mean=mean, low=low, high=high)


def _marks(ax: Any, groups: Sequence[Group], rows: Sequence[str], points: Points) -> None:
    if points.reference is not None:
        ax.axvline(points.reference, color=style.CONTROL_COLOUR, linewidth=1.1, zorder=1)
    if points.threshold is not None:
        ax.axvline(points.threshold, color=style.CONTROL_COLOUR, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    for group in groups:
        y, colour, around = rows.index(group.configuration), style.colour_of(group), points.around(group)
        values = [v * points.scale for v in points.by_seed(group).values()]
        if points.limits is not None:
            values = [min(max(v, points.limits[0]), points.limits[1]) for v in values]
        if around is None:
            ax.text(
                0.5, y, "not measured", transform=ax.get_yaxis_transform(), fontsize=8, color=style.MUTED, ha="center",
                va="center", style="italic", zorder=5,
            )  # fmt: skip
            continue
        ax.plot(values, [y] * len(values), ".", color=colour, alpha=0.45, markersize=6, zorder=3, clip_on=False)
        inside = clipped(around, points.limits)
        style.whisker(ax, inside, y, colour, points.scale)
        marker = style.marker_of(group.configuration)
        mean, at = around.mean * points.scale, inside.mean * points.scale
        ax.plot([at], [y], marker, color=colour, markersize=7, markeredgecolor="white", zorder=4)
        form = f"{{:{'+' if points.signed else ''},.{points.digits}f}}"
        most = "≥ " if around.censored else ""
        ax.annotate(
            most + form.format(mean).replace("-", "−") + points.unit,
            (at, y), xytext=(0, 6), textcoords="offset points",
            ha="center", fontsize=8, color=style.INK, zorder=5,
            bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.4},
        )  # fmt: skip
    ax.tick_params(axis="y", length=0)
    ax.margins(x=0.12)

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
from outlast_bench.study.analysis.summary import Group, Summary, goodput, late_accuracy, outage_s
from outlast_bench.study.figures import style
from outlast_bench.study.figures.style import Drawn
from outlast_operator.reporting.words import listing

SHORT = 0.25  # of the outage as ordered: of a shorter one a window of that length shows little


@dataclass(frozen=True)
class Points:
    """What one column of marks shows. `by_seed` and the estimate are in one unit; both are scaled by `scale`."""

    axis: str
    by_seed: Callable[[Group], Mapping[int, float]]
    around: Callable[[Group], Estimate | None]
    scale: float = 1.0
    reference: float | None = None  # a vertical line, in the axis' unit
    threshold: float | None = None  # what ought to be reached, dashed
    digits: int = 2
    unit: str = ""
    signed: bool = False


def kept(summary: Summary, experiment: str) -> Drawn | None:
    """Progress kept through the outages, with one and with two kills."""
    ordered_s = summary.data.outage_s(experiment)
    return _columns(
        summary,
        experiment,
        Points(
            "Progress kept (1: as much as without failure)",
            Group.kept_by_seed,
            lambda g: g.kept,
            reference=1.0,
            threshold=0.7,
        ),
        name="kept",
        title="Progress kept through the outage",
        remark="Accuracy gained from the kill to the end of the outage and its drain, over what the control of the "
        "same seeds gained in the same time from the same update. Solid line: as much as without failure; dashed: 0.7. "
        "Below 0: less accurate than at the kill. The mark is the ratio of the means; dots are single seeds, and a "
        f"dot beyond the frame is drawn at its edge{_short_outages(summary.of(experiment), ordered_s)}",
        limits=(-1.6, 2.2),
    )


def _short_outages(groups: Sequence[Group], ordered_s: float) -> str:
    """Words for the configurations of which this shows little of an outage; `` without one."""
    known = [(g, around.mean / g.kills) for g in groups if g.kills and (around := g.estimate(outage_s)) is not None]
    short = [(g.label, seconds) for g, seconds in known if seconds < SHORT * ordered_s]
    if not short:
        return ""
    names, most = list(dict.fromkeys(label for label, _ in short)), max(seconds for _, seconds in short)
    return (
        f". Where another server takes over the outage is far shorter ({listing(names)}: at most {most:.2f} s a kill, "
        f"mean over seeds) than the {ordered_s:.1f} s ordered: there it shows mostly what the strategy costs all the "
        "time, on cores that servers and workers share, and hardly the outage"
    )


def time_to_target(summary: Summary, experiment: str) -> Drawn | None:
    """Seconds to the target accuracy, with 0, 1 and 2 kills."""
    target = summary.data.target(experiment)
    control = summary.control(experiment)
    known = control.time_to_target if control is not None else None
    return _columns(
        summary,
        experiment,
        Points(
            f"Time to accuracy {target:.2f} (s)",
            lambda g: {r.run.seed: r.trained_s if r.time_to_target_s is None else r.time_to_target_s for r in g.runs},
            lambda g: g.time_to_target,
            reference=known.mean if known is not None else None,
            digits=1,
            unit=" s",
        ),
        name="time-to-target",
        title=f"Time to reach {target:.2f}",
        remark="When a straight line through the evaluations of 2 s to either side first reaches it. Solid line: the "
        "control without failure. ≥: some runs had not reached it by their end, which is what they count as",
        with_zero=True,
    )


def goodputs(summary: Summary, experiment: str) -> Drawn | None:
    """Useful gradients over the control's rate."""
    return _columns(
        summary,
        experiment,
        Points(
            "Goodput (share of the control's gradients)",
            lambda g: g.values(goodput),
            lambda g: g.estimate(goodput),
            reference=1.0,
        ),
        name="goodput",
        title="Goodput",
        remark="Gradients that the final parameters hold, over what the control of the same seed computed in the same "
        "time: what replication and buffering cost without a failure (left), and what failures add",
        with_zero=True,
    )


def against_control(summary: Summary, experiment: str) -> Drawn | None:
    """Accuracy at the end, at equal wall time, less the control's, in points, pair by pair."""

    def by_seed(group: Group) -> dict[int, float]:
        control = summary.control(experiment, group)
        theirs = control.values(late_accuracy) if control is not None else {}
        return {seed: v - theirs[seed] for seed, v in group.values(late_accuracy).items() if seed in theirs}

    return _columns(
        summary,
        experiment,
        Points(
            "Accuracy at the end less the control's (points)",
            by_seed,
            lambda g: summary.against_control(g, late_accuracy),
            scale=100.0,
            reference=0.0,
            threshold=-1.0,
            signed=True,
        ),
        name="against-control",
        title="Accuracy at the end, at equal wall time, against the control",
        remark="Mean of the evaluations of the last 5 s, paired by seed. Solid line: the control; dashed: one point "
        "below it",
        with_zero=True,
    )


def _columns(
    summary: Summary,
    experiment: str,
    points: Points,
    *,
    name: str,
    title: str,
    remark: str,
    with_zero: bool = False,
    limits: tuple[float, float] | None = None,
) -> Drawn | None:
    groups = [g for g in summary.of(experiment) if not is_control(g.configuration)]
    kills = sorted({g.kills for g in groups if (g.kills or with_zero) and points.around(g) is not None})
    shown = [g for g in groups if g.kills in kills]
    if not shown:
        return None
    rows = list(dict.fromkeys(g.configuration for g in shown))
    with style.styled():
        figure = style.new_figure(0.36 * len(rows) + 1.15)
        axes = figure.subplots(1, len(kills), squeeze=False, sharex=True, sharey=True)[0]
        for ax, k in zip(axes, kills, strict=True):
            _marks(ax, [g for g in shown if g.kills == k], rows, points, limits)
            ax.set_title({0: "No kill", 1: "One kill", 2: "Two kills"}.get(k, f"{k} kills"))
        labels = {g.configuration: g.label for g in shown}
        axes[0].set_yticks(range(len(rows)), [labels[row] for row in rows])
        axes[0].set_ylim(len(rows) - 0.4, -0.6)
        figure.supxlabel(points.axis, fontsize=9, color=style.MUTED)
    return Drawn(
        name=f"{experiment}-{name}",
        title=title,
        caption=(
            f"{summary.data.title(experiment)}. {remark}. Lines: {around_in_words(shown, points)}; "
            f"{style.seeds_in_words(shown)}."
        ),
        figure=figure,
        runs=experiment,
        alt=f"{points.axis} of every configuration, by number of kills",
    )


def around_in_words(groups: Sequence[Group], points: Points) -> str:
    kinds = {e.kind for g in groups if (e := points.around(g)) is not None}
    if kinds == {"interval"}:
        return "95 % bootstrap intervals"
    return (
        f"ranges (fewer than {LEAST_FOR_INTERVAL} seeds)"
        if "interval" not in kinds
        else "95 % intervals (solid) or ranges (dotted)"
    )


def clipped(around: Estimate, limits: tuple[float, float] | None) -> Estimate:
    if limits is None:
        return around
    low, high = (min(max(v, limits[0]), limits[1]) for v in (around.low, around.high))
    return replace(around, low=low, high=high)


def _marks(
    ax: Any, groups: Sequence[Group], rows: Sequence[str], points: Points, limits: tuple[float, float] | None
) -> None:
    if points.reference is not None:
        ax.axvline(points.reference, color=style.CONTROL_COLOUR, linewidth=1.1, zorder=1)
    if points.threshold is not None:
        ax.axvline(points.threshold, color=style.CONTROL_COLOUR, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    for group in groups:
        y, colour, around = rows.index(group.configuration), style.colour_of(group), points.around(group)
        values = [v * points.scale for v in points.by_seed(group).values()]
        if limits is not None:
            values = [min(max(v, limits[0]), limits[1]) for v in values]
        if around is None:
            ax.text(
                0.5,
                y,
                "not measured",
                transform=ax.get_yaxis_transform(),
                fontsize=8,
                color=style.MUTED,
                ha="center",
                va="center",
                style="italic",
                zorder=5,
            )
            continue
        ax.plot(values, [y] * len(values), ".", color=colour, alpha=0.45, markersize=6, zorder=3, clip_on=False)
        style.whisker(ax, clipped(around, limits), y, colour, points.scale)
        marker = style.marker_of(group.configuration)
        mean = around.mean * points.scale
        at = mean if limits is None else min(max(mean, limits[0]), limits[1])
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

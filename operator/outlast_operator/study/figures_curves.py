"""Curves over time: accuracy through one and two kills (the paper's Figures 4 and 5), in close-up, and gradients
processed (its Figure 8).

Each configuration has a panel of its own with the control behind it: kills fall at an update, hence at another second
for each, and one shading could not be right for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from outlast_operator.report_curves import Curve
from outlast_operator.study import figure_style as style
from outlast_operator.study.figure_style import Drawn
from outlast_operator.study.load import is_control
from outlast_operator.study.run_curves import RunCurves
from outlast_operator.study.summary import Group, Summary, curves_of

CLOSE_UP_BEFORE = 1.0  # of the outage's length
CLOSE_UP_AFTER = 3.0
STANDSTILL_S = 0.5  # a shorter outage leaves no step
PAPER_FIGURE = {1: "4", 2: "5"}
PAPER_GRADIENTS = "952 (sync checkpointing), 1,070 (async), 1,048 (sync chain), 1,027 (async), 5,260 (stateless)"


def accuracy(summary: Summary, experiment: str, kills: int) -> Drawn | None:
    """Figures 4 and 5: accuracy over time with so many kills, in %."""
    groups = summary.of(experiment, kills, control=False)
    if not kills or not any(c.evaluations for g in groups for c in curves_of(g)):
        return None
    with style.styled():
        figure, axes = style.grid_of_panels(len(groups))
        end = max(c.end for g in groups for c in curves_of(g))
        for ax, group in zip(axes, groups, strict=True):
            _shade(ax, group, summary.data.outage_s(experiment))
            _control(ax, summary.control(experiment, group), end)
            found = style.band([held(c) for c in curves_of(group)], end)
            if found is not None:
                style.draw_band(ax, found, style.colour_of(group))
                _final(ax, group)
            ax.set_title(group.label)
        axes[0].set_xlim(0, end * 1.02)
        axes[0].set_ylim(*_limits(groups))
        figure.supylabel("Test accuracy (%)", fontsize=9, color=style.MUTED)
        figure.supxlabel("Time since the first update (s)", fontsize=9, color=style.MUTED)
    number = "one kill" if kills == 1 else f"{kills} kills"
    return Drawn(
        name=f"{experiment}-accuracy-{kills}-kill{'s' if kills > 1 else ''}",
        title=f"Accuracy with {number} (the paper's Figure {PAPER_FIGURE.get(kills, '5')})",
        caption=(
            f"{summary.data.title(experiment)}: mean over seeds (line) and their range (band); grey: the control "
            "without "
            "failure, same seeds. Light shading: the killed server is held back; dark: no update was applied. The "
            "figure "
            "at the end is the accuracy on all test images, mean over seeds. While "
            f"no parameters can be evaluated the last value stands; {style.seeds_in_words(groups)}."
        ),
        figure=figure,
        runs=experiment,
        alt=f"Small panels of accuracy over time, one a configuration, with {number}",
    )


def _limits(groups: Sequence[Group]) -> tuple[float, float]:
    values = [100.0 * e.accuracy for g in groups for c in curves_of(g) for e in c.evaluations]
    return (max(0.0, min(values) - 4.0), min(100.0, max(values) + 4.0)) if values else (0.0, 100.0)


def held(curves: RunCurves, scale: float = 100.0) -> Curve:
    """Accuracy as steps and slopes: through an outage without evaluations the last value stands until it is over."""
    points = [(e.t, e.accuracy * scale) for e in curves.evaluations]
    for outage in curves.outages:
        before = [p for p in points if p[0] <= outage.killed]
        back = outage.back if outage.back is not None else curves.end
        inside = [p for p in points if outage.killed < p[0] < back]
        if before and not inside and back - outage.killed > STANDSTILL_S:
            points.append((back - 1e-3, before[-1][1]))
            points.sort()
    return points


def _shade(ax: Any, group: Group, ordered_s: float) -> None:
    """The mean over seeds of each kill and of the first update after it."""
    for index in range(group.kills):
        found = [c.outages[index] for c in curves_of(group) if index < len(c.outages)]
        if not found:
            continue
        killed = sum(o.killed for o in found) / len(found)
        back = [o.back for o in found if o.back is not None]
        ax.axvspan(killed, killed + ordered_s, color=style.OUTAGE_COLOUR, alpha=0.18, lw=0)
        if back:
            ax.axvspan(killed, sum(back) / len(back), color=style.OUTAGE_COLOUR, alpha=0.38, lw=0)
        ax.axvline(killed, color=style.INK, linewidth=0.9)


def _control(ax: Any, control: Group | None, end: float) -> None:
    if control is None:
        return
    found = style.band([held(c) for c in curves_of(control)], end)
    if found is not None:
        ax.plot(found.t, found.mean, color=style.CONTROL_COLOUR, linewidth=1.1, alpha=0.75, zorder=1.5)


def _final(ax: Any, group: Group) -> None:
    values = [r.final_accuracy for r in group.runs if r.final_accuracy is not None]
    if values:
        ax.annotate(
            f"{100 * sum(values) / len(values):.1f} %",
            (0.98, 0.06),
            xycoords="axes fraction",
            ha="right",
            color=style.colour_of(group),
            fontweight="bold",
        )


def close_up(summary: Summary, experiment: str, kills: int = 1) -> Drawn | None:
    """Accuracy around the first kill, every run moved so that its kill is at 0; the control at the same update."""
    groups = [g for g in summary.of(experiment, kills, control=False) if g.runs and kills]
    sides = [
        ("As the paper ran them", [g for g in groups if g.configuration.startswith("paper-")]),
        ("As recommended", [g for g in groups if not g.configuration.startswith("paper-")]),
    ]
    sides = [(title, some) for title, some in sides if some]
    ordered_s = summary.data.outage_s(experiment)
    if ordered_s <= 0 or not any(c.evaluations for _, some in sides for g in some for c in curves_of(g)):
        return None
    start, end = -CLOSE_UP_BEFORE * ordered_s, CLOSE_UP_AFTER * ordered_s
    with style.styled():
        figure = style.new_figure(4.4)
        axes = figure.subplots(1, len(sides), squeeze=False, sharey=True)[0]
        for ax, (title, some) in zip(axes, sides, strict=True):
            ax.axvspan(0, ordered_s, color=style.OUTAGE_COLOUR, alpha=0.22, lw=0)
            ax.axvline(0, color=style.INK, linewidth=0.9)
            control = summary.control(experiment, some[0])
            if control is not None:
                _aligned(ax, control, "control, no failure", start, end, _control_kill(control, some))
            for group in some:
                _aligned(ax, group, group.label, start, end, None)
            ax.set_title(title)
            ax.set_xlim(start, end)
            ax.set_xlabel("Time since the kill (s)")
            ax.legend(loc="lower right", handlelength=3.0)
        axes[0].set_ylabel("Test accuracy (%)")
    return Drawn(
        name=f"{experiment}-close-up",
        title="The outage in close-up",
        caption=(
            f"{summary.data.title(experiment)}: every run moved so that its kill is at 0, the control so that it "
            "holds the "
            f"same update there. Shaded: the server is held back for {ordered_s:.1f} s. Mean over seeds; "
            f"{style.seeds_in_words(groups)}."
        ),
        figure=figure,
        runs=experiment,
        alt="Accuracy around the kill, all configurations over each other",
    )


def _control_kill(control: Group, groups: Sequence[Group]) -> dict[int, float]:
    """Seed -> when the control holds the update at which the others were killed (their mean)."""
    kills = [o.outages[0].version for g in groups for o in g.runs if o.outages and o.outages[0].version is not None]
    if not kills:
        return {}
    version = sum(v for v in kills if v is not None) / len(kills)
    times = {run.run.seed: run.curves.time_of(version) for run in control.runs}
    return {seed: t for seed, t in times.items() if t is not None}


def _aligned(ax: Any, group: Group, label: str, start: float, end: float, at: dict[int, float] | None) -> None:
    moved = []
    for run in group.runs:
        zero = at.get(run.run.seed) if at is not None else run.curves.outages[0].killed if run.curves.outages else None
        if zero is not None:
            moved.append([(t - zero, v) for t, v in held(run.curves)])
    found = style.band(moved, end, start)
    if found is not None:
        width = 1.2 if is_control(group.configuration) else 2.0
        ax.plot(
            found.t,
            found.mean,
            color=style.colour_of(group),
            linestyle=style.dash_of(group.configuration),
            linewidth=width,
            label=label,
        )


def gradients(summary: Summary, experiment: str, kills: int) -> Drawn | None:
    """Figure 8: gradients computed over time, and where they went."""
    groups = summary.of(experiment, kills)
    if not any(g.kills for g in groups):
        return None
    with style.styled():
        figure = style.new_figure(max(4.2, 0.42 * len(groups) + 1.4))
        left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [1.0, 1.15]})
        end = max(c.end for g in groups for c in curves_of(g))
        for group in groups:
            found = style.band([c.gradients for c in curves_of(group)], end)
            if found is not None:
                dash = style.dash_of(group.configuration)
                left.plot(found.t, found.mean, color=style.colour_of(group), linestyle=dash, linewidth=1.7)
        left.set_title("Gradients computed by then")
        left.set_xlabel("Time since the first update (s)")
        left.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        left.set_xlim(0, end)
        left.set_ylim(bottom=0)
        _fates(right, groups)
    return Drawn(
        name=f"{experiment}-gradients",
        title=f"Gradients processed with {'one kill' if kills == 1 else f'{kills} kills'} (the paper's Figure 8)",
        caption=(
            f"{summary.data.title(experiment)}. Left: mean over seeds, lines as named at the right. Right: what "
            "became of "
            "them: in the final parameters (solid), lost (hatched), left over at the end (pale). The paper counted, "
            "over 210 s with two kills: "
            f"{PAPER_GRADIENTS}; {style.seeds_in_words(groups)}."
        ),
        figure=figure,
        runs=experiment,
        alt="Gradients over time, and bars of how many were applied, lost or left over",
    )


FATES = (("applied", 1.0), ("lost", 0.45), ("unapplied_at_end", 0.2))  # and how strongly it is drawn


def _fates(ax: Any, groups: Sequence[Group]) -> None:
    for y, group in enumerate(groups):
        left = 0.0
        for name, alpha in FATES:
            values = [r.gradients.get(name, 0) for r in group.runs]
            mean = sum(values) / len(values)
            hatch = "////" if name == "lost" else None
            ax.barh(
                y, mean, left=left, height=0.62, color=style.colour_of(group), alpha=alpha, hatch=hatch,
                edgecolor="white", linewidth=0,
            )  # fmt: skip
            left += mean
        lost = sum(r.gradients.get("lost", 0) for r in group.runs) / group.n
        ax.annotate(
            f" {left:,.0f}" + (f", {lost:,.0f} lost" if lost >= 0.5 else ""), (left, y), va="center", fontsize=8.5
        )
        swatch = ax.get_yaxis_transform()
        ax.plot(
            [-0.07, -0.015], [y, y], transform=swatch, clip_on=False, color=style.colour_of(group),
            linestyle=style.dash_of(group.configuration), linewidth=1.7,
        )  # fmt: skip
    ax.set_yticks(range(len(groups)), [g.label for g in groups])
    ax.tick_params(axis="y", length=0, pad=30)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.3 * max((r.gradients.get("computed", 0) for g in groups for r in g.runs), default=1) or 1)
    ax.set_title("What became of them")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    ax.grid(axis="y", visible=False)

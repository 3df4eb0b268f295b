"""Gradients processed (the paper's Figure 8): over time, a panel a configuration, and what became of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from outlast_bench.study.analysis.summary import Group, Summary, curves_of, kills_in_words
from outlast_bench.study.figures import style
from outlast_bench.study.figures.style import Drawn
from outlast_bench.study.figures.time import SHADING, draw_control, shade, spread_in_words

PAPER_GRADIENTS = "952 (sync checkpointing), 1,070 (async), 1,048 (sync chain), 1,027 (async), 5,260 (stateless)"
FATES = (("applied", 1.0), ("lost", 0.45), ("unapplied_at_end", 0.2))  # and how strongly it is drawn
SYNC = "A synchronous step that was lost is made again and counts once here, twice in the curves of what was computed. "
NOTABLE = 0.005  # of all; less was on its way at the end


def gradients(summary: Summary, experiment: str, kills: int) -> Drawn | None:
    """Figure 8: gradients computed over time."""
    groups = summary.of(experiment, kills, control=False)
    if not any(g.kills for g in groups):
        return None
    with style.styled():
        figure, axes = style.grid_of_panels(len(groups), height_in=1.95)
        end = max(c.end for g in groups for c in curves_of(g))
        for ax, group in zip(axes, groups, strict=True):
            shade(ax, group, summary.data.outage_s(experiment))
            control = summary.control(experiment, group)
            draw_control(ax, [c.gradients for c in curves_of(control)] if control is not None else [], end)
            found = style.band([c.gradients for c in curves_of(group)], end)
            if found is not None:
                style.draw_band(ax, found, style.colour_of(group), width=1.7)
                _at_the_end(ax, group, float(found.mean[-1]))
            ax.set_title(style.wrapped(group.label))
        axes[0].yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes[0].set_xlim(0, end)
        axes[0].set_ylim(bottom=0)
        figure.supylabel("Gradients computed by then", fontsize=9, color=style.MUTED)
        figure.supxlabel("Time since the first update (s)", fontsize=9, color=style.MUTED)
    return Drawn(
        name=f"{experiment}-gradients",
        title=f"Gradients processed with {kills_in_words(kills)} (the paper's Figure 8)",
        caption=(
            f"{summary.data.title(experiment)}: mean over seeds (line) and their range (band), and the number at the "
            f"end; grey: the control without failure. {SHADING}.{spread_in_words(groups)} The paper counted, over "
            f"210 s with two kills: {PAPER_GRADIENTS}; {style.seeds_in_words(groups)}."
        ),
        figure=figure,
        runs=experiment,
        alt="Small panels of gradients computed over time, one a configuration",
    )


def _at_the_end(ax: Any, group: Group, value: float) -> None:
    ax.annotate(
        f"{value:,.0f}", (0.98, 0.06), xycoords="axes fraction", ha="right", color=style.colour_of(group),
        fontweight="bold",
    )  # fmt: skip


def fates(summary: Summary, experiment: str, kills: int) -> Drawn | None:
    """What became of the gradients: in the final parameters, lost, or left over."""
    groups = summary.of(experiment, kills)
    if not any(g.kills for g in groups):
        return None
    with style.styled():
        figure = style.new_figure(0.33 * len(groups) + 0.9)
        ax = figure.subplots()
        _fates(ax, groups)
        ax.set_xlabel("Gradients computed in a run, mean over seeds")
    return Drawn(
        name=f"{experiment}-gradients-fates",
        title=f"What became of the gradients, with {kills_in_words(kills)}",
        caption=(
            f"{summary.data.title(experiment)}: in the final parameters (solid), lost (hatched), left over at the end "
            f"(pale); mean over seeds. {SYNC if any('-sync-' in g.configuration for g in groups) else ''}"
            f"{style.seeds_in_words(groups)}."
        ),
        figure=figure,
        runs=experiment,
        alt="Bars of how many gradients were applied, lost or left over, one a configuration",
    )


def _fates(ax: Any, groups: Sequence[Group]) -> None:
    for y, group in enumerate(groups):
        colour, means = style.colour_of(group), [_mean(group, name) for name, _ in FATES]
        for i, (name, alpha) in enumerate(FATES):
            ax.barh(
                y, means[i], left=sum(means[:i]), height=0.62, color=colour, alpha=alpha,
                hatch="////" if name == "lost" else None, edgecolor="white", linewidth=0,
            )  # fmt: skip
        whole, lost, left = sum(means), means[1], means[2]
        told = [f"{whole:,.0f}", *([f"{lost:,.0f} lost"] if lost >= 0.5 else [])]
        told += [f"{left:,.0f} left over"] if left > NOTABLE * whole else []
        ax.annotate(" " + ", ".join(told), (whole, y), va="center", fontsize=8.5)
    ax.set_yticks(range(len(groups)), [g.label for g in groups])
    ax.tick_params(axis="y", length=0)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.2 * max((r.gradients.get("computed", 0) for g in groups for r in g.runs), default=1) or 1)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    ax.grid(axis="y", visible=False)


def _mean(group: Group, name: str) -> float:
    return sum(r.gradients.get(name, 0) for r in group.runs) / group.n

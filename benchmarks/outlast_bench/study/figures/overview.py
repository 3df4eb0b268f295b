"""Which strategy, in one figure: what one and two kills cost with each, and what each costs while nothing fails."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from outlast_bench.study.analysis.cost import PriceTable
from outlast_bench.study.analysis.statistics import Estimate
from outlast_bench.study.analysis.summary import Group, Summary, goodput, late_accuracy, outage_s
from outlast_bench.study.figures import style
from outlast_bench.study.figures.style import Drawn
from outlast_bench.study.figures.time import LATE
from outlast_bench.study.verdicts.choice import CHEAPEST, KILLS, recommended, times_cheapest

SHIFT = 0.17  # of one kill above its row, of two below


def which(summary: Summary, experiment: str, prices: PriceTable) -> Drawn | None:
    """The recommended strategies by accuracy, time without an update, goodput without a kill, and price."""
    groups = [g for kills in KILLS for g in recommended(summary, experiment, kills) if g.runs]
    rows = list(dict.fromkeys(g.configuration for g in groups))
    if not rows:
        return None
    unfailed = [g for name in rows if (g := summary.group(experiment, name, 0)) is not None]
    with style.styled():
        figure = style.new_figure(0.5 * len(rows) + 1.2)
        axes = figure.subplots(1, 4, sharey=True)
        for group in groups:
            _mark(axes[0], rows, group, summary.against_control(group, late_accuracy), 100.0, "{:+.1f}")
            _mark(axes[1], rows, group, group.estimate(outage_s), 1.0, "{:.2f}")
        for group in unfailed:
            _mark(axes[2], rows, group, group.estimate(goodput), 1.0, "{:.2f}")
        _prices(axes[3], summary, prices, rows, groups)
        for ax, title in zip(axes, TITLES, strict=True):
            ax.set_title(title)
            ax.tick_params(axis="y", length=0)
            ax.margins(x=0.2)
        axes[0].axvline(0.0, color=style.CONTROL_COLOUR, linewidth=1.1, zorder=1)
        axes[2].axvline(1.0, color=style.CONTROL_COLOUR, linewidth=1.1, zorder=1)
        for ax in axes[1:]:
            ax.set_xlim(left=0.0)
        axes[0].set_yticks(range(len(rows)), [summary.data.label(name) for name in rows])
        axes[0].set_ylim(len(rows) - 0.4, -0.6)
        style.legend_of_two(figure, "one kill", "two kills", "outside lower left")
    return Drawn(
        name="which-strategy",
        title="What a kill costs, and what its insurance costs",
        caption=(
            f"Accuracy: {LATE}, less the control's of the same seed. Goodput: gradients in the final parameters, over "
            f"the control's. Lines: 95 % bootstrap intervals, or dotted ranges; {style.seeds_label(groups)}."
        ),
        figure=figure,
        alt="Marks of accuracy, time without an update, goodput and price of each recommended strategy",
    )


TITLES = (
    "Accuracy against the\ncontrol (points)",
    "Seconds without\nan update",
    "Goodput while\nnothing fails",
    f"Money an hour\n({CHEAPEST.capitalize()}: 1)",
)


def _mark(ax: Any, rows: Sequence[str], group: Group, around: Estimate | None, scale: float, form: str) -> None:
    """Filled: one kill or none; hollow: two."""
    if around is None:
        return
    y = rows.index(group.configuration) + {1: -SHIFT, 2: SHIFT}.get(group.kills, 0.0)
    colour = style.colour_of(group)
    style.whisker(ax, around, y, colour, scale)
    face = "white" if group.kills == 2 else colour
    mean = around.mean * scale
    (mark,) = ax.plot(
        [mean], [y], "o", color=colour, markerfacecolor=face, markersize=6.5, markeredgewidth=1.5, zorder=3
    )
    mark.set_clip_on(False)
    at, text = (around.high * scale, y), form.format(mean).replace("-", "−")
    label = ax.annotate(text, at, xytext=(5, 0), textcoords="offset points", va="center", fontsize=8)
    label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.6})


def _prices(ax: Any, summary: Summary, prices: PriceTable, rows: Sequence[str], groups: Sequence[Group]) -> None:
    for group in {g.configuration: g for g in groups}.values():
        times = times_cheapest(summary, prices, group)
        if times is not None:
            y = rows.index(group.configuration)
            ax.barh(y, times, height=0.5, color=style.colour_of(group), alpha=0.85)
            ax.annotate(f" {times:.2f}", (times, y), va="center", fontsize=8)

"""What accuracy costs: accuracy against money at each way of paying, and what workers' paid seconds were spent on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from outlast_operator.study import figure_style as style
from outlast_operator.study.cost import PriceTable, hourly_of
from outlast_operator.study.figure_style import Drawn
from outlast_operator.study.figures_curves import held
from outlast_operator.study.load import is_control
from outlast_operator.study.summary import Group, Summary, curves_of


def accuracy_against_cost(summary: Summary, experiment: str, kills: int, prices: PriceTable) -> Drawn | None:
    """A panel for each way of paying, at the price table's first set of machines."""
    groups = [g for g in summary.of(experiment, kills) if "-sync-" not in g.configuration]
    if not any(g.kills for g in groups) or not any(c.evaluations for g in groups for c in curves_of(g)):
        return None
    setup = next(iter(prices.setups))
    with style.styled():
        figure = style.new_figure(4.9)
        axes = figure.subplots(1, len(prices.terms), squeeze=False, sharey=True)[0]
        for ax, term in zip(axes, prices.terms, strict=True):
            for group in groups:
                _cost_curve(ax, group, prices, setup, term)
            ax.set_title(term)
            ax.set_xlabel(f"Cost so far ({prices.currency} cents)")
            ax.set_xlim(left=0)
        axes[0].set_ylabel("Test accuracy (%)")
        axes[0].set_ylim(0, 100)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, handlelength=3.0)
    return Drawn(
        name=f"{experiment}-cost",
        title="Accuracy against cost",
        caption=(
            f"{summary.data.title(experiment)}, {'one kill' if kills == 1 else f'{kills} kills'}, {setup}: every "
            "machine of a "
            "run paid for from its first update on, at the prices of the table below; mean over seeds. The measured "
            "seconds "
            f"are of this machine's processors, which stand for the accelerators; {style.seeds_in_words(groups)}."
        ),
        figure=figure,
        runs=experiment,
        alt="Accuracy over the money spent so far, one panel a way of paying",
    )


def _cost_curve(ax: Any, group: Group, prices: PriceTable, setup: str, term: str) -> None:
    cents = 100.0 * hourly_of(group.runs[0], prices, setup, term) / 3600.0
    curves = [[(t * cents, v) for t, v in held(run.curves)] for run in group.runs]
    found = style.band(curves, max(c.curves.end for c in group.runs) * cents)
    if found is None:
        return
    width = 1.2 if is_control(group.configuration) else 1.9
    ax.plot(
        found.t, found.mean, color=style.colour_of(group), linestyle=style.dash_of(group.configuration),
        linewidth=width, label=group.label,
    )  # fmt: skip


def worker_seconds(summary: Summary, experiment: str, kills: int) -> Drawn | None:
    """Of the workers' paid time: useful, recomputed, idle."""
    groups = summary.of(experiment, kills)
    if not any(g.kills for g in groups):
        return None
    with style.styled():
        figure = style.new_figure(0.36 * len(groups) + 1.2)
        ax = figure.subplots()
        for y, group in enumerate(groups):
            _bar(ax, y, group)
        ax.set_yticks(range(len(groups)), [g.label for g in groups])
        ax.tick_params(axis="y", length=0)
        ax.invert_yaxis()
        ax.set_xlim(0, 100)
        ax.grid(axis="y", visible=False)
        ax.set_xlabel("Share of the workers' paid seconds (%)")
    return Drawn(
        name=f"{experiment}-worker-seconds",
        title="What the workers' seconds were spent on",
        caption=(
            f"{summary.data.title(experiment)}, {'one kill' if kills == 1 else f'{kills} kills'}: useful (solid), "
            "recomputed "
            "or lost (hatched), idle (pale); mean over seeds. Computing on in an outage counts as useful where its "
            "gradients "
            f"are in the final parameters; {style.seeds_in_words(groups)}."
        ),
        figure=figure,
        runs=experiment,
        alt="Bars of useful, recomputed and idle worker seconds, one a configuration",
    )


def _bar(ax: Any, y: int, group: Group) -> None:
    colour = style.colour_of(group)
    left = 0.0
    parts = (("useful", 1.0, None), ("recomputed", 0.5, "////"), ("idle", 0.2, None))
    shares = {name: _share(group, name) for name, _, _ in parts}
    for name, alpha, hatch in parts:
        ax.barh(
            y, shares[name], left=left, height=0.62, color=colour, alpha=alpha, hatch=hatch, edgecolor="white", lw=0
        )
        left += shares[name]
    text = f"{shares['idle']:.1f} % idle" + (
        f", {shares['recomputed']:.1f} % again" if shares["recomputed"] >= 0.05 else ""
    )
    ax.annotate(text, (101, y), va="center", fontsize=8.5, annotation_clip=False)


def _share(group: Group, name: str) -> float:
    """In %, of all seeds together."""
    whole = sum(run.worker_s for run in group.runs)
    parts: Sequence[float] = [getattr(run, f"{name}_s") for run in group.runs]
    return 100.0 * sum(parts) / whole if whole > 0 else 0.0

"""What accuracy costs: accuracy against money, and what workers' paid seconds were spent on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from outlast_bench.study.analysis.cost import PriceTable, hourly_of
from outlast_bench.study.analysis.load import is_control
from outlast_bench.study.analysis.summary import Group, Summary, curves_of, kills_in_words
from outlast_bench.study.figures import style
from outlast_bench.study.figures.style import Drawn
from outlast_bench.study.figures.time import held, sides, smoothed
from outlast_operator.reporting.words import listing

USUAL_TERM = "on-demand"
VISIBLE = 0.05  # by how much another way of paying must move a configuration against the others to be drawn
BELOW_TARGET = 20.0  # points: what is drawn


def accuracy_against_cost(summary: Summary, experiment: str, kills: int, prices: PriceTable) -> Drawn | None:
    """At the price table's first set of machines; a row for each way of paying that shows something of its own."""
    groups = summary.of(experiment, kills)
    if not any(g.kills for g in groups) or not any(c.evaluations for g in groups for c in curves_of(g)):
        return None
    setup, target = next(iter(prices.setups)), 100.0 * summary.data.target(experiment)
    terms = terms_to_draw(groups, prices, setup)
    found = sides([g for g in groups if not is_control(g.configuration)])
    with style.styled():
        figure = style.new_figure(0.4 + 4.8 * len(terms))
        rows = figure.subplots(len(terms), len(found), squeeze=False, sharex="row", sharey=True)
        for axes, term in zip(rows, terms, strict=True):
            for ax, (title, some) in zip(axes, found, strict=True):
                control = summary.control(experiment, some[0])
                for group in [*([control] if control is not None else []), *some]:
                    _cost_curve(ax, group, prices, setup, term)
                ax.axhline(target, color=style.CONTROL_COLOUR, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
                ax.set_title(f"{title}, {term}")
                ax.set_xlabel(f"Cost so far ({prices.currency} cents)")
                style.legend_below(ax)
            axes[0].set_xlim(left=0)
            axes[0].set_ylabel("Test accuracy (%)")
        rows[0][0].set_ylim(*_limits(groups, target))
    return Drawn(
        name=f"{experiment}-cost",
        title="Accuracy against cost",
        caption=(
            f"{summary.data.title(experiment)}, {kills_in_words(kills)}, {setup}: every machine of a run paid for from "
            "its first update on, at the prices of the table below; mean over seeds, each evaluation as the straight "
            f"line through those of 2 s to either side. Dashed: {target:.0f} %; what lies further below it than "
            f"{BELOW_TARGET:.0f} points is not drawn. {_others_in_words(groups, prices, setup, terms)}The measured "
            "seconds are of this machine's processors, which stand for the accelerators; "
            f"{style.seeds_in_words(groups)}."
        ),
        figure=figure,
        runs=experiment,
        alt="Accuracy over the money spent so far, around the accuracy to be reached",
    )


def terms_to_draw(groups: Sequence[Group], prices: PriceTable, setup: str) -> list[str]:
    """The usual way of paying, and those under which configurations stand to each other visibly otherwise."""
    usual = USUAL_TERM if USUAL_TERM in prices.terms else next(iter(prices.terms))
    drawn = [usual]
    for term in prices.terms:
        if all(_apart(groups, prices, setup, term, other) > VISIBLE for other in drawn):
            drawn.append(term)
    return drawn


def _apart(groups: Sequence[Group], prices: PriceTable, setup: str, one: str, other: str) -> float:
    """How far the configurations' relative prices lie apart under two ways of paying; 0.1: by a tenth."""
    both = [tuple(hourly_of(g.runs[0], prices, setup, term) for term in (one, other)) for g in groups]
    if any(price <= 0.0 for pair in both for price in pair):
        return 0.0 if one == other else float("inf")
    scales = [a / b for a, b in both]
    return max(scales) / min(scales) - 1.0


def _others_in_words(groups: Sequence[Group], prices: PriceTable, setup: str, drawn: Sequence[str]) -> str:
    """How the ways of paying that are not drawn differ from the first that is; `` without any."""
    others = [term for term in prices.terms if term not in drawn]
    if not others:
        return ""
    usual = drawn[0]
    scales = []
    for term in others:
        ratios = [
            hourly_of(g.runs[0], prices, setup, term) / hourly_of(g.runs[0], prices, setup, usual) for g in groups
        ]
        low, high = (f"{bound(ratios):.2f}" for bound in (min, max))
        scales.append(f"{term} {low} times" if low == high else f"{term} {low} to {high} times")
    return f"Other ways of paying change little but the scale: {listing(scales)} what {usual} costs. "


def _limits(groups: Sequence[Group], target: float) -> tuple[float, float]:
    most = max((100.0 * e.accuracy for g in groups for c in curves_of(g) for e in smoothed(c).evaluations), default=0.0)
    return max(0.0, target - BELOW_TARGET), min(100.0, max(most, target) + 2.0)


def _cost_curve(ax: Any, group: Group, prices: PriceTable, setup: str, term: str) -> None:
    cents = 100.0 * hourly_of(group.runs[0], prices, setup, term) / 3600.0
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
        figure = style.new_figure(0.36 * len(groups) + 1.0)
        ax = figure.subplots()
        for y, group in enumerate(groups):
            _bar(ax, y, group)
        ax.set_yticks(range(len(groups)), [g.label for g in groups])
        ax.tick_params(axis="y", length=0)
        ax.invert_yaxis()
        ax.set_xlim(0, 1.28 * max(max(sum(worker_parts(g).values()) for g in groups), 1e-9))
        ax.grid(axis="y", visible=False)
        ax.set_xlabel("Paid seconds of all workers of a run, mean over seeds (s)")
    return Drawn(
        name=f"{experiment}-worker-seconds",
        title="What the workers' seconds were spent on",
        caption=(
            f"{summary.data.title(experiment)}, {kills_in_words(kills)}: useful (solid), recomputed or lost (hatched), "
            "idle (pale); mean over seeds. Computing on in an outage counts as useful where its gradients are in the "
            f"final parameters; {style.seeds_in_words(groups)}."
        ),
        figure=figure,
        runs=experiment,
        alt="Bars of useful, recomputed and idle worker seconds, one a configuration",
    )


def worker_parts(group: Group) -> dict[str, float]:
    """Seconds a run, mean over seeds, by what they were spent on."""
    return {name: sum(getattr(run, f"{name}_s") for run in group.runs) / group.n for name, _ in PARTS}


def _bar(ax: Any, y: int, group: Group) -> None:
    seconds, left = worker_parts(group), 0.0
    whole = sum(seconds.values())
    for name, alpha in PARTS:
        ax.barh(
            y, seconds[name], left=left, height=0.62, color=style.colour_of(group), alpha=alpha,
            hatch="////" if name == "recomputed" else None, edgecolor="white", lw=0,
        )  # fmt: skip
        left += seconds[name]
    told = [("idle", seconds["idle"]), *([("again", seconds["recomputed"])] if seconds["recomputed"] >= 0.05 else [])]
    text = ", ".join(f"{s:.1f} s {name} ({100 * s / whole if whole else 0:.1f} %)" for name, s in told)
    ax.annotate(f"  {text}", (whole, y), va="center", fontsize=8.5)

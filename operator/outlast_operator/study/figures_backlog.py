"""How to apply a backlog: progress kept per policy, by length of the outage and number of workers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from outlast_operator.study import figure_style as style
from outlast_operator.study.backlog_records import BacklogRecord, Measure
from outlast_operator.study.figure_style import Drawn
from outlast_operator.study.statistics import LEAST_FOR_INTERVAL, Estimate, estimate, ratio

LOWEST = -0.2  # gain in accuracy as drawn: what is ruined would leave no room for the rest
LEAST_GAIN: dict[Measure, float] = {"accuracy": 0.02, "loss": 0.05}  # of the control: a share of less is noise
LEAST_IN_WORDS: dict[Measure, str] = {"accuracy": "2 points", "loss": "0.05"}
IDLE = "Idle"
PAPERS_RULE = "SumReducedRate"
LABELS = {
    "Sum": "Sum",
    PAPERS_RULE: "Sum, reduced rate (paper)",
    "SumClipped": "Sum, clipped",
    "DelayCompensation": "DelayCompensation, no copies",
    "DelayCompensationCopies": "DelayCompensation",
    "LocalSteps": "LocalSteps (default)",
    "LocalStepsUnscaled": "LocalSteps, rate not scaled",
    IDLE: "Idle (nothing applied)",
}


@dataclass(frozen=True)
class Cell:
    """One policy after outages of one length, with so many workers. `kept` None: the control gained too little.

    All in one measure, accuracy or loss (of which less is gained).
    """

    policy: str
    workers: int
    outage: int
    kept: Estimate | None
    gained: Estimate | None  # by applying the backlog
    control_gained: Estimate | None  # by as many gradients without an outage
    diverged: int  # seeds in which the training was ruined
    n: int

    @property
    def label(self) -> str:
        return LABELS.get(self.policy, self.policy)


def cells(records: Sequence[BacklogRecord], measure: Measure = "accuracy") -> list[Cell]:
    """Every (policy, workers, outage) over its seeds."""
    by_place: dict[tuple[int, int, str], list[BacklogRecord]] = {}
    for record in sorted(records, key=lambda r: (r.workers, r.outage, r.seed)):
        for policy in record.policies:
            by_place.setdefault((record.workers, record.outage, policy), []).append(record)
    return [_cell(policy, workers, outage, mine, measure) for (workers, outage, policy), mine in by_place.items()]


def _cell(policy: str, workers: int, outage: int, records: Sequence[BacklogRecord], measure: Measure) -> Cell:
    gained = [record.gained(policy, measure) for record in records]
    controls = [record.control_gained(measure) for record in records]
    diverged = sum(record.policies[policy].diverged for record in records)
    control_gained = estimate(controls)
    told = control_gained is not None and control_gained.mean >= LEAST_GAIN[measure]
    kept = ratio(gained, controls) if told else None
    return Cell(policy, workers, outage, kept, estimate(gained), control_gained, diverged, len(records))


def lines(records: Sequence[BacklogRecord]) -> Drawn | None:
    """Accuracy gained over the outage's length, a panel for each number of workers, with what the control gained."""
    found = cells(records)
    if not found:
        return None
    workers = sorted({c.workers for c in found})
    policies = [p for p in dict.fromkeys(c.policy for c in found) if p != IDLE]
    with style.styled():
        figure = style.new_figure(4.9)
        axes = figure.subplots(1, len(workers), squeeze=False, sharey=True)[0]
        for ax, w in zip(axes, workers, strict=True):
            mine = [c for c in found if c.workers == w]
            _control(ax, mine)
            for i, policy in enumerate(policies):
                _line(ax, [c for c in mine if c.policy == policy], i)
            ax.axhline(0.0, color=style.CONTROL_COLOUR, linewidth=0.6, zorder=1)
            ax.set_xscale("log")
            lengths = sorted({c.outage for c in mine})
            ax.set_xticks(lengths, [f"{n:,}" for n in lengths], minor=False)
            ax.set_xticks([], minor=True)
            ax.set_title(f"{w} worker{'s' if w > 1 else ''}")
            ax.set_xlabel("Outage (gradients computed in it)")
        axes[0].set_ylabel("Accuracy gained by applying the backlog (points)")
        axes[0].set_ylim(bottom=100 * LOWEST - 2)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, handlelength=2.6)
    return Drawn(
        name="backlog-lines",
        title="How to apply a backlog: what each policy gains",
        caption=(
            f"Mean over seeds with {around_in_words(found)}. Thick grey: what the control gained with as many "
            "gradients and no outage; dashed: 0.7 of it; 0: as if the workers had waited. What lies below "
            f"{100 * LOWEST:.0f} points is drawn there, crossed; {_seeds(found)}."
        ),
        figure=figure,
        alt="Lines of accuracy gained over the length of the outage, one a policy",
    )


def _control(ax: Any, mine: Sequence[Cell]) -> None:
    gains = {c.outage: 100 * c.control_gained.mean for c in mine if c.control_gained is not None}
    x = sorted(gains)
    ax.plot(x, [gains[n] for n in x], color=style.CONTROL_COLOUR, linewidth=4.0, alpha=0.5, label="control, no outage")
    ax.plot(x, [0.7 * gains[n] for n in x], color=style.CONTROL_COLOUR, linewidth=0.9, linestyle=(0, (4, 3)))


def _line(ax: Any, row: Sequence[Cell], index: int) -> None:
    colour = style.SERIES_COLOURS[index % len(style.SERIES_COLOURS)]
    marker = style.MARKERS[index % len(style.MARKERS)]
    known = [(c.outage, c.gained) for c in row if c.gained is not None]
    if not known:
        return
    x = [n for n, _ in known]
    y = [100 * max(g.mean, LOWEST) for _, g in known]
    dash = "-" if index < len(style.SERIES_COLOURS) else (0, (4, 1.8))
    ax.plot(x, y, marker=marker, color=colour, linewidth=1.5, markersize=5, label=row[0].label, linestyle=dash)
    for at, around in known:
        low, high = (100 * max(v, LOWEST) for v in (around.low, around.high))
        ax.plot([at, at], [low, high], color=colour, linewidth=1.2, alpha=0.45)
        if around.mean < LOWEST:
            ax.plot([at], [100 * LOWEST], "x", color=colour, markersize=9, markeredgewidth=2)


def heat_map(records: Sequence[BacklogRecord], measure: Measure = "accuracy") -> Drawn | None:
    """The same as numbers: policies by outages, a block for each number of workers."""
    found = cells(records, measure)
    if not found:
        return None
    workers = sorted({c.workers for c in found})
    policies = list(dict.fromkeys(c.policy for c in found))
    with style.styled():
        figure = style.new_figure(0.36 * len(policies) + 1.5)
        axes = figure.subplots(1, len(workers), squeeze=False, sharey=True)[0]
        image = None
        for ax, w in zip(axes, workers, strict=True):
            image = _block(ax, [c for c in found if c.workers == w], policies)
            ax.set_title(f"{w} worker{'s' if w > 1 else ''}")
            ax.set_xlabel("Outage (gradients computed in it)")
        axes[0].set_yticks(range(len(policies)), [LABELS.get(p, p) for p in policies])
        bar = figure.colorbar(image, ax=list(axes), shrink=0.8, aspect=30, pad=0.015)
        bar.set_label(f"Progress kept, in {measure}", color=style.MUTED)
        bar.outline.set_visible(False)
    return Drawn(
        name="backlog-heat-map" if measure == "accuracy" else f"backlog-heat-map-{measure}",
        title=f"How to apply a backlog: which policy keeps how much in {measure}, and where each breaks",
        caption=(
            "1: as good as no outage; 0: as if the workers had waited; below 0: worse than that. ×: the training was "
            f"ruined in at least one seed. –: the control gained less than {LEAST_IN_WORDS[measure]}; {_seeds(found)}."
        ),
        figure=figure,
        alt=f"A table of progress kept in {measure}, coloured from blue (kept) to orange (ruined)",
    )


def _block(ax: Any, mine: Sequence[Cell], policies: Sequence[str]) -> Any:
    lengths = sorted({c.outage for c in mine})
    table = np.full((len(policies), len(lengths)), math.nan)
    by_place = {(policies.index(c.policy), lengths.index(c.outage)): c for c in mine}
    for place, cell in by_place.items():
        if cell.kept is not None:
            table[place] = cell.kept.mean
    image = ax.imshow(table, cmap="PuOr", vmin=-1.0, vmax=1.0, aspect="auto", interpolation="nearest")
    for row in range(len(policies)):
        for column in range(len(lengths)):
            here = by_place.get((row, column))
            value = table[row, column]
            text = "–" if math.isnan(value) else f"{value:.2f}".replace("-", "−") if value > -9.95 else "< −10"
            text += "×" if here is not None and here.diverged else ""
            dark = not math.isnan(value) and abs(value) > 0.55
            ax.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else style.INK)
    ax.set_xticks(range(len(lengths)), [f"{n:,}" for n in lengths])
    ax.tick_params(length=0)
    ax.grid(visible=False)
    for side in ax.spines.values():
        side.set_visible(False)
    return image


def around_in_words(found: Sequence[Cell]) -> str:
    """What surrounds the means: intervals, and of which outages ranges, where there are too few seeds."""
    intervals, few = "95 % bootstrap intervals", f"ranges (fewer than {LEAST_FOR_INTERVAL} seeds)"
    kinds: dict[int, set[bool]] = {}
    for cell in found:
        if cell.gained is not None:
            kinds.setdefault(cell.outage, set()).add(cell.gained.kind == "interval")
    lengths = [f"{n:,}" for n in sorted(kinds) if False in kinds[n]]
    if not lengths:
        return intervals
    if not any(True in kind for kind in kinds.values()):
        return few
    listed = " and ".join([", ".join(lengths[:-1]), lengths[-1]] if len(lengths) > 1 else lengths)
    partly = " in part" if any(len(kind) == 2 for kind in kinds.values()) else ""
    return f"{intervals}; of outages of {listed}{partly} {few}"


def _seeds(found: Sequence[Cell]) -> str:
    """`n = 5 seeds`; `n = 5 seeds, 1 to 2 for outages of 3,000 and more`, where the longest have fewer."""
    most = max(c.n for c in found)
    fewer = [c for c in found if c.n < most]
    if not fewer:
        return f"n = {most} seeds"
    sizes = sorted({c.n for c in fewer})
    extent = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    shortest = min(c.outage for c in fewer)
    if all(c in fewer for c in found if c.outage >= shortest):
        return f"n = {most} seeds, {extent} for outages of {shortest:,} and more"
    return f"n = {sizes[0]} to {most} seeds"

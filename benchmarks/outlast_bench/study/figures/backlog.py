"""How to apply a backlog: what each policy keeps, as numbers, and what each gains over the outage's length, as lines.

Among the lines what the product does and the paper's rule have a colour; the rest is grey, thin, and named at its end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from outlast_bench.study.analysis.backlog import CANDIDATE_LEGEND, IDLE, LEAST_GAIN, PAPERS_RULE, Cell, cells, label_of
from outlast_bench.study.backlog.records import BacklogRecord, Measure
from outlast_bench.study.figures import style
from outlast_bench.study.figures.style import Drawn
from outlast_bench.study.verdicts.backlog import DEFAULT_POLICY


def heat_map(records: Sequence[BacklogRecord], measure: Measure = "accuracy") -> Drawn | None:
    """Policies by outages, a block for each number of workers. What has fewer seeds than the rest has a ring."""
    found = cells(records, measure)
    if not found:
        return None
    workers = sorted({c.workers for c in found})
    policies = list(dict.fromkeys(c.policy for c in found))
    with style.styled():
        figure = style.new_figure(0.33 * len(policies) + 1.9)
        axes = figure.subplots(1, len(workers), squeeze=False, sharey=True)[0]
        image = None
        for ax, w in zip(axes, workers, strict=True):
            image = _block(ax, [c for c in found if c.workers == w], policies, max(c.n for c in found))
            ax.set_title(f"{w} worker{'s' if w > 1 else ''}")
            ax.set_xlabel("Outage (gradients computed in it)")
        axes[0].set_yticks(range(len(policies)), [label_of(p) for p in policies])
        bar = figure.colorbar(image, ax=list(axes), location="bottom", shrink=0.5, aspect=45, pad=0.03)
        bar.set_label(f"Progress kept, in {measure}", color=style.MUTED)
        bar.outline.set_visible(False)
    return Drawn(
        name="backlog-heat-map" if measure == "accuracy" else f"backlog-heat-map-{measure}",
        title=f"How to apply a backlog: which policy keeps how much in {measure}, and where each breaks",
        caption=(
            "1: as good as no outage; 0: as if the workers had waited; below 0: worse than that. ×: the training was "
            f"ruined in at least one seed. –: the control gained less than {LEAST_GAIN[measure]:g}. ○: of fewer seeds "
            f"than the rest. {CANDIDATE_LEGEND}; {style.seeds_label(found)}."
        ),
        figure=figure,
        alt=f"A table of progress kept in {measure}, coloured from purple (kept) to orange (ruined)",
    )


def _block(ax: Any, mine: Sequence[Cell], policies: Sequence[str], most: int) -> Any:
    lengths = sorted({c.outage for c in mine})
    table = np.full((len(policies), len(lengths)), math.nan)
    by_place = {(policies.index(c.policy), lengths.index(c.outage)): c for c in mine}
    for place, cell in by_place.items():
        if cell.kept is not None:
            table[place] = cell.kept.mean
    image = ax.imshow(table, cmap="PuOr", vmin=-1.0, vmax=1.0, aspect="auto", interpolation="nearest")
    for (row, column), cell in by_place.items():
        dark = cell.kept is not None and abs(cell.kept.mean) > 0.55
        ink = "white" if dark else style.INK
        ax.text(column, row, text_of(cell), ha="center", va="center", fontsize=8, color=ink)
        if cell.n < most:
            at = (column + 0.5 - 0.13, row - 0.5 + 0.2)
            ax.plot(*at, "o", markersize=4.0, markerfacecolor="none", color=ink, markeredgewidth=0.9)
    ax.set_xticks(range(len(lengths)), [f"{n:,}" for n in lengths], fontsize=8)
    ax.tick_params(length=0)
    ax.grid(visible=False)
    for side in ax.spines.values():
        side.set_visible(False)
    return image


def text_of(cell: Cell) -> str:
    """What stands in a cell."""
    if cell.kept is None:
        text = "–"
    elif cell.kept.mean <= -9.95:
        text = "< −10"
    else:
        value = round(cell.kept.mean, 2)
        text = f"{value or 0.0:.2f}".replace("-", "−")
    return text + ("×" if cell.diverged else "")


# --- lines ---

LOWEST = -0.2  # gain in accuracy as drawn: what is ruined would leave no room for the rest
NAMED = {DEFAULT_POLICY: "#0072b2", PAPERS_RULE: "#d55e00"}
REST = "#808993"
PANEL_IN = 2.9
LABEL_GAP = 0.058  # of a panel's height, between the middles of two labels
HAIR = {"arrowstyle": "-", "linewidth": 0.5, "shrinkA": 1, "shrinkB": 4, "relpos": (0.0, 0.5)}  # name to line
LABELS_AT = 1.035  # of a panel's width


def lines(records: Sequence[BacklogRecord]) -> Drawn | None:
    """Accuracy gained over the outage's length, a panel for each number of workers."""
    found = cells(records)
    if not found:
        return None
    workers = sorted({c.workers for c in found})
    policies = [p for p in dict.fromkeys(c.policy for c in found) if p != IDLE]
    markers = markers_of(policies)
    with style.styled():
        figure = style.new_figure(PANEL_IN * len(workers) + 0.5)
        axes = figure.subplots(len(workers), 1, squeeze=False, sharex=True, sharey=True)[:, 0]
        for ax, w in zip(axes, workers, strict=True):
            mine = [c for c in found if c.workers == w]
            _control(ax, mine)
            for policy in sorted(policies, key=lambda p: p in NAMED):
                _line(ax, [c for c in mine if c.policy == policy], markers[policy])
            ax.axhline(0.0, color=style.CONTROL_COLOUR, linewidth=0.6, zorder=1)
            ax.set_title(f"{w} worker{'s' if w > 1 else ''}")
        axes[0].set_ylim(100 * LOWEST - 2, _highest(found))
        for ax, w in zip(axes, workers, strict=True):
            _names(ax, [c for c in found if c.workers == w and c.policy != IDLE])
        _outages(axes[-1], sorted({c.outage for c in found}))
        figure.supylabel("Accuracy gained by applying the backlog (points)", fontsize=9, color=style.MUTED)
    return Drawn(
        name="backlog-lines",
        title="How to apply a backlog: what each policy gains",
        caption=(
            "Mean over seeds, hollow where they are too few for an interval; in colour, with intervals: the default "
            "and the paper's rule. Thick grey: what the control gained with as many gradients and no outage; dashed: "
            f"0.7 of it; 0: as if the workers had waited. What lies below {100 * LOWEST:.0f} points is drawn there, "
            f"crossed. {CANDIDATE_LEGEND}; {style.seeds_label(found)}."
        ),
        figure=figure,
        alt="Lines of accuracy gained over the length of the outage, one a policy",
    )


def markers_of(policies: Sequence[str]) -> dict[str, str]:
    """Those that are compared have the plainest."""
    ordered = [*NAMED, *(p for p in policies if p not in NAMED)]
    return {p: style.MARKERS[i % len(style.MARKERS)] for i, p in enumerate(ordered)}


def _highest(found: Sequence[Cell]) -> float:
    gains = [g for c in found for g in (c.gained, c.control_gained) if g is not None]
    return 100 * max((g.mean for g in gains), default=0.0) + 3


def _outages(ax: Any, lengths: Sequence[int]) -> None:
    ax.set_xscale("log")
    ax.set_xticks(lengths, [f"{n:,}" for n in lengths], minor=False)
    ax.set_xticks([], minor=True)
    ax.set_xlabel("Outage (gradients computed in it)")


def _control(ax: Any, mine: Sequence[Cell]) -> None:
    gains = {c.outage: 100 * c.control_gained.mean for c in mine if c.control_gained is not None}
    x = sorted(gains)
    ax.plot(x, [gains[n] for n in x], color=style.CONTROL_COLOUR, linewidth=4.5, alpha=0.35, label="control, no outage")
    ax.plot(x, [0.7 * gains[n] for n in x], color=style.CONTROL_COLOUR, linewidth=0.9, linestyle=(0, (4, 3)))


def _line(ax: Any, row: Sequence[Cell], marker: str) -> None:
    known = [(c.outage, c.gained) for c in row if c.gained is not None]
    if not known:
        return
    named = row[0].policy in NAMED
    colour, width = NAMED.get(row[0].policy, REST), 2.4 if named else 1.0
    y = [100 * max(g.mean, LOWEST) for _, g in known]
    ax.plot([n for n, _ in known], y, color=colour, linewidth=width, label=row[0].label, zorder=3 if named else 2)
    for (at, around), height in zip(known, y, strict=True):
        face = colour if around.kind == "interval" else "white"
        size = 6.5 if named else 4.5
        ax.plot([at], [height], marker, color=colour, markerfacecolor=face, markersize=size, zorder=4 if named else 2)
        if around.mean < LOWEST:
            ax.plot([at], [height], "x", color=colour, markersize=7, markeredgewidth=1.3, zorder=4 if named else 2)
        if named:
            low, high = (100 * max(v, LOWEST) for v in (around.low, around.high))
            ax.plot([at, at], [low, high], color=colour, linewidth=1.6, alpha=0.6)


def _names(ax: Any, mine: Sequence[Cell]) -> None:
    """Each line's name at its end, apart from the others, with a hair to the line where it had to move."""
    last = max((c.outage for c in mine), default=0)
    ends = [
        (100 * max(c.gained.mean, LOWEST), c.label, NAMED.get(c.policy, style.MUTED))
        for c in mine
        if c.outage == last and c.gained is not None
    ]
    controls = [c.control_gained.mean for c in mine if c.outage == last and c.control_gained is not None]
    ends += [(100 * controls[0], "control, no outage", style.CONTROL_COLOUR)] if controls else []
    ends.sort(key=lambda end: end[0])
    low, high = ax.get_ylim()
    heights = apart([(y - low) / (high - low) for y, _, _ in ends], LABEL_GAP)
    for (y, label, colour), at in zip(ends, heights, strict=True):
        ax.annotate(
            label, xy=(last, y), xytext=(LABELS_AT, at), textcoords="axes fraction", va="center",
            fontsize=8, color=colour, fontweight="bold" if colour in NAMED.values() else "normal",
            arrowprops=HAIR | {"color": colour},
        )  # fmt: skip


def apart(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending heights moved as little as it takes for any two to be `gap` apart, within 0 to 1 as far as they fit."""
    groups: list[list[float]] = []  # of neighbours that touch: [middle, how many]
    for height in heights:
        groups.append([height, 1.0])
        while len(groups) > 1 and _touch(groups[-2], groups[-1], gap):
            (m, n), (m2, n2) = groups[-2:]
            groups[-2:] = [[_inside((m * n + m2 * n2) / (n + n2), n + n2, gap), n + n2]]
    return [m + gap * (i - (n - 1) / 2) for m, n in groups for i in range(int(n))]


def _touch(one: Sequence[float], other: Sequence[float], gap: float) -> bool:
    return other[0] - one[0] < gap * (one[1] + other[1]) / 2 - 1e-9


def _inside(middle: float, count: float, gap: float) -> float:
    half = gap * (count - 1) / 2
    return min(max(middle, half), 1.0 - half) if 2 * half <= 1.0 else 0.5

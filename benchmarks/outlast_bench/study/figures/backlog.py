"""How to apply a backlog: progress kept per policy, by length of the outage and number of workers, as numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from outlast_bench.study.analysis.backlog import (
    LEAST_IN_WORDS,
    Cell,
    candidates_in_words,
    cells,
    label_of,
    seeds_in_words,
)
from outlast_bench.study.backlog.records import BacklogRecord, Measure
from outlast_bench.study.figures import style
from outlast_bench.study.figures.style import Drawn


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
            f"ruined in at least one seed. –: the control gained less than {LEAST_IN_WORDS[measure]}."
            f"{_rings_in_words(found)}{candidates_in_words(found)} {seeds_in_words(found)}."
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


def _rings_in_words(found: Sequence[Cell]) -> str:
    most = max(c.n for c in found)
    fewer = sorted({c.n for c in found if c.n < most})
    if not fewer:
        return ""
    extent = f"{fewer[0]}" if len(fewer) == 1 else f"{fewer[0]} to {fewer[-1]}"
    return f" ○: of {extent} seed{'s' if fewer[-1] > 1 else ''} instead of {most}: less sure."

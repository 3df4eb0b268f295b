"""How to apply a backlog: progress kept per policy, by length of the outage and number of workers, as numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from outlast_operator.study import figure_style as style
from outlast_operator.study.backlog_policies import BY_NAME, CAP
from outlast_operator.study.backlog_records import BacklogRecord, Measure
from outlast_operator.study.figure_style import Drawn
from outlast_operator.study.statistics import LEAST_FOR_INTERVAL, Estimate, estimate, ratio

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
    "SumCapped": f"Sum, capped at {CAP}",
    "InverseSqrt": "Sum, the k-th weighs 1/√k",
    "LocalStepsSum": "LocalSteps, added up",
}
CANDIDATE = " *"
CANDIDATE_IN_WORDS = "*: no option of a job, tried here alone"


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
        return label_of(self.policy)


def label_of(policy: str) -> str:
    """For rows and lines, with a mark where it is no option of a job."""
    known = BY_NAME.get(policy)
    label = LABELS.get(policy) or (known.title if known is not None else policy)
    return label + (CANDIDATE if known is not None and known.candidate else "")


def candidates_in_words(found: Sequence[Cell]) -> str:
    """What the mark means, with a blank before it; `` where nothing has it."""
    return f" {CANDIDATE_IN_WORDS}." if any(c.label.endswith(CANDIDATE) for c in found) else ""


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


def seeds_in_words(found: Sequence[Cell]) -> str:
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

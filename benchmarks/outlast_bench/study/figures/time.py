"""What the figures over time share: curves that stand still in an outage, shaded outages, and their legends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from outlast_bench.study.analysis.measures import LATE_S, TARGET_LINE_S
from outlast_bench.study.analysis.run_curves import RunCurves, line_through
from outlast_bench.study.analysis.summary import Group, curves_of
from outlast_bench.study.figures import style
from outlast_operator.reporting.curves import Curve

STANDSTILL_S = 0.5  # a shorter outage leaves no step
MEAN_AND_BAND = "Mean over seeds (line) and their range (band)"
SHADING = "Light shading: the killed server is held back; dark: no update was applied"
LATE = f"late accuracy, the mean of the evaluations of the last {LATE_S:g} s"


def held(curves: RunCurves, scale: float = 100.0) -> Curve:
    """Accuracy over time, which an outage does not interpolate: the last value stands until the next evaluation.

    Or until the first update after the outage, if that comes first. A restored server is evaluated before it, and what
    it then holds is no sign that anything was served before.
    """
    points = [(e.t, e.accuracy * scale) for e in curves.evaluations]
    stands = []
    for (t, value), (following, _) in pairwise([*points, (math.inf, 0.0)]):
        ends = [min(following, back) for killed, back in _standstills(curves) if killed < following and t < back]
        stands += [(end, value) for end in ends if end > t]
    # At one moment what stood until then comes before the value that follows.
    ordered = sorted([*((t, 0, v) for t, v in stands), *((t, 1, v) for t, v in points)], key=lambda p: p[:2])
    return [(t, v) for t, _, v in ordered]


def _standstills(curves: RunCurves) -> list[tuple[float, float]]:
    """(kill, first update after it) of the outages that are long enough to be seen."""
    both = [(o.killed, curves.end if o.back is None else o.back) for o in curves.outages]
    return [(killed, back) for killed, back in both if back - killed > STANDSTILL_S]


def smoothed(curves: RunCurves) -> RunCurves:
    """Each evaluation replaced by the straight line through those of 2 s to either side, but not across an outage."""
    edges = sorted({t for both in _standstills(curves) for t in both} | {o.back for o in curves.outages if o.back})
    lines = []
    for start, end in pairwise([-math.inf, *edges, math.inf]):
        stretch = [e for e in curves.evaluations if start <= e.t < end]
        for evaluation in stretch:
            line = line_through(stretch, evaluation.t, TARGET_LINE_S)
            assert line is not None
            lines.append(replace(evaluation, accuracy=line[0]))
    return replace(curves, evaluations=tuple(lines))


def shade(ax: Any, group: Group, ordered_s: float) -> None:
    """The mean over seeds of each kill, of the outage as ordered, and of the first update after it."""
    for index in range(group.kills):
        found = [c.outages[index] for c in curves_of(group) if index < len(c.outages)]
        if not found:
            continue
        killed = sum(o.killed for o in found) / len(found)
        lasted = [o.seconds for o in found if o.seconds is not None]
        ax.axvspan(killed, killed + ordered_s, color=style.OUTAGE_COLOUR, alpha=0.18, lw=0)
        if lasted:
            ax.axvspan(killed, killed + sum(lasted) / len(lasted), color=style.OUTAGE_COLOUR, alpha=0.38, lw=0)
        ax.axvline(killed, color=style.INK, linewidth=0.9)


def draw_control(ax: Any, curves: Sequence[Curve], end: float) -> None:
    """The mean of the control's seeds, thin and grey, behind what is compared with it."""
    found = style.band(curves, end)
    if found is not None:
        ax.plot(found.t, found.mean, color=style.CONTROL_COLOUR, linewidth=1.1, alpha=0.75, zorder=1.5)


def sides(groups: Sequence[Group]) -> list[tuple[str, list[Group]]]:
    """The paper's configurations and ours, each with a title; empty ones are left out. The control is in neither."""
    paper = [g for g in groups if g.configuration.startswith("paper-")]
    both = [("As the paper ran them", paper), ("As recommended", [g for g in groups if g not in paper])]
    return [(title, some) for title, some in both if some]

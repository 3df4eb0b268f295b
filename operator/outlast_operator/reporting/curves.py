"""From the samples in a report to curves: counters to rates, gaps, means, thinning. Pure.

A curve is a list of (seconds since the run's start, value), in order of time. Nothing is smoothed: a rate is constant
between two samples, and where a counter began anew or a process was away there is no curve.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

MIN_INTERVAL_S = 0.5  # rates over less than this are noise
MAX_POINTS = 600  # a curve of more points is thinned: it could not be told apart at a page's width
MIB = 1 << 20
ROLES = ("server", "worker", "redis", "evaluator", "operator")

Point = tuple[float, float]
Curve = list[Point]


def number(value: Any) -> float | None:
    """`value` as a finite float; None for null, NaN and anything that is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def curve(samples: Iterable[dict[str, Any]], field: str, scale: float = 1.0) -> Curve:
    """The samples that have `field`, in order of time."""
    points = [(number(s.get("t_s")), number(s.get(field))) for s in samples]
    return sorted((t, v * scale) for t, v in points if t is not None and v is not None)


def versions(report: dict[str, Any]) -> Curve:
    """The version over time. An evaluation's sample tells the version evaluated, which is older than its time."""
    samples = report.get("series") or []
    held = [s for s in samples if s.get("accuracy") is None and s.get("loss") is None]
    return curve(held, "version") or curve(samples, "version")


def rates(points: Curve) -> list[tuple[float, float, float]]:
    """(from, to, growth per second) of a counter. A counter that falls began anew: that stretch is left out."""
    stretches = []
    start = points[0] if points else None
    for t, value in points[1:]:
        assert start is not None
        if value < start[1]:
            start = (t, value)
        elif t - start[0] >= MIN_INTERVAL_S:
            stretches.append((start[0], t, (value - start[1]) / (t - start[0])))
            start = (t, value)
    return stretches


def processes(resources: Sequence[dict[str, Any]], field: str) -> dict[str, list[Curve]]:
    """Role -> one curve a process, by name; `cpu_s` as cores in use, `rss_bytes` as MiB."""
    names = sorted({str(r.get("process")) for r in resources}, key=_natural)
    found: dict[str, list[Curve]] = {}
    for name in names:
        mine = [r for r in resources if r.get("process") == name and r.get("rss_bytes") != 0]  # 0: dead, not yet reaped
        points = curve(mine, field, 1.0 / MIB if field == "rss_bytes" else 1.0)
        if field == "cpu_s":
            points = [(0.5 * (a + b), rate) for a, b, rate in rates(points)]
        found.setdefault(role_of(name), []).append(thinned(points))
    return found


def role_of(process: str) -> str:
    """`server-0` -> `server`; what is unknown is drawn like the operator."""
    role = process.split("-")[0]
    return role if role in ROLES else "operator"


def pieces(points: Curve) -> list[Curve]:
    """Split where a process was away: a gap of more than three usual intervals."""
    gaps = sorted(b[0] - a[0] for a, b in pairwise(points))
    usual = gaps[len(gaps) // 2] if gaps else 0.0
    pieces: list[Curve] = [[]]
    for i, point in enumerate(points):
        if i and point[0] - points[i - 1][0] > max(3.0 * usual, 2.0 * MIN_INTERVAL_S):
            pieces.append([])
        pieces[-1].append(point)
    return pieces


def mean_of(curves: Sequence[Curve]) -> Curve:
    """The mean of several processes, second by second."""
    bins: dict[int, list[float]] = {}
    for points in curves:
        for t, value in points:
            bins.setdefault(int(t), []).append(value)
    return [(t + 0.5, sum(values) / len(values)) for t, values in sorted(bins.items())]


def thinned(points: Curve) -> Curve:
    """Every n-th point, and the last."""
    step = max(1, math.ceil(len(points) / MAX_POINTS))
    return points[::step] + (points[-1:] if points and (len(points) - 1) % step else [])


def _natural(name: str) -> tuple[str, int]:
    role, _, index = name.rpartition("-")
    return (role, int(index)) if index.isdigit() else (name, -1)

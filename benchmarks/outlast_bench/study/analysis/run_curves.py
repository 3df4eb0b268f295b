"""One run's report as curves over the time since its first update. Pure.

Rules. (1) Time zero is the first update: what a process needs to start is no property of a strategy. (2) An
evaluation stands at the time at which the servers held the parameters it was made of, not when its result arrived
(that is up to seconds later on busy cores, and would show an outage's effect before or after it happened). After a
rollback a version has been held twice; then the time is taken that agrees best with how long the run's evaluations
usually take. The last evaluation is no point of the curve: it is of all test images, not of the part that the others
are of. (3) Versions between two samples are interpolated, never across a rollback. (4) A run ends when it was
to end: one that stood still before has that time against it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from outlast_operator.reporting.curves import Curve, curve, number, rates, role_of, versions

USUAL_LAG_S = 0.5  # from pull to result, where no evaluation of the run tells
LINE_S = 1.0  # half the window of a straight line through evaluations
LEAST_ON_LINE = 3
EXTRAPOLATED_S = 1.0  # how far beyond its last sample a version may be reckoned


@dataclass(frozen=True)
class Evaluated:
    """Accuracy (0 to 1) of the parameters that were held at `t` seconds after the first update."""

    t: float
    version: int
    accuracy: float


@dataclass(frozen=True)
class Outage:
    """One kill. `back`: the first update after it, None if none came; `drained`: what was buffered had been applied.

    `cut_off`: something was buffered, and the next kill or the end came before it had been applied.
    """

    killed: float
    back: float | None
    drained: float | None
    cut_off: bool = False

    @property
    def seconds(self) -> float | None:
        return None if self.back is None else self.back - self.killed


@dataclass(frozen=True)
class RunCurves:
    """Times in seconds since the first update."""

    zero_s: float  # the first update, since the run's start
    end: float  # as planned; where no plan is known: the last growth of the version
    version: Curve
    evaluations: tuple[Evaluated, ...]
    gradients: Curve  # computed by the workers
    outages: tuple[Outage, ...]
    final_accuracy: float | None  # of the last version, on all the test data

    def accuracy_at(self, t: float) -> float | None:
        """Interpolated between evaluations; the first and last value beyond them; None without any."""
        return interpolated([(e.t, e.accuracy) for e in self.evaluations], t)

    def mean_between(self, start: float, end: float) -> float | None:
        """The mean of the evaluations in [start, end]; None without any. A single one jumps by points: SGD does."""
        inside = [e.accuracy for e in self.evaluations if start <= e.t <= end]
        return sum(inside) / len(inside) if inside else None

    def line_at(self, t: float) -> tuple[float, float] | None:
        """(accuracy, its growth a second) at `t`, of the evaluations within `LINE_S`; None without any."""
        return line_through(self.evaluations, t, LINE_S)

    def line_at_version(self, version: float) -> tuple[float, float] | None:
        """(accuracy, its growth an update) where `version` was first held, of the evaluations within `LINE_S` of it."""
        t = self.time_of(version)
        near = [] if t is None else nearest(self.evaluations, t, LINE_S)
        return fitted([(float(e.version), e.accuracy) for e in near], version)

    @property
    def stretches(self) -> list[tuple[Evaluated, ...]]:
        """The evaluations from the start to the first update after an outage, from there to the next, and so on."""
        edges = [float("-inf"), *(o.back for o in self.outages if o.back is not None), float("inf")]
        return [tuple(e for e in self.evaluations if a <= e.t < b) for a, b in pairwise(edges)]

    def version_at(self, t: float) -> float | None:
        """Versions held at `t`: from the samples before it, at their pace; 0 at the first update, None before it."""
        held = [(0.0, 0.0), *self.version] if self.version and self.version[0][0] > 0.0 else self.version
        before = [p for p in held if p[0] <= t]
        if not before:
            return None
        last = before[-1]
        following = next((p for p in held if p[0] > t), None)
        if following is not None and following[1] >= last[1] and following[0] - last[0] <= EXTRAPOLATED_S:
            return last[1] + (following[1] - last[1]) * (t - last[0]) / (following[0] - last[0])
        if len(before) < 2 or before[-2][1] > last[1]:
            return last[1]
        pace = (last[1] - before[-2][1]) / max(last[0] - before[-2][0], 1e-9)
        return last[1] + pace * min(t - last[0], EXTRAPOLATED_S)

    def time_of(self, version: float) -> float | None:
        """When `version` was first reached; None if never."""
        for (t0, v0), (t1, v1) in pairwise([(0.0, 0.0), *self.version]):
            if v0 < version <= v1:
                return t0 + (t1 - t0) * (version - v0) / (v1 - v0)
        return 0.0 if version <= 0 else None


def line_through(evaluations: Sequence[Evaluated], t: float, within_s: float) -> tuple[float, float] | None:
    """(accuracy, its growth a second) at `t`: a straight line through those within so many seconds to either side.

    Or through the nearest `LEAST_ON_LINE`, where these are fewer; None without any.
    """
    return fitted([(e.t, e.accuracy) for e in nearest(evaluations, t, within_s)], t)


def nearest(evaluations: Sequence[Evaluated], t: float, within_s: float) -> list[Evaluated]:
    """Those within so many seconds of `t`, or the nearest `LEAST_ON_LINE` where these are fewer."""
    near = [e for e in evaluations if abs(e.t - t) <= within_s]
    return near if len(near) >= LEAST_ON_LINE else sorted(evaluations, key=lambda e: abs(e.t - t))[:LEAST_ON_LINE]


def fitted(points: Curve, x: float) -> tuple[float, float] | None:
    """(y, slope) at `x` of the straight line of least squares through `points`; None without any."""
    if not points:
        return None
    x_mean, y_mean = sum(p[0] for p in points) / len(points), sum(p[1] for p in points) / len(points)
    spread = sum((p[0] - x_mean) ** 2 for p in points)
    slope = sum((p[0] - x_mean) * (p[1] - y_mean) for p in points) / spread if spread > 0.0 else 0.0
    return y_mean + slope * (x - x_mean), slope


def run_curves(report: dict[str, Any], planned_s: float | None = None) -> RunCurves:
    """Everything that is drawn or measured over time; empty curves for a report without a series.

    `planned_s`: how long the run was to train, from its first update on.
    """
    held = versions(report)
    zero = first_update(held)
    shift = [(t - zero, v) for t, v in held if t >= zero]
    return RunCurves(
        zero_s=zero,
        end=_end(held, planned_s) - zero,
        version=shift,
        evaluations=tuple(
            Evaluated(max(t - zero, 0.0), version, accuracy) for t, version, accuracy in placed(report, held)
        ),
        gradients=[(t - zero, v) for t, v in curve(report.get("series") or [], "gradients") if t >= zero],
        outages=tuple(_outages(report, zero)),
        final_accuracy=number((report.get("final") or {}).get("accuracy")),
    )


def _end(held: Curve, planned_s: float | None) -> float:
    """Since the run's start. A run that was cut short ends with its last sample."""
    zero = first_update(held)
    if planned_s is not None and held:
        return min(zero + planned_s, held[-1][0])
    return max((b[0] for a, b in pairwise(held) if b[1] > a[1]), default=zero)


def first_update(held: Curve) -> float:
    """When the version left 0: between its last sample there and the first one after, at the pace that follows."""
    at = next((i for i, (_, v) in enumerate(held) if v > 0), None)
    if at is None:
        return held[0][0] if held else 0.0
    if at == 0:
        return held[0][0]
    earliest, (t, version) = held[at - 1][0], held[at]
    later = next(((t2, v2) for t2, v2 in held[at + 1 :] if v2 > version), None)
    if later is None:
        return earliest
    pace = (later[1] - version) / (later[0] - t)
    return min(max(t - version / pace, earliest), t)


def placed(report: dict[str, Any], held: Curve) -> list[tuple[float, int, float]]:
    """(time at which its parameters were held, version, accuracy) of every evaluation but the last, in order of time.

    The last one is of all test images, and is told by being the report's `final`.
    """
    found = []
    for sample in _without_final(report):
        t, version, accuracy = (number(sample.get(k)) for k in ("t_s", "version", "accuracy"))
        if t is not None and version is not None and accuracy is not None:
            found.append((t, int(version), accuracy, held_at(held, version, t)))
    clear = [t - spans[0][0] for t, _, _, spans in found if len(spans) == 1 and spans[0][0] == spans[0][1]]
    lag = median(clear) if clear else USUAL_LAG_S
    return sorted((_nearest(spans, t - lag, t), version, accuracy) for t, version, accuracy, spans in found)


def _without_final(report: dict[str, Any]) -> list[dict[str, Any]]:
    samples, final = list(report.get("series") or []), report.get("final") or {}
    evaluated = [s for s in samples if s.get("accuracy") is not None or s.get("loss") is not None]
    last = max(evaluated, key=lambda s: number(s.get("t_s")) or 0.0, default=None)
    same = ("version", "accuracy", "loss")
    if last is None or any(last.get(key) != final.get(key) for key in same):
        return samples  # the run ended without one
    return [sample for sample in samples if sample is not last]


def held_at(held: Curve, version: float, until: float) -> list[tuple[float, float]]:
    """The spans of time up to `until` in which the servers held `version`; a point where it was only passed."""
    spans: list[tuple[float, float]] = []
    for (t0, v0), (t1, v1) in pairwise(held):
        if t0 > until:
            break
        if v0 == v1 == version:
            span = (t0, min(t1, until))
        elif v0 <= version <= v1 and v1 > v0:
            at = min(t0 + (t1 - t0) * (version - v0) / (v1 - v0), until)
            span = (at, at)
        else:
            continue
        if spans and span[0] - spans[-1][1] < 1e-6:
            spans[-1] = (spans[-1][0], span[1])
        else:
            spans.append(span)
    if held and held[-1][1] == version and held[-1][0] < until and spans:
        spans[-1] = (spans[-1][0], until)
    return spans


def _nearest(spans: Sequence[tuple[float, float]], wanted: float, otherwise: float) -> float:
    inside = [min(max(wanted, a), b) for a, b in spans]
    return min(inside, key=lambda t: abs(t - wanted), default=min(wanted, otherwise))


def _outages(report: dict[str, Any], zero: float) -> list[Outage]:
    """Of the servers alone: what a worker's or the operator's loss leaves is no outage of the parameters."""
    found = []
    for failure in report.get("failures") or []:
        if not any(role_of(name.strip()) == "server" for name in str(failure.get("target")).split(",")):
            continue
        times = [number(failure.get(k)) for k in ("t_killed_s", "t_first_update_s", "t_backlog_applied_s")]
        if times[0] is not None:
            killed, back, drained = (None if t is None else t - zero for t in times)
            assert killed is not None
            cut_off = drained is None and bool(number(failure.get("backlog_peak")))
            found.append(Outage(killed, back, drained, cut_off))
    return sorted(found, key=lambda o: o.killed)


def interpolated(points: Curve, t: float) -> float | None:
    """Straight lines between points in order of time; constant beyond the ends; None without points."""
    if not points:
        return None
    i = bisect_right(points, t, key=lambda p: p[0])
    if i == 0:
        return points[0][1]
    if i == len(points):
        return points[-1][1]
    (t0, v0), (t1, v1) = points[i - 1], points[i]
    return v0 if t1 == t0 else v0 + (v1 - v0) * (t - t0) / (t1 - t0)


def role_curves(report: dict[str, Any], role: str, field: str) -> Curve:
    """Cores in use (`cpu_s`) or MB (`rss_bytes`) of all processes of a role together, each second since zero."""
    zero = first_update(versions(report))
    bins: dict[int, dict[str, list[float]]] = {}
    rows = [r for r in report.get("resources") or [] if role_of(str(r.get("process"))) == role]
    for name in {str(r.get("process")) for r in rows}:
        mine = [r for r in rows if r.get("process") == name and r.get("rss_bytes") != 0]
        points = curve(mine, field, 1e-6 if field == "rss_bytes" else 1.0)
        if field == "cpu_s":
            points = [(0.5 * (a + b), rate) for a, b, rate in rates(points)]
        for t, value in points:
            bins.setdefault(int(t - zero), {}).setdefault(name, []).append(value)
    return [
        (second + 0.5, sum(sum(v) / len(v) for v in by_process.values()))
        for second, by_process in sorted(bins.items())
        if second >= 0
    ]

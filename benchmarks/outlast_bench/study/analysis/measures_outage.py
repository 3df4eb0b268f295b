"""What one kill did to the accuracy: at the kill, at the update after it, when its outage was over. Pure.

Rules. (1) Distances are in updates, not in seconds: an evaluation is of one version, and how fast a configuration makes
versions is an affair of its own. (2) Until its first kill a run is the same training as its siblings, the other runs of
its configuration and seed: their evaluations up to there count as its own (those of the one without a kill also beyond,
so that they lie on either side). (3) Every evaluation near a moment is carried to it at the growth, an update, that the
same configuration without a kill has there, or else the control; their mean is the accuracy at that moment. One alone
jumps by points: SGD does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from outlast_bench.study.analysis.run_curves import Evaluated, Outage, RunCurves, interpolated

AROUND_S = 1.0  # evaluations of so many seconds to a moment's side are averaged
LEAST_WINDOW_S = 0.5  # in less, progress cannot be told from noise
LEAST_BEYOND = 20  # gradients; less is what is on its way
JUST_AFTER_S = 0.05  # a restored version may be told of with the first update that follows it


@dataclass(frozen=True)
class OutageMeasures:
    """Around one kill; None where it was not observed. Gains in accuracy (0 to 1), times in seconds."""

    version: float | None  # at the kill
    outage_s: float | None  # kill to first update
    window_s: float | None  # kill to the end of outage and drain
    drop: float | None
    gained: float | None
    control_gained: float | None


@dataclass(frozen=True)
class Around:
    """What an outage is measured against. `steady`: the control; `own`: the same configuration without a kill."""

    steady: RunCurves | None
    own: RunCurves | None
    siblings: tuple[RunCurves, ...]  # of the same configuration and seed, other numbers of kills
    ordered_s: float
    buffered: bool  # whether an outage's gradients may come as few updates

    def growth(self, version: float | None) -> float:
        """Of accuracy, an update, where `version` was held without a kill; 0 where nothing tells."""
        reference = self.own or self.steady
        line = None if reference is None or version is None else reference.line_at_version(version)
        return 0.0 if line is None else line[1]


def outage_measures(mine: RunCurves, index: int, around: Around) -> OutageMeasures:
    """Of the run's `index`-th kill, from 0."""
    outage = mine.outages[index]
    version = mine.version_at(outage.killed)
    ahead = sum(steps_beyond_version(mine, earlier) for earlier in range(index)) if around.buffered else 0.0
    until = mine.outages[index + 1].killed if index + 1 < len(mine.outages) else float("inf")
    recovered = recovered_at(outage, around.ordered_s)
    base = accuracy_at_kill(mine, index, around, ahead)
    gained = control_gained = window_s = None
    if base is not None and recovered is not None:
        window_s = recovered - outage.killed
        held = ahead + (steps_beyond_version(mine, index) if around.buffered else 0.0)
        recovery = _accuracy_over(mine, outage, recovered, until, around, held)
        gained = None if recovery is None or window_s < LEAST_WINDOW_S else recovery - base
        updates = None if version is None else version + ahead
        control_gained = None if around.steady is None else _control_gained(around.steady, updates, window_s)
    back = accuracy_at_return(mine, outage, until, around, ahead)
    return OutageMeasures(
        version=version,
        outage_s=outage.seconds,
        window_s=window_s,
        drop=None if base is None or back is None else base - back,
        gained=gained,
        control_gained=control_gained,
    )


def recovered_at(outage: Outage, ordered_s: float) -> float | None:
    """When the outage, the first update after it and the drain of what was buffered are all over; None: never."""
    if outage.back is None or outage.cut_off:
        return None
    return max(t for t in (outage.killed + ordered_s, outage.back, outage.drained) if t is not None)


def steps_beyond_version(mine: RunCurves, index: int) -> float:
    """Gradients of an outage that came as local steps: a delta holds many and is one update.

    What was computed from the kill until the next one (or the end), less what the version grew by; 0 where every
    gradient was an update of its own.
    """
    outage = mine.outages[index]
    end = mine.outages[index + 1].killed if index + 1 < len(mine.outages) else mine.end
    grown = [interpolated(mine.version, t) for t in (outage.killed, end)]
    computed = [interpolated(mine.gradients, t) for t in (outage.killed, end)]
    if any(v is None for v in (*grown, *computed)):
        return 0.0
    a, b, c, d = (v for v in (*computed, *grown) if v is not None)
    beyond = (b - a) - (d - c)
    return beyond if beyond > LEAST_BEYOND else 0.0


def accuracy_at_kill(mine: RunCurves, index: int, around: Around, ahead: float = 0.0) -> float | None:
    """From the evaluations within a second's updates of it; without any, the reference's at the same update.

    `ahead`: gradients that the versions here stand for beyond their number.
    """
    outage = mine.outages[index]
    version, width = mine.version_at(outage.killed), AROUND_S * pace_before(mine, outage)
    if version is None:
        return None
    since = mine.outages[index - 1].back if index else 0.0
    pool = [e for e in mine.evaluations if since is not None and since <= e.t <= outage.killed]
    pool += [] if index else [e for sibling in around.siblings for e in _before_any_kill(sibling)]
    near = [e for e in pool if abs(e.version - version) <= width]
    near = near or sorted(pool, key=lambda e: abs(e.version - version))[:1]
    if not near:
        reference = around.own or around.steady
        line = None if reference is None else reference.line_at_version(version + ahead)
        return None if line is None else line[0]
    growth = around.growth(version + ahead)
    return sum(e.accuracy + growth * (version - e.version) for e in near) / len(near)


def _before_any_kill(curves: RunCurves) -> list[Evaluated]:
    first = curves.outages[0].killed if curves.outages else float("inf")
    return [e for e in curves.evaluations if e.t <= first]


def accuracy_at_return(
    mine: RunCurves, outage: Outage, until: float, around: Around, ahead: float = 0.0
) -> float | None:
    """Where the first update after the outage found the parameters or, without a rollback, left them; None: none came.

    What was evaluated in the outage counts where it is of a version that was restored.
    """
    if outage.back is None:
        return None
    version, killed = version_at_return(mine, outage), mine.version_at(outage.killed)
    waiting = [e for e in mine.evaluations if outage.killed < e.t < outage.back]
    restored = [e for e in waiting if version is not None and killed is not None and e.version <= version < killed - 1]
    return _just_after(mine, Moment(outage.back, version, pace_before(mine, outage)), until, around, ahead, restored)


def _accuracy_over(
    mine: RunCurves, outage: Outage, recovered: float, until: float, around: Around, ahead: float
) -> float | None:
    """When outage, first update and drain were over; that may be the moment of the first update itself."""
    if recovered == outage.back:
        return accuracy_at_return(mine, outage, until, around, ahead)
    moment = Moment(recovered, mine.version_at(recovered), pace_before(mine, outage))
    return _just_after(mine, moment, until, around, ahead)


def pace_before(mine: RunCurves, outage: Outage) -> float:
    """Updates a second, of the second before the kill or, where it came sooner, since the first update."""
    span = min(AROUND_S, outage.killed)
    at, earlier = mine.version_at(outage.killed), mine.version_at(outage.killed - span)
    return max(0.0, at - earlier) / span if at is not None and earlier is not None and span > 0.0 else 0.0


def version_at_return(mine: RunCurves, outage: Outage) -> float | None:
    """The version that a rollback led to, as soon as it is told of; without one that of the first update."""
    assert outage.back is not None
    killed = mine.version_at(outage.killed)
    told = [v for t, v in mine.version if outage.killed < t <= outage.back + JUST_AFTER_S]
    fallen = [v for v in told if killed is not None and v < killed - 1]
    return min(fallen, default=mine.version_at(outage.back))


@dataclass(frozen=True)
class Moment:
    """`pace`: ordinary updates a second; a backlog that is applied at once makes more, which belong to the moment."""

    t: float
    version: float | None
    pace: float

    def updates_until(self, evaluation: Evaluated) -> float:
        """Ordinary ones, from the moment to the evaluated version; below 0 for an earlier version."""
        ordinary = self.pace * max(0.0, evaluation.t - self.t)
        return ordinary if self.version is None else min(evaluation.version - self.version, ordinary)


def _just_after(
    mine: RunCurves, moment: Moment, until: float, around: Around, ahead: float, besides: Iterable[Evaluated] = ()
) -> float | None:
    """From the evaluations of the second after the moment (or the next one), and those besides."""
    after = [e for e in mine.evaluations if moment.t <= e.t < until]
    near = [*besides, *(e for e in after if e.t <= moment.t + AROUND_S)] or after[:1]
    if not near:
        return None
    growth = around.growth(sum(e.version for e in near) / len(near) + ahead)
    return sum(e.accuracy - growth * moment.updates_until(e) for e in near) / len(near)


def _control_gained(control: RunCurves, version: float | None, window_s: float) -> float | None:
    """From the update of the kill on, over as many seconds; None where the control does not reach that far."""
    start = None if version is None else control.time_of(version)
    if start is None or start + window_s > control.end + 0.5:
        return None
    a, b = control.line_at(start), control.line_at(start + window_s)
    return None if a is None or b is None else b[0] - a[0]

"""What one run came to: accuracies around its outages, progress kept, times, gradients and worker seconds. Pure.

Definitions (the page repeats them):
- *drop at a kill*: accuracy at the kill, less accuracy when the first update followed it. Above 0: it fell.
- *progress kept*: what the run gained from the kill to the end of the window, over what the control of the same seed
  gained in as many seconds from the same update on. The window ends with the outage as it was ordered, the first update
  and the backlog's last gradient, whichever is latest. A backlog that the next kill or the run's end cut off has no
  such end: then nothing is known of the progress kept, and the run is named as not measured.
- *accuracy at the kill*: the mean of the last second's evaluations, carried forward to it at the pace of the same
  configuration without a kill (same seed): on the steep part an evaluation is old in a second. In the same way the
  evaluations of the second after a moment (the next update, the window's end) are carried back to it.
- *late accuracy*: the mean of the evaluations of the last 5 s, all of the same part of the test images. One snapshot of
  SGD's jumps by points from the next; so what is compared with the control to a point is this, and the final accuracy
  on all test images stands beside it, and not in it.
- *time to the target*: where the straight line through the evaluations of 2 s to either side first reaches it. The
  evaluations on either side of an outage lie on no line: a line ends there.
- *goodput*: gradients of which the surviving parameters hold the effect, over what the control's rate would have
  brought in the same time. What was lost or computed twice is in no surviving parameters, so it counts against a run by
  itself.
- *useful* worker seconds: all, less *idle* and *recomputed* ones (both from the report).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from outlast.api.spec_fields import BUFFERED
from outlast_operator.report_curves import number
from outlast_operator.study.load import TARGET_ACCURACY, StudyRun
from outlast_operator.study.run_curves import Outage, RunCurves, interpolated, line_through, run_curves

AROUND_S = 1.0  # evaluations of so many seconds are averaged: one alone jumps by points
LEAST_WINDOW_S = 0.5  # in less, progress cannot be told from noise
TARGET_LINE_S = 2.0  # to either side: what one evaluation is off must not decide when a target was reached
LATE_S = 5.0  # the same at the end, at most a quarter of the run
LEAST_BEYOND = 20  # gradients; less is what is on its way


@dataclass(frozen=True)
class OutageMeasures:
    """Around one kill; None where it was not observed. Gains in accuracy (0 to 1), times in seconds."""

    version: float | None  # at the kill
    outage_s: float | None  # kill to first update
    window_s: float | None  # kill to the end of outage and drain
    drop: float | None
    accuracy_before: float | None
    accuracy_after: float | None
    gained: float | None
    control_gained: float | None


@dataclass(frozen=True)
class RunMeasures:
    run: StudyRun
    curves: RunCurves = field(repr=False)
    final_accuracy: float | None
    late_accuracy: float | None  # mean of the evaluations of the last seconds
    trained_s: float
    time_to_target_s: float | None  # None: not reached in `trained_s`
    outages: tuple[OutageMeasures, ...]
    gradients: dict[str, int]
    gradients_per_s: float | None
    goodput: float | None
    worker_s: float
    idle_s: float
    recomputed_s: float
    peak_server_bytes: float | None  # the largest server at its largest
    peak_buffer_bytes: float | None

    @property
    def useful_s(self) -> float:
        return max(0.0, self.worker_s - self.idle_s - self.recomputed_s)

    @property
    def evaluated(self) -> bool:
        """Whether any accuracy is known: without one, a target was not missed but never looked for."""
        return bool(self.curves.evaluations)

    @property
    def gains(self) -> tuple[float, float] | None:
        """(gained, gained by the control) over all outages; None when one of them could not be measured."""
        both = [(o.gained, o.control_gained) for o in self.outages]
        if not both or any(a is None or b is None for a, b in both):
            return None
        return sum(a for a, _ in both if a is not None), sum(b for _, b in both if b is not None)


def measure(
    run: StudyRun,
    control: StudyRun | None,
    undisturbed: StudyRun | None,
    ordered_s: float,
    target: float = TARGET_ACCURACY,
) -> RunMeasures:
    """`ordered_s`: how long each outage was ordered to be. `run` must have succeeded."""
    assert run.ok, f"{run.configuration}, seed {run.seed} failed: {run.error}"
    report, mine = run.report, run_curves(run.report, run.planned_s)
    steady = run_curves(control.report, control.planned_s) if control is not None else None
    own = run_curves(undisturbed.report, undisturbed.planned_s) if undisturbed is not None else None
    gradients = {str(k): int(v) for k, v in (report.get("gradients") or {}).items() if number(v) is not None}
    buffered = report.get("strategy") in BUFFERED
    worker_s, idle_s, recomputed_s = _worker_seconds(run, mine)
    applied = gradients.get("applied")
    return RunMeasures(
        run=run,
        curves=mine,
        final_accuracy=mine.final_accuracy,
        late_accuracy=mine.mean_between(mine.end - min(LATE_S, mine.end / 4), mine.end + 1.0),
        trained_s=mine.end,
        time_to_target_s=time_to(mine, target),
        outages=tuple(_outage(mine, i, steady, own, ordered_s, buffered) for i in range(len(mine.outages))),
        gradients=gradients,
        gradients_per_s=applied / mine.end if applied is not None and mine.end > 0 else None,
        goodput=_goodput(applied, mine, control, steady),
        worker_s=worker_s,
        idle_s=idle_s,
        recomputed_s=recomputed_s,
        peak_server_bytes=_peak(report),
        peak_buffer_bytes=number((report.get("bytes") or {}).get("buffer_peak")),
    )


def _outage(
    mine: RunCurves, index: int, control: RunCurves | None, own: RunCurves | None, ordered_s: float, buffered: bool
) -> OutageMeasures:
    outage = mine.outages[index]
    version = mine.version_at(outage.killed)
    ahead = sum(steps_beyond_version(mine, earlier) for earlier in range(index)) if buffered else 0.0
    until = mine.outages[index + 1].killed if index + 1 < len(mine.outages) else float("inf")
    before = [e for e in mine.evaluations if e.t <= outage.killed]
    after = [e for e in mine.evaluations if outage.back is not None and outage.back <= e.t < until]
    recovered = recovered_at(outage, ordered_s)
    base = accuracy_at_kill(mine, outage, version, own or control, ahead)
    updates = None if version is None else version + ahead
    reference = own or control
    gained = control_gained = window_s = drop = None
    if base is not None and outage.back is not None:
        back = accuracy_after(mine, outage.back, until, reference, ahead)
        drop = None if back is None else base - back
    if base is not None and recovered is not None:
        window_s = recovered - outage.killed
        held = ahead + (steps_beyond_version(mine, index) if buffered else 0.0)
        recovery = accuracy_after(mine, recovered, until, reference, held)
        gained = None if recovery is None else recovery - base
        gained = gained if window_s >= LEAST_WINDOW_S else None
        control_gained = None if control is None else _control_gained(control, updates, window_s)
    return OutageMeasures(
        version=version,
        outage_s=outage.seconds,
        window_s=window_s,
        drop=drop,
        accuracy_before=before[-1].accuracy if before else None,
        accuracy_after=after[0].accuracy if after else None,
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


def accuracy_at_kill(
    mine: RunCurves, outage: Outage, version: float | None, reference: RunCurves | None, ahead: float = 0.0
) -> float | None:
    """The mean of the last second's evaluations (or the last), carried forward to the kill at the reference's pace.

    Without a reference: as it is; without an evaluation: the reference's at the same update. `ahead`: updates that the
    versions here stand for beyond their number.
    """
    at_kill = _line_of(reference, None if version is None else version + ahead)
    before = [e for e in mine.evaluations if e.t <= outage.killed]
    if not before:
        return None if at_kill is None else at_kill[0]
    last = [e for e in before if e.t >= outage.killed - AROUND_S] or before[-1:]
    mean, t_mean = sum(e.accuracy for e in last) / len(last), sum(e.t for e in last) / len(last)
    return mean + (0.0 if at_kill is None else at_kill[1] * (outage.killed - t_mean))


def accuracy_after(
    mine: RunCurves, moment: float, until: float, reference: RunCurves | None, ahead: float = 0.0
) -> float | None:
    """The mean of the evaluations of the second after `moment` (or the next), carried back at the reference's pace."""
    after = [e for e in mine.evaluations if moment <= e.t < until]
    if not after:
        return None
    near = [e for e in after if e.t <= moment + AROUND_S] or after[:1]
    mean, t_mean = sum(e.accuracy for e in near) / len(near), sum(e.t for e in near) / len(near)
    version = mine.version_at(t_mean)
    line = _line_of(reference, None if version is None else version + ahead)
    return mean - (0.0 if line is None else line[1] * (t_mean - moment))


def _line_of(curves: RunCurves | None, version: float | None) -> tuple[float, float] | None:
    """(accuracy, growth a second) when it held that version; None if it never did."""
    t = None if curves is None or version is None else curves.time_of(version)
    return None if curves is None or t is None else curves.line_at(t)


def _control_gained(control: RunCurves, version: float | None, window_s: float) -> float | None:
    """From the update of the kill on, over as many seconds; None where the control does not reach that far."""
    start = None if version is None else control.time_of(version)
    if start is None or start + window_s > control.end + 0.5:
        return None
    a, b = control.line_at(start), control.line_at(start + window_s)
    return None if a is None or b is None else b[0] - a[0]


def time_to(curves: RunCurves, target: float) -> float | None:
    """When a local straight line through the evaluations first reaches `target`; None if none does."""
    for stretch in curves.stretches:
        before: tuple[float, float] | None = None
        for evaluation in stretch:
            line = line_through(stretch, evaluation.t, TARGET_LINE_S)
            assert line is not None
            if line[0] >= target:
                return evaluation.t if before is None else _crossed(before, (evaluation.t, line[0]), target)
            before = (evaluation.t, line[0])
    return None


def _crossed(a: tuple[float, float], b: tuple[float, float], value: float) -> float:
    """When the line from `a`, which lies below `value`, to `b`, which does not, reaches it."""
    return a[0] + (b[0] - a[0]) * (value - a[1]) / (b[1] - a[1])


def _goodput(applied: int | None, mine: RunCurves, control: StudyRun | None, steady: RunCurves | None) -> float | None:
    if applied is None or control is None or steady is None or steady.end <= 0.0 or mine.end <= 0.0:
        return None
    possible = number((control.report.get("gradients") or {}).get("applied"))
    if not possible:
        return None
    return (applied / mine.end) / (possible / steady.end)


def _worker_seconds(run: StudyRun, mine: RunCurves) -> tuple[float, float, float]:
    """(all, idle, recomputed), the latter two from the report's cost at the price it was reckoned with."""
    cost = run.report.get("cost") or {}
    second = run.hourly_worker / 3600.0
    parts = [(number(cost.get(name)) or 0.0) / second if second > 0.0 else 0.0 for name in ("idle", "recomputed")]
    return int(run.report.get("workers") or 0) * mine.end, parts[0], parts[1]


def _peak(report: dict[str, Any]) -> float | None:
    sizes = [
        number(r.get("rss_bytes")) for r in report.get("resources") or [] if str(r.get("process")).startswith("server")
    ]
    return max((s for s in sizes if s is not None), default=None)

"""What one run came to: accuracies around its outages, progress kept, times, gradients and worker seconds. Pure.

Definitions (the page repeats them):
- *drop at a kill*: accuracy at the kill, less accuracy when the first update followed it. Above 0: it fell.
- *progress kept*: what the run gained from the kill to the end of the window, over what the control of the same seed
  gained in as many seconds from the same update on. The window ends with the outage as it was ordered, the first update
  and the backlog's last gradient, whichever is latest. A backlog that the next kill or the run's end cut off has no
  such end: then nothing is known of the progress kept, and the run is named as not measured.
- *accuracy at the kill*, at the next update and at the window's end: measures_outage.py.
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

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

from outlast.api.strategy import traits_of
from outlast_bench.study.analysis.load import TARGET_ACCURACY, StudyRun
from outlast_bench.study.analysis.measures_outage import Around, OutageMeasures, outage_measures
from outlast_bench.study.analysis.run_curves import RunCurves, line_through
from outlast_operator.reporting.curves import curve, number, role_of

TARGET_LINE_S = 2.0  # to either side: what one evaluation is off must not decide when a target was reached
LEAST_EVALUATIONS = 10  # a run with fewer does not tell what one costs
LATE_S = 5.0  # the same at the end, at most a quarter of the run


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
    goodput: float | None
    worker_s: float
    idle_s: float
    recomputed_s: float
    peak_server_bytes: float | None  # the largest server at its largest
    peak_buffer_bytes: float | None

    @cached_property
    def evaluation_cpu_s(self) -> float | None:
        """CPU seconds of one evaluation, the last one (of all test images) left out; None where too few tell it."""
        rows = [r for r in self.run.report.get("resources") or [] if role_of(str(r.get("process"))) == "evaluator"]
        zero = self.curves.zero_s
        used = [(t, s) for t, s in curve(rows, "cpu_s") if 0.0 <= t - zero <= self.trained_s]
        if not used or any(b[1] < a[1] for a, b in pairwise(used)):  # it was started again
            return None
        told = [s.get("t_s") for s in self.run.report.get("series") or [] if s.get("accuracy") is not None]
        count = sum(used[0][0] < t <= used[-1][0] for t in told if t is not None)
        spent = used[-1][1] - used[0][1]
        return spent / count if count >= LEAST_EVALUATIONS and spent > 0.0 else None

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
    siblings: Sequence[StudyRun],
    ordered_s: float,
    target: float = TARGET_ACCURACY,
) -> RunMeasures:
    """`run` must have succeeded. `siblings`: those of its configuration and seed with other numbers of kills, as far
    as they succeeded; `ordered_s`: how long each outage was ordered to be."""
    assert run.ok, f"{run.configuration}, seed {run.seed} failed: {run.error}"
    report, mine = run.report, run.curves
    steady = control.curves if control is not None else None
    own = next((s.curves for s in siblings if not s.kills), None)
    traits = traits_of(report)
    buffered = traits is not None and traits.buffered
    around = Around(steady, own, tuple(s.curves for s in siblings), ordered_s, buffered)
    gradients = {str(k): int(v) for k, v in (report.get("gradients") or {}).items() if number(v) is not None}
    worker_s, idle_s, recomputed_s = _worker_seconds(run, mine)
    applied = gradients.get("applied")
    return RunMeasures(
        run=run,
        curves=mine,
        final_accuracy=mine.final_accuracy,
        late_accuracy=mine.mean_between(mine.end - min(LATE_S, mine.end / 4), mine.end + 1.0),
        trained_s=mine.end,
        time_to_target_s=time_to(mine, target),
        outages=tuple(outage_measures(mine, i, around) for i in range(len(mine.outages))),
        gradients=gradients,
        goodput=_goodput(applied, mine, control, steady),
        worker_s=worker_s,
        idle_s=idle_s,
        recomputed_s=recomputed_s,
        peak_server_bytes=_peak(report),
        peak_buffer_bytes=number((report.get("bytes") or {}).get("buffer_peak")),
    )


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

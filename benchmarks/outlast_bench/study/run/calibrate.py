"""From runs of the control to one scale for all: when the first kill falls, for how long the server is away. Pure.

The paper's workers computed 25 gradients a second and its servers were away for 15 s: 375 gradients, here in as many
seconds as the control needs for 375. Its script killed after 15 s and, with two kills, 15 s after the server was back:
the second kill comes two outages after the first, by the clock, for a version counts different things (a drained
backlog makes it jump, a restored checkpoint fall).

The first kill falls where the control first reaches an accuracy (0.5) on the steep part. A task that has no accuracy,
or never comes that far, or only when half of a run is over, is killed after a fifth of the control's updates; nothing
is killed before a twentieth.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from outlast_bench.study.design.experiments import Experiment
from outlast_bench.study.design.records import Calibration, StudyError

PAPER_KILL_S = 15.0
PAPER_OUTAGE_S = 15.0
PAPER_OUTAGE_GRADIENTS = 375.0
PHASE, PHASE_STEP = 100, 37  # updates between checkpoints; with a factor prime to it, seeds spread evenly
LONG_PHASES = 10  # checkpoints that a control must be long enough for, if kills are to wait for the first
SECOND_KILL_OUTAGES = 2.0
LONGEST_OUTAGE = 1 / 4  # of the run: 375 gradients of a large model would leave nothing of it
FALLBACK_KILL = 1 / 5  # of the control's updates
EARLIEST_KILL = 1 / 20
LATEST_KILL = 1 / 2  # of a run, so that outage, drain and recovery are seen
ROOM_AFTER_TARGET = 1.25  # runs last that much longer than the control needs to its target


@dataclass(frozen=True)
class ControlRun:
    """What one calibration run came to. Times from the first update."""

    seed: int
    updates: int
    rate_per_s: float
    to_kill: tuple[float, float] | None  # (s, version) at which kill_accuracy was first reached
    to_target_s: float | None

    def to_json(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "updates": self.updates,
            "rate_per_s": round(self.rate_per_s, 2),
            "to_kill_s": None if self.to_kill is None else round(self.to_kill[0], 3),
            "to_kill_version": None if self.to_kill is None else round(self.to_kill[1]),
            "to_target_s": None if self.to_target_s is None else round(self.to_target_s, 3),
        }


def read_control(report: Mapping[str, Any], kill_accuracy: float | None, target_accuracy: float | None) -> ControlRun:
    """Raises `StudyError` for a run that trained nothing."""
    curve = [(float(p["t_s"]), int(p["version"])) for p in report["series"] if p["loss"] is None]
    start = next((i for i, (_, version) in enumerate(curve) if version > 0), None)
    if start is None or curve[-1][1] <= curve[start][1]:
        raise StudyError("the control trained nothing that could be measured; give it more --seconds")
    begin_s = curve[start][0]
    updates = curve[-1][1]
    # The last evaluation, of all test images, comes after the last update and is no training.
    end_s = next(t for t, version in curve if version == updates)
    rate = (updates - curve[start][1]) / (end_s - begin_s)
    begin_s -= curve[start][1] / rate  # the first sample came when some updates had been made

    def reached(accuracy: float | None) -> tuple[float, float] | None:
        version = None if accuracy is None else crossing(_evaluations(report), accuracy)
        return None if version is None else (max(0.0, _time_of(curve, version) - begin_s), version)

    target = reached(target_accuracy)
    return ControlRun(int(report["seed"]), updates, rate, reached(kill_accuracy), None if target is None else target[0])


def _evaluations(report: Mapping[str, Any]) -> list[tuple[int, float]]:
    points = [(int(p["version"]), p["accuracy"]) for p in report["series"] if p["accuracy"] is not None]
    return sorted((version, float(accuracy)) for version, accuracy in points if math.isfinite(accuracy))


def crossing(points: Sequence[tuple[int, float]], accuracy: float) -> float | None:
    """The version at which the line through (version, accuracy) first reaches `accuracy`; None: it never does."""
    before: tuple[int, float] | None = None
    for version, value in points:
        if value >= accuracy:
            if before is None or value == before[1]:
                return float(version)
            share = (accuracy - before[1]) / (value - before[1])
            return before[0] + share * (version - before[0])
        before = (version, value)
    return None


def _time_of(curve: Sequence[tuple[float, int]], version: float) -> float:
    i = min(bisect_left(curve, version, key=lambda point: point[1]), len(curve) - 1)
    (t1, v1), (t0, v0) = curve[i], curve[max(i - 1, 0)]
    return t1 if v1 == v0 else t0 + (version - v0) / (v1 - v0) * (t1 - t0)


def calibration(experiment: Experiment, runs: Sequence[ControlRun]) -> Calibration:
    """The medians of one or more runs, as numbers that all runs of the experiment share."""
    if not experiment.scaled:
        return Calibration(
            seconds=experiment.seconds,
            outage_s=PAPER_OUTAGE_S,
            second_kill_after_s=SECOND_KILL_OUTAGES * PAPER_OUTAGE_S,
            kill_s=PAPER_KILL_S,
            kill_rule="the paper's own times: after 15 s, away for 15 s, again 15 s later",
        )
    rate = median(run.rate_per_s for run in runs)
    updates = median(run.updates for run in runs)
    targets = [run.to_target_s for run in runs if run.to_target_s is not None]
    to_target_s = median(targets) if len(targets) == len(runs) else None
    seconds = _seconds(experiment, to_target_s)
    to_kill = [run.to_kill for run in runs if run.to_kill is not None]
    version, rule = FALLBACK_KILL * updates, "after a fifth of the control's updates, of which no accuracy is known"
    if experiment.kill_accuracy is not None and len(to_kill) == len(runs):
        version = median(v for _, v in to_kill)
        rule = f"where the control first reaches an accuracy of {experiment.kill_accuracy:g}"
        if version > LATEST_KILL * rate * seconds:
            version = FALLBACK_KILL * rate * seconds
            rule = f"after a fifth of a run, which comes to {experiment.kill_accuracy:g} in its second half"
    elif experiment.kill_accuracy is not None:
        rule = f"after a fifth of the control's updates, which do not reach an accuracy of {experiment.kill_accuracy:g}"
    if version < EARLIEST_KILL * updates:
        version, rule = EARLIEST_KILL * updates, f"{rule}, but not before a twentieth of its updates"
    if version < PHASE and rate * seconds >= LONG_PHASES * PHASE:  # a kill before any checkpoint is one of its own
        version, rule = PHASE, f"{rule}, but not before the first checkpoint"
    outage_s = round(min(PAPER_OUTAGE_GRADIENTS / rate, LONGEST_OUTAGE * seconds), 3)
    kill_update = max(1, round(version))
    return Calibration(
        seconds=seconds,
        outage_s=outage_s,
        second_kill_after_s=round(SECOND_KILL_OUTAGES * outage_s, 3),
        kill_update=kill_update,
        rate_per_s=round(rate, 2),
        outage_gradients=round(outage_s * rate, 1),
        control_to_kill_s=round(kill_update / rate, 3),
        control_to_target_s=None if to_target_s is None else round(to_target_s, 3),
        kill_rule=rule,
        runs=[run.to_json() for run in runs],
    )


def _seconds(experiment: Experiment, to_target_s: float | None) -> float:
    """As planned; longer on a machine where the control would hardly reach the target, or did not."""
    if experiment.target_accuracy is None:
        return experiment.seconds
    longer = experiment.longest_s if to_target_s is None else math.ceil(ROOM_AFTER_TARGET * to_target_s)
    return min(max(experiment.seconds, longer), experiment.longest_s)


def stop_after(experiment: Experiment) -> dict[str, Any]:
    """A calibration run ends at the target: longer than the experiment's runs where these would not reach it."""
    if experiment.target_accuracy is None:
        return {"seconds": experiment.seconds}
    return {"seconds": experiment.longest_s, "accuracy": experiment.target_accuracy}


def kill_offset(seed: int) -> int:
    """Updates by which a seed's first kill is later, 0 to 99, evenly spread over seeds.

    Checkpoints and the relaxed chain's transfers come every 100 updates: what a kill costs depends on where it falls
    between two of them. Were that the same for all seeds, no interval would hold it.
    """
    return seed * PHASE_STEP % PHASE


def kill_arguments(scale: Calibration, kills: int, seed: int) -> list[str]:
    """The `--kill`s of a run: whoever is head, which is the only server where there is one."""
    when = f"{scale.kill_s:g}s" if scale.kill_update is None else f"update={scale.kill_update + kill_offset(seed)}"
    down = _duration(scale.outage_s)
    later = f"head@after={_duration(scale.second_kill_after_s)}+{down}"
    return [f"head@{when}+{down}", *[later] * (kills - 1)][:kills]


def _duration(seconds: float) -> str:
    return f"{seconds:g}s" if float(seconds).is_integer() else f"{seconds * 1000:.0f}ms"

"""Builds study directories with known answers: idealised training whose every figure follows from arithmetic.

Accuracy is a function of the version alone; versions grow at a constant rate between what a kill does to them:
Checkpoint stands still for the outage and falls back to its last checkpoint, Chain goes on, Stateless and Hybrid take
in what was computed meanwhile.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

START_S = 3.0  # a run's first update, since its start
RATE = 100.0  # updates a second
STEP_S = 0.5  # between samples
SECONDS = 30.0
KILL_UPDATE = 400
OUTAGE_S = 3.0
BUFFERED = ("Stateless", "Hybrid")
JOB = f"spec: {{training: {{stopAfter: {{seconds: {SECONDS}}}}}, cost: {{hourly: {{worker: 2.5, server: 0.1}}}}}}\n"
HOUR = 2.5 / 3600  # what a worker costs a second
SERVERS = {"Checkpoint": 1, "Chain": 3, "Stateless": 1, "Hybrid": 3}

Accuracy = Callable[[float], float]


def saturating(version: float) -> float:
    """From 0.1 towards 0.88: about 0.5 at 400 updates."""
    return 0.88 - 0.78 * math.exp(-version / 600.0)


def linear(version: float) -> float:
    """Half a thousandth an update: 100 updates are 0.05."""
    return 0.0005 * version


@dataclass(frozen=True)
class Made:
    """How one idealised run goes. Kills are in seconds since the first update."""

    strategy: str = "Checkpoint"
    kills: Sequence[float] = ()
    outage_s: float = OUTAGE_S
    rate: float = RATE
    seconds: float = SECONDS
    accuracy: Accuracy = saturating
    lag_s: float = 0.0  # from pull to result of an evaluation
    checkpoint_every: int = 100
    noise: float = 0.0
    seed: int = 0
    evaluate_every_s: float = STEP_S
    evaluate_at: Sequence[float] = ()  # besides
    local_steps: bool = False  # an outage's gradients come as one update a worker

    def path(self) -> list[tuple[float, float]]:
        """(seconds since the first update, version) at every corner; straight lines between."""
        points, t, version = [(0.0, 0.0)], 0.0, 0.0
        for killed in sorted(self.kills):
            version += (killed - t) * self.rate
            points.append((killed, version))
            if self.strategy in ("Chain", "Hybrid"):
                t = killed
                continue
            back = killed + self.outage_s
            points.append((back, version))
            if self.strategy == "Checkpoint":
                version -= version % self.checkpoint_every
                points.append((back + 1e-6, version))
            else:
                version += 2 if self.local_steps else self.outage_s * self.rate
                points.append((back + 1e-6, version))
            t = back
        version += (self.seconds - t) * self.rate
        return [*points, (self.seconds, version)]

    def version_at(self, t: float) -> float:
        path = self.path()
        for (t0, v0), (t1, v1) in pairwise(path):
            if t0 <= t <= t1:
                return v0 + (v1 - v0) * (t - t0) / (t1 - t0)
        return path[-1][1] if t > 0 else 0.0

    def progress_at(self, t: float) -> float:
        """Gradients that the parameters hold, however they came."""
        hidden = self.outage_s * self.rate - 2 if self.local_steps else 0.0
        return self.version_at(t) + hidden * sum(k + self.outage_s < t for k in self.kills)

    def down(self, t: float) -> bool:
        return self.strategy in ("Checkpoint", "Stateless") and any(
            k < t <= k + self.outage_s for k in self.kills
        )  # fmt: skip


def make_report(made: Made) -> dict[str, Any]:
    """report.json of such a run."""
    dice = random.Random(made.seed)
    count = int(made.seconds / STEP_S)
    times = sorted({i * STEP_S for i in range(count + 1)} | {t for t, _ in made.path()})
    waiting = made.strategy in ("Checkpoint",)
    idle_s = made.outage_s * len(made.kills) if waiting else 0.0
    lost = sum(_lost(made, k) for k in made.kills) if waiting else 0

    def computed(t: float) -> int:
        paused = sum(max(0.0, min(t, k + made.outage_s) - k) for k in made.kills) if waiting else 0.0
        return round((t - paused) * made.rate)

    series = [
        {
            "t_s": START_S + t, "version": round(made.version_at(t), 6), "accuracy": None, "loss": None,
            "gradients": computed(t),
        }
        for t in times
    ]  # fmt: skip
    regular = [i * made.evaluate_every_s for i in range(int(made.seconds / made.evaluate_every_s) + 1)]
    for t in sorted([*regular, *made.evaluate_at]):
        if not made.down(t):
            version = made.version_at(t)
            accuracy = made.accuracy(made.progress_at(t)) + dice.gauss(0.0, made.noise)
            series.append(_evaluation(START_S + t + made.lag_s, version, accuracy, computed(t)))
    end, held = made.path()[-1][1], made.progress_at(made.seconds)
    return {
        "schema": 1,
        "job": "made",
        "strategy": made.strategy,
        "consistency": "Async",
        "workers": 2,
        "servers": SERVERS[made.strategy],
        "seed": made.seed,
        "duration_s": START_S + made.seconds + made.lag_s,
        "series": sorted(series, key=lambda s: s["t_s"]),
        "resources": _resources(made),
        "final": {"accuracy": made.accuracy(held), "loss": 0.5, "version": int(end), "digest": "d"},
        "gradients": {
            "computed": computed(made.seconds), "acknowledged": computed(made.seconds), "applied": int(held),
            "buffered": 0, "replayed": 0, "lost": lost, "duplicates": 0, "unapplied_at_end": 0,
        },
        "failures": [_failure(made, k) for k in made.kills],
        "bytes": {"pushed": 0, "pulled": 0, "buffer_peak": 50_000_000 if made.strategy in BUFFERED else 0},
        "cost": {
            "total": 0.1, "idle": 2 * idle_s * HOUR, "recomputed": lost / made.rate * 2 * HOUR, "currency": "USD",
        },
    }  # fmt: skip


def _lost(made: Made, killed: float) -> int:
    return round(made.version_at(killed) % made.checkpoint_every)


def _evaluation(t: float, version: float, accuracy: float, gradients: int) -> dict[str, Any]:
    return {"t_s": t, "version": round(version), "accuracy": accuracy, "loss": 1 - accuracy, "gradients": gradients}


def _failure(made: Made, killed: float) -> dict[str, Any]:
    t = START_S + killed
    quick = made.strategy in ("Chain", "Hybrid")
    back = t + (0.05 if quick else made.outage_s)
    return {
        "target": "server-0", "signal": "KILL", "t_killed_s": t, "t_detected_s": t + 0.02, "t_promoted_s": back - 0.01,
        "t_first_update_s": back, "epoch": 2,
        "gradients_per_s": {"before": made.rate, "during": 0.0, "after": made.rate},
        "t_backlog_applied_s": back + 0.2 if made.strategy == "Stateless" else None,
    }  # fmt: skip


def _resources(made: Made) -> list[dict[str, Any]]:
    names = [f"server-{i}" for i in range(SERVERS[made.strategy])] + ["worker-0", "worker-1"]
    names += ["redis"] if made.strategy in ("Stateless", "Hybrid") else []
    rows = []
    for name in names:
        used = 0.0
        for i in range(int(made.seconds / STEP_S) + 1):
            t = i * STEP_S
            down = made.down(t)
            if name == "server-0" and down:
                continue
            busy = 0.8 if name.startswith("worker") and not (down and made.strategy == "Checkpoint") else 0.15
            used += busy * STEP_S
            rows.append({"t_s": START_S + t, "process": name, "cpu_s": used, "rss_bytes": 200_000_000 + 1_000_000 * i})
    return rows


CONFIGURATIONS = {
    "control": "Checkpoint", "paper-sync-checkpoint": "Checkpoint", "paper-async-checkpoint": "Checkpoint",
    "paper-sync-chain": "Chain", "paper-async-chain": "Chain", "paper-stateless": "Stateless",
    "checkpoint": "Checkpoint", "chain": "Chain", "stateless": "Stateless", "hybrid": "Hybrid",
}  # fmt: skip


def write_run(
    directory: Path,
    experiment: str,
    configuration: str,
    kills: int,
    seed: int,
    report: dict[str, Any] | None,
    **changes: Any,
) -> Path:
    """One run's folder: failed where there is no report."""
    folder = directory / "runs" / experiment / configuration / f"kills-{kills}" / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "schema": 1, "experiment": experiment, "configuration": configuration, "kills": kills, "seed": seed,
        "task": "outlast.tasks.fashion_mnist", "status": "ok" if report else "failed",
        "error": "" if report else "server-0 exited with 1 six times in a row", "kill_arguments": [],
        "command": f"outlast run job.yaml --seed {seed}", "started": "2024-05-01T10:00:00", "wall_s": 35.0,
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record | changes))
    if report is not None:
        (folder / "report.json").write_text(json.dumps(report))
    (folder / "job.yaml").write_text(JOB)
    return folder


def write_study(
    directory: Path,
    seeds: Iterable[int] = range(5),
    kills: Iterable[int] = (0, 1, 2),
    configurations: Iterable[str] = tuple(CONFIGURATIONS),
    experiment: str = "steep",
    failed: Iterable[tuple[str, int, int]] = (),
    noise: float = 0.0,
    quick: bool = False,
    **settings: Any,
) -> Path:
    """A study of one experiment. `failed`: (configuration, kills, seed) of the runs that did not succeed."""
    seeds, kills, broken = list(seeds), list(kills), set(failed)
    planned = []
    for configuration in configurations:
        for k in kills if configuration != "control" else [0]:
            for seed in seeds:
                planned.append({"experiment": experiment, "configuration": configuration, "kills": k, "seed": seed})
                report = None
                if (configuration, k, seed) not in broken:
                    slower = 1.0 - 0.05 * ("chain" in configuration) - 0.1 * ("hybrid" in configuration)
                    at = [KILL_UPDATE / (RATE * slower), KILL_UPDATE / (RATE * slower) + 2 * OUTAGE_S][:k]
                    made = {"kills": at, "rate": RATE * slower, "noise": noise, "seed": seed} | settings
                    report = make_report(Made(CONFIGURATIONS[configuration], **made))
                write_run(directory, experiment, configuration, k, seed, report)
    write_about(directory, experiment, planned, quick)
    return directory


def write_about(directory: Path, experiment: str, planned: list[dict[str, Any]], quick: bool = False) -> None:
    """study.json and calibration.json."""
    machine = {
        "cpu": "a processor", "cores": 2, "memory_bytes": 16 << 30, "os": "Linux", "python": "3.11", "torch": "2.5",
        "outlast": "0.1.0", "commit": "abc1234",
    }  # fmt: skip
    task = "outlast.tasks.fashion_mnist"
    plan = {
        "name": experiment, "title": "The kill where it hurts", "task": task, "task_args": {},
        "optimizer": {"name": "SGD", "lr": 0.01}, "kill_accuracy": 0.5, "target_accuracy": 0.8, "runs": planned,
    }  # fmt: skip
    study = {
        "schema": 1, "quick": quick, "task": task, "command": f"outlast study --out {directory.name}",
        "started": "2024-05-01T10:00:00", "machine": machine, "experiments": [plan],
    }  # fmt: skip
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "study.json").write_text(json.dumps(study))
    calibration = {
        "seconds": SECONDS, "outage_s": OUTAGE_S, "second_kill_after_s": 2 * OUTAGE_S, "kill_update": KILL_UPDATE,
        "rate_per_s": RATE, "outage_gradients": RATE * OUTAGE_S, "control_to_kill_s": 4.0, "control_to_target_s": 14.0,
    }  # fmt: skip
    (directory / "calibration.json").write_text(json.dumps({"schema": 1, "experiments": {experiment: calibration}}))


def several_models(directory: Path) -> Path:
    """One model in two kinds; the plain one falls back further."""
    for experiment, every in (("models-net", 100), ("models-net-plain", 400)):
        for seed in range(3):
            write_run(directory, experiment, "control", 0, seed, make_report(Made(seed=seed)), model=experiment)
            for name, strategy in (
                ("checkpoint", "Checkpoint"),
                ("stateless", "Checkpoint" if every > 100 else "Stateless"),
            ):
                made = Made(strategy, kills=[4.0 + seed / 10], seed=seed, checkpoint_every=every)
                write_run(directory, experiment, name, 1, seed, make_report(made), model=experiment)
    return directory


POLICIES = {
    "Idle": 0.0, "Sum": 0.9, "SumReducedRate": 0.12, "SumClipped": 0.5, "Mean": 0.05, "InverseStaleness": 0.45,
    "DelayCompensation": 0.6, "LocalSteps": 0.85,
}  # fmt: skip


def evaluations(gained: float, less_loss: float) -> dict[str, list[float]]:
    """Two, one above and one below the mean: from an accuracy of 0.5 and a loss of 1.7."""
    accuracy, loss = 0.5 + gained, 1.7 - less_loss
    return {"accuracies": [accuracy - 0.03, accuracy + 0.03], "losses": [loss + 0.1, loss - 0.1]}


def write_backlog(
    directory: Path,
    workers: Iterable[int] = (1, 2, 8),
    outages: Iterable[int] = (10, 100, 375, 1000, 10000),
    seeds: Iterable[int] = range(3),
    sum_breaks_at: int = 1000,
    by_loss: Mapping[str, float] | None = None,
) -> Path:
    """The backlog experiment: every policy keeps a known share of what the control gains; Sum diverges at a point.

    As much of the loss as of accuracy, if `by_loss` does not say otherwise of a policy.
    """
    for w in workers:
        for n in outages:
            for seed in seeds:
                gain = 0.3 * (1 - math.exp(-n / 400.0)) + 0.001 * seed
                policies = {}
                for name, share in POLICIES.items():
                    ruined, of_loss = name == "Sum" and n >= sum_breaks_at, (by_loss or {}).get(name, share)
                    policies[name] = {
                        "evaluations": evaluations(*((-0.4, -2.0) if ruined else (share * gain, 4 * of_loss * gain))),
                        "diverged": ruined, "weight": None, "moved": None,
                    }  # fmt: skip
                record = {
                    "schema": 2, "workers": w, "outage": n, "seed": seed, "lr": 0.01, "samples": 10000, "args": {},
                    "task": "outlast.tasks.fashion_mnist", "group": 32, "after": [0, 35], "quick": False,
                    "wall_s": 1.0, "torch": "2.0", "control": evaluations(gain, 4 * gain), "policies": policies,
                    "start": {"version": 400, "guess_loss": 2.3, "evaluations": evaluations(0.0, 0.0)},
                }  # fmt: skip
                path = directory / "backlog" / f"workers-{w}" / f"outage-{n}" / f"seed-{seed}.json"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(record))
    return directory

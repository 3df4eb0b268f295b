"""Which configurations run on what, how long, killed how often: the experiments of a full study, a quick one, a user's.

How lengths and counts were chosen, for two cores and four hours (docs/how-to/run-a-study.md has the times). `steep`:
the control passes 0.80 well before 35 s, which leave every strategy a chance to recover while the curve still rises, so
that what was lost shows. `paper-times`: the paper's kills at 15 s and 45 s, each away for 15 s, and 20 s to recover.
Five seeds where differences are judged, three (and for ours two kills alone) at the paper's own times: the whole study
would else not end within its four hours. `one-worker`: where all workers and servers share the cores, what a strategy
computes more it takes from the workers; one worker leaves servers a core, as a cluster does. A quick study: one kill,
two seeds, 20 s.

`models-…`: the question is the paper's own (its Future Work): do stale gradients and outages treat a model without
normalisation worse? Each model comes in both kinds, each compared with its own control; the kill falls on the steep
part of each control's curve. The ResNet's learning rate is low because two workers that each have a push under way make
its gradients some three updates old, which momentum amplifies: at 0.02 the control with BatchNorm falls by tens of
points from one evaluation to the next, and nothing could be told of a kill.

The order of runs. (1) Experiment by experiment, in the order asked: an interruption splits at most one experiment.
(2) Within one seed by seed: no configuration is more than one seed ahead of another. (3) Within a seed in an order
drawn from it: a machine that grows slower hits all alike, and what is compared in pairs ran within the same hour.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from outlast_bench.study.design.configurations import ALL, CONTROL, CONTROL_NAME, EXTRA, NONE_YET, PAPERS, RECOMMENDED
from outlast_bench.study.design.records import PlannedExperiment, PlannedRun, RunRecord

STEEP = "steep"
PAPER_TIMES = "paper-times"
ONE_WORKER = "one-worker"
BACKLOG = "backlog"
FASHION_MNIST = "outlast.tasks.fashion_mnist"
SGD = {"name": "SGD", "lr": 0.01}
# Some 40 ms of a core, at low priority: on busy cores two or more a second. Fewer would not resolve an outage of 3 s,
# and the accuracy around a kill, the mean of a second, would be that of one evaluation or none.
EVALUATE = {"everySeconds": 0.25, "samples": 500}
OVERHEAD_S = 5.0  # of a run besides training: the processes' start, the last evaluation, the end
QUICK_CONFIGURATIONS = ("paper-stateless", *RECOMMENDED)
COMPARED_ON_MODELS = ("checkpoint", "paper-stateless", "stateless")  # what differs in what it does to a model
RESNET: dict[str, Any] = {"width": 0.25, "batchSize": 16}  # 30 ms a gradient on one core
TRANSFORMER = "transformer, 0.1 million parameters"
MOMENTUM = {"name": "SGD", "lr": 0.005, "momentum": 0.9}
ADAM = {"name": "Adam", "lr": 0.001}
MODEL_SEEDS = 3


@dataclass(frozen=True)
class Experiment:
    """One experiment. `scaled`: killed on the steep part, away as many gradients as the paper's; else by the clock."""

    name: str
    title: str
    kills: dict[str, tuple[int, ...]]  # configuration -> how often it is killed, a run each
    seeds: int
    seconds: float  # of training, each run, where the control reaches its target well before
    task: str = FASHION_MNIST
    task_args: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=lambda: dict(SGD))
    evaluate: dict[str, Any] = field(default_factory=lambda: dict(EVALUATE))
    scaled: bool = True
    kill_accuracy: float | None = 0.5
    target_accuracy: float | None = 0.8
    calibration_runs: int = 3
    patience: float = 1.5  # on a machine on which the control needs longer, runs are at most so many times as long
    overhead_s: float = OVERHEAD_S
    model: str = ""
    workers: int = 2

    @property
    def longest_s(self) -> float:
        return self.patience * self.seconds

    def planned(self) -> PlannedExperiment:
        runs = [
            PlannedRun(self.name, name, kills, seed)
            for seed in range(self.seeds)
            for name, counts in self.kills.items()
            for kills in counts
        ]
        return PlannedExperiment(
            name=self.name,
            title=self.title,
            task=self.task,
            task_args=self.task_args,
            optimizer=self.optimizer,
            kill_accuracy=self.kill_accuracy if self.scaled else None,
            target_accuracy=self.target_accuracy,
            runs=runs,
            workers=self.workers,
        )

    def estimate_s(self) -> float:
        """How long it takes, from the lengths alone; the progress display corrects it by what runs really took."""
        calibrations = self.calibration_runs if self.scaled else 0
        return (len(self.planned().runs) + calibrations) * (self.seconds + self.overhead_s)


def _each(names: tuple[str, ...], counts: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {CONTROL_NAME: (0,), **dict.fromkeys(names, counts)}


COMPARED = tuple(c.name for c in ALL if c.whose not in (CONTROL, EXTRA))


def full() -> list[Experiment]:
    """The experiments on the paper's model."""
    return [
        Experiment(
            STEEP,
            "killed on the steep part of the curve",
            {**_each(COMPARED, (0, 1, 2)), NONE_YET: (1,)},
            seeds=5,
            seconds=35.0,
        ),
        Experiment(
            PAPER_TIMES,
            "killed at the paper's own times",
            {CONTROL_NAME: (0,), **dict.fromkeys(PAPERS, (1, 2)), **dict.fromkeys(RECOMMENDED, (2,))},
            seeds=3,
            seconds=80.0,
            scaled=False,
        ),
        Experiment(
            ONE_WORKER,
            "one worker, so that servers have a core of their own",
            _each(("chain", "stateless", "hybrid"), (1, 2)),
            seeds=3,
            seconds=30.0,
            calibration_runs=1,
            workers=1,
        ),
    ]


def models() -> list[Experiment]:
    """Two models with and without normalisation, some 40 minutes in all."""
    kills = {CONTROL_NAME: (0,), **dict.fromkeys(COMPARED_ON_MODELS, (1,))}
    common: dict[str, Any] = {"kills": kills, "seeds": MODEL_SEEDS, "kill_accuracy": 0.3, "calibration_runs": 2}
    resnet: dict[str, Any] = common | {
        "seconds": 40.0,
        "patience": 1.0,
        "task": "outlast.tasks.resnet",
        "task_args": RESNET,
        "optimizer": MOMENTUM,
        "evaluate": {"everySeconds": 1.0, "samples": 200},  # 170 ms of a core
        "target_accuracy": 0.5,
        "overhead_s": OVERHEAD_S + 11.0,  # all 10,000 test images at the end take one core as long
    }
    language: dict[str, Any] = common | {
        "seconds": 25.0,
        "task": "outlast.tasks.language",
        "task_args": {},
        "optimizer": ADAM,
        "evaluate": {"everySeconds": 0.5, "samples": 300},  # it gains but a point in 100 updates
        "target_accuracy": 0.35,
    }
    found = []
    for name, shared, title, model, norms in (
        ("resnet", resnet, "a narrow ResNet-18", "ResNet-18, a quarter of the width", ("batch", "BatchNorm")),
        ("language", language, "a small transformer over characters", TRANSFORMER, ("layer", "LayerNorm")),
    ):
        for plain, (norm, said) in (("", norms), ("-plain", ("none", "no normalisation"))):
            more: dict[str, Any] = {"task_args": {**shared["task_args"], "norm": norm}, "model": f"{model}, {said}"}
            with_ = f"with {said}" if not plain else "without normalisation"
            found.append(Experiment(f"models-{name}{plain}", f"{title} {with_}", **{**shared, **more}))
    return found


def quick() -> list[Experiment]:
    steep = full()[0]
    kills = _each(QUICK_CONFIGURATIONS, (1,))
    return [replace(steep, kills=kills, seeds=2, seconds=18.0, calibration_runs=1, patience=1.0)]


def own_task(
    task: str, task_args: dict[str, Any], optimizer: dict[str, Any], quick: bool, seconds: float | None
) -> list[Experiment]:
    """Our strategies and the control on a user's task: no accuracy need be known of it."""
    return [
        Experiment(
            STEEP,
            f"{task}, killed on the steep part of the curve",
            _each(RECOMMENDED, (1,) if quick else (0, 1, 2)),
            seeds=2 if quick else 5,
            seconds=seconds or (20.0 if quick else 60.0),
            task=task,
            task_args=task_args,
            optimizer=optimizer or dict(SGD),
            target_accuracy=None,
            calibration_runs=1,
        )
    ]


# --- the order of runs ---


def order(experiments: Sequence[PlannedExperiment]) -> list[PlannedRun]:
    """Every planned run once. The same plan has the same order."""
    return [run for experiment in experiments for seed in experiment.seeds for run in _shuffled(experiment, seed)]


def _shuffled(experiment: PlannedExperiment, seed: int) -> list[PlannedRun]:
    runs = sorted(run for run in experiment.runs if run.seed == seed)
    random.Random(f"{experiment.name}/{seed}").shuffle(runs)
    return runs


def to_make(
    runs: Iterable[PlannedRun], made: Callable[[PlannedRun], RunRecord | None], retry_failed: bool
) -> list[PlannedRun]:
    """The runs without a record, and with `retry_failed` those that failed. What succeeded is never made again."""
    pending = []
    for run in runs:
        record = made(run)
        if record is None or (retry_failed and not record.ok):
            pending.append(run)
    return pending

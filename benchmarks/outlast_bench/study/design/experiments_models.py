"""Other models than the paper's: with and without normalisation, images and text, SGD and Adam.

The question is the paper's own (its Future Work): do stale gradients and outages treat a model without normalisation
worse? Each model comes in both kinds, alike in all else, each compared with its own control. Lengths and accuracies are
chosen so that the kill falls on the steep part of each control's curve. The ResNet's learning rate is low because two
workers that each have a push under way make its gradients some three updates old, which momentum makes the more of: at
0.02 the control with BatchNorm falls by tens of points from one evaluation to the next, and nothing could be told of a
kill. Without normalisation the same staleness alone makes it learn several times slower; 0.3 is where both are steep.
"""

from __future__ import annotations

from typing import Any

from outlast_bench.study.design.configurations import CONTROL_NAME
from outlast_bench.study.design.experiments import OVERHEAD_S, Experiment

COMPARED_ON_MODELS = ("checkpoint", "paper-stateless", "stateless")  # what differs in what it does to a model
RESNET: dict[str, Any] = {"width": 0.25, "batchSize": 16}  # 30 ms a gradient on one core
MOMENTUM = {"name": "SGD", "lr": 0.005, "momentum": 0.9}
ADAM = {"name": "Adam", "lr": 0.001}
SEEDS = 3


def models() -> list[Experiment]:
    """Four experiments, some 40 minutes in all."""
    kills = {CONTROL_NAME: (0,), **dict.fromkeys(COMPARED_ON_MODELS, (1,))}
    resnet: dict[str, Any] = {
        "kills": kills,
        "seeds": SEEDS,
        "seconds": 40.0,
        "patience": 1.0,
        "task": "outlast.tasks.resnet",
        "optimizer": MOMENTUM,
        "evaluate": {"everySeconds": 1.0, "samples": 200},  # 170 ms of a core
        "kill_accuracy": 0.3,
        "target_accuracy": 0.5,
        "calibration_runs": 2,
        "overhead_s": OVERHEAD_S + 11.0,  # all 10,000 test images at the end take one core as long
    }
    language: dict[str, Any] = {
        "kills": kills,
        "seeds": SEEDS,
        "seconds": 25.0,
        "task": "outlast.tasks.language",
        "optimizer": ADAM,
        "evaluate": {"everySeconds": 0.5, "samples": 300},  # it gains but a point in 100 updates
        "kill_accuracy": 0.3,
        "target_accuracy": 0.35,
        "calibration_runs": 2,
    }
    return [
        Experiment(
            "models-resnet",
            "a narrow ResNet-18 with BatchNorm",
            task_args={**RESNET, "norm": "batch"},
            model="ResNet-18, a quarter of the width, BatchNorm",
            **resnet,
        ),
        Experiment(
            "models-resnet-plain",
            "a narrow ResNet-18 without normalisation",
            task_args={**RESNET, "norm": "none"},
            model="ResNet-18, a quarter of the width, no normalisation",
            **resnet,
        ),
        Experiment(
            "models-language",
            "a small transformer over characters with LayerNorm",
            task_args={"norm": "layer"},
            model="transformer, 0.1 million parameters, LayerNorm",
            **language,
        ),
        Experiment(
            "models-language-plain",
            "a small transformer over characters without normalisation",
            task_args={"norm": "none"},
            model="transformer, 0.1 million parameters, no normalisation",
            **language,
        ),
    ]

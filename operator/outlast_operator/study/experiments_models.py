"""Beyond the CNN: do stale gradients harm models with normalisation more, or those without, and a language model?

The paper worries about models without normalisation layers. Each model is run with and without: a narrow ResNet-18
(BatchNorm) on FashionMNIST, and a small transformer (LayerNorm) that learns characters. One kill, three seeds, and of
the strategies those that differ in what they do to a model: waiting, and applying a backlog, the paper's way and ours.
"""

from __future__ import annotations

from outlast_operator.study.configurations import CONTROL_NAME
from outlast_operator.study.experiments import Experiment

RESNET = "models-resnet"
RESNET_PLAIN = "models-resnet-plain"
LANGUAGE = "models-language"
LANGUAGE_PLAIN = "models-language-plain"
COMPARED = ("checkpoint", "paper-stateless", "stateless")
KILLS: dict[str, tuple[int, ...]] = {CONTROL_NAME: (0,), **dict.fromkeys(COMPARED, (1,))}
SEEDS = 3


def models() -> list[Experiment]:
    return [
        _resnet(RESNET, "batch", "ResNet-18 with BatchNorm"),
        _resnet(RESNET_PLAIN, "none", "ResNet-18 without normalisation"),
        _language(LANGUAGE, "layer", "transformer with LayerNorm"),
        _language(LANGUAGE_PLAIN, "none", "transformer without normalisation"),
    ]


def _resnet(name: str, norm: str, model: str) -> Experiment:
    """80 ms a gradient on one core: 50 s are some 1,200 updates. All test images take a core 11 s at the end."""
    return Experiment(
        name,
        f"{model}, FashionMNIST",
        KILLS,
        SEEDS,
        seconds=50.0,
        task="outlast.tasks.resnet",
        task_args={"width": 0.25, "norm": norm},
        evaluate={"everySeconds": 0.5, "samples": 100},
        target_accuracy=None,
        calibration_runs=1,
        overhead_s=18.0,
        model=model,
    )


def _language(name: str, norm: str, model: str) -> Experiment:
    """Its accuracy is the share of characters that it foresees: 0.2 by knowing the commonest, 0.5 after two passes."""
    return Experiment(
        name,
        f"{model}, characters of English",
        KILLS,
        SEEDS,
        seconds=30.0,
        task="outlast.tasks.language",
        task_args={"norm": norm},
        optimizer={"name": "Adam", "lr": 0.002},
        evaluate={"everySeconds": 0.25, "samples": 100},
        kill_accuracy=0.4,
        target_accuracy=None,
        calibration_runs=1,
        model=model,
    )

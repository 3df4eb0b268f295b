"""FashionMNIST with the CNN of "Training Through Failure" (Cao, Luo, Gan, Jinesh; arXiv 2406.05546, 2024).

Two convolutions (3×3, 16 and 32 channels, padding 1), each with ReLU and 2×2 max-pooling, a hidden layer of 512 with
dropout 0.25, and 10 classes: 813,258 parameters. Batch 32, images normalised with mean 0.5 and deviation 0.5.

`training.args` (defaults): `batchSize` 32 · `dropout` 0.25 · `finalRelu` false: the authors' code ends in one more ReLU
on the logits, which their text does not mention; set it to repeat their runs (it learns more slowly at first, as a
negative score gets no gradient) · `dataDir`, `download`: see fashion_mnist_data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlast.tasks import fashion_mnist_data
from outlast.tasks.base import Batch, Evaluation, Permutations, Task, read_args

CLASSES = 10
EVALUATION_BATCH = 500
DEFAULTS: dict[str, Any] = {
    "batchSize": 32,
    "dropout": 0.25,
    "finalRelu": False,
    "dataDir": None,
    "download": True,
}


def cnn(dropout: float = 0.25, final_relu: bool = False) -> nn.Sequential:
    """Images `[n, 1, 28, 28]` to scores `[n, 10]`."""
    layers = [
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),  # [n, 16, 14, 14]
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),  # [n, 32, 7, 7]
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 512),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(512, CLASSES),
    ]
    return nn.Sequential(*layers, *([nn.ReLU()] if final_relu else []))


def normalise(images: Tensor) -> Tensor:
    """uint8 `[n, 28, 28]` to float32 `[n, 1, 28, 28]` in −1…1: (x / 255 − 0.5) / 0.5."""
    return images.unsqueeze(1).float().mul_(2.0 / 255.0).sub_(1.0)


class FashionMnist(Task):
    """The paper's task. Building it maps the training data and reads nothing else."""

    def __init__(self, args: Mapping[str, Any], seed: int) -> None:
        super().__init__(args, seed)
        self.options = read_args(args, DEFAULTS, "outlast.tasks.fashion_mnist")
        self.train = self._load("train")
        self.test: fashion_mnist_data.Split | None = None  # only the evaluator wants it
        self.permutations = Permutations(len(self.train.labels), self.options["batchSize"], seed)

    def model(self) -> nn.Module:
        return cnn(self.options["dropout"], self.options["finalRelu"])

    def batches_per_epoch(self) -> int:
        return self.permutations.per_epoch

    def batch(self, index: int) -> Batch:
        """(float32 `[batchSize, 1, 28, 28]`, int64 `[batchSize]`); about 0.2 ms."""
        chosen = self.permutations.batch(index)
        return normalise(self.train.images[chosen]), self.train.labels[chosen]

    def evaluate(self, model: nn.Module, samples: int | None) -> Evaluation:
        """On the first `samples` of the 10,000 test images."""
        self.test = self.test or self._load("test")
        return evaluate_images(model, self.test, samples, normalise)

    def _load(self, split: str) -> fashion_mnist_data.Split:
        return fashion_mnist_data.load(split, self.options["dataDir"], self.options["download"])


def evaluate_images(model: nn.Module, test: fashion_mnist_data.Split, samples: int | None, prepare: Any) -> Evaluation:
    """Accuracy and mean loss over the first `samples` images, in evaluation mode; the model's mode is put back."""
    count = len(test.labels) if samples is None else min(samples, len(test.labels))
    was_training = model.training
    model.eval()
    correct, total = 0, 0.0
    try:
        with torch.no_grad():
            for start in range(0, count, EVALUATION_BATCH):
                chosen = slice(start, min(start + EVALUATION_BATCH, count))
                labels = test.labels[chosen]
                scores = model(prepare(test.images[chosen]))
                correct += int((scores.argmax(1) == labels).sum())
                total += float(F.cross_entropy(scores, labels, reduction="sum"))
    finally:
        model.train(was_training)
    return Evaluation(accuracy=correct / count, loss=total / count, samples=count)

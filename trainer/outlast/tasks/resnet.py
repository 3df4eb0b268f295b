"""ResNet-18 for small images: it has BatchNorm statistics, and 11 million parameters to strain a link.

torchvision's, with the usual changes for 32×32: a 3×3 first convolution of stride 1 and no max-pooling.

`training.args` (defaults): `width` 1.0 scales the channels (0.25: 0.7 million parameters) · `norm` "batch", or "none":
no normalisation and no statistics; the second convolution of each block begins as zero instead (as in Fixup, ICLR
2019), so that depth does not blow up the signal · `batchSize` 32 · `data` "fashion-mnist" (padded to 32×32, its one
channel three times) or "patterns" (made up, needs no files) · `dataDir`, `download`: see fashion_mnist_data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from outlast.tasks import fashion_mnist_data
from outlast.tasks.base import Batch, Evaluation, Permutations, Task, TaskError, read_args
from outlast.tasks.fashion_mnist import CLASSES, evaluate_images, normalise

BLOCKS = [2, 2, 2, 2]
PATTERNS = {"train": 4096, "test": 1024}
DEFAULTS: dict[str, Any] = {
    "width": 1.0,
    "norm": "batch",
    "batchSize": 32,
    "data": "fashion-mnist",
    "dataDir": None,
    "download": True,
}


class SmallResNet(ResNet):  # type: ignore[misc]  # torchvision has no types
    """ResNet-18 whose stages have `width` times 64, 128, 256 and 512 channels. Images `[n, 3, 32, 32]` to `[n, 10]`."""

    def __init__(self, width: float, norm: str = "batch") -> None:
        self._width = width
        norm_layer: type[nn.Module] = nn.BatchNorm2d if norm == "batch" else nn.Identity
        super().__init__(BasicBlock, BLOCKS, num_classes=CLASSES, norm_layer=norm_layer)
        channels = self._scaled(64)
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.bn1 = norm_layer(channels)
        self.maxpool = nn.Identity()
        self.fc = nn.Linear(self._scaled(512), CLASSES)
        if norm == "none":
            for block in self.modules():
                if isinstance(block, BasicBlock):
                    nn.init.zeros_(block.conv2.weight)

    def _scaled(self, channels: int) -> int:
        return max(1, round(channels * self._width))

    def _make_layer(self, block: Any, planes: int, blocks: int, stride: int = 1, dilate: bool = False) -> nn.Sequential:
        if planes == 64:
            self.inplanes = self._scaled(64)  # the base class has just set it for its own first convolution
        layer: nn.Sequential = super()._make_layer(block, self._scaled(planes), blocks, stride, dilate)
        return layer


def prepare(images: Tensor) -> Tensor:
    """uint8 `[n, 28, 28]` to float32 `[n, 3, 32, 32]`: padded with black, the one channel shown three times."""
    return F.pad(normalise(images), (2, 2, 2, 2), value=-1.0).expand(-1, 3, -1, -1)


class ResNet18(Task):
    """ResNet-18 on FashionMNIST or on made-up patterns."""

    def __init__(self, args: Mapping[str, Any], seed: int) -> None:
        super().__init__(args, seed)
        self.options = read_args(args, DEFAULTS, "outlast.tasks.resnet")
        if not self.options["width"] > 0:
            raise TaskError(f"training.args.width: {self.options['width']} is not positive; use for instance 0.25")
        if self.options["norm"] not in ("batch", "none"):
            raise TaskError(f"training.args.norm: {self.options['norm']!r} is neither 'batch' nor 'none'")
        if self.options["data"] not in ("fashion-mnist", "patterns"):
            raise TaskError(f"training.args.data: {self.options['data']!r} is neither 'fashion-mnist' nor 'patterns'")
        self.train = self._load("train")
        self.test: fashion_mnist_data.Split | None = None
        self.permutations = Permutations(len(self.train.labels), self.options["batchSize"], seed)

    def model(self) -> nn.Module:
        return SmallResNet(self.options["width"], self.options["norm"])

    def batches_per_epoch(self) -> int:
        return self.permutations.per_epoch

    def batch(self, index: int) -> Batch:
        """(float32 `[batchSize, 3, 32, 32]`, int64 `[batchSize]`)."""
        chosen = self.permutations.batch(index)
        return prepare(self.train.images[chosen]), self.train.labels[chosen]

    def evaluate(self, model: nn.Module, samples: int | None) -> Evaluation:
        self.test = self.test or self._load("test")
        return evaluate_images(model, self.test, samples, prepare)

    def _load(self, split: str) -> fashion_mnist_data.Split:
        if self.options["data"] == "patterns":
            return patterns(split)
        return fashion_mnist_data.load(split, self.options["dataDir"], self.options["download"])


def patterns(split: str) -> fashion_mnist_data.Split:
    """Images that are quickly told apart: a random picture for each class, under noise."""
    pictures = torch.randint(0, 156, (CLASSES, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(1 if split == "train" else 2)
    labels = torch.randint(0, CLASSES, (PATTERNS[split],), generator=generator)
    noise = torch.randint(0, 100, (PATTERNS[split], 28, 28), generator=generator, dtype=torch.uint8)
    return fashion_mnist_data.Split(pictures[labels] + noise, labels)

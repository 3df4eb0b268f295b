"""A task without data, of any size: for measuring, for drills and as the shortest example of a task.

Every parameter starts somewhere in −1…1 and is pulled towards 1, along a gradient that is known exactly:
`weights − target(index)`, where the target lies within 0.1 of 1 and depends on the batch index alone.

`training.args` (defaults): `parameters` 1000000 · `tensors` 1: into how many tensors they are split · `computeMs` 0:
how long a gradient takes besides that · `busy` false: whether that time keeps a core busy (true) or waits, as a worker
does for its GPU (false) · `batches` 1000 to an epoch.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from outlast.tasks.base import Batch, Evaluation, Task, TaskError, read_args

DEFAULTS: dict[str, Any] = {"parameters": 1_000_000, "tensors": 1, "computeMs": 0.0, "busy": False, "batches": 1000}
GOAL = 1.0
NOISE = 0.1
NEAR = 0.1  # a parameter this close to its goal counts as right


class Synthetic(Task):
    """Half the squared distance of all parameters to a common goal."""

    def __init__(self, args: Mapping[str, Any], seed: int) -> None:
        super().__init__(args, seed)
        self.options = read_args(args, DEFAULTS, "outlast.tasks.synthetic")
        for name in ("parameters", "tensors", "batches"):
            if self.options[name] < 1:
                raise TaskError(f"training.args.{name}: {self.options[name]} is too few; use 1 or more")
        if self.options["tensors"] > self.options["parameters"]:
            raise TaskError("training.args.tensors: more tensors than parameters; use fewer")

    def model(self) -> nn.Module:
        return Weights(self.options["parameters"], self.options["tensors"])

    def batches_per_epoch(self) -> int:
        return int(self.options["batches"])

    def batch(self, index: int) -> Batch:
        """(float32 `[1]`: the target, float32 `[1]`: the same)."""
        noise = random.Random(self.seed * 1_000_003 + index).uniform(-NOISE, NOISE)
        target = torch.tensor([GOAL + noise])
        return target, target

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        self._compute()
        target = batch[1]
        parts: list[Tensor] = [_Distance.apply(p, float(target)) for p in model.parameters()]
        return torch.stack(parts).sum()

    def evaluate(self, model: nn.Module, samples: int | None) -> Evaluation:
        """`accuracy` is the share of parameters within 0.1 of their goal, `loss` the mean over the parameters."""
        near, total, count = 0, 0.0, 0
        with torch.no_grad():
            for p in model.parameters():
                distance = (p - GOAL).abs_()
                near += int((distance <= NEAR).sum())
                total += 0.5 * float(distance.square_().sum())
                count += p.numel()
        return Evaluation(accuracy=near / count, loss=total / count, samples=count)

    def _compute(self) -> None:
        seconds = self.options["computeMs"] / 1000.0
        if not self.options["busy"]:
            if seconds > 0:
                time.sleep(seconds)
            return
        until = time.thread_time() + seconds
        while time.thread_time() < until:
            pass


class Weights(nn.Module):
    """`count` parameters in `tensors` tensors of nearly the same size."""

    def __init__(self, count: int, tensors: int) -> None:
        super().__init__()
        sizes = [count // tensors + (1 if i < count % tensors else 0) for i in range(tensors)]
        self.tensors = nn.ParameterList(nn.Parameter(torch.empty(size).uniform_(-1.0, 1.0)) for size in sizes)

    def forward(self, target: Tensor) -> Tensor:
        """The mean distance to `target`; training goes through Synthetic.loss, which needs no copy of the weights."""
        return torch.stack([(p - target).abs().mean() for p in self.tensors]).mean()


class _Distance(torch.autograd.Function):
    """0.5 · Σ (p − target)², in two passes over p and without a temporary of its size; the gradient is p − target."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, target: float) -> Tensor:
        ctx.save_for_backward(p)
        ctx.target = target
        flat = p.detach().view(-1)
        return 0.5 * (torch.dot(flat, flat) - 2.0 * target * flat.sum() + target * target * flat.numel())

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None]:
        (p,) = ctx.saved_tensors
        return (p - ctx.target).mul_(outputs[0]), None

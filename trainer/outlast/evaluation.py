"""From weights to accuracy: the pure half of the evaluator."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import nn

from outlast.tasks.base import Evaluation, Task


def evaluate_weights(
    task: Task, model: nn.Module, load_weights: Callable[[nn.Module], None], samples: int | None
) -> Evaluation:
    """Fill `model` through `load_weights`, parameters and buffers alike, and measure it on the task's test data.

    `samples`: how many fixed test samples, None for all. A loss that is not finite is reported as it is, with accuracy
    0.0 where the task knows none: a run that diverged must show, not stop its evaluator.
    """
    load_weights(model)
    result = task.evaluate(model, samples)
    if math.isnan(result["accuracy"]) and not math.isfinite(result["loss"]):
        return Evaluation(accuracy=0.0, loss=result["loss"], samples=result["samples"])
    return result

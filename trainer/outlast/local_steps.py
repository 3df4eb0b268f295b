"""LocalSteps: a worker cut off from its servers goes on by itself and later sends what it has moved.

    pseudo-gradient = weights before - weights after          identity: the interval of its steps

(local SGD, DiLoCo). It starts from the weights last pulled, so steps that were sent but not acknowledged, or wait in
the buffer, are no part of it.
"""

from __future__ import annotations

import torch

from outlast.tensors import FlatModel


class LocalSteps:
    """Local optimizer steps on the worker's own weights."""

    def __init__(self, model: FlatModel, optimizer: torch.optim.Optimizer) -> None:
        self._model, self._optimizer = model, optimizer
        self._before = torch.zeros_like(model.flat)
        self._first = 0
        self._last = 0

    @property
    def active(self) -> bool:
        return self._first > 0

    def step(self, step: int) -> None:
        """Apply the gradients at hand with the local optimizer, as step `step`."""
        if not self.active:
            self._before.copy_(self._model.flat)
            self._optimizer.state.clear()  # momentum of an earlier outage has nothing to do with this one
            self._first = step
        self._optimizer.step()
        self._last = step

    def take_delta(self, out: torch.Tensor) -> tuple[int, int]:
        """Write the pseudo-gradient, float32 [numel], into `out`; returns its interval of steps and begins anew."""
        torch.sub(self._before.cpu(), self._model.flat.cpu(), out=out)
        self._model.collect_buffers(out)
        interval = (self._first, self._last)
        self._first = self._last = 0
        return interval

"""LocalSteps: a worker cut off from its servers goes on by itself and later sends what it has moved.

    pseudo-gradient = weights before - weights after          identity: the interval of its steps

(local SGD, DiLoCo). It starts from the weights last pulled, so steps that were sent but not acknowledged, or wait in
the buffer, are no part of it. In a long outage a worker sends what it has moved so far every few seconds, and goes on
from where it is: pseudo-gradients of successive intervals add up to the one of all, and what Redis has acknowledged
survives the worker.

A pseudo-gradient counts for one over the number of workers N: the sum of N that all went the same way would go N times
too far. So as not to fall behind N workers that train together, each takes its steps at N times the learning rate
(`outage.scaleRate`; the linear scaling rule of Goyal et al., 2017). A rate that N asynchronous workers train at bears
that: their gradients are 2N-1 updates old, and on a quadratic of curvature c a rate with such a delay is stable below
2 sin(pi / (8N - 2)) / c, one without any below 2 / c, which is more than N times as much. That is SGD's arithmetic. The
length of Adam's steps does not follow the gradient's, and nothing of the kind is known of it: Adam's rate stays.
"""

from __future__ import annotations

import torch

from outlast.model.flat import FlatModel


class LocalSteps:
    """Local optimizer steps on the worker's own weights."""

    def __init__(self, model: FlatModel, optimizer: torch.optim.Optimizer) -> None:
        self._model, self._optimizer = model, optimizer
        self._before = torch.zeros_like(model.flat)
        self._begun = 0  # the outage's first step
        self._first = 0  # the first that no pseudo-gradient holds yet
        self._last = 0
        self.sent = 0  # the last step of the outage that a pseudo-gradient holds; 0 for none

    @property
    def cut_off(self) -> bool:
        """Whether the weights at hand are the worker's own."""
        return self._begun > 0

    @property
    def first(self) -> int:
        """The first step that no pseudo-gradient holds yet; 0 for none."""
        return self._first

    @property
    def active(self) -> bool:
        """Whether there are steps that no pseudo-gradient holds yet."""
        return self._first > 0

    @property
    def taken(self) -> int:
        """Steps since the outage began."""
        return self._last - self._begun + 1 if self.cut_off else 0

    def step(self, step: int, times: float = 1.0) -> None:
        """Apply the gradients at hand with the local optimizer, at `times` its learning rate, as step `step`."""
        if not self.cut_off:
            self._optimizer.state.clear()  # momentum of an earlier outage has nothing to do with this one
            self._begun = step
        if not self.active:
            self._before.copy_(self._model.flat)
            self._first = step
        rates = [group["lr"] for group in self._optimizer.param_groups]
        try:
            for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * times
            self._optimizer.step()
        finally:
            for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
                group["lr"] = rate  # schedulers go on from the job's own
        self._last = step

    def retreat(self) -> None:
        """Back to where the last pseudo-gradient ends (or to the weights last pulled): the steps since led astray."""
        assert self.active
        self._model.load(self._before)
        self._optimizer.state.clear()
        self._first = 0

    def take_delta(self, out: torch.Tensor) -> tuple[int, int]:
        """Write the pseudo-gradient, float32 [numel], into `out`; returns its interval. The next one begins here."""
        torch.sub(self._before.cpu(), self._model.flat.cpu(), out=out)
        self._model.collect_buffers(out)
        interval = (self._first, self._last)
        self._first, self.sent = 0, self._last
        return interval

    def rejoin(self) -> None:
        """The outage is over: the weights at hand are about to be the servers' again."""
        assert not self.active, "steps would be lost that no pseudo-gradient holds"
        self._begun = self.sent = 0

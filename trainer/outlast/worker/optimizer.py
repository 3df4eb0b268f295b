"""`outlast.Optimizer`: a torch optimizer whose state lives on servers that may die.

    optimizer = outlast.Optimizer(model, torch.optim.SGD, lr=0.01)
    for inputs, targets in loader:
        optimizer.zero_grad()
        loss(model(inputs), targets).backward()
        optimizer.step()          # sends the gradient, takes over fresh weights

Inside a TrainingJob `step()` pushes and pulls; outside one it is the plain optimizer, so the same script runs alone.
Async pushes, and with Stateless the pulls beside them, overlap with the next gradient's computation (one in flight;
three, where they go to Redis); Sync and BoundedStaleness wait.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from outlast.api.config import ENVIRONMENT_VARIABLE, ProcessConfig
from outlast.chain.events import DataPlan
from outlast.worker.errors import TrainingError, TrainingFinished
from outlast.worker.remote_optimizer import RemoteOptimizer

log = logging.getLogger("outlast.optimizer")

joined: list[Optimizer] = []  # those of this process that are in a job: `run_script` sees them out


class Optimizer(torch.optim.Optimizer):
    """Drop-in for a torch optimizer.

    `model`: the module (its buffers, such as BatchNorm's statistics, travel too), or an iterable of parameters or of
    param groups (without buffers). `cls` and `kwargs`: what to run on the servers; must agree with
    `spec.training.optimizer`, else `OptimizerMismatch` shows both. Learning-rate schedulers work as usual.
    """

    _remote: RemoteOptimizer | None = None  # None outside a job, and before torch's own __init__ is done

    def __init__(
        self,
        model: nn.Module | Iterable[Any],
        cls: type[torch.optim.Optimizer] = torch.optim.SGD,
        config: ProcessConfig | None = None,
        **kwargs: Any,
    ) -> None:
        groups, names, buffers = take_apart(model)
        self.inner = cls(groups, **kwargs)
        super().__init__([dict(g) for g in self.inner.param_groups], dict(self.inner.defaults))
        self.param_groups = self.inner.param_groups  # a scheduler that changes ours changes what we send
        self.finished = False
        if config is None and ENVIRONMENT_VARIABLE not in os.environ:
            log.info("no TrainingJob around: %s runs locally", cls.__name__)
            return
        self._remote = RemoteOptimizer(self.inner, config or ProcessConfig.from_environment(), names, buffers)
        joined.append(self)

    # --- what a loop may want to know ---

    @property
    def next_step(self) -> int:
        """The step whose gradient comes next: 1, 2, …; in Sync it may fall back after a rollback. 0 outside a job."""
        return self._remote.next_step if self._remote is not None else 0

    @property
    def data(self) -> DataPlan:
        """Which batch belongs to which slot and step. Raises `TrainingError` outside a job."""
        return self._in_job().data

    @property
    def next_batch(self) -> int:
        """The index of the batch for the next gradient: no two slots get the same one."""
        return self._in_job().next_batch

    def _in_job(self) -> RemoteOptimizer:
        if self._remote is None:
            raise TrainingError("outside a TrainingJob batches have no slots; take them from a loader of your own")
        return self._remote

    def seed_step(self) -> None:
        """Seed torch's generators from (seed, slot, step): a restarted worker computes the same gradient.

        Outside a job nothing happens: the script's own seeding counts.
        """
        if self._remote is not None:
            self._remote.seed_step()

    # --- the torch interface ---

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in torch. Raises `ManifestMismatch` if a shape has changed, before backward fails less clearly."""
        if self._remote is not None:
            self._remote.check_shapes()
        self.inner.zero_grad(set_to_none=set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Before the job begins as in torch; servers hold a fixed model, so afterwards it raises `TrainingError`."""
        if self._remote is not None:
            raise TrainingError("a param group cannot be added to a running job; name all groups when it is built")
        super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The param groups and the step; the optimizer's own state is on the servers, and in their checkpoints."""
        state = self.inner.state_dict()
        state["outlast"] = {"next_step": self.next_step}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over param groups (learning rates); steps and optimizer state are the servers' business."""
        state = {k: v for k, v in state_dict.items() if k != "outlast"}
        self.inner.load_state_dict(state)
        self.param_groups = self.inner.param_groups

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Send the gradient and take over fresh weights.

        Raises `TrainingFinished` once the job's goal is reached, `TrainingError` for a gradient that is not finite.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.inner.param_groups = self.param_groups  # the list may have been assigned anew
        if self._remote is None:
            self.inner.step()
            return loss
        try:
            self._remote.step()
        except TrainingFinished:
            self.finished = True
            raise
        return loss

    def drain(self, timeout_s: float | None = None) -> bool:
        """Wait until everything sent is safe, at most `timeout_s` seconds. True when it is."""
        return self._remote is None or self._remote.drain(timeout_s)

    def hand_over(self) -> bool:
        """This process is to end. False: it holds nothing of its own; else the next `step()` sends that and ends."""
        return self._remote is not None and self._remote.hand_over()

    def close(self) -> None:
        if self._remote is not None:
            self._remote.close()


def take_apart(
    model: nn.Module | Iterable[Any],
) -> tuple[list[dict[str, Any]], dict[int, str], list[tuple[str, torch.Tensor]]]:
    """(param groups, names by id(parameter), buffers) of a module, of parameters or of param groups."""
    if isinstance(model, nn.Module):
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        return [{"params": [p for _, p in named]}], {id(p): n for n, p in named}, list(model.named_buffers())
    items = list(model)
    groups = [copy.copy(g) for g in items] if items and isinstance(items[0], dict) else [{"params": items}]
    names: dict[int, str] = {}
    for g, group in enumerate(groups):
        group["params"] = list(group["params"])
        names.update({id(p): f"group{g}.{i}" for i, p in enumerate(group["params"])})
    return groups, names, []

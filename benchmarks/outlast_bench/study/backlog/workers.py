"""Workers without their processes: they take turns, one gradient a turn, and pull as late as the product's do.

With a push in flight while the next gradient is computed, what W healthy workers push is 2W−1 updates old
(`staleness.usual_staleness`, which allows Stateless another W for its pulls); turns give exactly that. The batch and
the dropout of a gradient follow from (seed, slot, step), as in a real worker, so all policies and the control compute
on the same data in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from outlast.chain.events import DataPlan, Kind
from outlast.evaluator import evaluate_weights
from outlast.model import optimizers
from outlast.model.flat import FlatModel
from outlast.tasks.base import LoadedTask, load_task
from outlast.worker.local_steps import LocalSteps
from outlast.worker.optimizer import take_apart
from outlast.worker.remote_optimizer import seed_of
from outlast_bench.study.backlog.server import Gradient, SimulatedServer


@dataclass(frozen=True)
class Pulled:
    version: int
    weights: torch.Tensor  # not to be written to


class Diverged(ArithmeticError):
    """A gradient is not finite: a real worker ends here, and its job fails."""


class Model:
    """A task's model as one flat vector, and its gradients. One a process: the weights are loaded for each gradient."""

    def __init__(self, task: LoadedTask, lr: float) -> None:
        self.task, self.lr = task, lr
        self.module = task.model().train()
        groups, names, buffers = take_apart(self.module)
        self.inner = torch.optim.SGD(groups, lr=lr)
        self.flat = FlatModel([[(names[id(p)], p) for p in group["params"]] for group in groups], buffers)
        self.optimizer = optimizers.describe(self.inner)

    @staticmethod
    def of(task: str, args: dict[str, Any], seed: int, lr: float) -> Model:
        return Model(load_task(task, args, seed), lr)

    @property
    def numel(self) -> int:
        return self.flat.manifest.numel

    def weights(self) -> torch.Tensor:
        return self.flat.flat.detach().clone()

    def backward(self, slot: int, step: int, plan: DataPlan) -> None:
        """Leave the gradient of (slot, step) at the weights at hand in the parameters."""
        torch.manual_seed(seed_of(self.task.seed, slot, step))
        loss = self.task.loss(self.module, self.task.batch(plan.batch(slot, step)))
        self.module.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def load(self, weights: torch.Tensor) -> None:
        self.flat.load(weights)

    @torch.no_grad()
    def pack(self, out: torch.Tensor) -> None:
        """The gradient at hand into `out`. Raises `Diverged`."""
        self.flat.pack(out)
        if not bool(torch.isfinite(torch.linalg.vector_norm(out[: self.flat.manifest.parameters]))):
            raise Diverged

    def evaluate(self, weights: torch.Tensor, samples: int) -> tuple[float, float]:
        """(accuracy, loss) on the first `samples` of the test data."""
        result = evaluate_weights(self.task, self.module, lambda _: self.load(weights), samples)
        return result["accuracy"], result["loss"]


class Fleet:
    """W workers in turns. `turn` counts gradients: slot = turn mod W, step = 1 + turn div W."""

    def __init__(self, model: Model, workers: int, server: SimulatedServer, turn: int = 0) -> None:
        self.model, self.workers, self.turn = model, workers, turn
        self.plan = DataPlan(slots=workers)
        pulled = self._pull(server)
        self.held = [pulled] * workers
        self._coming = [pulled] * workers
        self._gradient = torch.zeros(model.numel)

    def fork(self, server: SimulatedServer | None = None) -> Fleet:
        """Another that goes on from the same turn; with `server`, each of its workers has just pulled from that."""
        twin = Fleet.__new__(Fleet)
        twin.__dict__.update(self.__dict__)
        pulled = None if server is None else self._pull(server)
        twin.held = list(self.held) if pulled is None else [pulled] * self.workers
        twin._coming = list(self._coming) if pulled is None else [pulled] * self.workers
        return twin

    def train(self, server: SimulatedServer, count: int) -> None:
        """Compute, push and pull `count` gradients. Raises `Diverged`."""
        for _ in range(count):
            slot, step = self.next_identity()
            held = self.held[slot]
            self.model.load(held.weights)
            self.model.backward(slot, step, self.plan)
            self.model.pack(self._gradient)
            server.take([Gradient(slot, step, step, held.version, self._gradient)])
            self.held[slot], self._coming[slot] = self._coming[slot], self._pull(server)
            self.turn += 1

    def cut_off(self) -> None:
        """The server is gone: what was on its way to the workers is the last they get."""
        self.held = list(self._coming)

    def compute_on(self, count: int, memory: list[torch.Tensor]) -> Iterator[Gradient]:
        """Gradients at the weights each worker has, into `memory`, which is used again and again in turns."""
        for k in range(count):
            slot, step = self.next_identity()
            held, out = self.held[slot], memory[k % len(memory)]
            self.model.load(held.weights)
            self.model.backward(slot, step, self.plan)
            self.model.pack(out)
            self.turn += 1
            yield Gradient(slot, step, step, held.version, out, copy=held.weights)

    def next_identity(self) -> tuple[int, int]:
        """(slot, step) of the next gradient."""
        return self.turn % self.workers, 1 + self.turn // self.workers

    def _pull(self, server: SimulatedServer) -> Pulled:
        return Pulled(server.version, server.vector.clone())


class LocalFleet:
    """The workers of a fleet that go on by themselves, each with a model and an optimizer of its own.

    `times`: of the learning rate, as `outage.scaleRate` has it.
    """

    def __init__(self, fleet: Fleet, times: int) -> None:
        self.turn, self._fleet, self._times = fleet.turn, fleet, times
        self._models = [Model(fleet.model.task, fleet.model.lr) for _ in range(fleet.workers)]
        self._local = [LocalSteps(model.flat, model.inner) for model in self._models]
        self._steps: list[tuple[int, int]] = [(0, 0)] * fleet.workers  # first, last
        for model, held in zip(self._models, fleet.held, strict=True):
            model.load(held.weights)

    def step(self) -> None:
        """One local step of the worker whose turn it is."""
        slot, step = self.turn % self._fleet.workers, 1 + self.turn // self._fleet.workers
        self._models[slot].backward(slot, step, self._fleet.plan)
        self._local[slot].step(step, self._times)
        first, _ = self._steps[slot]
        self._steps[slot] = (first or step, step)
        self.turn += 1

    @torch.no_grad()
    def deltas(self) -> list[Gradient]:
        """What each worker would send now; they go on as if it had not been asked for."""
        found = []
        for slot, (model, held) in enumerate(zip(self._models, self._fleet.held, strict=True)):
            first, last = self._steps[slot]
            if first:
                out = held.weights - model.flat.flat
                model.flat.collect_buffers(out)
                found.append(Gradient(slot, first, last, held.version, out, Kind.DELTA, 1.0 / self._fleet.workers))
        return found


@torch.no_grad()
def clip(gradient: torch.Tensor, parameters: int, norm: float | None) -> None:
    """As `staleness.clipNorm` on the worker: the gradient, not the buffers after it."""
    if norm is None:
        return
    has = float(torch.linalg.vector_norm(gradient[:parameters]))
    if has > norm:
        gradient[:parameters].mul_(norm / has)

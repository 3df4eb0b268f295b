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
import math
import os
import signal
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from outlast.api.config import ENVIRONMENT_VARIABLE, ProcessConfig
from outlast.api.job import read_spec
from outlast.api.schedule import rate_at
from outlast.chain.events import DataPlan, Kind
from outlast.model import optimizers
from outlast.model.flat import FlatModel
from outlast.process.ledger import Fact
from outlast.process.metrics import publish
from outlast.worker.client import Client
from outlast.worker.events import Outgoing
from outlast.worker.local_steps import LocalSteps

log = logging.getLogger("outlast.optimizer")

_LOOK_AGAIN_S = 0.005  # BoundedStaleness with Stateless: between two looks at the slowest slot's clock
_HAND_OVER_S = 1.0  # how long a worker that is told to end in an outage waits for Redis
_TO_REDIS = 3  # gradients on their way there: what it takes at once and then keeps back must not hold up a worker
_PATIENCE_S = 0.25  # Stateless, Hybrid: how long a worker waits for an answer before it computes on


class TrainingFinished(SystemExit):
    """Raised by `step()` when the job has reached its goal. Uncaught, the process ends with exit code 0."""

    def __init__(self, message: str) -> None:
        super().__init__(0)
        self.message = message


class TrainingError(RuntimeError):
    """Training cannot go on, and no restart would mend it: a loss that is not finite, say."""


class Superseded(SystemExit):
    """Another process has taken over this worker's slot, or will: this one was told to end (`code` says so)."""

    def __init__(self, code: int = 0) -> None:
        super().__init__(code)


joined: list[Optimizer] = []  # those of this process that are in a job: `run_script` sees them out


class Optimizer(torch.optim.Optimizer):
    """Drop-in for a torch optimizer.

    `model`: the module (its buffers, such as BatchNorm's statistics, travel too), or an iterable of parameters or of
    param groups (without buffers). `cls` and `kwargs`: what to run on the servers; must agree with
    `spec.training.optimizer`, else `OptimizerMismatch` shows both. Learning-rate schedulers work as usual.
    """

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
        self._leaving = False
        self._client: Client | None = None
        if config is None and ENVIRONMENT_VARIABLE not in os.environ:
            log.info("no TrainingJob around: %s runs locally", cls.__name__)
            return
        self._join(config or ProcessConfig.from_environment(), names, buffers)

    # --- joining the job ---

    def _join(self, config: ProcessConfig, names: dict[int, str], buffers: list[tuple[str, torch.Tensor]]) -> None:
        self.config = config
        self.spec = read_spec(config.spec)
        description = optimizers.describe(self.inner)
        optimizers.check_agreement(optimizers.spec_description(self.spec.training.optimizer), description)
        self._base_rates = [float(group["lr"]) for group in self.inner.param_groups]
        groups = [[(names[id(p)], p) for p in g["params"]] for g in self.inner.param_groups]
        self._model = FlatModel(groups, buffers)
        self._traits = self.spec.traits
        self._clip = self.spec.recovery.staleness.clip_norm
        self._client = Client(
            config, self.spec, self._model.manifest, description, self._model.flat.detach().cpu().clone()
        )
        self._local = LocalSteps(self._model, self.inner) if self.spec.local_steps else None
        outage = self.spec.recovery.staleness.outage
        self._scale_rate, self._send_every_s = outage.scale_rate, outage.send_every_seconds
        self._awaited: int | None = None  # the step that servers who came back must have applied; None: none came
        self._gave_up = False  # the last wait was in vain: do not wait again before something comes in
        publish(config, self._client.samples)
        self._client.start()
        version = self._client.synchronise()
        self._check_stopped()
        self._load()
        self._step = 1 + (version if self._traits.barrier else self._highest_step())
        self._check_stopped()
        # torch.manual_seed also notes a stack trace for each kind of accelerator that it has not found: 0.1 ms or more.
        accelerator = getattr(torch, "accelerator", None)  # torch 2.5 has none, and is seeded as ever
        only_cpu = accelerator is not None and not accelerator.is_available()
        self._seed = torch.default_generator.manual_seed if only_cpu else torch.manual_seed
        joined.append(self)
        log.info("slot %d starts at step %d from version %d", config.slot, self._step, version)

    def _highest_step(self) -> int:
        """Where the slot's last process came to: applied, or waiting in the buffer. That is final: this process's first
        pull fenced it in the servers, and the buffer is asked after another fence."""
        assert self._client is not None
        buffered = 0 if self._client.appender is None else self._client.appender.take_over()
        return max(self._client.clocks.get(self.config.slot, 0), buffered)

    # --- what a loop may want to know ---

    @property
    def next_step(self) -> int:
        """The step whose gradient comes next: 1, 2, …; in Sync it may fall back after a rollback."""
        return self._step if self._client is not None else 0

    @property
    def data(self) -> DataPlan:
        """Which batch belongs to which slot and step."""
        assert self._client is not None
        return self._client.data

    @property
    def next_batch(self) -> int:
        """The index of the batch for the next gradient: no two slots get the same one."""
        return self.data.batch(self.config.slot, self._step)

    def seed_step(self) -> None:
        """Seed torch's generators from (seed, slot, step): a restarted worker computes the same gradient.

        Outside a job nothing happens: the script's own seeding counts.
        """
        if self._client is not None:
            self._seed(seed_of(self.spec.training.seed, self.config.slot, self._step))

    # --- the torch interface ---

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in torch. Raises `ManifestMismatch` if a shape has changed, before backward fails less clearly."""
        if self._client is not None:
            self._model.check_shapes()
        self.inner.zero_grad(set_to_none=set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Before the job begins as in torch; servers hold a fixed model, so afterwards it raises `TrainingError`."""
        if getattr(self, "_client", None) is not None:
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
        if self._client is None:
            self.inner.step()
            return loss
        if self._local is not None and self._step_locally(self._local):
            return loss
        self._send()
        return loss

    def drain(self, timeout_s: float | None = None) -> bool:
        """Wait until everything sent is safe, at most `timeout_s` seconds. True when it is."""
        if self._client is None:
            return True
        client = self._client
        if self._local is not None and self._local.active:
            client.wait_until(lambda: not client.session.outage(), timeout_s)
            self._send_delta(self._local)
        return client.wait_until(lambda: client.session.unanswered == 0, timeout_s)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    # --- one gradient ---

    @torch.no_grad()
    def _send(self) -> None:
        client = self._client
        assert client is not None
        lease = client.take()
        assert lease is not None
        self._pack(lease.tensor)
        client.record(Fact.COMPUTED, self._step, self._step)
        item = client.submit(self._step, self._step, lease, Kind.UPDATE, self._lr_scale())
        del lease
        self._step += 1
        if self._traits.through_buffer and not self._traits.asks_ahead:
            client.request_weights()
        self._await(item)
        self._check_stopped()
        if self._traits.barrier and (client.take_resync() or client.torn or client.versions[0] != self._step - 1):
            self._step = client.synchronise() + 1
            self._check_stopped()
        self._load()

    def _pack(self, out: torch.Tensor) -> None:
        self._model.pack(out)
        gradient = out[: self._model.manifest.parameters]
        norm = self._checked(float(torch.linalg.vector_norm(gradient)))
        if self._clip is not None and norm > self._clip:
            gradient.mul_(self._clip / norm)

    def _checked(self, norm: float) -> float:
        if not math.isfinite(norm):
            raise TrainingError(
                f"the gradient of step {self._step} (slot {self.config.slot}) is not finite (norm {norm}); "
                "lower spec.training.optimizer.lr, or set spec.recovery.staleness.clipNorm"
            )
        return norm

    def _lr_scale(self) -> float:
        """What schedulers made of the rate: one factor, for it travels with the gradient as one number."""
        factors = [float(g["lr"]) / base for g, base in zip(self.param_groups, self._base_rates, strict=True) if base]
        if max(factors) - min(factors) > 1e-6 * max(factors):
            raise TrainingError(
                f"the param groups' learning rates were changed by different factors ({', '.join(map(str, factors))}); "
                "servers take one factor for all groups: use a scheduler that scales them alike"
            )
        return factors[0]

    def _await(self, item: Outgoing) -> None:
        """Wait for what the consistency asks for; strategies that compute on wait for no dead or slow server."""
        client = self._client
        assert client is not None
        session, traits = client.session, self._traits
        if not traits.buffered:
            if traits.in_flight == 0:
                client.wait_until(lambda: item.outcome is not None)
            else:
                client.wait_until(lambda: session.unanswered <= traits.in_flight)
            return
        seen = self._seen
        if traits.through_buffer or session.outage():  # no faster than Redis takes them: memory is for when it is away
            client.wait_until(lambda: session.unanswered <= _TO_REDIS or session.buffer_down)
        if traits.bounded:
            self._await_the_slowest(client)
            return
        if self._gave_up and client.arrivals == seen:
            return
        if traits.through_buffer:
            came = client.wait_until(lambda: session.outage() or client.arrivals > seen, _PATIENCE_S)
        else:
            came = client.wait_until(lambda: session.outage() or session.unanswered <= traits.in_flight, _PATIENCE_S)
        self._gave_up = not came

    def _await_the_slowest(self, client: Client) -> None:
        """BoundedStaleness where workers compute on: a slow worker is no outage, however long it takes."""
        session = client.session
        client.wait_until(lambda: session.outage() or session.unanswered <= self._traits.in_flight)
        bound = self.spec.training.max_staleness
        while self._traits.through_buffer and not session.outage() and not client.stopped:
            seen = client.arrivals_by_shard
            client.request_weights()
            client.wait_until(lambda seen=seen: session.outage() or client.arrived_since(seen))
            if min(client.clocks.get(slot, 0) for slot in range(self.data.slots)) >= self._step - 1 - bound:
                break
            client.wait_until(session.outage, _LOOK_AGAIN_S)

    def _load(self) -> None:
        client = self._client
        assert client is not None
        self._seen = client.arrivals
        if self._seen != getattr(self, "_loaded", -1):
            client.copy_weights(self._model.flat)
            self._model.spread()
            self._loaded = self._seen
        if self._traits.asks_ahead:
            client.request_weights()  # they come while the next gradient is computed

    def _check_stopped(self) -> None:
        client = self._client
        assert client is not None
        if client.fenced:
            log.warning("a newer process has slot %d; this one ends", self.config.slot)
            raise Superseded
        if client.failure is not None:
            raise TrainingError(client.failure)
        if client.session.finished:
            self.finished = True
            raise TrainingFinished("the job has reached its goal")

    # --- LocalSteps ---

    @torch.no_grad()
    def _step_locally(self, local: LocalSteps) -> bool:
        """In an outage: take the step here. Returns False when there is a server to send to."""
        client = self._client
        assert client is not None
        away = client.session.outage()
        if not away and not local.cut_off:
            return False
        # Also while the servers catch up: what is computed on weights of our own would pass for fresh.
        client.record(Fact.COMPUTED, self._step, self._step)
        if self._is_sound(local):
            if not local.active:
                self._local_since = time.monotonic()
            local.step(self._step, self._local_rate(local, client))
            client.record(Fact.LOCAL, self._step, self._step)
        self._step += 1
        back, over = self._look_for_servers(client, away)
        # One at a time: while Redis is away steps are gathered in one difference, and take no more memory.
        overdue = time.monotonic() - self._local_since >= self._send_every_s
        free = client.session.unanswered <= self._traits.in_flight
        if local.active and (back or over or self._leaving or (overdue and free)):
            self._send_delta(local)
        if back:
            self._awaited = local.sent
        if self._leaving:
            self._leave(client)
        self._check_stopped()
        if over:
            local.rejoin()
            self._load()
        return True

    def _look_for_servers(self, client: Client, away: bool) -> tuple[bool, bool]:
        """(Have they just come back, is the outage over?)

        It is over once they have applied what we had when they came back, and with it the backlog before. Until then
        their weights are those of the outage's beginning, and gradients on those would be applied after all that was
        moved since. Should Redis have lost what we sent, the next difference (`sendEverySeconds`) is in its place.
        """
        if away:
            self._awaited = None
            return False, False
        client.request_weights()  # the clocks come with them
        if self._awaited is None:
            return True, False
        return False, client.applied(self._awaited)

    def _is_sound(self, local: LocalSteps) -> bool:
        """Whether the gradient can be stepped along; else local steps led astray, and those not sent are undone."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        norm = float(nn.utils.clip_grad_norm_(parameters, self._clip or math.inf))
        if math.isfinite(norm) or not local.active:
            self._checked(norm)
            return True
        log.warning("step %d: the gradient is not finite; back to where step %d began", self._step, local.first)
        local.retreat()
        return False

    def hand_over(self) -> bool:
        """This process is to end. False: it holds nothing of its own; else the next `step()` sends that and ends."""
        self._leaving = self._client is not None and self._local is not None and self._local.cut_off
        return self._leaving

    def _leave(self, client: Client) -> None:
        kept = client.wait_until(lambda: client.session.unanswered == 0, _HAND_OVER_S)
        log.info("told to end in an outage; Redis has our local steps: %s", kept)
        raise Superseded(128 + signal.SIGTERM)

    def _local_rate(self, local: LocalSteps, client: Client) -> float:
        """What multiplies the learning rate of the next local step: the number of workers, and the job's schedule."""
        slots = self.data.slots
        version = max(0, *client.versions) + local.taken * slots  # where all workers together would be by now
        times = slots if self._scale_rate and isinstance(self.inner, torch.optim.SGD) else 1
        return rate_at(self.spec.training.optimizer.schedule, version) * times

    def _send_delta(self, local: LocalSteps) -> None:
        client = self._client
        assert client is not None
        lease = client.take()
        assert lease is not None
        first, last = local.take_delta(lease.tensor)
        client.submit(first, last, lease, Kind.DELTA, 1.0 / self.data.slots)


def seed_of(seed: int, slot: int, step: int) -> int:
    """What torch is seeded with for one gradient: another for each (slot, step), the same whoever computes it."""
    return ((seed * 1_000_003 + slot) * 1_000_003 + step) % 2**63


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

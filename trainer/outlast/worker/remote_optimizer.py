"""The optimizer of a worker in a job: gradients go to servers, weights come back, outages are stepped through.

`outlast.Optimizer` is the torch interface over it. How long a step waits is `Pacing`'s decision; what a worker does
while its servers are away is `LocalSteps`' arithmetic.
"""

from __future__ import annotations

import logging
import math
import signal
import time

import torch
from torch import nn

from outlast.api.config import ProcessConfig
from outlast.api.job import read_spec
from outlast.api.schedule import rate_at
from outlast.chain.events import DataPlan, Kind
from outlast.model import optimizers
from outlast.model.flat import FlatModel
from outlast.process.ledger import Fact
from outlast.process.metrics import publish
from outlast.wire.pool import Lease
from outlast.worker.client import Client
from outlast.worker.errors import Superseded, TrainingError, TrainingFinished
from outlast.worker.events import Outgoing
from outlast.worker.local_steps import LocalSteps
from outlast.worker.pacing import Pacing, Waits

log = logging.getLogger("outlast.optimizer")

_HANDOVER_TIMEOUT_S = 1.0  # how long a worker that is told to end in an outage waits for Redis


class RemoteOptimizer:
    """Joins the job of `config`, with the weights at hand for a job that has none.

    `inner`: the torch optimizer whose groups, rates and class the servers' must agree with. `names`: by id(parameter).
    """

    def __init__(
        self,
        inner: torch.optim.Optimizer,
        config: ProcessConfig,
        names: dict[int, str],
        buffers: list[tuple[str, torch.Tensor]],
    ) -> None:
        self._inner, self._config = inner, config
        self._spec = spec = read_spec(config.spec)
        description = optimizers.describe(inner)
        optimizers.check_agreement(optimizers.spec_description(spec.training.optimizer), description)
        self._base_rates = [float(group["lr"]) for group in inner.param_groups]
        groups = [[(names[id(p)], p) for p in g["params"]] for g in inner.param_groups]
        self._model = FlatModel(groups, buffers)
        self._client = Client(config, spec, self._model.manifest, description, self._model.flat.detach().cpu().clone())
        self._pacing = Pacing(self._client, spec.traits, spec.training.max_staleness)
        self._local = LocalSteps(self._model, inner) if spec.local_steps else None
        self._local_since = 0.0  # when the first step that no pseudo-gradient holds was taken
        self._awaited: int | None = None  # the step that servers that came back must have applied; None: none came
        self._leaving = False
        self._step = 1
        publish(config, self._client.samples)
        self._client.start()
        self._join()
        # torch.manual_seed also notes a stack trace for each kind of accelerator that it has not found: 0.1 ms or more.
        accelerator = getattr(torch, "accelerator", None)  # torch 2.5 has none, and is seeded as ever
        only_cpu = accelerator is not None and not accelerator.is_available()
        self._seed = torch.default_generator.manual_seed if only_cpu else torch.manual_seed

    def _join(self) -> None:
        version = self._synchronise()
        self._load()
        self._step = 1 + (version if self._spec.traits.barrier else self._client.highest_step(self._config.slot))
        self._check_stopped()
        log.info("slot %d starts at step %d from version %d", self._config.slot, self._step, version)

    # --- what a loop may want to know ---

    @property
    def next_step(self) -> int:
        return self._step

    @property
    def data(self) -> DataPlan:
        return self._client.inbox.data

    @property
    def next_batch(self) -> int:
        return self.data.batch(self._config.slot, self._step)

    def seed_step(self) -> None:
        self._seed(seed_of(self._spec.training.seed, self._config.slot, self._step))

    def check_shapes(self) -> None:
        self._model.check_shapes()

    # --- one gradient ---

    @torch.no_grad()
    def step(self) -> None:
        """Send the gradient and load fresh weights; in an outage, with LocalSteps, take the step here."""
        if self._local is None or not self._step_locally(self._local):
            self._send()

    def drain(self, timeout_s: float | None = None) -> bool:
        client = self._client
        if self._local is not None and self._local.active:
            client.wait_until(lambda: not client.session.outage(), timeout_s)
            self._send_delta(self._local)
        return client.wait_until(lambda: client.session.unanswered == 0, timeout_s)

    def close(self) -> None:
        self._client.close()

    def hand_over(self) -> bool:
        self._leaving = self._local is not None and self._local.cut_off
        return self._leaving

    def _send(self) -> None:
        lease = self._take_memory()
        self._pack(lease.tensor)
        item = self._submit(lease)
        del lease
        self._wait(self._pacing.after_push(item))
        self._check_stopped()
        if self._pacing.must_synchronise(item.last):
            self._step = self._synchronise() + 1
        self._load()

    def _take_memory(self) -> Lease:
        lease = self._client.take()
        assert lease is not None, "without a timeout it waits"
        return lease

    def _submit(self, lease: Lease) -> Outgoing:
        step, scale = self._step, self._lr_scale()
        self._client.record(Fact.COMPUTED, step, step)
        item = self._client.submit(step, step, lease, Kind.UPDATE, scale)
        self._step += 1
        return item

    def _pack(self, out: torch.Tensor) -> None:
        self._model.pack(out)
        gradient = out[: self._model.manifest.parameters]
        norm = self._checked(float(torch.linalg.vector_norm(gradient)))
        clip = self._spec.recovery.staleness.clip_norm
        if clip is not None and norm > clip:
            gradient.mul_(clip / norm)

    def _checked(self, norm: float) -> float:
        if not math.isfinite(norm):
            raise TrainingError(
                f"the gradient of step {self._step} (slot {self._config.slot}) is not finite (norm {norm}); "
                "lower spec.training.optimizer.lr, or set spec.recovery.staleness.clipNorm"
            )
        return norm

    def _lr_scale(self) -> float:
        """What schedulers made of the rate: one factor, for it travels with the gradient as one number."""
        groups = self._inner.param_groups
        factors = [float(g["lr"]) / base for g, base in zip(groups, self._base_rates, strict=True) if base]
        if max(factors) - min(factors) > 1e-6 * max(factors):
            raise TrainingError(
                f"the param groups' learning rates were changed by different factors ({', '.join(map(str, factors))}); "
                "servers take one factor for all groups: use a scheduler that scales them alike"
            )
        return factors[0]

    def _synchronise(self) -> int:
        """Pull as the consistency asks for; returns the lowest version."""
        self._wait(self._pacing.synchronise())
        self._check_stopped()
        return min(self._client.inbox.versions)

    def _wait(self, waits: Waits) -> None:
        try:
            until = next(waits)
            while True:
                until = waits.send(self._client.wait_until(until.ready, until.timeout_s))
        except StopIteration:
            return

    def _load(self) -> None:
        self._pacing.load(self._copy_weights)

    def _copy_weights(self) -> None:
        self._client.copy_weights(self._model.flat)
        self._model.spread()

    def _check_stopped(self) -> None:
        outbox = self._client.outbox
        if outbox.fenced:
            log.warning("a newer process has slot %d; this one ends", self._config.slot)
            raise Superseded
        if outbox.failure is not None:
            raise TrainingError(outbox.failure)
        if outbox.session.finished:
            raise TrainingFinished("the job has reached its goal")

    # --- LocalSteps ---

    def _step_locally(self, local: LocalSteps) -> bool:
        """In an outage: take the step here. Returns False when there is a server to send to."""
        client = self._client
        away = client.session.outage()
        if not away and not local.cut_off:
            return False
        # Also while the servers catch up: what is computed on weights of our own would pass for fresh.
        client.record(Fact.COMPUTED, self._step, self._step)
        if self._is_sound(local):
            if not local.active:
                self._local_since = time.monotonic()
            local.step(self._step, self._local_rate(local))
            client.record(Fact.LOCAL, self._step, self._step)
        self._step += 1
        back, over = self._look_for_servers(away)
        if local.active and (back or over or self._leaving or self._is_delta_due()):
            self._send_delta(local)
        if back:
            self._awaited = local.sent
        if self._leaving:
            self._leave()
        self._check_stopped()
        if over:
            local.rejoin()
            self._load()
        return True

    def _is_delta_due(self) -> bool:
        """One at a time: while Redis is away steps are gathered in one difference, and take no more memory."""
        overdue = time.monotonic() - self._local_since >= self._spec.recovery.staleness.outage.send_every_seconds
        return overdue and self._client.session.unanswered <= self._spec.traits.in_flight

    def _look_for_servers(self, away: bool) -> tuple[bool, bool]:
        """(Have they just come back, is the outage over?)

        It is over once they have applied what we had when they came back, and with it the backlog before. Until then
        their weights are those of the outage's beginning, and gradients on those would be applied after all that was
        moved since. Should Redis have lost what we sent, the next difference (`sendEverySeconds`) is in its place.
        """
        if away:
            self._awaited = None
            return False, False
        self._client.request()  # the clocks come with them
        if self._awaited is None:
            return True, False
        return False, self._client.inbox.applied(self._awaited)

    def _is_sound(self, local: LocalSteps) -> bool:
        """Whether the gradient can be stepped along; else local steps led astray, and those not sent are undone."""
        parameters = [p for group in self._inner.param_groups for p in group["params"]]
        clip = self._spec.recovery.staleness.clip_norm
        norm = float(nn.utils.clip_grad_norm_(parameters, clip or math.inf))
        if math.isfinite(norm) or not local.active:
            self._checked(norm)
            return True
        log.warning("step %d: the gradient is not finite; back to where step %d began", self._step, local.first)
        local.retreat()
        return False

    def _leave(self) -> None:
        client = self._client
        kept = client.wait_until(lambda: client.session.unanswered == 0, _HANDOVER_TIMEOUT_S)
        log.info("told to end in an outage; Redis has our local steps: %s", kept)
        raise Superseded(128 + signal.SIGTERM)

    def _local_rate(self, local: LocalSteps) -> float:
        """What multiplies the learning rate of the next local step: the number of workers, and the job's schedule."""
        slots, spec = self.data.slots, self._spec
        version = max(0, *self._client.inbox.versions) + local.taken * slots  # where all workers together would be
        scales = spec.recovery.staleness.outage.scale_rate and isinstance(self._inner, torch.optim.SGD)
        return rate_at(spec.training.optimizer.schedule, version) * (slots if scales else 1)

    @torch.no_grad()
    def _send_delta(self, local: LocalSteps) -> None:
        lease = self._take_memory()
        first, last = local.take_delta(lease.tensor)
        self._client.submit(first, last, lease, Kind.DELTA, 1.0 / self.data.slots)


def seed_of(seed: int, slot: int, step: int) -> int:
    """What torch is seeded with for one gradient: another for each (slot, step), the same whoever computes it."""
    return ((seed * 1_000_003 + slot) * 1_000_003 + step) % 2**63

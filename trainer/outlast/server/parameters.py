"""What a server holds of the model: a range of the flat vector, the optimizer's state on it, snapshots for readers.

    vector  float32 [n]:  [ parameters of group 0 | group 1 | … | buffers ]   (the part of each within this shard)

A final gradient has the vector's layout: gradients over the parameters, the new absolute values over the buffers.
Readers never see the vector itself, only reference-counted snapshots, so an update never waits for a slow reader.
"""

from __future__ import annotations

import inspect
import zlib
from dataclasses import dataclass
from typing import Any

import torch

from outlast.model import optimizers
from outlast.model.flat import Manifest, byte_view, tensor_digest
from outlast.wire.pool import Lease
from outlast.wire.shared_memory import make_pool


@dataclass(frozen=True)
class Snapshot:
    """The vector as it was at `version`; do not write to it."""

    version: int
    lease: Lease

    @property
    def tensor(self) -> torch.Tensor:
        return self.lease.tensor


class Parameters:
    """The vector of one shard: [start, stop) of the model's flat vector. The server's lock guards it."""

    def __init__(
        self,
        manifest: Manifest,
        optimizer: dict[str, Any],
        start: int,
        stop: int,
        keep_previous: bool,
        readers: int,
        shared: bool = False,
    ) -> None:
        self.manifest, self.optimizer_description = manifest, optimizer
        self.start, self.stop = start, stop
        self.vector = torch.zeros(stop - start)
        self.version = 0
        self._split = max(0, min(manifest.parameters, stop) - start)  # first buffer element
        spans = [(max(a, start) - start, min(b, stop) - start) for a, b in manifest.groups()]
        self._optimizer, self._base_rates = self._build([(a, b) for a, b in spans])
        self.pool = make_pool(stop - start, readers + 4, shared)  # of snapshots
        self._current: Snapshot | None = None
        self._previous: Snapshot | None = None
        self._keep_previous = keep_previous

    def _build(self, spans: list[tuple[int, int]]) -> tuple[torch.optim.Optimizer | None, list[float]]:
        present = [i for i, (a, b) in enumerate(spans) if b > a]
        self._present = present
        self._spans = [spans[i] for i in present]
        if not present:
            return None, []
        description = {
            "name": self.optimizer_description["name"],
            "groups": [self.optimizer_description["groups"][i] for i in present],
        }
        flats = [self.vector[a:b].requires_grad_(False) for a, b in self._spans]
        built = optimizers.build(description, flats)
        # Without torch's hooks and profiler around it, which nothing here uses: they cost more than a small shard.
        self._step = inspect.unwrap(type(built).step)
        return built, [float(g["lr"]) for g in built.param_groups]

    @property
    def numel(self) -> int:
        return self.stop - self.start

    def initialise(self, weights: torch.Tensor) -> None:
        self.vector.copy_(weights)
        self._moved(0)

    @torch.no_grad()
    def update(self, gradient: torch.Tensor, rate: float, version: int) -> None:
        """One optimizer step with `gradient`, float32 [n]; `rate` multiplies each group's learning rate."""
        self._remember()
        if self._optimizer is not None:
            for group, base, (a, b) in zip(self._optimizer.param_groups, self._base_rates, self._spans, strict=True):
                group["lr"] = base * rate
                group["params"][0].grad = gradient[a:b]
            self._step(self._optimizer)
            for group in self._optimizer.param_groups:
                group["params"][0].grad = None
        if self._split < self.numel:
            self.vector[self._split :].copy_(gradient[self._split :])
        self._moved(version)

    @torch.no_grad()
    def add(self, delta: torch.Tensor, version: int) -> None:
        """Subtract a pseudo-gradient (weights before less weights after), past momentum and Adam (LocalSteps)."""
        self._remember()
        self.vector[: self._split].sub_(delta[: self._split])
        if self._split < self.numel:
            self.vector[self._split :].copy_(delta[self._split :])
        self._moved(version)

    @torch.no_grad()
    def combine(
        self, out: torch.Tensor, parts: list[tuple[torch.Tensor, float, torch.Tensor | None]], strength: float = 0.04
    ) -> None:
        """Make a final gradient from weighted parts, in order; `out` may be the first part's own memory.

        A part is (payload, weight, pull copy or None). With a pull copy the gradient is delay-compensated
        (DC-ASGD: g + strength * g * g * (now - then); Zheng et al., ICML 2017, eq. 10). Buffers become the weighted
        mean of the parts' values, moved from the current ones by min(1, sum of weights): a convex combination, which
        no staleness can drive away.
        """
        total = sum(weight for _, weight, _ in parts)
        split = self._split
        buffers = None
        if split < self.numel:
            buffers = torch.zeros(self.numel - split)
            for payload, weight, _ in parts:
                buffers.add_(payload[split:], alpha=weight / total if total > 0 else 1.0 / len(parts))
        for payload, _, then in parts:
            if then is not None:
                g = payload[:split]
                g.addcmul_(g * g, self.vector[:split] - then[:split], value=strength)
        first, weight, _ = parts[0]
        if out.data_ptr() != first.data_ptr():
            torch.mul(first[:split], weight, out=out[:split])
        elif weight != 1.0:
            out[:split].mul_(weight)
        for payload, weight, _ in parts[1:]:
            out[:split].add_(payload[:split], alpha=weight)
        if buffers is not None:
            mix = min(1.0, total)
            out[split:].copy_(self.vector[split:].mul(1.0 - mix).add_(buffers, alpha=mix))

    def _remember(self) -> None:
        # With several shards in Sync a shard keeps version v-1 until all have v: a worker lost between two shards'
        # pushes is replaced by one that must recompute from v-1.
        if self._keep_previous:
            self._previous = self.snapshot()

    def _moved(self, version: int) -> None:
        self.version = version
        self._current = None

    def snapshot(self, version: int | None = None) -> Snapshot | None:
        """A reference to the weights of `version` (None: the newest); None when they are gone or readers hold all."""
        if version is not None and version != self.version:
            previous = self._previous
            return previous if previous is not None and previous.version == version else None
        if self._current is None:
            lease = self.pool.take(timeout_s=0.0)
            if lease is None:
                return None
            lease.tensor.copy_(self.vector)
            self._current = Snapshot(self.version, lease)
        return self._current

    # --- the whole state, for checkpoints, snapshots and joining replicas ---

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """Copies of the vector and the optimizer's state.

        What the optimizer keeps for each element is one tensor over the whole vector, `optimizer.KEY`, so that it can
        be cut and joined as the vector is; its counters are `optimizer.GROUP.KEY`.
        """
        tensors = {"vector": self.vector.clone()}
        for index, group, (a, b) in self._groups():
            for key, value in self._state_of(group).items():
                if not _each_element(value, b - a):
                    tensors[f"optimizer.{index}.{key}"] = torch.as_tensor(value).clone()
                elif b - a == self.numel:
                    tensors[f"optimizer.{key}"] = value.clone()
                else:
                    whole = tensors.setdefault(f"optimizer.{key}", torch.zeros(self.numel))
                    whole[a:b].copy_(value)
        return tensors

    def load_state(self, tensors: dict[str, torch.Tensor], version: int) -> None:
        """Take over what `state_tensors` gave. Raises `ValueError` when the sizes differ."""
        vector = tensors["vector"]
        if vector.numel() != self.numel:
            raise ValueError(f"state holds {vector.numel()} elements, this shard {self.numel}")
        self.vector.copy_(vector)
        names = [name.split(".") for name in tensors if name.startswith("optimizer.")]
        for index, group, (a, b) in self._groups():
            state = {name[1]: tensors[".".join(name)][a:b].clone() for name in names if len(name) == 2}
            counters = [name[2] for name in names if len(name) == 3 and name[1] == str(index)]
            state |= {key: tensors[f"optimizer.{index}.{key}"].clone() for key in counters}
            assert self._optimizer is not None
            self._optimizer.state.pop(group["params"][0], None)
            if state:
                self._optimizer.state[group["params"][0]] = state
        self._previous = None
        self._moved(version)

    def _groups(self) -> list[tuple[int, dict[str, Any], tuple[int, int]]]:
        """(index in the model, group, its place in the vector) of the param groups that this shard has a part of."""
        if self._optimizer is None:
            return []
        return list(zip(self._present, self._optimizer.param_groups, self._spans, strict=True))

    def _state_of(self, group: dict[str, Any]) -> dict[str, Any]:
        assert self._optimizer is not None
        kept = self._optimizer.state.get(group["params"][0], {})
        return {key: value for key, value in kept.items() if value is not None}

    def digest(self) -> str:
        return tensor_digest(self.vector)

    def checksum(self) -> int:
        """crc32 of the vector: ten times as fast as the digest, for replicas to compare now and then."""
        return zlib.crc32(byte_view(self.vector))


def _each_element(value: Any, numel: int) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == (numel,)


def parameters_for(meta: dict[str, Any], keep_previous: bool, readers: int, shared: bool = False) -> Parameters:
    """Memory for the shard that `meta` describes; `shared`: workers on this host read snapshots in place."""
    manifest = Manifest.from_json(meta["manifest"])
    return Parameters(manifest, meta["optimizer"], meta["start"], meta["stop"], keep_previous, readers, shared)

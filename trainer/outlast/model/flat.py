"""A model as one flat float32 vector: parameters first, in the order of the optimizer's groups, then buffers.

    flat  float32 [numel]:  [ group 0 | group 1 | ... | non-trainable buffers ]

The manifest names each tensor's place. Parameters are views into the flat vector where they are float32 on the same
device, so loading weights is one copy. Buffers of other types (BatchNorm's int64 counters) travel as float32, exact
up to 2**24.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn


class ManifestMismatch(ValueError):
    """The tensors are not those that the job's manifest names."""


@dataclass(frozen=True)
class TensorPlace:
    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int  # elements
    numel: int
    group: int  # index of the optimizer's param group; -1: a buffer


@dataclass(frozen=True)
class Manifest:
    """Where each tensor lies in the flat vector. `digest` tells two models apart."""

    places: tuple[TensorPlace, ...]
    parameters: int  # elements that the optimizer moves; the rest are buffers
    numel: int

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]

    def groups(self) -> list[tuple[int, int]]:
        """(start, stop) of each param group in the flat vector, in elements."""
        count = 1 + max((p.group for p in self.places), default=-1)
        spans = []
        for group in range(count):
            mine = [p for p in self.places if p.group == group]
            spans.append((mine[0].offset, mine[-1].offset + mine[-1].numel) if mine else (0, 0))
        return spans

    def to_json(self) -> dict[str, Any]:
        return {"places": [asdict(p) for p in self.places], "parameters": self.parameters, "numel": self.numel}

    @staticmethod
    def from_json(raw: dict[str, Any]) -> Manifest:
        places = tuple(TensorPlace(**{**p, "shape": tuple(p["shape"])}) for p in raw["places"])
        return Manifest(places, int(raw["parameters"]), int(raw["numel"]))


def shard_ranges(numel: int, shards: int) -> list[tuple[int, int]]:
    """Split [0, numel) into `shards` contiguous ranges whose sizes differ by at most one element."""
    bounds = [numel * i // shards for i in range(shards + 1)]
    return list(itertools.pairwise(bounds))


class FlatModel:
    """Binds parameters (in groups) and buffers to one flat float32 vector.

    `groups` holds (name, parameter) pairs a param group. After construction the parameters' values are those they
    had, seen through `flat`.
    """

    def __init__(
        self, groups: Sequence[Sequence[tuple[str, nn.Parameter]]], buffers: Iterable[tuple[str, torch.Tensor]] = ()
    ) -> None:
        self._parameters = [p for group in groups for _, p in group]
        if not self._parameters:
            raise ManifestMismatch("the model has no parameters to train")
        self._buffers = list(buffers)
        self.manifest = _manifest(groups, self._buffers)
        device = self._parameters[0].device
        self.flat = torch.empty(self.manifest.numel, dtype=torch.float32, device=device)
        self._places = self.manifest.places
        self._shapes = [tuple(p.shape) for p in self._parameters]
        self._bind()

    def _bind(self) -> None:
        for parameter, place in zip(self._parameters, self._places, strict=False):
            view = self.flat.narrow(0, place.offset, place.numel).view(place.shape)
            view.copy_(parameter.detach())
            if parameter.dtype == torch.float32 and parameter.device == self.flat.device:
                parameter.data = view
        self.collect_buffers(self.flat)

    def collect_buffers(self, out: torch.Tensor) -> None:
        """Copy the non-trainable buffers' values into their places in `out`, float32 [numel]."""
        for (_, buffer), place in zip(self._buffers, self._places[len(self._parameters) :], strict=True):
            out.narrow(0, place.offset, place.numel).copy_(buffer.detach().reshape(-1))

    def check_shapes(self) -> None:
        """Raise `ManifestMismatch` if a parameter's shape has changed."""
        for parameter, place, shape in zip(self._parameters, self._places, self._shapes, strict=False):
            if tuple(parameter.shape) != shape:
                raise ManifestMismatch(
                    f'parameter "{place.name}" has shape {list(parameter.shape)}, was {list(shape)} when the job '
                    "began; a model must keep its shapes while it trains"
                )

    def pack(self, out: torch.Tensor) -> None:
        """Concatenate gradients in manifest order, then buffer values, into `out`, float32 [numel] on the CPU.

        A parameter without a gradient contributes zeros. Raises `ManifestMismatch` if a shape has changed.
        """
        self.check_shapes()
        for parameter, place, shape in zip(self._parameters, self._places, self._shapes, strict=False):
            target = out.narrow(0, place.offset, place.numel)
            if parameter.grad is None:
                target.zero_()
            else:
                target.view(shape).copy_(parameter.grad, non_blocking=True)
        self.collect_buffers(out)
        if self.flat.is_cuda:
            torch.cuda.current_stream().synchronize()

    def load(self, weights: torch.Tensor) -> None:
        """Set parameters and buffers from `weights`, float32 [numel] on the CPU."""
        self.flat.copy_(weights, non_blocking=True)
        self.spread()

    def spread(self) -> None:
        """Take over what `flat` holds: buffers, and parameters that are no views into it (other types)."""
        for i, parameter in enumerate(self._parameters):
            place = self._places[i]
            if parameter.dtype != torch.float32 or parameter.data_ptr() != self.flat.data_ptr() + place.offset * 4:
                parameter.data.copy_(self.flat.narrow(0, place.offset, place.numel).view(place.shape))
        for (_, buffer), place in zip(self._buffers, self._places[len(self._parameters) :], strict=True):
            value = self.flat.narrow(0, place.offset, place.numel).view(place.shape)
            buffer.copy_(value if buffer.is_floating_point() else value.round())


def _manifest(
    groups: Sequence[Sequence[tuple[str, nn.Parameter]]], buffers: list[tuple[str, torch.Tensor]]
) -> Manifest:
    places: list[TensorPlace] = []
    offset = 0
    for index, group in enumerate(groups):
        for name, parameter in group:
            places.append(_place(name, parameter, offset, index))
            offset += parameter.numel()
    parameters = offset
    for name, buffer in buffers:
        places.append(_place(name, buffer, offset, -1))
        offset += buffer.numel()
    return Manifest(tuple(places), parameters, offset)


def _place(name: str, tensor: torch.Tensor, offset: int, group: int) -> TensorPlace:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorPlace(name, tuple(tensor.shape), dtype, offset, tensor.numel(), group)


def byte_view(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, without a copy."""
    assert tensor.is_contiguous()
    assert tensor.device.type == "cpu"
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.int16)
    array: Any = tensor.numpy()  # numpy's stubs do not say that an array is a buffer
    return memoryview(array).cast("B")


def tensor_digest(tensor: torch.Tensor) -> str:
    """sha256 of a CPU tensor's bytes, in hex."""
    return hashlib.sha256(byte_view(tensor.contiguous())).hexdigest()

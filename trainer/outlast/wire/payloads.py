"""What a server's entries carry: pooled gradient memory, or a worker's initial state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from outlast.wire.pool import Lease

Payload = Lease  # a gradient: float32 [n] of the shard's range, in pooled memory


@dataclass(frozen=True)
class InitialState:
    """The first worker's weights for this shard, with `meta`: manifest, optimizer, start, stop."""

    tensor: torch.Tensor
    meta: dict[str, Any]


def flatten(tensors: dict[str, torch.Tensor]) -> tuple[list[list[Any]], torch.Tensor]:
    """One float32 vector of all tensors, and where each lies: [[name, shape], …]."""
    places = [[name, list(t.shape)] for name, t in tensors.items()]
    return places, torch.cat([t.reshape(-1).to(torch.float32) for t in tensors.values()])


def unflatten(places: list[list[Any]], flat: torch.Tensor) -> dict[str, torch.Tensor]:
    """What `flatten` took, as views into `flat`."""
    tensors, at = {}, 0
    for name, shape in places:
        numel = 1
        for extent in shape:
            numel *= int(extent)
        tensors[str(name)] = flat[at : at + numel].view(*shape) if shape else flat[at]
        at += numel
    return tensors

"""A server without its sockets: the product's replica decides, the product's parameters apply, in this process.

gradients ─▶ FromLog, 32 at a time ─▶ Replica (order, policy, weights, rate) ─▶ Parameters (combine, update, add)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from outlast.api.view import Member, View
from outlast.chain.events import Contribution, Entry, FromLog, Identity, Install, Kind, Push
from outlast.chain.replica import Replica, restored
from outlast.chain.settings import ReplicaSettings
from outlast.chain.staleness import inverse, usual_staleness
from outlast.model.flat import Manifest
from outlast.server.parameters import Parameters

BOOT = "boot"
EPOCH = HISTORY = 1


@dataclass(frozen=True)
class Gradient:
    """One of a worker's: at which weights of which version, and how it is sent."""

    slot: int
    first: int
    last: int
    pulled: int
    payload: torch.Tensor  # float32 [numel]
    kind: Kind = Kind.UPDATE
    lr_scale: float = 1.0
    copy: torch.Tensor | None = None  # the weights it was computed at, where the server keeps a copy of them


class SimulatedServer:
    """One shard, one member. `applied_weight`: how many whole gradients all that was applied here came to."""

    def __init__(self, manifest: Manifest, optimizer: dict[str, Any], settings: ReplicaSettings) -> None:
        self.replica = Replica("server-0", BOOT, 0, settings)
        self.parameters = Parameters(manifest, optimizer, 0, manifest.numel, keep_previous=False, readers=1)
        self.applied_weight = 0.0
        self._scratch = torch.zeros(manifest.numel)
        self._offset = 0
        self._slots = settings.slots

    def initialise(self, weights: torch.Tensor) -> None:
        """Begin with these weights, at version 0."""
        self._install(None)
        self.parameters.initialise(weights)
        self.replica.step(Push("init", EPOCH, 1, Contribution(Identity(0, 0, 0), 0, HISTORY, None, Kind.INIT)))

    def rebuild(self, other: SimulatedServer) -> None:
        """Hold what `other` holds, as a server that Redis gives its state back to."""
        self._install("buffer")
        self.parameters.load_state(other.parameters.state_tensors(), other.version)
        self.replica.step(restored(other.replica.export_state(), source="buffer"))
        self._offset = other._offset
        assert self.version == other.version

    def _install(self, restore: str | None) -> None:
        member = Member("server-0", BOOT, "unix:/none")
        self.replica.step(Install(View(0, EPOCH, HISTORY, (member,), restore=restore)))

    @property
    def version(self) -> int:
        return self.replica.version

    @property
    def vector(self) -> torch.Tensor:
        return self.parameters.vector

    @torch.no_grad()
    def take(self, gradients: Sequence[Gradient], pending: int = 0) -> None:
        """Apply what one read of the log brought. `pending`: how many wait together (0: these are all)."""
        items = []
        for g in gradients:
            self._offset += 1
            identity = Identity(g.slot, g.first, g.last)
            items.append((self._offset, 1, Contribution(identity, g.pulled, HISTORY, g, g.kind, g.lr_scale)))
        ready = self.replica.step(FromLog(EPOCH, tuple(items), pending))
        for entry in ready.apply:
            self._apply(entry)

    def _apply(self, entry: Entry) -> None:
        gradient = self._combine(entry)
        if entry.kind is Kind.DELTA:
            self.parameters.add(gradient, entry.version)
        else:
            self.parameters.update(gradient, entry.rate, entry.version)

    def _combine(self, entry: Entry) -> torch.Tensor:
        parts: list[tuple[torch.Tensor, float, torch.Tensor | None]] = []
        for part in entry.parts:
            sent: Gradient = part.payload
            payload, weight, then = sent.payload, part.weight, None
            if part.compensate_from is not None:
                then = sent.copy
                if then is None:  # no pull copy: as a server does that has just been promoted
                    usual = usual_staleness(self._slots)
                    weight *= inverse(self.parameters.version, 0, part.compensate_from, usual)
                else:
                    payload = payload.clone()  # it is compensated in place, and other policies take it too
            parts.append((payload, weight, then))
            self.applied_weight += weight * entry.rate
        self.parameters.combine(self._scratch, parts)
        return self._scratch

"""What servers have told a worker: the newest weights of each shard, and what their answers say of all slots.

Incoming weights are received straight into the spare of two vectors a shard and then swapped, so the worker never
sees half of an update. The outbox's lock guards all writes but those into `spare`; the training loop reads single
numbers without it, and copies weights under it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from outlast.chain.events import DataPlan


@dataclass
class _Staged:
    """The newest weights of one shard: float32 [n], and the spare that the next ones are received into."""

    front: torch.Tensor
    spare: torch.Tensor
    version: int = -1
    history: int = 0
    arrivals: int = 0
    clock: int = 0  # this slot's highest step that the shard told as applied


class Inbox:
    """The newest weights of every shard. `ranges[shard]` is its part (start, stop) of the flat vector."""

    def __init__(self, ranges: list[tuple[int, int]], slot: int, slots: int, pinned: bool) -> None:
        self.ranges = ranges
        self.data = DataPlan(slots=slots)
        self.clocks: dict[int, int] = {}  # by slot: the highest step that any shard told as applied
        self._slot = slot
        self._staged = [
            _Staged(torch.zeros(b - a, pin_memory=pinned), torch.zeros(b - a, pin_memory=pinned)) for a, b in ranges
        ]

    # --- a shard's thread ---

    def spare(self, shard: int) -> torch.Tensor:
        """Where to receive the next weights of `shard`: float32 [its range]."""
        return self._staged[shard].spare

    def show(self, shard: int, version: int, history: int) -> None:
        """The spare holds new weights: they are the newest from now on."""
        staged = self._staged[shard]
        staged.front, staged.spare = staged.spare, staged.front
        staged.version, staged.history = version, history
        staged.arrivals += 1

    def note(self, shard: int, meta: Mapping[str, Any]) -> None:
        """Take the plan of batches and the slots' clocks from an answer."""
        self.data = DataPlan(*meta["data"])
        clocks = {int(slot): int(step) for slot, step in meta.get("clocks", {}).items()}
        for slot, step in clocks.items():
            self.clocks[slot] = max(step, self.clocks.get(slot, 0))
        staged = self._staged[shard]
        staged.clock = max(staged.clock, clocks.get(self._slot, 0))

    # --- the training loop ---

    @property
    def versions(self) -> tuple[int, ...]:
        """By shard; -1 where no weights have come yet."""
        return tuple(s.version for s in self._staged)

    @property
    def histories(self) -> tuple[int, ...]:
        return tuple(s.history for s in self._staged)

    @property
    def torn(self) -> bool:
        """Whether the shards' newest weights are of different versions or histories."""
        return len({(s.version, s.history) for s in self._staged}) > 1

    @property
    def arrivals(self) -> int:
        """Grows whenever weights come in."""
        return sum(s.arrivals for s in self._staged)

    @property
    def arrivals_by_shard(self) -> list[int]:
        return [s.arrivals for s in self._staged]

    def arrived_since(self, seen: list[int]) -> bool:
        """Whether weights have come from every shard since its `arrivals_by_shard` was `seen`."""
        return all(s.arrivals > n for s, n in zip(self._staged, seen, strict=True))

    def applied(self, step: int) -> bool:
        """Whether every shard has told that it has applied this slot's step, or a later one."""
        return all(s.clock >= step for s in self._staged)

    @property
    def received_bytes(self) -> int:
        return sum((b - a) * 4 * s.arrivals for (a, b), s in zip(self.ranges, self._staged, strict=True))

    def copy_to(self, out: torch.Tensor) -> None:
        """Copy the newest weights into `out`, float32 [numel]."""
        for (a, b), staged in zip(self.ranges, self._staged, strict=True):
            out[a:b].copy_(staged.front, non_blocking=True)
        if out.is_cuda:
            torch.cuda.current_stream().synchronize()  # the memory is received into again once the lock is free

"""Preallocated tensors that are lent out and come back by themselves.

First touch of fresh memory runs an order of magnitude slower than a copy into memory that was touched before, so
servers and workers keep their buffers. A lease returns to its pool when its last reference goes: CPython's reference
counts do the counting that the chain's log, the links and the readers would otherwise have to agree on.
"""

from __future__ import annotations

import threading
import weakref

import torch


class Lease:
    """A tensor out of a pool. `tensor` is valid while this object lives."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


class TensorPool:
    """Float32 vectors `[numel]`, at most `limit` of them, made (and touched) as they are first needed.

    `pinned`: in page-locked memory, which a CUDA device copies to and from asynchronously.
    """

    def __init__(self, numel: int, limit: int, preallocate: int = 2, pinned: bool = False) -> None:
        self.numel, self.limit, self._pinned = numel, limit, pinned
        self._condition = threading.Condition(threading.RLock())  # a finalizer may run inside any allocation
        self._free: list[torch.Tensor] = [self._make() for _ in range(min(preallocate, limit))]
        self._made = len(self._free)

    def _make(self) -> torch.Tensor:
        return torch.zeros(self.numel, pin_memory=self._pinned)

    def take(self, timeout_s: float | None = None) -> Lease | None:
        """Borrow a vector; its content is arbitrary. Waits while all are lent; None after `timeout_s` seconds."""
        with self._condition:
            while not self._free:
                if self._made < self.limit:
                    self._made += 1
                    self._free.append(self._make())
                elif not self._condition.wait(timeout_s):
                    return None
            tensor = self._free.pop()
        lease = Lease(tensor)
        weakref.finalize(lease, self._give_back, tensor).atexit = False
        return lease

    def borrow(self) -> Lease:
        """As `take`, without an end of the wait."""
        lease = self.take()
        assert lease is not None
        return lease

    def _give_back(self, tensor: torch.Tensor) -> None:
        with self._condition:
            self._free.append(tensor)
            self._condition.notify()

"""Vectors in memory that a peer on the same host reads straight out of: no copy through a socket.

    page 0         magic, vectors, stride, then one generation a vector (u64 each)
    from `start`   the vectors, float32 [numel], `stride` bytes apart

A writer raises a vector's generation when it takes the vector for something new, before it writes. A reader is told
(vector, generation), copies, and looks at the generation again: what was overwritten meanwhile it never uses, however
long it was paused between being told and copying. So nobody needs to know whether a reader still lives.

The memory is a sealed memfd: it can neither shrink nor grow, so a reader's mapping cannot fault. Its descriptor
travels over the Unix socket that the two talk on; the mapping outlives the writer's death.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from dataclasses import dataclass

import numpy as np
import torch

from outlast.api.messages import ProtocolError
from outlast.memory import Lease, TensorPool

_MAGIC = 0x544E454D47455331
_FIXED = struct.Struct("<QQQ")  # magic, vectors, stride
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW if hasattr(fcntl, "F_SEAL_SHRINK") else 0

AVAILABLE = hasattr(os, "memfd_create")


@dataclass(frozen=True, slots=True)
class Place:
    """Where bytes lie in a peer's segment: [first, first + length) of a vector, as of a generation."""

    vector: int
    first: int
    length: int
    generation: int

    def to_json(self) -> list[int]:
        return [self.vector, self.first, self.length, self.generation]

    @staticmethod
    def from_json(raw: object) -> Place:
        """Raises `ProtocolError` for anything but four whole numbers that are not negative."""
        if not (isinstance(raw, list) and len(raw) == 4 and all(type(n) is int and n >= 0 for n in raw)):
            raise ProtocolError(f"place {raw!r} in shared memory is no list of vector, first, length, generation")
        return Place(*raw)


def _round_up(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


class SharedPool(TensorPool):
    """A `TensorPool` whose vectors lie in a segment; pages cost memory once they are touched."""

    def __init__(self, numel: int, limit: int, preallocate: int = 2) -> None:
        self.fd = os.memfd_create("outlast", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            self._stride = _round_up(numel * 4)
            self._start = _round_up(_FIXED.size + 8 * limit)
            size = self._start + limit * self._stride
            os.ftruncate(self.fd, size)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)
            self._memory = mmap.mmap(self.fd, size)
        except BaseException:
            os.close(self.fd)
            raise
        _FIXED.pack_into(self._memory, 0, _MAGIC, limit, self._stride)
        self._generations = np.frombuffer(self._memory, np.uint64, limit, _FIXED.size)
        self._vectors: dict[int, int] = {}  # by a tensor's address
        super().__init__(numel, limit, preallocate)

    def __del__(self) -> None:
        if getattr(self, "fd", -1) >= 0:
            os.close(self.fd)
            self.fd = -1

    def _make(self) -> torch.Tensor:
        vector = len(self._vectors)
        at = self._start + vector * self._stride
        tensor = torch.frombuffer(self._memory, dtype=torch.float32, count=self.numel, offset=at)
        self._vectors[tensor.data_ptr()] = vector
        return tensor.zero_()

    def take(self, timeout_s: float | None = None) -> Lease | None:
        lease = super().take(timeout_s)
        if lease is not None:
            self._generations[self._vectors[lease.tensor.data_ptr()]] += np.uint64(1)
        return lease

    def place(self, lease: Lease, first: int, last: int) -> Place | None:
        """Where a peer finds elements [first, last) of what was lent; None if another pool has lent it."""
        vector = self._vectors.get(lease.tensor.data_ptr())
        if vector is None:
            return None
        return Place(vector, first * 4, (last - first) * 4, int(self._generations[vector]))


class Mapping:
    """A peer's segment, to read from. Owns the descriptor it is given."""

    def __init__(self, fd: int) -> None:
        try:
            seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
            if seals & _SEALS != _SEALS:
                raise ProtocolError("shared memory is not sealed: it could shrink under its reader")
            size = os.fstat(fd).st_size
            self._memory = mmap.mmap(fd, size, prot=mmap.PROT_READ)
        except (OSError, ValueError) as error:
            raise ProtocolError(f"a descriptor is no shared memory of ours: {error}") from error
        finally:
            os.close(fd)
        if size < _FIXED.size:
            raise ProtocolError(f"shared memory has {size} bytes, its description alone takes {_FIXED.size}")
        magic, vectors, stride = _FIXED.unpack_from(self._memory, 0)
        self._start = _round_up(_FIXED.size + 8 * vectors)
        if magic != _MAGIC or self._start + vectors * stride != size:
            raise ProtocolError(f"shared memory of {size} bytes describes itself as {vectors} vectors of {stride}")
        self._vectors, self._stride = vectors, stride
        self._generations = np.frombuffer(self._memory, np.uint64, vectors, _FIXED.size)

    def read(self, place: Place, out: torch.Tensor) -> bool:
        """Copy what lies at `place` into `out`, float32 of as many bytes; False if it was overwritten meanwhile.

        Raises `ProtocolError` when `place` lies outside the segment or is of another size than `out`.
        """
        size = out.numel() * 4
        if place.vector >= self._vectors or place.first + place.length > self._stride or place.length != size:
            raise ProtocolError(f"{place} lies outside the segment ({self._vectors} vectors) or is not {size} bytes")
        if int(self._generations[place.vector]) != place.generation:
            return False
        at = self._start + place.vector * self._stride + place.first
        np.copyto(out.numpy(), np.frombuffer(self._memory, np.float32, out.numel(), at))  # others run meanwhile
        return int(self._generations[place.vector]) == place.generation


def make_pool(numel: int, limit: int, shared: bool) -> TensorPool:
    """A pool of vectors [numel]; where `shared` and the system can, one that peers on this host can read."""
    return SharedPool(numel, limit) if shared and AVAILABLE else TensorPool(numel, limit)

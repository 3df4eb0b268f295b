"""Vectors in memory that a peer on the same host reads straight out of: no copy through a socket.

    page 0         magic, vectors, stride, then one generation a vector (u64 each)
    from `start`   the vectors, float32 [numel], `stride` bytes apart

A writer raises a vector's generation when it takes the vector for something new, before it writes. A reader is told
(vector, generation), copies, and looks at the generation again: what was overwritten meanwhile it never uses, however
long it was paused between being told and copying. So nobody needs to know whether a reader still lives. A lock taken
and left on either side orders the accesses on processors that would not.

The memory is a sealed memfd: it can neither shrink nor grow, so a reader's mapping cannot fault. Its descriptor
travels over the Unix socket that the two talk on; the mapping outlives the writer's death.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import mmap
import os
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from outlast.wire.frames import ProtocolError
from outlast.wire.pool import Lease, TensorPool

log = logging.getLogger("outlast.segment")

_MAGIC = 0x544E454D47455331
_FIXED = struct.Struct("<QQQ")  # magic, vectors, stride
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW if hasattr(fcntl, "F_SEAL_SHRINK") else 0

_NOEXEC = 0x8  # MFD_NOEXEC_SEAL, from Linux 6.3 on; some systems refuse a memfd without it
_FUTURE_WRITE = 0x10  # F_SEAL_FUTURE_WRITE, from Linux 5.1 on: nobody else can map it to write
_PIECE = 1 << 24  # elements copied at a time: 64 MiB

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
    """A `TensorPool` whose vectors lie in a segment; pages cost memory once they are touched.

    Raises `OSError` where the system gives no such memory.
    """

    fd = -1

    def __init__(self, numel: int, limit: int, preallocate: int = 2) -> None:
        self.fd = _make_memfd()
        self._stride = _round_up(numel * 4)
        self._start = _round_up(_FIXED.size + 8 * limit)
        size = self._start + limit * self._stride
        os.ftruncate(self.fd, size)
        self._memory = mmap.mmap(self.fd, size)
        _seal(self.fd)
        _FIXED.pack_into(self._memory, 0, _MAGIC, limit, self._stride)
        self._generations = np.frombuffer(self._memory, np.uint64, limit, _FIXED.size)
        self._vectors: dict[int, int] = {}  # by a tensor's address
        self._fence = threading.Lock()
        super().__init__(numel, limit, preallocate)

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)

    def _make(self) -> torch.Tensor:
        vector = len(self._vectors)
        at = self._start + vector * self._stride
        tensor = torch.frombuffer(self._memory, dtype=torch.float32, count=self.numel, offset=at)
        self._vectors[tensor.data_ptr()] = vector
        return tensor.zero_()

    def take(self, timeout_s: float | None = None) -> Lease | None:
        lease = super().take(timeout_s)
        if lease is not None:
            with self._fence:
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
            raise ProtocolError(f"a descriptor is not a shared memory segment of Outlast: {error}") from error
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
        self._fence = threading.Lock()

    def read(self, place: Place, out: torch.Tensor, between: Callable[[], None] | None = None) -> bool:
        """Copy what lies at `place` into `out`, float32 of as many bytes; False if it was overwritten meanwhile.

        Raises `ProtocolError` when `place` lies outside the segment or is of another size than `out`. `between` is
        called after every 64 MiB.
        """
        size = out.numel() * 4
        if place.vector >= self._vectors or place.first + place.length > self._stride or place.length != size:
            raise ProtocolError(f"{place} lies outside the segment ({self._vectors} vectors) or is not {size} bytes")
        at = self._start + place.vector * self._stride + place.first
        source, target = np.frombuffer(self._memory, np.float32, out.numel(), at), out.numpy()
        for piece in range(0, out.numel(), _PIECE):
            if not self._is_current(place):
                return False
            np.copyto(target[piece : piece + _PIECE], source[piece : piece + _PIECE])  # other threads run meanwhile
            if between is not None:
                between()
        return self._is_current(place)

    def _is_current(self, place: Place) -> bool:
        with self._fence:
            return int(self._generations[place.vector]) == place.generation


def _make_memfd() -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create("outlast", flags | _NOEXEC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return os.memfd_create("outlast", flags)  # an older kernel


def _seal(fd: int) -> None:
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    with contextlib.suppress(OSError):  # an older kernel: its peers, which hold the job's token, could write
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _FUTURE_WRITE)


def make_pool(numel: int, limit: int, shared: bool) -> TensorPool:
    """A pool of vectors [numel]; where `shared` and the system can, one that peers on this host can read."""
    if shared and AVAILABLE:
        try:
            return SharedPool(numel, limit)
        except OSError as error:
            log.warning("no shared memory (%s): gradients and weights go through the socket, which is slower", error)
    return TensorPool(numel, limit)

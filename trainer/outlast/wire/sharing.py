"""One connection of two processes on a host that read vectors out of each other's memory (see shared_memory.py)."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from outlast.model.flat import byte_view
from outlast.wire.connection import Connection
from outlast.wire.frames import Flag, Header, ProtocolError
from outlast.wire.pool import Lease, TensorPool
from outlast.wire.shared_memory import Mapping, Place, SharedPool


class Sharing:
    """A connection, what has been shown to the peer over it, and what the peer has shown to us.

    `agreed`: the peer has said in its HELLO or WELCOME that it reads shared memory.
    """

    def __init__(self, connection: Connection, agreed: bool) -> None:
        self.connection = connection
        self._agreed = agreed and connection.local
        self._mapping: Mapping | None = None
        self._shown: Callable[[], TensorPool | None] = lambda: None  # whose descriptor the peer has

    def send(
        self,
        header: Header,
        meta: dict[str, Any] | None,
        pool: TensorPool | None,
        lease: Lease,
        span: tuple[int, int] | None = None,
    ) -> bool:
        """Send a frame with elements [first, last) of the lease (all, if not given) as payload.

        True: the peer reads them in `pool`, and they should stay as they are until it is heard of again.
        """
        first, last = span or (0, lease.tensor.numel())
        place = pool.place(lease, first, last) if self._agreed and isinstance(pool, SharedPool) else None
        if place is None:
            self.connection.send(header, meta, byte_view(lease.tensor[first:last]))
            return False
        assert isinstance(pool, SharedPool)
        descriptor = None if self._shown() is pool else pool.fd
        shared = replace(header, flags=header.flags | Flag.SHARED)
        self.connection.send(shared, {**(meta or {}), "shared": place.to_json()}, descriptor=descriptor)
        self._shown = weakref.ref(pool)
        return True

    def shows(self, pool: TensorPool | None) -> bool:
        """Whether the peer reads this pool in place already: a frame is then a few hundred bytes."""
        return self._agreed and isinstance(pool, SharedPool) and self._shown() is pool

    def try_send(self, header: Header, meta: dict[str, Any], pool: TensorPool | None, lease: Lease) -> bool:
        """As `send` of a whole lease from a pool that it `shows`, without ever waiting.

        False: nothing was sent, for the lease is another pool's, or the peer reads slowly.
        """
        assert isinstance(pool, SharedPool)
        place = pool.place(lease, 0, lease.tensor.numel())
        if place is None:
            return False
        shared = replace(header, flags=header.flags | Flag.SHARED)
        return self.connection.try_send(shared, {**meta, "shared": place.to_json()})

    def read(self, place: Place, out: torch.Tensor, between: Callable[[], None] | None = None) -> bool:
        """Copy the payload of a SHARED frame, which lies at `place`, into `out`, float32 [n].

        `between` is called between pieces. False when the peer has overwritten it meanwhile. Raises `ProtocolError`
        for a place outside its memory.
        """
        descriptor = self.connection.take_descriptor()
        if descriptor is not None:
            self._mapping = Mapping(descriptor)
        if self._mapping is None:
            raise ProtocolError("a frame points into shared memory, and no descriptor of it has come")
        return self._mapping.read(place, out, between)

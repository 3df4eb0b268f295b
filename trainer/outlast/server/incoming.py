"""The payloads of pushes and chain entries: gradients into pooled memory, initial weights into their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from outlast.model.flat import byte_view
from outlast.wire.connection import Connection
from outlast.wire.frames import DType, Flag, Header, ProtocolError
from outlast.wire.payloads import InitialState, Payload
from outlast.wire.pool import TensorPool
from outlast.wire.shared_memory import Place
from outlast.wire.sharing import Sharing


def take_payload(
    reader: Sharing,
    header: Header,
    meta: dict[str, Any],
    pool: TensorPool | None,
    between: Callable[[], None] | None = None,
) -> InitialState | Payload | None:
    """What a frame carries; None while there is no pool yet to hold it (it is thrown away).

    `between` is called now and then while a large gradient is copied.
    """
    if header.flags & Flag.SHARED:
        return _copy(reader, header, meta, pool, between)
    return _receive(reader.connection, header, meta, pool)


def _copy(
    reader: Sharing, header: Header, meta: dict[str, Any], pool: TensorPool | None, between: Callable[[], None] | None
) -> Payload | None:
    """A gradient, copied out of its sender's memory."""
    if header.length or header.flags & Flag.INIT or header.dtype != DType.FLOAT32:
        raise ProtocolError("what comes through shared memory is a float32 gradient or delta, and has no payload")
    if pool is None:
        return None
    lease = pool.borrow()
    if not reader.read(Place.from_json(meta.get("shared")), lease.tensor, between):
        # A worker: it is safe elsewhere (in the buffer, say). A predecessor: it has given up this link.
        raise ConnectionResetError("a gradient was overwritten before it was read: its sender has moved on")
    return lease


def _receive(
    connection: Connection, header: Header, meta: dict[str, Any], pool: TensorPool | None
) -> InitialState | Payload | None:
    if header.dtype != DType.FLOAT32:
        raise ProtocolError(f"push has dtype {header.dtype}, expected float32")
    if header.flags & Flag.INIT:
        tensor = torch.empty(header.length // 4)
        connection.receive_into(byte_view(tensor))
        return InitialState(tensor, meta)
    if pool is None:
        _discard(connection, header.length)
        return None
    if header.length != pool.numel * 4:
        raise ProtocolError(f"push has {header.length} bytes, this shard's gradients have {pool.numel * 4}")
    lease = pool.borrow()
    connection.receive_into(byte_view(lease.tensor))
    return lease


def _discard(connection: Connection, length: int) -> None:
    scratch = bytearray(min(length, 1 << 20))
    while length > 0:
        part = memoryview(scratch)[: min(length, len(scratch))]
        connection.receive_into(part)
        length -= len(part)

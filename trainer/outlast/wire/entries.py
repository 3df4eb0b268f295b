"""Chain entries as frames: the decisions in header and meta, the final gradient as payload."""

from __future__ import annotations

from typing import Any

from outlast.chain.events import DataPlan, Entry, Identity, Kind
from outlast.wire.frames import DType, Flag, Header, Op
from outlast.wire.payloads import InitialState

_FLAGS = {Kind.INIT: Flag.INIT, Kind.DELTA: Flag.DELTA}


def entry_to_wire(entry: Entry, epoch: int, stable: int) -> tuple[Header, dict[str, Any]]:
    """Header and meta of a FORWARD frame; its payload is `entry.payload.tensor`, if there is one."""
    meta: dict[str, Any] = {
        "kind": str(entry.kind),
        "rate": entry.rate,
        "stable": stable,
        "ids": [[i.slot, i.first, i.last] for i in entry.identities],
    }
    if entry.checksum is not None:
        meta["checksum"] = entry.checksum
    if entry.data is not None:
        meta["data"] = [entry.data.base, entry.data.step0, entry.data.slots]
    if isinstance(entry.payload, InitialState):
        meta["initial"] = entry.payload.meta
    flags = int(_FLAGS.get(entry.kind, 0))
    dtype = DType.NONE if entry.payload is None else DType.FLOAT32
    header = Header(
        Op.FORWARD, dtype, flags, epoch=epoch, version=entry.version, seq=entry.seq, offset=entry.offset
    )  # fmt: skip
    return header, meta


def entry_from_wire(header: Header, meta: dict[str, Any], payload: Any) -> Entry:
    data = meta.get("data")
    return Entry(
        seq=header.seq,
        kind=Kind(meta["kind"]),
        version=header.version,
        identities=tuple(Identity(*i) for i in meta["ids"]),
        rate=float(meta["rate"]),
        payload=payload,
        data=None if data is None else DataPlan(*data),
        offset=header.offset,
        checksum=meta.get("checksum"),
    )

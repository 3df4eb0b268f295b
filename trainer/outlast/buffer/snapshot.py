"""Snapshots of a shard's whole state in Redis: what a stateless server rebuilds from, before the log's records.

Rules
- A snapshot's keys are written once, under a name nobody used before, and live only once the pointer names them.
- The pointer flips in one script that checks the epoch and that history, seq and offset do not go back; the same
  script deletes the snapshot before, and the records that the new one covers.
- Every tensor has a crc; so has the index itself. A snapshot that does not match is never loaded.
"""

from __future__ import annotations

import json
import logging
import secrets
import zlib
from typing import Any

import torch

from outlast.buffer.codec import byte_view, checksum, chunks
from outlast.buffer.scripts import FLIP
from outlast.buffer.store import Store
from outlast.buffer.types import BufferFull, BufferUnavailable, ClaimNeeded, SnapshotCorrupt

logger = logging.getLogger("outlast.buffer")

UPLOAD_TTL_MS = 600_000  # generous: an orphan is as large as the model, and rare
ATTEMPTS = 3


def save_snapshot(store: Store, shard: int, epoch: int, meta: dict[str, Any], tensors: dict[str, torch.Tensor]) -> bool:
    """Store `tensors` (any dtype and shape, unchanged) and `meta` (JSON with at least seq, offset, history).

    True: this state, or a later one of the same history, is what a rebuild starts from. False: fenced.
    Raises `BufferFull` when Redis has no memory for it, `ClaimNeeded`, `BufferUnavailable`.
    """
    name = f"{epoch}-{meta['seq']}-{secrets.token_hex(6)}"
    base = f"{store.prefix}snap:{shard}:{name}"
    index: list[dict[str, Any]] = []
    uploads: list[tuple[str, memoryview]] = []
    kept = []  # views do not keep a converted tensor alive for themselves
    for t, (key, tensor) in enumerate(tensors.items()):
        flat = tensor.detach().cpu().contiguous()
        kept.append(flat)
        view = byte_view(flat)
        pieces = list(chunks(view))
        uploads += [(f"{base}:{t}:{i}", piece) for i, piece in enumerate(pieces)]
        dtype = str(tensor.dtype).removeprefix("torch.")
        index.append(
            {"name": key, "dtype": dtype, "shape": list(tensor.shape), "chunks": len(pieces), "crc": checksum(view)}
        )
    try:
        store.bulk.upload(uploads, UPLOAD_TTL_MS)
    except BufferFull:  # what was taken before memory ran out is needed by others
        _discard(store, base, index)
        raise
    body = json.dumps({"meta": meta, "tensors": index}, separators=(",", ":"))
    pointer = f'{{"crc":{zlib.crc32(body.encode())},{body[1:]}'
    counts = [entry["chunks"] for entry in index]
    args = (name, meta["seq"], meta["offset"], meta["history"], pointer, *counts)
    try:
        answer = store.guarded(FLIP, shard, epoch, *args)
    except ClaimNeeded:  # for no other error: after a lost reply the pointer may name these very keys
        _discard(store, base, index)
        raise
    result = None if answer is None else answer[0].decode()
    if result != "ok":
        _discard(store, base, index)
    if result == "missing":
        raise BufferUnavailable(
            f"shard {shard}: the snapshot's upload to Redis at {store.target} took longer than "
            f"{UPLOAD_TTL_MS // 1000} s or was lost on the way; save it again"
        )
    if result == "stale":
        logger.info("shard %d: Redis already holds a later snapshot than seq %s", shard, meta["seq"])
    return result is not None


def _discard(store: Store, base: str, index: list[dict[str, Any]]) -> None:
    keys = [f"{base}:{t}:{i}" for t, entry in enumerate(index) for i in range(entry["chunks"])]
    if keys:
        store.call("UNLINK", *keys)


def load_snapshot(
    store: Store, shard: int, into: dict[str, torch.Tensor] | None = None
) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
    """(meta, tensors) of the newest snapshot, None if there is none. Tensors in `into` that fit are filled in place.

    Raises `SnapshotCorrupt` when a checksum does not match, `BufferUnavailable`.
    """
    for attempt in range(ATTEMPTS):
        reply = store.call("HMGET", f"{store.prefix}shard:{shard}", "snap_id", "snap")
        if reply[0] is None:
            return None
        name, pointer = reply[0].decode(), json.loads(reply[1])
        crc = pointer.pop("crc")
        if zlib.crc32(json.dumps(pointer, separators=(",", ":")).encode()) != crc:
            raise SnapshotCorrupt(f"shard {shard}: the index of snapshot {name} does not match its checksum")
        tensors, wanted = _landing(store, shard, name, pointer["tensors"], into or {})
        lengths = store.bulk.fetch(wanted)
        if any(length != len(view) for length, (_, view) in zip(lengths, wanted, strict=True)):
            logger.info("shard %d: snapshot %s was replaced while it was read (attempt %d)", shard, name, attempt + 1)
            continue
        for entry in pointer["tensors"]:
            if checksum(byte_view(tensors[entry["name"]])) != entry["crc"]:
                raise SnapshotCorrupt(
                    f"shard {shard}: {entry['name']} of snapshot {name} in Redis at {store.target} does not match its "
                    "checksum; restore from the newest checkpoint"
                )
        return pointer["meta"], tensors
    raise SnapshotCorrupt(
        f"shard {shard}: parts of its snapshot are missing in Redis at {store.target}; restore from the newest "
        "checkpoint, and see that nothing else deletes keys there"
    )


def _landing(
    store: Store, shard: int, name: str, index: list[dict[str, Any]], into: dict[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], list[tuple[str, memoryview]]]:
    tensors: dict[str, torch.Tensor] = {}
    wanted: list[tuple[str, memoryview]] = []
    for t, entry in enumerate(index):
        dtype, shape = getattr(torch, entry["dtype"]), tuple(entry["shape"])
        given = into.get(entry["name"])
        fits = given is not None and given.dtype == dtype and given.shape == shape and given.is_contiguous()
        tensor = given if fits and given is not None else torch.empty(shape, dtype=dtype)
        tensors[entry["name"]] = tensor
        for i, piece in enumerate(chunks(byte_view(tensor))):
            wanted.append((f"{store.prefix}snap:{shard}:{name}:{t}:{i}", piece))
    return tensors, wanted

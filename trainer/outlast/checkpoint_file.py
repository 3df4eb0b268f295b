"""One part of a checkpoint: a safetensors file whose name vouches for its header, whose header vouches for its data.

Rules
- Layout is safetensors' own (any reader of that format opens it), written straight from the tensors' memory.
- The header carries each tensor's crc and the meta; the file's name ends in the header's crc. So a part proves itself:
  truncation and bit flips are found without any other file, and a name is never used for two contents.
- write, fsync, rename, fsync of the directory: under its final name a part is whole, or a disk lied.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import struct
import zlib
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
DTYPE_OF = {name: dtype for dtype, name in DTYPES.items()}
MAX_HEADER_BYTES = 100 << 20  # safetensors' own limit
READ_BYTES = 1 << 20
PART = re.compile(r"part-(\d{5})-of-(\d{5})-e(\d{8,})-([0-9a-f]{8})\.safetensors")


class PartCorrupt(ValueError):
    """The file is truncated, altered, or no part at all."""


@dataclass(frozen=True)
class PartName:
    """What a part's file name says."""

    shard: int
    shards: int
    epoch: int
    crc: int  # of the header

    def __str__(self) -> str:
        return f"part-{self.shard:05d}-of-{self.shards:05d}-e{self.epoch:08d}-{self.crc:08x}.safetensors"

    @staticmethod
    def parse(name: str) -> PartName | None:
        match = PART.fullmatch(name)
        if match is None:
            return None
        return PartName(int(match[1]), int(match[2]), int(match[3]), int(match[4], 16))


@dataclass(frozen=True)
class Stored:
    """A tensor's place in a part's data."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int  # bytes from the beginning of the file
    stop: int
    crc: int

    @property
    def numel(self) -> int:
        return (self.stop - self.start) // self.dtype.itemsize


@dataclass(frozen=True)
class Header:
    tensors: tuple[Stored, ...]
    meta: dict[str, Any]
    nbytes: int  # of the whole file


def write_part_file(
    directory: Path, shard: int, shards: int, epoch: int, tensors: dict[str, torch.Tensor], meta: dict[str, Any]
) -> PartName:
    """Write one part durably. Raises `OSError`; then nothing of it is left."""
    # Widest first, so that each tensor lies aligned.
    ordered = sorted(tensors.items(), key=lambda kv: -kv[1].dtype.itemsize)
    held = [(name, tensor.detach().cpu().contiguous()) for name, tensor in ordered]
    views = [_bytes_of(tensor) for _, tensor in held]
    head = _encode_header(held, views, meta)
    name = PartName(shard, shards, epoch, zlib.crc32(head))
    temporary = directory / f".part-{shard:05d}-e{epoch:08d}-{secrets.token_hex(6)}.tmp"
    write_durably(temporary, directory / str(name), [memoryview(head), *views])
    return name


def write_durably(temporary: Path, final: Path, pieces: list[memoryview]) -> None:
    """All of `pieces` under `final`, or an `OSError` and no trace."""
    try:
        with temporary.open("xb", buffering=0) as file:
            for piece in pieces:
                while len(piece):
                    piece = piece[file.write(piece[: 16 << 20]) :]
            os.fsync(file.fileno())
        os.replace(temporary, final)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    fsync_directory(final.parent)


def fsync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    if tensor.numel() == 0:
        return memoryview(b"")
    array: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


def _encode_header(held: list[tuple[str, torch.Tensor]], views: list[memoryview], meta: dict[str, Any]) -> bytes:
    crcs = {name: zlib.crc32(view) for (name, _), view in zip(held, views, strict=True)}
    fields: dict[str, Any] = {"__metadata__": {"format": "pt", "outlast": json.dumps(meta), "crc32": json.dumps(crcs)}}
    at = 0
    for (name, tensor), view in zip(held, views, strict=True):
        if tensor.dtype not in DTYPES:
            raise ValueError(f"{name}: a checkpoint cannot hold {tensor.dtype}; use one of {', '.join(DTYPE_OF)}")
        fields[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + view.nbytes],
        }
        at += view.nbytes
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def read_header(file: BufferedReader, name: PartName) -> Header:
    """Raises `PartCorrupt` unless header and length are what the name promises."""
    length_field = file.read(8)
    if len(length_field) < 8:
        raise PartCorrupt("is truncated inside its header")
    (length,) = struct.unpack("<Q", length_field)
    size = os.fstat(file.fileno()).st_size
    if length > MAX_HEADER_BYTES or 8 + length > size:
        raise PartCorrupt("is truncated inside its header")
    text = file.read(length)
    if zlib.crc32(length_field + text) != name.crc:
        raise PartCorrupt("has a header that does not match its checksum")
    fields = json.loads(text)
    metadata = fields.pop("__metadata__")
    crcs = json.loads(metadata["crc32"])
    base = 8 + length
    stored = []
    for key, raw in fields.items():
        start, stop = raw["data_offsets"]
        place = Stored(key, DTYPE_OF[raw["dtype"]], tuple(raw["shape"]), base + start, base + stop, crcs[key])
        stored.append(place)
    end = max((t.stop for t in stored), default=base)
    if size != end:
        raise PartCorrupt(f"has {size} bytes where {end} were written")
    return Header(tuple(stored), json.loads(metadata["outlast"]), size)


def verify_part(path: Path) -> Header:
    """Read the whole file and compare every checksum. Raises `PartCorrupt`, `OSError`."""
    with path.open("rb") as file:
        header = read_header(file, _name_of(path))
        buffer = memoryview(bytearray(READ_BYTES))
        for tensor in header.tensors:
            file.seek(tensor.start)
            left, crc = tensor.stop - tensor.start, 0
            while left:
                count = file.readinto(buffer[: min(left, READ_BYTES)])
                if not count:
                    raise PartCorrupt(f"ends inside {tensor.name}")
                crc = zlib.crc32(buffer[:count], crc)
                left -= count
            if crc != tensor.crc:
                raise PartCorrupt(f"holds a {tensor.name} that does not match its checksum")
    return header


def read_part_file(
    path: Path, into: dict[str, torch.Tensor] | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(tensors, meta), checksums compared. Tensors in `into` that fit are filled in place. Raises `PartCorrupt`."""
    tensors: dict[str, torch.Tensor] = {}
    with path.open("rb") as file:
        header = read_header(file, _name_of(path))
        for stored in header.tensors:
            given = (into or {}).get(stored.name)
            fits = (
                given is not None
                and given.dtype == stored.dtype
                and tuple(given.shape) == stored.shape
                and given.is_contiguous()
                and given.device.type == "cpu"
            )
            tensor = given if fits and given is not None else torch.empty(stored.shape, dtype=stored.dtype)
            _read_into(file, stored.start, _bytes_of(tensor))
            if zlib.crc32(_bytes_of(tensor)) != stored.crc:
                raise PartCorrupt(f"holds a {stored.name} that does not match its checksum")
            tensors[stored.name] = tensor
    return tensors, header.meta


def read_slice(path: Path, stored: Stored, start: int, out: torch.Tensor) -> None:
    """Elements `[start, start + out.numel())` of one tensor into `out`; checksums are not compared."""
    with path.open("rb") as file:
        _read_into(file, stored.start + start * stored.dtype.itemsize, _bytes_of(out))


def _read_into(file: BufferedReader, at: int, view: memoryview) -> None:
    file.seek(at)
    while len(view):
        count = file.readinto(view)
        if not count:
            raise PartCorrupt("is truncated")
        view = view[count:]


def _name_of(path: Path) -> PartName:
    name = PartName.parse(path.name)
    if name is None:
        raise PartCorrupt("has a name that no part has")
    return name

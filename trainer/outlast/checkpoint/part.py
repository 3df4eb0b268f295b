"""One part of a checkpoint: a file that the safetensors library writes and reads, and whose name vouches for it.

Rules
- The name ends in the crc of the whole file. So a part proves itself: truncation and any flipped bit are found without
  another file, and a name is never used for two contents.
- Written by the library into a directory of its own, fsync, rename, fsync of the directory: under its final name a
  part is whole, or a disk lied.
- Compared by ordinary reads, and only then mapped: a disk that fails is an error here, where touching mapped memory
  would end the process.

Memory. Writing takes none beside the tensors: `save_file` writes from where they are, with the GIL released (`save`
would build the whole file as bytes first). Reading maps the file: pages of the system's cache, which the system may
take back; the copies that `read_part_file` hands out are all that is allocated, and none where `into` fits.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

META = "outlast"  # the only key of the file's metadata: with more, their order and so the crc would be left to chance
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
    crc: int  # of the file

    def __str__(self) -> str:
        return f"part-{self.shard:05d}-of-{self.shards:05d}-e{self.epoch:08d}-{self.crc:08x}.safetensors"

    @staticmethod
    def parse(name: str) -> PartName | None:
        match = PART.fullmatch(name)
        if match is None:
            return None
        return PartName(int(match[1]), int(match[2]), int(match[3]), int(match[4], 16))


@dataclass(frozen=True)
class Part:
    """A part's content. The tensors are the mapped file: to be read or copied, not to be written or kept for long."""

    tensors: dict[str, torch.Tensor]
    meta: dict[str, Any]


def write_part_file(
    directory: Path, shard: int, shards: int, epoch: int, tensors: dict[str, torch.Tensor], meta: dict[str, Any]
) -> PartName:
    """Write one part durably. Raises `OSError`; then nothing of it is left. `ValueError` for a dtype it cannot hold."""
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    scratch = directory / f".part-{shard:05d}-e{epoch:08d}-{secrets.token_hex(6)}.tmp"
    scratch.mkdir()
    try:
        file = scratch / "part"
        _save(held, file, {META: json.dumps(meta)})
        _fsync(file)
        name = PartName(shard, shards, epoch, _crc(file))
        os.replace(file, directory / str(name))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)  # the library's own temporary file lies in it as well
    fsync_directory(directory)
    return name


def copy_part_file(directory: Path, name: PartName, chunks: Iterable[memoryview]) -> None:
    """Write a part that comes from elsewhere, durably and under the name that it must prove. Memory: one chunk.

    Raises `OSError`, or `PartCorrupt` when its bytes are not those of the name; then nothing of it is left.
    """
    scratch = directory / f".part-{name.shard:05d}-e{name.epoch:08d}-{secrets.token_hex(6)}.tmp"
    scratch.mkdir()
    try:
        file, crc = scratch / "part", 0
        with file.open("wb", buffering=0) as target:
            for chunk in chunks:
                crc = zlib.crc32(chunk, crc)
                written = 0
                while written < len(chunk):
                    written += target.write(chunk[written:])
        if crc != name.crc:
            raise PartCorrupt("came altered or cut short: it does not match the checksum in its name")
        _fsync(file)
        os.replace(file, directory / str(name))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    fsync_directory(directory)


def _save(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:  # which hides the system's error in its text
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code) if number else str(error)) from error
    except KeyError as error:
        raise ValueError(f"a checkpoint cannot hold {error}; use a dtype that safetensors knows") from error


def write_durably(temporary: Path, final: Path, data: bytes) -> None:
    """`data` under `final`, or an `OSError` and no trace."""
    try:
        temporary.write_bytes(data)
        _fsync(temporary)
        os.replace(temporary, final)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    fsync_directory(final.parent)


def _fsync(path: Path, flags: int = os.O_RDONLY) -> None:
    fd = os.open(path, flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_directory(path: Path) -> None:
    _fsync(path, os.O_RDONLY | os.O_DIRECTORY)


def _crc(path: Path) -> int:
    crc = 0
    buffer = memoryview(bytearray(READ_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            crc = zlib.crc32(buffer[:count], crc)
    return crc


def verify_part(path: Path) -> None:
    """Read the whole file and compare it with its name. Raises `PartCorrupt`, `OSError`."""
    name = PartName.parse(path.name)
    if name is None:
        raise PartCorrupt("has a name that no part has")
    if _crc(path) != name.crc:
        raise PartCorrupt("is truncated or altered: it does not match the checksum in its name")


def open_part(path: Path) -> Part:
    """The part, verified, its tensors mapped. Raises `PartCorrupt`, `OSError`."""
    verify_part(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return Part(tensors, json.loads(file.metadata()[META]))
    except (SafetensorError, KeyError, TypeError) as error:
        raise PartCorrupt(f"is no part of a checkpoint ({error})") from error


def read_part_file(
    path: Path, into: dict[str, torch.Tensor] | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(tensors, meta), verified. Tensors in `into` that fit are filled in place. Raises `PartCorrupt`, `OSError`."""
    part = open_part(path)
    tensors: dict[str, torch.Tensor] = {}
    for name, stored in part.tensors.items():
        given = (into or {}).get(name)
        if given is not None and given.dtype == stored.dtype and given.shape == stored.shape:
            tensors[name] = given.copy_(stored)
        else:
            tensors[name] = stored.clone()
    return tensors, part.meta

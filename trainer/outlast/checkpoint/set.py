"""What makes parts a checkpoint: the directory of one version, its manifest, and which parts count.

Rules
- A manifest names every part with its length and carries its own crc; one that does not match counts as missing.
- It is replaced, never altered. Whoever replaces it last has looked last, so it does not matter if two do.
- Of two parts of one shard and version the higher epoch's counts: the other was written by a fenced server.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlast.checkpoint.part import PartName, write_durably

MANIFEST = "MANIFEST.json"
NAME = re.compile(r"ckpt-h(\d{4,})-v(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """A complete set. `parts[shard]` is a file's name and length."""

    name: str
    history: int
    version: int
    parts: tuple[tuple[PartName, int], ...]

    @property
    def shards(self) -> int:
        return len(self.parts)

    @property
    def epoch(self) -> int:
        return sum(part.epoch for part, _ in self.parts)

    @property
    def order(self) -> tuple[int, int, int]:
        return self.history, self.epoch, self.version


def set_name(history: int, version: int) -> str:
    return f"ckpt-h{history:04d}-v{version:08d}"


def file_names(directory: Path) -> list[str]:
    """What is in `directory`; nothing if it is none."""
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []


def parts_in(directory: Path) -> list[PartName]:
    """Every part in `directory`, whether it counts or not."""
    return [part for part in map(PartName.parse, file_names(directory)) if part is not None]


def complete(
    directory: Path, job_uid: str | None, shard: int, shards: int, history: int, epoch: int, version: int
) -> None:
    """If every shard has a part, write the manifest, until it names the best parts there are. Raises `OSError`."""
    while True:
        best = _best_parts(directory, shards)
        if len(best) < shards:
            return
        wanted = {
            "job_uid": job_uid,
            "history": history,
            "version": version,
            "parts": [{"file": str(part), "bytes": size} for part, size in best],
        }
        if read_manifest(directory) == wanted:
            return
        text = json.dumps(wanted, separators=(",", ":"))
        data = f'{{"crc32":{zlib.crc32(text.encode())},{text[1:]}\n'.encode()
        temporary = directory / f".manifest-{shard:05d}-e{epoch:08d}-{secrets.token_hex(6)}.tmp"
        write_durably(temporary, directory / MANIFEST, data)


def _best_parts(directory: Path, shards: int) -> list[tuple[PartName, int]]:
    """For each shard that has one, the part of the highest epoch."""
    best: dict[int, PartName] = {}
    for part in parts_in(directory):
        if part.shards == shards:
            held = best.get(part.shard)
            if held is None or (part.epoch, part.crc) > (held.epoch, held.crc):
                best[part.shard] = part
    return [(part, (directory / str(part)).stat().st_size) for _, part in sorted(best.items())]


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest without its checksum; None if it is missing or does not match it."""
    try:
        raw: dict[str, Any] = json.loads((directory / MANIFEST).read_bytes())
        crc = raw.pop("crc32")
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    return raw if zlib.crc32(json.dumps(raw, separators=(",", ":")).encode()) == crc else None

"""Checkpoints: sets of parts, one part a shard, whole or absent.

Rules (DESIGN §3, §4 rule 25)
- A set is complete by one MANIFEST.json that names every part; the writer of the last part writes it, and it does
  not matter if two do. What no manifest names does not exist.
- Sets are ordered by (history, epoch, version). Shards fail over one by one, so a set's epoch is the sum of its parts'.
- Of two parts of one shard and version the higher epoch's counts: the other was written by a fenced server.
- A corrupt or truncated set is skipped with one warning, and the one before is used.
- Pruning touches sets of epochs up to the writer's own, and never the only one that verifies.
- A failed write leaves the older sets alone and nothing of itself behind.

    <directory>/<job uid>/ckpt-h0000-v00000100/part-00000-of-00002-e00000003-5f1d2c3b.safetensors
                                              part-00001-of-00002-e00000001-90aa0b1c.safetensors
                                              MANIFEST.json
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import secrets
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from outlast.checkpoint_file import (
    Header,
    PartCorrupt,
    PartName,
    fsync_directory,
    read_part_file,
    read_slice,
    verify_part,
    write_durably,
    write_part_file,
)

logger = logging.getLogger("outlast.checkpoint")

MANIFEST = "MANIFEST.json"
NAME = re.compile(r"ckpt-h(\d{4,})-v(\d{8,})")
STALE_S = 900.0  # a temporary file of the writer's own epoch that nobody has touched for so long is nobody's
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read. Older ones are untouched."""


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

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "history": self.history, "epoch": self.epoch, "version": self.version}


class CheckpointStore:
    """The checkpoints of one job, in `directory/job_uid`, so that jobs may share a volume without ever mixing parts.

    With `job_uid` None, those in `directory` itself: for `restoreFrom`, which names another job's directory.
    """

    def __init__(self, directory: str | os.PathLike[str], job_uid: str | None = None) -> None:
        self.directory = Path(directory) / job_uid if job_uid else Path(directory)
        self.job_uid = job_uid
        self._verified: dict[tuple[str, int, int, int], bool] = {}  # a file as it was when it was checked
        self._warned: set[str] = set()

    # --- writing ------------------------------------------------------------------------------------------------------

    def write_part(
        self,
        shard: int,
        shards: int,
        history: int,
        epoch: int,
        version: int,
        tensors: dict[str, torch.Tensor],
        meta: dict[str, Any],
    ) -> str:
        """Write this shard's part durably, and the manifest if that completes the set. Returns the set's name.

        Tensors: any shape, on any device. `meta` (JSON) carries what tensors do not; with `meta["range"] =
        [start, stop]`, the shard's place in the flat vector, the set can be restored with another number of shards.
        Raises `CheckpointError`.
        """
        name = f"ckpt-h{history:04d}-v{version:08d}"
        directory = self.directory / name
        try:
            self._make(directory)
            self._clean(shard, epoch)
            # A second try: the directory may have been pruned between making it and writing into it.
            for attempt in (0, 1):
                try:
                    write_part_file(directory, shard, shards, epoch, tensors, {**meta, "job_uid": self.job_uid})
                    self._complete(directory, shard, shards, history, epoch, version)
                    break
                except FileNotFoundError:
                    if attempt:
                        raise
                    self._make(directory)
        except OSError as error:
            with contextlib.suppress(OSError):
                directory.rmdir()  # only if nothing else is in it
            raise self._failed(name, error) from error
        return name

    def _failed(self, name: str, error: OSError) -> CheckpointError:
        fact = f"checkpoint {name} could not be written to {self.directory}: {error.strerror or error}"
        if error.errno in FULL:
            return CheckpointError(
                f"{fact}; older checkpoints are untouched: enlarge recovery.checkpoint.volume, or lower "
                "recovery.checkpoint.keep"
            )
        return CheckpointError(f"{fact}; older checkpoints are untouched: check the volume and its permissions")

    def _make(self, directory: Path) -> None:
        if not directory.is_dir():
            directory.mkdir(parents=True, exist_ok=True)
            for parent in (self.directory, self.directory.parent):  # both may be new
                fsync_directory(parent)

    def _complete(self, directory: Path, shard: int, shards: int, history: int, epoch: int, version: int) -> None:
        """Write the manifest until it names the best parts there are: whoever replaces it last has looked last."""
        while True:
            best = _best_parts(directory, shards)
            if len(best) < shards:
                return
            wanted = {
                "job_uid": self.job_uid,
                "history": history,
                "version": version,
                "parts": [{"file": str(part), "bytes": size} for part, size in best],
            }
            if _read_manifest(directory) == wanted:
                return
            text = json.dumps(wanted, separators=(",", ":"))
            data = f'{{"crc32":{zlib.crc32(text.encode())},{text[1:]}\n'.encode()
            temporary = directory / f".manifest-{shard:05d}-e{epoch:08d}-{secrets.token_hex(6)}.tmp"
            write_durably(temporary, directory / MANIFEST, [memoryview(data)])

    def _clean(self, shard: int, epoch: int) -> None:
        """Remove what writers that died left half-written: of lower epochs of this shard, or old."""
        for path in self.directory.glob("ckpt-*/.*.tmp"):
            match = re.match(r"\.(?:part|manifest)-(\d+)-e(\d+)-", path.name)
            superseded = match is not None and int(match[1]) == shard and int(match[2]) < epoch
            with contextlib.suppress(OSError):
                if superseded or time.time() - path.stat().st_mtime > STALE_S:
                    path.unlink()
                    logger.info("removed the half-written %s", path)

    def prune(self, keep: int, epoch: int, shard: int = 0) -> list[str]:
        """Delete all but the `keep` (at least 1) newest sets that verify for `shard`. Returns what was deleted.

        Sets whose part of `shard` has a higher epoch than `epoch` are left alone, and so is what is not complete
        unless it is older than everything that is kept. Never raises for a file that cannot be deleted.
        """
        complete = self.list_complete(shard)
        kept = complete[: max(keep, 1)]
        if not kept:
            return []
        deleted = []
        for directory, history, version in self._sets():
            manifest = self._manifest(directory, history, version)
            if manifest is None and (directory / MANIFEST).exists():
                continue  # unreadable: perhaps only by us
            if manifest is not None:
                part_epochs = [part.epoch for part, _ in manifest.parts]
                own = part_epochs[shard] if shard < len(part_epochs) else max(part_epochs)
                old = manifest.order < kept[-1].order
            else:
                parts = [p for p in map(PartName.parse, _names(directory)) if p is not None]
                own = max((p.epoch for p in parts if p.shard == shard), default=0)
                old = (history, version) < min((k.history, k.version) for k in kept)
            if old and own <= epoch and directory.name not in {k.name for k in kept}:
                self._delete(directory)
                deleted.append(directory.name)
        return deleted

    def _delete(self, directory: Path) -> None:
        """The manifest first: a set that is being deleted is not complete any more."""
        with contextlib.suppress(OSError):
            (directory / MANIFEST).unlink(missing_ok=True)
            fsync_directory(directory)
            for name in _names(directory):
                (directory / name).unlink(missing_ok=True)
            directory.rmdir()
        logger.debug("pruned %s", directory.name)

    # --- reading ------------------------------------------------------------------------------------------------------

    def list_complete(self, shard: int | None = None) -> list[Checkpoint]:
        """Complete sets, newest first: every part there in full length, `shard`'s checksums compared (None: all).

        A file is read once; a set that fails is left out, with one warning.
        """
        found = [m for d, h, v in self._sets() if (m := self._manifest(d, h, v)) is not None]
        found.sort(key=lambda m: m.order, reverse=True)
        return [m for m in found if self._verifies(m, shard)]

    def read_part(
        self, name: str, shard: int, into: dict[str, torch.Tensor] | None = None
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """(tensors, meta) as written; tensors in `into` that fit are filled in place. Raises `CheckpointError`."""
        path = self._part_path(self._named(name), shard)
        try:
            return read_part_file(path, into)
        except (OSError, PartCorrupt) as error:
            raise CheckpointError(f"{path} {error}; restore from the checkpoint before it") from error

    def metas(self, name: str) -> list[dict[str, Any]]:
        """What each part says of itself, in order of the shards that wrote them. Raises `CheckpointError`."""
        checkpoint = self._named(name)
        found = []
        for shard in range(checkpoint.shards):
            path = self._part_path(checkpoint, shard)
            try:
                found.append(verify_part(path).meta)
            except (OSError, PartCorrupt) as error:
                raise CheckpointError(f"{path} {error}; restore from the checkpoint before it") from error
        return found

    def read_range(self, name: str, start: int, stop: int) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
        """Elements `[start, stop)` of the flat vector, from however many parts hold them.

        Tensors as long as their part's range (parameters, optimizer state) are cut and joined; others (counters) are
        the first part's. Metas are those of the parts that were used, in order. Raises `CheckpointError`.
        """
        checkpoint = self._named(name)
        pieces: list[tuple[Path, Header, int, int]] = []
        for shard in range(checkpoint.shards):
            path = self._part_path(checkpoint, shard)
            try:
                header = verify_part(path)
            except (OSError, PartCorrupt) as error:
                raise CheckpointError(f"{path} {error}; restore from the checkpoint before it") from error
            if "range" not in header.meta:
                raise CheckpointError(
                    f"{path} does not say which range it holds; restore it with the {checkpoint.shards} shards it was "
                    "written by"
                )
            low, high = header.meta["range"]
            if max(low, start) < min(high, stop):
                pieces.append((path, header, low, high))
        return _join(name, pieces, start, stop)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _sets(self) -> Iterator[tuple[Path, int, int]]:
        for name in sorted(_names(self.directory)):
            match = NAME.fullmatch(name)
            if match is not None:
                yield self.directory / name, int(match[1]), int(match[2])

    def _manifest(self, directory: Path, history: int, version: int) -> Checkpoint | None:
        """The set that the manifest describes; None (with one warning if there is something to warn of) otherwise."""
        raw = _read_manifest(directory)
        if raw is None:
            if (directory / MANIFEST).exists():
                self._warn(directory.name, "its manifest is truncated or corrupt")
            return None
        parts = tuple((PartName.parse(part["file"]), int(part["bytes"])) for part in raw["parts"])
        if any(part is None for part, _ in parts) or (raw["history"], raw["version"]) != (history, version):
            self._warn(directory.name, "its manifest does not describe it")
            return None
        return Checkpoint(directory.name, history, version, tuple((p, n) for p, n in parts if p is not None))

    def _named(self, name: str) -> Checkpoint:
        match = NAME.fullmatch(name)
        found = self._manifest(self.directory / name, int(match[1]), int(match[2])) if match else None
        if found is None:
            raise CheckpointError(
                f"{self.directory / name} is no complete checkpoint; there are "
                f"{', '.join(c.name for c in self.list_complete()) or 'none'}"
            )
        return found

    def _part_path(self, checkpoint: Checkpoint, shard: int) -> Path:
        if not 0 <= shard < checkpoint.shards:
            raise CheckpointError(
                f"{checkpoint.name} was written by {checkpoint.shards} shards and has no part {shard}; use read_range"
            )
        return self.directory / checkpoint.name / str(checkpoint.parts[shard][0])

    def _verifies(self, checkpoint: Checkpoint, shard: int | None) -> bool:
        for n, (part, size) in enumerate(checkpoint.parts):
            path = self._part_path(checkpoint, n)
            try:
                stat = path.stat()
                if stat.st_size != size:
                    raise PartCorrupt(f"has {stat.st_size} bytes where {size} were written")
                # Restored with another number of shards, any part may be needed.
                if shard is None or n == shard or shard >= checkpoint.shards:
                    key = (str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino)
                    if key not in self._verified:
                        self._verified[key] = False
                        verify_part(path)
                        self._verified[key] = True
                    if not self._verified[key]:
                        raise PartCorrupt("does not verify")
            except (OSError, PartCorrupt, ValueError, KeyError) as error:
                if isinstance(error, FileNotFoundError) and not (path.parent / MANIFEST).exists():
                    return False  # pruned while we looked
                self._warn(checkpoint.name, f"{part} {error}")
                return False
        return True

    def _warn(self, name: str, why: str) -> None:
        if name not in self._warned:
            self._warned.add(name)
            logger.warning("skipping checkpoint %s in %s: %s; the one before is used", name, self.directory, why)


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _best_parts(directory: Path, shards: int) -> list[tuple[PartName, int]]:
    """For each shard that has one, the part of the highest epoch."""
    best: dict[int, PartName] = {}
    for part in map(PartName.parse, _names(directory)):
        if part is not None and part.shards == shards:
            held = best.get(part.shard)
            if held is None or (part.epoch, part.crc) > (held.epoch, held.crc):
                best[part.shard] = part
    return [(part, (directory / str(part)).stat().st_size) for _, part in sorted(best.items())]


def _read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest without its checksum; None if it is missing or does not match it."""
    try:
        raw: dict[str, Any] = json.loads((directory / MANIFEST).read_bytes())
        crc = raw.pop("crc32")
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    return raw if zlib.crc32(json.dumps(raw, separators=(",", ":")).encode()) == crc else None


def _join(
    name: str, pieces: list[tuple[Path, Header, int, int]], start: int, stop: int
) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    pieces.sort(key=lambda piece: piece[2])
    at = start
    for _, _, low, high in pieces:
        if low > at:
            break
        at = max(at, min(high, stop))
    if at != stop:
        raise CheckpointError(f"{name} does not hold elements {at} to {stop}; it was written for a smaller model")
    tensors: dict[str, torch.Tensor] = {}
    for path, header, low, high in pieces:
        for stored in header.tensors:
            cut = stored.shape == (high - low,)
            if stored.name not in tensors:
                shape = (stop - start,) if cut else stored.shape
                tensors[stored.name] = torch.empty(shape, dtype=stored.dtype)
                if not cut:
                    read_slice(path, stored, 0, tensors[stored.name])
            if cut:
                first, last = max(low, start), min(high, stop)
                read_slice(path, stored, first - low, tensors[stored.name][first - start : last - start])
    return tensors, [header.meta for _, header, _, _ in pieces]

"""Checkpoints: sets of parts, one part a shard, whole or absent.

Rules [whole-or-absent, fenced-writers-write-nothing]
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
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from outlast.api.server_status import CheckpointRef
from outlast.checkpoint.part import (
    Part,
    PartCorrupt,
    PartName,
    fsync_directory,
    open_part,
    read_part_file,
    verify_part,
    write_part_file,
)
from outlast.checkpoint.set import (
    MANIFEST,
    NAME,
    Checkpoint,
    complete,
    file_names,
    parts_in,
    read_manifest,
    set_name,
)

__all__ = ["MANIFEST", "NAME", "Checkpoint", "CheckpointError", "CheckpointStore"]

logger = logging.getLogger("outlast.checkpoint")

STALE_S = 900.0  # a temporary file of the writer's own epoch that nobody has touched for so long is nobody's
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read. Older ones are untouched."""


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
        name = set_name(history, version)
        directory = self.directory / name
        try:
            self._make(directory)
            self._clean(shard, epoch)
            # A second try: the directory may have been pruned between making it and writing into it.
            for attempt in (0, 1):
                try:
                    write_part_file(directory, shard, shards, epoch, tensors, {**meta, "job_uid": self.job_uid})
                    complete(directory, self.job_uid, shard, shards, history, epoch, version)
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

    def _clean(self, shard: int, epoch: int) -> None:
        """Remove what writers that died left half-written: of lower epochs of this shard, or old."""
        for path in self.directory.glob("ckpt-*/.*.tmp"):
            match = re.match(r"\.(?:part|manifest)-(\d+)-e(\d+)-", path.name)
            superseded = match is not None and int(match[1]) == shard and int(match[2]) < epoch
            with contextlib.suppress(OSError):
                if superseded or time.time() - _last_written(path) > STALE_S:
                    _remove(path)
                    logger.info("removed the half-written %s", path)

    def prune(self, keep: int, epoch: int, shard: int = 0) -> list[str]:
        """Delete all but the `keep` (at least 1) newest sets that verify for `shard`. Returns what was deleted.

        Sets whose part of `shard` has a higher epoch than `epoch` are left alone, and so is what is not complete
        unless it is older than everything that is kept. Never raises for a file that cannot be deleted.
        """
        kept = self.list_complete(shard)[: max(keep, 1)]
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
                own = max((part.epoch for part in parts_in(directory) if part.shard == shard), default=0)
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
            _remove(directory)
        logger.debug("pruned %s", directory.name)

    # --- reading ------------------------------------------------------------------------------------------------------

    def list_complete(self, shard: int | None = None) -> list[Checkpoint]:
        """Complete sets, newest first: every part there in full length, `shard`'s checksums compared (None: all).

        A file is read once; a set that fails is left out, with one warning.
        """
        found = [m for d, h, v in self._sets() if (m := self._manifest(d, h, v)) is not None]
        found.sort(key=lambda m: m.order, reverse=True)
        return [m for m in found if self._verifies(m, shard)]

    def held(self, shard: int) -> list[CheckpointRef]:
        """`shard`'s part of each complete set, newest first; see `list_complete`."""
        complete_sets = [c for c in self.list_complete(shard) if shard < c.shards]
        parts = [(c, c.parts[shard][0]) for c in complete_sets]
        return [CheckpointRef(c.name, c.history, c.version, part.epoch, part.crc) for c, part in parts]

    def read_part(
        self, name: str, shard: int, into: dict[str, torch.Tensor] | None = None
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """(tensors, meta) as written; tensors in `into` that fit are filled in place. Raises `CheckpointError`."""
        path = self._part_path(self._named(name), shard)
        with restorable(path):
            return read_part_file(path, into)

    def metas(self, name: str) -> list[dict[str, Any]]:
        """What each part says of itself, in order of the shards that wrote them. Raises `CheckpointError`."""
        return [part.meta for _, part in self._open_all(name)]

    def read_range(self, name: str, start: int, stop: int) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
        """Elements `[start, stop)` of the flat vector, from however many parts hold them.

        Tensors as long as their part's range (parameters, optimizer state) are cut and joined; others (counters) are
        the first part's. Metas are those of the parts that were used, in order. Raises `CheckpointError`.
        """
        used: list[tuple[int, int, Part]] = []
        for path, part in self._open_all(name):
            if "range" not in part.meta:
                raise CheckpointError(
                    f"{path} does not say which range it holds; restore it with as many shards as it was written by"
                )
            low, high = part.meta["range"]
            if max(low, start) < min(high, stop):
                used.append((low, high, part))
        used.sort(key=lambda piece: piece[0])
        return _join(name, used, start, stop), [part.meta for _, _, part in used]

    # --- inside -------------------------------------------------------------------------------------------------------

    def _open_all(self, name: str) -> list[tuple[Path, Part]]:
        checkpoint = self._named(name)
        found = []
        for shard in range(checkpoint.shards):
            path = self._part_path(checkpoint, shard)
            with restorable(path):
                found.append((path, open_part(path)))
        return found

    def _sets(self) -> Iterator[tuple[Path, int, int]]:
        for name in sorted(file_names(self.directory)):
            match = NAME.fullmatch(name)
            if match is not None:
                yield self.directory / name, int(match[1]), int(match[2])

    def _manifest(self, directory: Path, history: int, version: int) -> Checkpoint | None:
        """The set that the manifest describes; None (with one warning if there is something to warn of) otherwise."""
        raw = read_manifest(directory)
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
                    self._verify(path, stat)
            except (OSError, PartCorrupt, ValueError, KeyError) as error:
                if isinstance(error, FileNotFoundError) and not (path.parent / MANIFEST).exists():
                    return False  # pruned while we looked
                self._warn(checkpoint.name, f"{part} {error}")
                return False
        return True

    def _verify(self, path: Path, stat: os.stat_result) -> None:
        """A file is read once, as long as it stays the same."""
        key = (str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino)
        if key not in self._verified:
            self._verified[key] = False
            verify_part(path)
            self._verified[key] = True
        if not self._verified[key]:
            raise PartCorrupt("does not verify")

    def _is_whole(self, path: Path, name: str) -> bool:
        try:
            self._verify(path, path.stat())
        except (OSError, PartCorrupt) as error:
            if not isinstance(error, FileNotFoundError):  # pruned while we looked
                self._warn(name, f"{path.name} {error}")
            return False
        return True

    def _warn(self, name: str, why: str) -> None:
        if name not in self._warned:
            self._warned.add(name)
            logger.warning("skipping checkpoint %s in %s: %s; the one before is used", name, self.directory, why)


@contextlib.contextmanager
def restorable(path: Path) -> Iterator[None]:
    """What makes a part unreadable says where to go on from."""
    try:
        yield
    except (OSError, PartCorrupt) as error:
        raise CheckpointError(f"{path} {error}; restore from the checkpoint before it") from error


def _last_written(path: Path) -> float:
    return max(p.stat().st_mtime for p in (path, *path.glob("*")))


def _remove(path: Path) -> None:
    """A file, or a directory with all that is in it."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _join(name: str, pieces: list[tuple[int, int, Part]], start: int, stop: int) -> dict[str, torch.Tensor]:
    """Elements `[start, stop)` of what the parts hold, in new memory; `pieces` are (low, high, part), by low."""
    at = start
    for low, high, _ in pieces:
        if low > at:
            break
        at = max(at, min(high, stop))
    if at != stop:
        raise CheckpointError(f"{name} does not hold elements {at} to {stop}; it was written for a smaller model")
    tensors: dict[str, torch.Tensor] = {}
    for low, high, part in pieces:
        first, last = max(low, start), min(high, stop)
        for key, stored in part.tensors.items():
            if stored.shape != (high - low,):
                tensors.setdefault(key, stored.clone())
                continue
            if key not in tensors:
                tensors[key] = torch.empty(stop - start, dtype=stored.dtype)
            tensors[key][first - start : last - start] = stored[first - low : last - low]
    return tensors

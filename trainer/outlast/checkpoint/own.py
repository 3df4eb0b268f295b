"""The parts of one shard in a directory that its server shares with no other: a claim, a disk or a pod of its own.

Rules
- A set is complete when each shard's part lies with some server. No directory shows that, so no manifest is needed
  here, and the planner finds complete sets from what all servers report.
- Every member of the chain writes, so the same part lies in several directories, under one name if its bytes are the
  same: a part is known by its set, its epoch and its checksum.
- Pruning counts the sets that are complete as far as the other shards' servers say: what is only here may be the only
  thing that can be restored.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from outlast.api.server_status import CheckpointRef
from outlast.checkpoint.part import PartName, copy_part_file, read_part_file
from outlast.checkpoint.set import complete, parts_in
from outlast.checkpoint.store import CheckpointError, CheckpointStore, restorable


class OwnParts(CheckpointStore):
    """A `CheckpointStore` for a directory of one server."""

    def held(self, shard: int) -> list[CheckpointRef]:
        """The best verified part of each set that has one, newest first."""
        found = []
        for directory, history, version in self._sets():
            part = self._best(directory, shard)
            if part is not None:
                found.append(CheckpointRef(directory.name, history, version, part.epoch, part.crc))
        return sorted(found, key=lambda held: held.order, reverse=True)

    def _best(self, directory: Path, shard: int) -> PartName | None:
        parts = [part for part in parts_in(directory) if part.shard == shard]
        for part in sorted(parts, key=lambda part: (part.epoch, part.crc), reverse=True):
            if self._is_whole(directory / str(part), directory.name):
                return part
        return None

    def path_of(self, held: CheckpointRef, shard: int, shards: int) -> Path:
        return self.directory / held.name / str(PartName(shard, shards, held.epoch, held.crc))

    def read_part(
        self, name: str, shard: int, into: dict[str, torch.Tensor] | None = None
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        part = self._best(self.directory / name, shard)
        if part is None:
            raise CheckpointError(
                f"{self.directory / name} holds no part of shard {shard}; another server may have one"
            )
        path = self.directory / name / str(part)
        with restorable(path):
            return read_part_file(path, into)

    def prune_own(self, keep: int, epoch: int, shard: int, elsewhere: Sequence[Collection[str]]) -> list[str]:
        """Delete what is older than the `keep` newest complete sets; returns the names.

        `elsewhere`: for each other shard, the sets that its servers have parts of.
        """
        mine = self.held(shard)
        kept = [held for held in mine if all(held.name in names for names in elsewhere)][: max(keep, 1)]
        if not kept:
            return []
        by_name, deleted = {held.name: held for held in mine}, []
        for directory, history, version in list(self._sets()):
            held = by_name.get(directory.name)
            if held is None:  # half written, or damaged
                old = (history, version) < (kept[-1].history, kept[-1].version)
            else:
                old = held.order < kept[-1].order and held.epoch <= epoch
            if old:
                self._delete(directory)
                deleted.append(directory.name)
        return deleted

    def adopt(self, held: CheckpointRef, shard: int, shards: int, chunks: Iterable[memoryview]) -> None:
        """Keep another server's part as well. Raises `OSError`, or `ValueError` if it arrives altered."""
        directory = self.directory / held.name
        self._make(directory)
        copy_part_file(directory, PartName(shard, shards, held.epoch, held.crc), chunks)
        complete(directory, self.job_uid, shard, shards, held.history, held.epoch, held.version)

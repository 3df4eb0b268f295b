"""What the last member of a shard leaves when no replacement has come in time: its state, for its successor alone.

A checkpoint set needs a part of every shard under one label. This needs no other shard: the server stopped acting
before it wrote, so that nothing that it acknowledged is missing, and a server that goes on from here continues the same
history. The name holds the boot id, so that it is the state of one process and no other:

    <directory>/<job uid>/last-00000-5f1d2c3b90aa0b1c/part-00000-of-00002-e00000003-5f1d2c3b.safetensors
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from outlast.api.view import last_state_name
from outlast.checkpoint.part import PartCorrupt, PartName, fsync_directory, read_part_file, verify_part, write_part_file
from outlast.checkpoint.set import file_names, parts_in

NAME = re.compile(r"last-\d{5}-[0-9a-f]+")


class LastStates:
    """Those of one shard, below a job's own directory of a volume."""

    def __init__(self, directory: Path, shard: int, shards: int) -> None:
        self._directory, self._shard, self._shards = directory, shard, shards
        self._verified: dict[str, bool] = {}

    def write(self, boot: str, epoch: int, tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
        """Write durably; older ones of the shard are removed then. Raises `OSError`."""
        name = last_state_name(self._shard, boot)
        directory = self._directory / name
        directory.mkdir(parents=True, exist_ok=True)
        fsync_directory(self._directory)
        write_part_file(directory, self._shard, self._shards, epoch, tensors, meta)
        for old in self._names(lambda found: found != name):
            shutil.rmtree(self._directory / old, ignore_errors=True)

    def available(self) -> list[str]:
        """Names of those that verify. Each is read once."""
        for name in self._names(lambda found: found not in self._verified):
            try:
                path = self._path(name)
                if path is None:
                    continue  # it is being written, or was given up
                verify_part(path)
                self._verified[name] = True
            except (PartCorrupt, OSError):
                self._verified[name] = False
        return self._names(lambda found: self._verified.get(found, False))

    def read(self, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """(tensors, meta). Raises `PartCorrupt`, `OSError`."""
        path = self._path(name)
        if path is None:
            raise FileNotFoundError(f"{self._directory / name} holds no part of shard {self._shard}")
        return read_part_file(path)

    def _names(self, wanted: Callable[[str], bool]) -> list[str]:
        prefix = last_state_name(self._shard, "")
        return sorted(
            n for n in file_names(self._directory) if n.startswith(prefix) and NAME.fullmatch(n) and wanted(n)
        )

    def _path(self, name: str) -> Path | None:
        parts: list[PartName] = [part for part in parts_in(self._directory / name) if part.shard == self._shard]
        return self._directory / name / str(max(parts, key=lambda part: part.epoch)) if parts else None

"""Sets whose parts lie in several directories: what servers with a directory each have left, side by side.

Rules
- Read only, after the job: no manifest names such a set, and none is needed. It is complete when each shard's part is
  found whole; the parts' names say how many shards there are.
- Of several parts of a shard the highest epoch's counts, of several copies of one part any that is whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from outlast.checkpoint.part import PartName
from outlast.checkpoint.set import NAME, Checkpoint, file_names, parts_in
from outlast.checkpoint.store import CheckpointStore


class SpreadParts(CheckpointStore):
    """The checkpoints of one job, in several directories that are read as one."""

    def __init__(self, directories: Sequence[Path]) -> None:
        super().__init__(directories[0])
        self._directories = directories
        self._paths: dict[tuple[str, PartName], Path] = {}  # of a set's part: a copy that is whole

    def _sets(self) -> Iterator[tuple[Path, int, int]]:
        for name in sorted({name for directory in self._directories for name in file_names(directory)}):
            match = NAME.fullmatch(name)
            if match is not None:
                yield self.directory / name, int(match[1]), int(match[2])

    def _manifest(self, directory: Path, history: int, version: int) -> Checkpoint | None:
        name = directory.name
        places = [(part, at / name) for at in self._directories for part in parts_in(at / name)]
        best: dict[int, tuple[PartName, int]] = {}
        for part, place in sorted(places, key=lambda found: (found[0].epoch, found[0].crc), reverse=True):
            path = place / str(part)
            if part.shard not in best and self._is_whole(path, name):
                best[part.shard] = part, path.stat().st_size
                self._paths[name, part] = path
        shards = {part.shards for part, _ in best.values()}
        if shards != {len(best)}:
            return None
        return Checkpoint(name, history, version, tuple(found for _, found in sorted(best.items())))

    def _part_path(self, checkpoint: Checkpoint, shard: int) -> Path:
        super()._part_path(checkpoint, shard)  # raises where there is no such shard
        return self._paths[checkpoint.name, checkpoint.parts[shard][0]]

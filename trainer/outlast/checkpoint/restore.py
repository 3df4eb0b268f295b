"""`recovery.checkpoint.restoreFrom`: a new job begins with what another one left.

Rules
- Taken over: weights, optimizer state, the version, the table of applied steps and where in the data each slot is.
  Not taken over: incarnations, offsets in a log and histories, which belong to the old job's processes.
- The new job may have other numbers of shards and workers. What the old shards do not agree on (asynchronous shards
  apply in different orders) is settled once, from all parts, so that every new shard comes to the same answer.
- Where each server had a directory of its own, the parts of a set lie in several, and no manifest names them all. Those
  below directories of one name (the job's uid) are read as one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from outlast.chain.applied import Applied
from outlast.chain.events import DataPlan
from outlast.checkpoint.spread import SpreadParts
from outlast.checkpoint.store import MANIFEST, NAME, CheckpointError, CheckpointStore
from outlast.model.flat import shard_ranges

# A job's own directory; a volume of several jobs; a report, with one directory for all servers or one for each.
_LAYOUTS = ("", "*/", "checkpoints/*/", "*/*/", "checkpoints/*/*/")


def is_own(source: str) -> bool:
    """Whether a view's `restore` names a checkpoint of this very job (any other is a place to look in)."""
    return NAME.fullmatch(source) is not None


def find(source: str) -> tuple[CheckpointStore, str]:
    """The newest checkpoint that verifies below `source`, or the one that `source` is. Raises `CheckpointError`.

    Where several jobs left checkpoints, those of the job that wrote last count.
    """
    if "://" in source:
        raise CheckpointError(f"restoreFrom {source}: only directories can be read; mount it, or copy it to one")
    root = Path(source)
    if NAME.fullmatch(root.name) and (root / MANIFEST).exists():
        return CheckpointStore(root.parent), root.name
    for store in _stores(root):
        complete = store.list_complete()
        if complete:
            return store, complete[0].name
    fact = "holds no complete checkpoint" if root.is_dir() else "is no directory"
    raise CheckpointError(
        f"restoreFrom {root.absolute()} {fact}; name the directory that `outlast run` printed as Checkpoints, or one "
        "checkpoint in it"
    )


def _stores(root: Path) -> Iterator[CheckpointStore]:
    """Every directory below `root` that holds sets with a manifest, then what jobs left in several directories; of each
    the last written first."""
    for layout in _LAYOUTS:
        yield from map(CheckpointStore, _last_written_first(root, f"{layout}ckpt-*/{MANIFEST}"))
    for layout in _LAYOUTS:
        jobs: dict[str, list[Path]] = {}
        for directory in _last_written_first(root, f"{layout}ckpt-*/part-*"):
            jobs.setdefault(directory.name, []).append(directory)
        yield from map(SpreadParts, jobs.values())


def _last_written_first(root: Path, pattern: str) -> list[Path]:
    """The directories that hold the sets which these files belong to."""
    files = sorted(root.glob(pattern), key=lambda path: path.stat().st_mtime, reverse=True)
    return list(dict.fromkeys(path.parents[1] for path in files))


def read(source: str, shard: int, shards: int, slots: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(tensors, meta) of `shard` of `shards`, for a job with `slots` workers. Raises `CheckpointError`."""
    store, name = find(source)
    metas = store.metas(name)
    initial = metas[0]["initial"]
    start, stop = shard_ranges(int(initial["manifest"]["numel"]), shards)[shard]
    tensors, _ = store.read_range(name, start, stop)
    replica = agreed([meta["replica"] for meta in metas], slots)
    return tensors, {"replica": replica, "initial": {**initial, "start": start, "stop": stop}}


def agreed(exported: list[dict[str, Any]], slots: int) -> dict[str, Any]:
    """One state from those of all shards, for `slots` workers: whatever any shard applied counts as applied."""
    applied = Applied()
    for state in exported:
        applied = applied.union(Applied.from_json(state["applied"]))
    newest = max(exported, key=lambda state: int(state["data"]["step0"]))
    data = DataPlan(**{key: int(newest["data"][key]) for key in ("base", "step0", "slots")})
    if data.slots != slots:  # as when N changes in the middle of a job: at the first step that no slot has taken
        step0 = max([data.step0, *(applied.highest(slot) + 1 for slot in applied.slots)])
        data = DataPlan(data.batch(0, step0), step0, slots)
    return {
        "seq": max(int(state["seq"]) for state in exported),
        "version": max(int(state["version"]) for state in exported),
        "history": 0,
        "applied": applied.to_json(),
        "data": {"base": data.base, "step0": data.step0, "slots": data.slots},
        "offset": 0,
        "extra": {"applied_total": applied.count},
    }

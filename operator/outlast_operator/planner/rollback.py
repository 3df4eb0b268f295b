"""What each strategy does after a loss that left no member: where state comes from, and what must be proved first.

Rules:
 1. membership.py handles losses that leave a caught-up member, for every strategy alike.
 2. Checkpoint, Chain, Hybrid: a rollback. It takes *all* shards to one complete checkpoint, in a new history, once
    every old process of the shards that lost everything is proved dead.
 3. Stateless: a new server rebuilds from Redis in the same history. Redis fences the old one: nothing is to be proved.
    Before its first snapshot in a history a shard holds what that history began from (`View.otherwise`). When Redis has
    lost a snapshot that a head told of (the server reports `restore_error`), it is a rollback like any other; where no
    checkpoint exists either, to the initial weights.
 4. A chain whose last members are merely silent waits for them up to `assumeDeadSeconds`: they hold acknowledged
    gradients that no other server has. The single server of Checkpoint is not waited for: it has a checkpoint.
 5. A checkpoint that could not be restored from is never chosen again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from outlast.api.server_status import CheckpointRef
from outlast.api.view import BUFFER, EMPTY

if TYPE_CHECKING:
    from outlast.api.spec import JobSpec


def first_restore(spec: JobSpec) -> str | None:
    """What the first view of a job restores from."""
    if spec.recovery.checkpoint.restore_from:
        return str(spec.recovery.checkpoint.restore_from)
    return BUFFER if spec.traits.through_buffer else None


def state_before_snapshots(spec: JobSpec, restore: str | None) -> str | None:
    """`View.otherwise` of a history that begins from `restore`."""
    if not spec.traits.through_buffer:
        return None
    return EMPTY if restore in (None, BUFFER) else restore


def newest_checkpoint(
    available: Sequence[Collection[CheckpointRef]], rejected: Collection[str] = ()
) -> CheckpointRef | None:
    """The newest set, by (history, epoch, version), of which each shard has a part; None if there is none.

    `available`: for each shard, the parts that its servers verified, all of them together. The set's epoch is the sum
    of its best parts': shards fail over one by one.
    """
    if not available:
        return None
    best = [best_parts(shard) for shard in available]
    common = set.intersection(*(set(parts) for parts in best)) - set(rejected)
    sets = (replace(best[0][n], epoch=sum(parts[n].epoch for parts in best), crc=0) for n in common)
    return max(sets, key=lambda c: (*c.order, c.name), default=None)


def best_parts(parts: Collection[CheckpointRef]) -> dict[str, CheckpointRef]:
    """Of each set the part of the highest epoch: any other was written by a fenced server."""
    best: dict[str, CheckpointRef] = {}
    for part in parts:
        best[part.name] = max(best.get(part.name, part), part, key=lambda p: (p.epoch, p.crc))
    return best

"""What each strategy wants after a loss that left nobody: where state comes from, and what must be proved first.

Rules:
 1. Losses that leave a caught-up member are membership.py's affair, for every strategy alike.
 2. Checkpoint, Chain, Hybrid: a rollback. It takes *all* shards to one complete checkpoint, in a new history, once
    every old process of the shards that lost everything is proved dead.
 3. Stateless: a new server rebuilds from Redis in the same history. Redis fences the old one: nothing is to be proved.
    When Redis has lost its data too (the server reports `restore_error`), it is a rollback like any other.
 4. A chain whose last members are merely silent waits for them up to `assumeDeadSeconds`: they hold acknowledged
    gradients that nobody else has. A lone server by design (Checkpoint) is not waited for, it has a checkpoint.
 5. A checkpoint that could not be restored from is never chosen again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from outlast_operator.state import CheckpointRef

if TYPE_CHECKING:
    from outlast.api.spec import JobSpec

BUFFER = "buffer"  # View.restore: Redis, snapshot and log


@dataclass(frozen=True)
class Policy:
    """What the planner needs to know of a strategy."""

    chain_length: int  # members of a view; servers beyond it stand by
    from_buffer: bool  # state is rebuilt from Redis
    waits_for_silent: bool  # the last, silent members are given assumeDeadSeconds
    needs_redis: bool


def policy(spec: JobSpec) -> Policy:
    match spec.recovery.strategy:
        case "Checkpoint":
            return Policy(1, from_buffer=False, waits_for_silent=False, needs_redis=False)
        case "Stateless":
            return Policy(1, from_buffer=True, waits_for_silent=False, needs_redis=True)
        case "Chain":
            return Policy(spec.servers.replicas, from_buffer=False, waits_for_silent=True, needs_redis=False)
        case "Hybrid":
            return Policy(spec.servers.replicas, from_buffer=False, waits_for_silent=True, needs_redis=True)
        case other:
            raise AssertionError(f"unknown strategy {other!r}")


def first_restore(spec: JobSpec) -> str | None:
    """What the first view of a job restores from."""
    if spec.recovery.checkpoint.restore_from:
        return str(spec.recovery.checkpoint.restore_from)
    return BUFFER if policy(spec).from_buffer else None


def newest_checkpoint(
    available: Sequence[Collection[CheckpointRef]], rejected: Collection[str] = ()
) -> CheckpointRef | None:
    """The newest checkpoint, by (history, version), that every shard can read; None if there is none.

    `available`: for each shard, what its candidates verified (any of them: volumes may be one a server).
    """
    if not available:
        return None
    common = set.intersection(*({c.name for c in shard} for shard in available)) - set(rejected)
    refs = [c for shard in available for c in shard if c.name in common]
    return max(refs, key=lambda c: (c.history, c.version, c.name), default=None)

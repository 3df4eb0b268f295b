"""Which checkpoints a rollback may choose from, where each server has a directory of its own.

Rules:
 1. A set is complete when each shard's part is known from some server. The newest one is remembered: the servers that
    hold it may come back later than others.
 2. An older set is not taken while a server that may hold a part of a newer one is awaited: until it is here, or its
    directory shows that the part is gone.
 3. What a server that fell silent wrote last is not known, and what the last member of a shard left when it ended in
    order lies in its own directory: such a server is given `assumeDeadSeconds` to come back.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from outlast.api.server_status import CheckpointRef
from outlast.api.view import Member
from outlast_operator.planner.checkpoints import ServerClaim
from outlast_operator.planner.rollback import newest_checkpoint
from outlast_operator.planner.turn import Turn, server_names

CHECKPOINT_NEWS_S = 3.0  # after which every server has looked at the volume anew (they do each second)
Candidates = dict[int, list[Member]]  # shard -> servers that are here, and may be in a view that restores


@dataclass(frozen=True)
class Awaited:
    """What a rollback waits for, in words ("": for nothing), and the servers among it."""

    why: str = ""
    servers: tuple[str, ...] = ()


def parts_of(turn: Turn, member: Member) -> tuple[CheckpointRef, ...]:
    """What this very start of a server verified."""
    probe = turn.probe(member.name, member.boot)
    return probe.checkpoints if probe is not None else ()


def newest_set(turn: Turn) -> CheckpointRef | None:
    """The newest checkpoint that is known to have been complete, whether or not all servers that hold it are here."""
    shards = range(turn.spec.servers.shards)
    heard: list[set[CheckpointRef]] = [set() for _ in shards]
    for probe in turn.observed.probes.values():
        if probe.shard in shards:
            heard[probe.shard] |= set(probe.checkpoints)
    seen = newest_checkpoint(heard, turn.status.rejected_checkpoints)
    return max((c for c in (seen, turn.status.newest_set) if c is not None), key=lambda c: c.order, default=None)


def what_may_be_seen(
    turn: Turn, candidates: Candidates, chosen: CheckpointRef | None, last_members: Collection[str]
) -> Awaited:
    """Newer state than `chosen` that a server may tell of in a moment, or when it is back.

    `last_members`: servers that ended in order, as the last ones of their shards, and hold what they left.
    """
    # Servers look at the volume now and then: what they told may be pruned, or not be seen by the others yet.
    if last_members and not turn.own_directories and not turn.unheard("last state", True, CHECKPOINT_NEWS_S):
        return Awaited("waiting until the last member's state is seen by a successor")
    known = {part.name for here in candidates.values() for m in here for part in parts_of(turn, m)}
    some = chosen is None and bool(known - set(turn.status.rejected_checkpoints))
    if some and not turn.unheard("no common checkpoint", True, CHECKPOINT_NEWS_S):
        return Awaited("waiting until a checkpoint is known to all shards")
    # Where all servers look at one directory, each has seen what there is by now.
    return _in_other_directories(turn, candidates, chosen, last_members) if turn.own_directories else Awaited()


def _in_other_directories(
    turn: Turn, candidates: Candidates, chosen: CheckpointRef | None, last_members: Collection[str]
) -> Awaited:
    newest = newest_set(turn)
    is_newer = newest is not None and (chosen is None or newest.order > chosen.order)
    if newest is not None and is_newer and (holders := _possible_holders(turn, candidates, newest)):
        why = (
            f"{newest.name} is newer than any available checkpoint; waiting for {', '.join(holders)}, which may hold it"
        )
        return Awaited(why, tuple(holders))
    if unheard := _unheard(turn, candidates, last_members):
        why = f"waiting for {', '.join(unheard)}, which may hold newer state than is known"
        return Awaited(why, tuple(unheard))
    return Awaited()


def _possible_holders(turn: Turn, candidates: Candidates, newest: CheckpointRef) -> list[str]:
    """Servers that are not here yet, of shards whose part of `newest` is not here; none if a shard's is nowhere."""
    if newest.name in turn.status.rejected_checkpoints:
        return []
    found: list[str] = []
    for shard, here in candidates.items():
        if any(newest.name == part.name for m in here for part in parts_of(turn, m)):
            continue
        missing = _missing(turn, shard, here)
        if not missing:
            return []
        found += missing
    return found


def _unheard(turn: Turn, candidates: Candidates, last_members: Collection[str]) -> list[str]:
    """Servers that are not here yet and may have written after their last word: those that were not heard to their end,
    and last members, which write as they end."""
    names = [n for shard, here in candidates.items() for n in _missing(turn, shard, here)]
    probes = turn.observed.probes
    unheard = [n for n in names if n in last_members or n not in probes or not (probes[n].refused or probes[n].left)]
    over = turn.unheard("unheard servers", bool(unheard), turn.spec.recovery.failover.assume_dead_seconds)
    return [] if over else unheard


def _missing(turn: Turn, shard: int, here: list[Member]) -> list[str]:
    names = {m.name for m in here}
    others = [n for n in server_names(turn.spec, shard) if n not in names and not turn.held(n)]
    return [n for n in others if _may_hold_anything(turn, n)]


def _may_hold_anything(turn: Turn, name: str) -> bool:
    """Whether a server was in a view with the directory that this name has now. One in the server's own pod goes with
    the pod; a claim stays."""
    if turn.status.storage == "PerServer":
        return turn.status.claims.get(name, ServerClaim()).used
    process = turn.process(name)
    return process is not None and process.alive and process.instance in turn.status.boots.values()

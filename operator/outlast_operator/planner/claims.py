"""The claims of servers' checkpoints: a claim never holds a server back that others can bring up to date.

Rules:
 1. Where checkpoints lie is chosen once, before the first server starts, and recorded: servers that write to different
    places find nothing of each other's. While the choice is open no process starts.
 2. A replacement mounts its name's claim. Where the claim keeps it from starting (its node is cordoned, lost or full,
    or its volume is still attached to another one) and the state lives elsewhere (a member that is heard and has
    restored; where state is rebuilt from Redis, the very run of it that held it, or any run if an older server did not
    tell which), the server gets a claim of the next generation. The former one is deleted later; at once, if no server
    has run with it. Such a claim may be slow to mount, as another one would be; it is given up only when its volume has
    a place that the pod cannot reach.
 3. Where the state lives nowhere else, the claim is what there is, and it is waited for.
 4. Claims exist before a worker tells the model's size. When it is known, one that is too small for `keep` + 1
    checkpoints is expanded; where its class does not allow that, the condition says so.
"""

from __future__ import annotations

from dataclasses import replace

from outlast_operator.planner.actions import ExpandClaims
from outlast_operator.planner.checkpoints import ServerClaim
from outlast_operator.planner.observed import Process
from outlast_operator.planner.status import UNKNOWN_RUN
from outlast_operator.planner.turn import Turn, server_names
from outlast_operator.planner.views import Shard, has_restored

_GIB = 1 << 30
_LOOK_S = 0.25  # between two looks at what the cluster offers


def note_storage(turn: Turn) -> None:
    """Record where checkpoints lie; while that is not known, wake for another look."""
    storage = turn.observed.storage
    if turn.status.storage is None:
        turn.record(storage=storage)
    if storage is None and turn.status.outcome is None:
        refused = [w.retry_at for w in turn.observed.waits.values() if w.blocks and w.retry_at is not None]
        turn.wake(min(refused, default=turn.now + _LOOK_S))


def plan_claims(turn: Turn, shards: list[Shard]) -> None:
    """Note which claims are in use, give up those that hold a server back, and expand those that are too small."""
    short_of = claim_shortage(turn, shards)
    refusal = turn.observed.claim_refusal
    if short_of and (refusal is None or turn.due(refusal.retry_at or turn.now)):
        turn.do(ExpandClaims(short_of))
    if turn.status.storage != "PerServer":
        return
    for s in shards:
        for name in server_names(turn.spec, s.shard):
            process = turn.process(name)
            if process is not None and process.alive:
                _plan_claim(turn, s, process)


def claim_shortage(turn: Turn, shards: list[Shard]) -> int:
    """The bytes that each of the job's own claims should have, as far as they ask for less; else 0."""
    has_bytes, checkpoint = turn.observed.claim_bytes, turn.spec.recovery.checkpoint
    if has_bytes is None:
        return 0
    parameters = [s.head.parameters for s in shards if s.head is not None]
    held = (sum if turn.status.storage == "Shared" else max)(parameters or [0])
    needed = (checkpoint.keep + 1) * held * _bytes_a_parameter(turn)
    rounded = -(-needed // _GIB) * _GIB  # some provisioners know no smaller unit
    return rounded if needed > has_bytes else 0


def _bytes_a_parameter(turn: Turn) -> int:
    """In a checkpoint: float32, and as much for each of the optimizer's moments."""
    optimizer = turn.spec.training.optimizer
    moments = 2 if optimizer.name != "SGD" else 1 if optimizer.momentum else 0
    return 4 * (1 + moments)


def _plan_claim(turn: Turn, s: Shard, process: Process) -> None:
    claim = turn.status.claims.get(process.name, ServerClaim())
    if process.claim != claim.generation:
        return
    if process.boot is not None and not claim.used:
        _record(turn, process.name, replace(claim, used=True))
    elif _is_held_back(process, claim) and _state_lives_elsewhere(turn, s, process.name):
        skipped = 0 if claim.used else claim.skipped + 1
        _record(turn, process.name, ServerClaim(claim.generation + 1, skipped=skipped))
        turn.tell("FreshClaim", f"{process.name} gets a fresh claim: {process.held_by_claim}", warning=True)


def _is_held_back(process: Process, claim: ServerClaim) -> bool:
    return bool(process.held_by_claim) and (claim.used or process.claim_out_of_reach)


def _record(turn: Turn, name: str, claim: ServerClaim) -> None:
    turn.record(claims={**turn.status.claims, name: claim})


def _state_lives_elsewhere(turn: Turn, s: Shard, name: str) -> bool:
    if turn.spec.traits.through_buffer:
        redis, run = turn.observed.redis, turn.status.buffer_runs.get(s.shard)
        return redis.up and redis.run_id is not None and run in (redis.run_id, UNKNOWN_RUN)
    if s.view is None:
        return False
    others = [s.standings[m.boot] for m in s.view.members if m.name != name]
    return any(st.heard and has_restored(st, s.view) for st in others)

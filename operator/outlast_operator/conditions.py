"""What is shown: conditions (metav1.Condition, each with reason and message) and the one-word state.

Rules:
 1. Programs read conditions, people read `state`.
 2. Messages hold no number that changes by itself (a version, a rate): every change of them is a write.
 3. A condition's transition time changes with its status alone.
"""

from __future__ import annotations

from outlast_operator.failover import policy
from outlast_operator.state import Condition
from outlast_operator.turn import Turn
from outlast_operator.views import Shard

READY, SUSPENDED, COMPLETE, FAILED = "Ready", "Suspended", "Complete", "Failed"
PRIMARY, REPLICATION, FAILOVER = "PrimaryAvailable", "ReplicationHealthy", "FailoverInProgress"
BUFFER, CHECKPOINT = "BufferHealthy", "CheckpointAvailable"

Finding = tuple[bool | None, str, str]  # status, reason, message


def show(turn: Turn, shards: list[Shard], suspending: str | None = None) -> None:
    """Put conditions and state into the draft. `suspending`: what a suspension waits for, "" when it is done."""
    suspended = suspending == ""
    primary = _primary(shards)
    stopped = (True, "Suspended", "everything is stopped, the state is kept")
    findings: dict[str, Finding] = {
        READY: _ready(turn, primary),
        SUSPENDED: stopped if suspended else _not_suspended(suspending),
        COMPLETE: _outcome(turn, "Succeeded"),
        FAILED: _outcome(turn, "Failed"),
        PRIMARY: primary,
        REPLICATION: _replication(turn, shards),
        FAILOVER: _failover(turn),
        BUFFER: _buffer(turn),
        CHECKPOINT: _checkpoint(turn),
    }
    turn.record(
        conditions=tuple(_condition(turn, type_, *finding) for type_, finding in findings.items()),
        state=_state(turn, shards, suspended, primary[0] is True),
    )


def _condition(turn: Turn, type_: str, value: bool | None, reason: str, message: str) -> Condition:
    status = "Unknown" if value is None else str(value)
    before = next((c for c in turn.recorded.conditions if c.type == type_), None)
    t = before.t_transition if before is not None and before.status == status else turn.now
    return Condition(type_, status, reason, message, t)


def _state(turn: Turn, shards: list[Shard], suspended: bool, primary: bool) -> str:
    status = turn.status
    if status.outcome is not None:
        return status.outcome
    if suspended:
        return "Suspended"
    if turn.spec.suspend:
        return turn.recorded.state  # until everything is stopped
    if status.goal is not None:
        return "Finishing"
    if primary:
        return "Running"
    if any(s.view is not None and (s.next is None or (s.view.restore and s.view.epoch > 1)) for s in shards):
        return "Recovering"
    if status.t_running is not None:
        return "FailingOver"
    servers = [p for p in turn.observed.processes.values() if p.role == "server" and p.phase == "running"]
    return "Starting" if servers else "Pending"


def _primary(shards: list[Shard]) -> Finding:
    without = [s.shard for s in shards if s.head is None or not s.head.serving]
    if not without:
        return True, "HeadsServe", "every shard has a head that serves"
    if all(s.view is None for s in shards):
        return False, "NotStarted", "no view is recorded yet"
    return False, "NoHead", f"without a head that serves: shard {', '.join(map(str, without))}"


def _ready(turn: Turn, primary: Finding) -> Finding:
    if turn.status.outcome is not None:
        return False, "Ended", "the job has ended"
    if primary[0] is not True:
        return primary
    wanted = turn.spec.workers.min_replicas
    running = sum(p.role == "worker" and p.phase == "running" for p in turn.observed.processes.values())
    if running < wanted:
        return False, "TooFewWorkers", f"fewer workers run than workers.minReplicas, {wanted}"
    return True, "Training", "heads serve and workers run"


def _not_suspended(suspending: str | None) -> Finding:
    return (False, "Suspending", suspending) if suspending else (False, "NotSuspended", "suspend is false")


def _outcome(turn: Turn, outcome: str) -> Finding:
    if turn.status.outcome == outcome:
        return True, turn.status.reason, turn.status.message
    if turn.status.outcome is None:
        return False, "NotEnded", "the job has not ended"
    return False, turn.status.outcome, f"the job ended otherwise: {turn.status.outcome}"


def _replication(turn: Turn, shards: list[Shard]) -> Finding:
    wanted = policy(turn.spec).chain_length
    if wanted == 1:
        return True, "NotReplicated", "this strategy keeps no replicas"
    short = [s.shard for s in shards if s.view is None or not s.confirmed(s.view.members)]
    short += [s.shard for s in shards if s.view is not None and len(s.view.members) < wanted and s.shard not in short]
    if short:
        names = ", ".join(map(str, sorted(short)))
        return False, "TooFewMembers", f"short of {wanted} caught-up members: shard {names}"
    return True, "AllCaughtUp", f"every shard has {wanted} caught-up members"


def _failover(turn: Turn) -> Finding:
    going = [f.target for f in turn.status.failovers if f.kind == "server" and f.t_promoted is None]
    if going and turn.status.outcome is None:
        return True, "ServerLost", f"lost: {', '.join(going)}"
    return False, "NoneInProgress", "no server is missed"


def _buffer(turn: Turn) -> Finding:
    if not policy(turn.spec).needs_redis:
        return None, "NotUsed", "this strategy keeps no buffer"
    if turn.observed.redis.up:
        return True, "RedisAnswers", "Redis answers"
    return False, "RedisDown", "Redis does not answer; workers keep what they compute, within bounds"


def _checkpoint(turn: Turn) -> Finding:
    if any(probe.checkpoints for probe in turn.observed.probes.values()):
        return True, "Complete", "a complete checkpoint can be restored"
    return False, "NoneYet", "no complete checkpoint is known"

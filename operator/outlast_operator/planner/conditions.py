"""What is shown: conditions (metav1.Condition, each with reason and message) and the one-word state.

Rules:
 1. Programs read conditions, people read `state`.
 2. Messages hold no number that changes by itself (a version, a rate): every change of them is a write.
 3. A condition's transition time changes with its status alone.
"""

from __future__ import annotations

from outlast_operator.planner.checkpoint_sets import newest_set
from outlast_operator.planner.claims import claim_shortage
from outlast_operator.planner.network import NETWORK, OPEN, blocked
from outlast_operator.planner.reach import reachable
from outlast_operator.planner.redis_contact import answers_a_server
from outlast_operator.planner.status import Condition
from outlast_operator.planner.turn import Turn
from outlast_operator.planner.views import Shard
from outlast_operator.planner.waits import summary, unready

READY, SUSPENDED, COMPLETE, FAILED = "Ready", "Suspended", "Complete", "Failed"
PRIMARY, REPLICATION, FAILOVER = "PrimaryAvailable", "ReplicationHealthy", "FailoverInProgress"
BUFFER, CHECKPOINT, STORAGE = "BufferHealthy", "CheckpointAvailable", "CheckpointStorage"
PODS, EVALUATION = "PodsReady", "EvaluationHealthy"

Finding = tuple[bool | None, str, str]  # status, reason, message


def show(turn: Turn, shards: list[Shard], suspending: str | None = None) -> None:
    """Put conditions and state into the draft. `suspending`: what a suspension waits for, "" when it is done."""
    suspended = suspending == ""
    primary = _primary(shards)
    stopped = (True, "Suspended", "all processes have ended; the state is kept")
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
        STORAGE: _storage(turn, shards),
        PODS: _pods(turn, shards),
        EVALUATION: _evaluation(turn),
        NETWORK: _network(turn, shards, suspended),
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
    if status.t_running is not None and _has_updated(turn):
        return "FailingOver"
    servers = [p for p in turn.observed.processes.values() if p.role == "server" and p.phase == "running"]
    return "Starting" if servers else "Pending"


def _has_updated(turn: Turn) -> bool:
    """Whether an update was applied: before that, a head that serves no more has lost nothing yet."""
    status = turn.status
    first = any(v.first_update_t is not None for p in turn.observed.probes.values() for v in p.views.values())
    return first or bool(status.failovers) or status.progress.gradients.get("applied", 0) > 0


def _pods(turn: Turn, shards: list[Shard]) -> Finding:
    if turn.status.outcome is not None:
        return None, "Ended", "the job has ended"
    if turn.status.waits:
        reasons, words = summary(turn.status.waits)
        return False, reasons, words
    if turn.spec.suspend:
        return None, "Suspended", "suspend is true"
    if unready(turn, shards):
        return False, "Starting", "pods are being created or started"
    return True, "AllRun", "every pod of the job is running"


def _evaluation(turn: Turn) -> Finding:
    if not turn.spec.training.evaluated:
        return None, "NotEvaluated", "the task is not evaluated"
    if turn.status.evaluation_error:
        return False, "EvaluatorFailed", f"the evaluator failed: {turn.status.evaluation_error}"
    return True, "Evaluates", "no evaluation has failed since the last successful one"


def _primary(shards: list[Shard]) -> Finding:
    without = [s.shard for s in shards if s.head is None or not s.head.serving]
    if not without:
        return True, "HeadsServe", "every shard has a serving head"
    if all(s.view is None for s in shards):
        return False, "NotStarted", "no view is recorded yet"
    waits = "".join(f"; {why}" for why in dict.fromkeys(s.waits for s in shards if s.waits))
    return False, "NoHead", f"no serving head: shard {', '.join(map(str, without))}{waits}"


def _ready(turn: Turn, primary: Finding) -> Finding:
    if turn.status.outcome is not None:
        return False, "Ended", "the job has ended"
    if primary[0] is not True:
        return primary
    wanted = turn.spec.workers.min_replicas
    running = sum(p.phase == "running" for p in reachable(turn, "worker"))
    if running < wanted:
        return False, "TooFewWorkers", f"fewer workers are running than workers.minReplicas, {wanted}"
    return True, "Training", "heads are serving and workers are running"


def _not_suspended(suspending: str | None) -> Finding:
    return (False, "Suspending", suspending) if suspending else (False, "NotSuspended", "suspend is false")


def _outcome(turn: Turn, outcome: str) -> Finding:
    if turn.status.outcome == outcome:
        return True, turn.status.reason, turn.status.message
    if turn.status.outcome is None:
        return False, "NotEnded", "the job has not ended"
    return False, turn.status.outcome, f"the job has ended: {turn.status.outcome}"


def _replication(turn: Turn, shards: list[Shard]) -> Finding:
    wanted = turn.spec.servers.replicas
    if wanted == 1:
        return True, "NotReplicated", "this strategy keeps no replicas"
    short = [s.shard for s in shards if s.view is None or not s.confirmed(s.view.members)]
    short += [s.shard for s in shards if s.view is not None and len(s.view.members) < wanted and s.shard not in short]
    if short:
        names = ", ".join(map(str, sorted(short)))
        return False, "TooFewMembers", f"fewer than {wanted} caught-up members: shard {names}"
    return True, "AllCaughtUp", f"every shard has {wanted} caught-up members"


def _failover(turn: Turn) -> Finding:
    going = [f.target for f in turn.status.failovers if f.kind == "server" and f.t_promoted is None]
    if going and turn.status.outcome is None:
        return True, "ServerLost", f"lost: {', '.join(going)}"
    return False, "NoneInProgress", "no failover in progress"


def _network(turn: Turn, shards: list[Shard], suspended: bool) -> Finding:
    if turn.status.outcome is not None or suspended:
        return None, "NothingRuns", "the job runs no processes"
    reason, message = blocked(turn, shards)
    return (False, reason, message) if reason else (True, "NothingBlocked", OPEN)


def _buffer(turn: Turn) -> Finding:
    if not turn.spec.traits.buffered:
        return None, "NotUsed", "this strategy keeps no buffer"
    if turn.observed.redis.up:
        return True, "RedisAnswers", "Redis answers"
    if answers_a_server(turn):
        return True, "RedisAnswersServers", "Redis answers the servers but not the operator (see NetworkOpen)"
    return False, "RedisDown", "Redis does not answer; workers buffer gradients in memory, up to a limit"


def _checkpoint(turn: Turn) -> Finding:
    if newest_set(turn) is not None:
        return True, "Complete", "a complete checkpoint can be restored"
    return False, "NoneYet", "no complete checkpoint is known"


def _storage(turn: Turn, shards: list[Shard]) -> Finding:
    if short_of := claim_shortage(turn, shards):
        refusal = turn.observed.claim_refusal
        why = "it is being expanded" if refusal is None else refusal.message
        return False, "ClaimTooSmall", (
            f"a claim of {turn.observed.claim_bytes} bytes is too small for recovery.checkpoint.keep + 1 checkpoints "
            f"of this model, which need {short_of}: {why}"
        )  # fmt: skip
    match turn.status.storage:
        case "NodeLocal":
            return False, "NodeLocal", (
                "checkpoints are in the servers' own pods (the cluster has no default StorageClass, or the job names "
                "an emptyDir): losing all servers of a shard at once takes the training back to its initial "
                "weights; name recovery.checkpoint.claim.storageClassName or recovery.checkpoint.volume in a new job"
            )  # fmt: skip
        case "PerServer":
            return True, "ClaimPerServer", "each server writes its checkpoints to a claim of its own"
        case None:
            return None, "NotChosen", "it is not known yet whether the cluster has a default StorageClass"
        case _:
            return True, "OneDirectory", "all servers write their checkpoints to one directory"

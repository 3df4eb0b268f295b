"""How far the job is and what it costs: for display, written at most every few seconds.

Rule: nothing is decided by what stands here.
"""

from __future__ import annotations

from outlast_operator.state import Probe, Progress
from outlast_operator.tally import total_lost, total_outage_s
from outlast_operator.turn import Turn
from outlast_operator.views import Shard

INTERVAL_S = 5.0


def measure(turn: Turn, shards: list[Shard]) -> Progress:
    """What the heads say now; what they cannot say stays as it was."""
    before = turn.recorded.progress
    heads = [s.head for s in shards if s.head is not None]
    complete = len(heads) == len(shards)
    version = min(p.version for p in heads) if complete else before.version
    evaluations = [p.evaluation for p in heads if p.evaluation is not None]
    shown = max(evaluations, key=lambda e: e.version, default=None)
    percent, eta_s = _share_done(turn, version)
    processes = turn.observed.processes.values()
    return Progress(
        version=version,
        accuracy=shown.accuracy if shown is not None else before.accuracy,
        loss=shown.loss if shown is not None else before.loss,
        percent=percent,
        eta_s=eta_s,
        workers_ready=sum(p.role == "worker" and p.phase == "running" for p in processes),
        servers_ready=sum(p.role == "server" and p.phase == "running" for p in processes),
        gradients=_gradients(turn, heads) if complete else before.gradients,
        cost=_cost(turn, version),
        t=turn.now,
    )


def trained_s(turn: Turn) -> float:
    """Seconds of training so far, suspended time not counted."""
    end = turn.status.t_completed if turn.status.t_completed is not None else turn.now
    return turn.status.trained_s + (end - turn.status.t_running if turn.status.t_running is not None else 0.0)


def _share_done(turn: Turn, version: int) -> tuple[float | None, float | None]:
    """Percent of stopAfter, and seconds left at the pace so far."""
    stop, elapsed_s = turn.spec.training.stop_after, trained_s(turn)
    shares = []
    if stop.updates:
        shares.append(version / stop.updates)
    if stop.seconds:
        shares.append(elapsed_s / stop.seconds)
    if not shares:
        return None, None
    share = min(1.0, max(shares))
    eta_s = elapsed_s * (1 - share) / share if share > 0 and elapsed_s > 0 else None
    return round(100 * share, 1), None if eta_s is None else round(eta_s, 1)


def _gradients(turn: Turn, heads: list[Probe]) -> dict[str, int]:
    return {
        "applied": min(p.applied for p in heads),
        "duplicates": max(p.duplicates for p in heads),
        "buffered": max(p.backlog for p in heads),
        "lost": total_lost(turn.status),
    }


def _cost(turn: Turn, version: int) -> dict[str, float]:
    """By the clock: `total`: servers and workers while they live; `idle`: workers in outages in which they cannot go
    on; `recomputed`: workers for what rollbacks took."""
    spec, status = turn.spec, turn.status
    if status.t_start is None:
        return {}
    end = status.t_completed if status.t_completed is not None else turn.now
    workers = spec.workers.replicas * spec.cost.hourly.worker / 3600
    idle_s = total_outage_s(status, end) if spec.recovery.strategy in ("Checkpoint", "Chain") else 0.0
    cost = {"total": _total_cost(turn), "idle": idle_s * workers}
    repeated_s = _repeated_s(turn, version, trained_s(turn) - idle_s)
    if repeated_s is not None:
        cost["recomputed"] = repeated_s * workers
    return {part: round(amount, 6) for part, amount in cost.items()}


def _total_cost(turn: Turn) -> float:
    """What was recorded, and since then the price of who lives now: so it stands still while the job is suspended, goes
    on from there afterwards, and follows another number of workers."""
    before, price = turn.recorded.progress, turn.spec.cost.hourly
    hourly = {"server": price.server, "worker": price.worker}
    rate = sum(hourly.get(p.role, 0.0) for p in turn.observed.processes.values() if p.alive) / 3600
    since = before.t if before.cost else turn.now
    return before.cost.get("total", 0.0) + max(0.0, turn.now - since) * rate


def _repeated_s(turn: Turn, version: int, busy_s: float) -> float | None:
    """Seconds that the workers spent on updates which rollbacks took: the share that those are of all updates so far.
    In updates, for in Sync one is made of several gradients. None if the share is not known: the version of a job
    that began from another one's checkpoint counts that one's updates too."""
    lost = total_lost(turn.status)
    if lost == 0:
        return 0.0
    if turn.spec.recovery.checkpoint.restore_from:
        return None
    return max(0.0, busy_s) * lost / (version + lost)

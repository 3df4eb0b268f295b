"""How far the job is and what it costs: for display, written every few seconds (plan.py, rule 4).

Rule: nothing is decided by what stands here.
"""

from __future__ import annotations

from outlast_operator.planner.observed import Probe
from outlast_operator.planner.reach import reachable
from outlast_operator.planner.status import Progress
from outlast_operator.planner.tally import outage_s, total_lost
from outlast_operator.planner.turn import Turn
from outlast_operator.planner.views import Shard

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
    return Progress(
        version=version,
        accuracy=shown.accuracy if shown is not None else before.accuracy,
        loss=shown.loss if shown is not None else before.loss,
        percent=percent,
        eta_s=eta_s,
        workers_ready=number_ready(turn, "worker"),
        workers_active=len(reachable(turn, "worker")),
        servers_ready=number_ready(turn, "server"),
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
    """What was recorded, and since then the price of who runs now: so it stands still while the job is suspended, and
    follows another number of workers. `workers`, `idle` (in outages in which they cannot go on) and `recomputed` (for
    what rollbacks took) are parts of `total`."""
    if turn.status.t_start is None:
        return {}
    before, price = turn.recorded.progress, turn.spec.cost.hourly
    since = before.t if before.cost else turn.now
    passed_s = max(0.0, turn.now - since)
    workers = passed_s * _running(turn, "worker") * price.worker / 3600
    servers = passed_s * _running(turn, "server") * price.server / 3600
    idle_s = outage_s(turn.status.failovers, turn.now, since) if not turn.spec.traits.buffered else 0.0
    idle = idle_s * _running(turn, "worker") * price.worker / 3600
    parts = {"total": workers + servers, "workers": workers, "idle": idle}
    cost = {part: before.cost.get(part, 0.0) + more for part, more in parts.items()}
    share = _repeated_share(turn, version)
    return cost if share is None else {**cost, "recomputed": max(0.0, cost["workers"] - cost["idle"]) * share}


def number_ready(turn: Turn, role: str) -> int:
    """Processes of a role that run, as far as they can be reached."""
    return sum(p.phase == "running" for p in reachable(turn, role))


def _running(turn: Turn, role: str) -> int:
    """Out of reach or not: the machine is paid for."""
    return sum(p.role == role and p.phase == "running" for p in turn.observed.processes.values())


def _repeated_share(turn: Turn, version: int) -> float | None:
    """The share of all updates so far which rollbacks took. In updates, for in Sync one is made of several gradients.
    None if it is not known: the version of a job that began from another one's checkpoint counts that one's too."""
    lost = total_lost(turn.status)
    if lost == 0:
        return 0.0
    return None if turn.spec.recovery.checkpoint.restore_from else lost / (version + lost)

"""Server processes and the job's Redis: who is started, ended or left to leave.

Rules:
 1. Every name has a process, started again as soon as its last one has ended (or cannot be proved to end: then the
    runtime removes it by force), unless a drill holds it back.
 2. A process that was in a view and is in none any more is ended: it is not empty, so it can never join again. One
    that leaves of its own accord is told the view without it, and ends by itself.
 3. A lost member that is still there (paused, cut off) is ended too, when nothing is hoped from it.
"""

from __future__ import annotations

from outlast.api.view import Member
from outlast_operator.backoff import count_exit, fails_for_good, is_counted, may_start
from outlast_operator.failover import policy
from outlast_operator.state import InstallView, KillProcess, Process, StartProcess, StartRedis
from outlast_operator.turn import Turn, server_name
from outlast_operator.views import Shard

LEAVE_PATIENCE_S = 30.0  # for one that was told the view without it
MUTE_PATIENCE_S = 60.0  # for one that runs and never answered


def plan_servers(turn: Turn, shards: list[Shard]) -> None:
    for s in shards:
        for index in range(turn.spec.servers.replicas):
            _plan_server(turn, s, index)


def _plan_server(turn: Turn, s: Shard, index: int) -> None:
    name = server_name(turn.spec, s.shard, index)
    process = turn.process(name)
    if process is not None and process.alive:
        why = _why_end(turn, s, process)
        if why is None:
            return
        turn.do(KillProcess(name, process.instance, why))
        turn.explain(f"{name} is ended: {why}")
        times = turn.spec.recovery.failover
        patience_s = times.assume_dead_seconds - times.timeout_seconds  # then the runtime removes it by force
        if not turn.lasted(f"kill:{process.instance}", True, patience_s):
            return
    if process is not None and not process.alive and not is_counted(turn, process):
        was_member = any(turn.recorded.boots.get(m.boot) == process.instance for m in _recorded_members(turn, s))
        attempt = count_exit(turn, process, progressed=was_member)
        if fails_for_good(turn, process, attempt.failures):
            return
    if may_start(turn, name):
        replaces = None if process is None else process.instance
        turn.do(StartProcess(name, "server", shard=s.shard, index=index, replaces=replaces))
        turn.explain(f"{name} is started")


def _recorded_members(turn: Turn, s: Shard) -> tuple[Member, ...]:
    view = turn.recorded.views.get(s.shard)
    return () if view is None else view.members


def _why_end(turn: Turn, s: Shard, process: Process) -> str | None:
    """Why a living server must be ended, or None."""
    view = turn.status.views.get(s.shard)
    probe = turn.observed.probes.get(process.name)
    if probe is not None and probe.boot != process.boot:
        probe = None  # an earlier start's, which may still speak: removed by force, it leaves when its host hears of it
    boot = next((b for b, instance in turn.status.boots.items() if instance == process.instance), process.boot)
    refused = probe is not None and probe.refused
    if refused and not turn.lasted(f"refused:{process.instance}", True, turn.spec.recovery.failover.timeout_seconds):
        return None  # most likely it has just ended, and how will be known in a moment
    if boot is not None and boot in s.hopeless:
        return f"lost: {s.standings[boot].cause}"
    if view is not None and boot is not None and any(m.boot == boot for m in (*view.members, *view.joining)):
        return None
    was_in_a_view = boot in turn.status.boots or (probe is not None and probe.epoch > 0)
    if not was_in_a_view:
        mute = process.phase == "running" and probe is None
        gone_mute = turn.lasted(f"mute:{process.instance}", mute, MUTE_PATIENCE_S)
        return f"it did not answer within {MUTE_PATIENCE_S:g} s" if gone_mute else None
    if probe is not None and (probe.leaving or probe.left) and view is not None:
        if turn.recorded.views.get(s.shard) == view and probe.epoch < view.epoch and not probe.refused:
            turn.do(InstallView(view, Member(process.name, probe.boot, process.address or probe.address)))
        return "it lingers" if turn.lasted(f"leaves:{process.instance}", True, LEAVE_PATIENCE_S) else None
    return "it is in no view any more"


def plan_redis(turn: Turn) -> None:
    """Keep the job's own Redis running (Stateless and Hybrid without `buffer.url`)."""
    if not runs_redis(turn):
        return
    process = turn.process("redis")
    if process is not None and process.alive:
        quiet = not turn.observed.redis.up
        patience_s = max(MUTE_PATIENCE_S, turn.spec.recovery.failover.assume_dead_seconds)
        if turn.lasted(f"redis:{process.instance}", quiet, patience_s):
            turn.do(KillProcess("redis", process.instance, f"it did not answer for {patience_s:g} s"))
        return
    if process is not None and not is_counted(turn, process):
        count_exit(turn, process)
    if may_start(turn, "redis"):
        turn.do(StartRedis(None if process is None else process.instance))
        turn.explain("redis is started")


def runs_redis(turn: Turn) -> bool:
    return policy(turn.spec).needs_redis and not turn.spec.recovery.buffer.url

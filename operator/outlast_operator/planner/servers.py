"""Server processes and the job's Redis: who is started, ended or left to leave.

Rules:
 1. Every name has a process, started again as soon as its last one has ended (or cannot be proved to end: then the
    runtime removes it by force), unless a drill holds it back. Of the two names of a shard with one server one has a
    process; the other one gets its own while that process leaves, so that the state is handed over.
    Where a rollback waits for what a name's directory may hold, that name has a process too.
 2. A process that was in a view and is in none any more is ended: it is not empty, so it can never join again. One
    that leaves of its own accord is told the view without it, and ends by itself. One that was in no view is ended
    when its shard has a serving head and no use for its name.
 3. A lost member that is still there (paused, cut off) is ended too, when nothing is hoped from it.
"""

from __future__ import annotations

from dataclasses import replace

from outlast.api.view import Member
from outlast_operator.planner.actions import InstallView, KillProcess, StartProcess, StartRedis
from outlast_operator.planner.backoff import count_exit, fails_for_good, is_counted, may_start
from outlast_operator.planner.checkpoints import ServerClaim
from outlast_operator.planner.observed import Process
from outlast_operator.planner.redis_contact import answers, any_does_not_tell, heads_without
from outlast_operator.planner.turn import Turn, server_name, server_names
from outlast_operator.planner.views import Shard

LEAVE_PATIENCE_S = 30.0  # for one that was told the view without it
MUTE_PATIENCE_S = 60.0  # for one that runs and never answered


def plan_servers(turn: Turn, shards: list[Shard]) -> None:
    for s in shards:
        for index, name in enumerate(server_names(turn.spec, s.shard)):
            _plan_server(turn, s, index, name)


def _plan_server(turn: Turn, s: Shard, index: int, name: str) -> None:
    process = turn.process(name)
    if process is not None and process.alive:
        why = _why_end(turn, s, process)
        if why is None:
            return
        turn.do(KillProcess(name, process.instance, why))
        turn.explain(f"stopping {name}: {why}")
        times = turn.spec.recovery.failover
        patience_s = times.assume_dead_seconds - times.timeout_seconds  # then the runtime removes it by force
        if not turn.lasted(f"kill:{process.instance}", True, patience_s):
            return
    if process is not None and not process.alive and not is_counted(turn, process):
        was_member = any(turn.recorded.boots.get(m.boot) == process.instance for m in _recorded_members(turn, s))
        attempt = count_exit(turn, process, progressed=was_member)
        if fails_for_good(turn, process, attempt.failures):
            return
    if is_wanted(turn, s, name) and may_start(turn, name):
        replaces = None if process is None else process.instance
        storage = turn.status.storage or turn.observed.storage
        assert storage is not None, "nothing starts before that is known"
        start = StartProcess(name, "server", s.shard, index, replaces=replaces, storage=storage)
        turn.do(replace(start, claim=_claim(turn, name)))
        turn.explain(f"starting {name}")


def _claim(turn: Turn, name: str) -> int:
    """Which generation of its claim a server that starts now gets."""
    return turn.status.claims.get(name, ServerClaim()).generation


def is_wanted(turn: Turn, s: Shard, name: str) -> bool:
    """Whether a process should run under this name: always, but for the two names of a shard with one server. Where
    each has a claim, either may hold the newest checkpoint of a shard that lost its server."""
    if turn.spec.servers.replicas > 1:
        return True
    if name in s.awaited or (s.view is not None and s.next is None and _claim_is_used(turn, name)):
        return True
    (other,) = (n for n in server_names(turn.spec, s.shard) if n != name)
    process = turn.process(other)
    if process is not None and process.alive:
        return _is_leaving(turn, process)
    view = turn.status.views.get(s.shard)
    last = view.head.name if view is not None and view.head is not None else server_name(turn.spec, s.shard, 0)
    return name == last


def _claim_is_used(turn: Turn, name: str) -> bool:
    return turn.status.claims.get(name, ServerClaim()).used


def _is_leaving(turn: Turn, process: Process) -> bool:
    probe = turn.observed.probes.get(process.name)
    return probe is not None and probe.boot == process.boot and (probe.leaving or probe.left)


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
    if process.phase == "starting" and process.claim < _claim(turn, process.name):
        return "its claim cannot be used; a fresh one replaces it"
    refused = probe is not None and probe.refused
    if refused and not turn.lasted(f"refused:{process.instance}", True, turn.spec.recovery.failover.timeout_seconds):
        return None  # most likely it has just ended, and how will be known in a moment
    if boot is not None and boot in s.hopeless:
        return f"lost: {s.standings[boot].cause}"
    if view is not None and boot is not None and any(m.boot == boot for m in (*view.members, *view.joining)):
        return None
    was_in_a_view = boot in turn.status.boots or (probe is not None and probe.epoch > 0)
    if not was_in_a_view:
        silent = process.phase == "running" and probe is None
        if turn.unheard(f"silent:{process.instance}", silent, MUTE_PATIENCE_S):
            return f"it did not answer within {MUTE_PATIENCE_S:g} s"
        settled = s.head is not None and s.head.serving and not s.waits
        return "its shard has another server" if settled and not is_wanted(turn, s, process.name) else None
    if probe is not None and (probe.leaving or probe.left) and view is not None:
        if turn.recorded.views.get(s.shard) == view and probe.epoch < view.epoch and not probe.refused:
            turn.do(InstallView(Member(process.name, probe.boot, process.address or probe.address), view))
        return (
            f"still running {LEAVE_PATIENCE_S:g} s after it left the view"
            if turn.lasted(f"leaves:{process.instance}", True, LEAVE_PATIENCE_S)
            else None
        )
    return "it is no longer in any view"


def plan_redis(turn: Turn, shards: list[Shard]) -> None:
    """Keep the job's own Redis running (Stateless and Hybrid without `buffer.url`)."""
    if not turn.spec.own_redis:
        return
    process = turn.process("redis")
    if process is not None and process.alive:
        patience_s = max(MUTE_PATIENCE_S, turn.spec.recovery.failover.assume_dead_seconds)
        unheard = turn.unheard(f"redis:{process.instance}", not answers(turn), patience_s)
        heads = heads_without(turn, shards, patience_s)
        if unheard and (heads or any_does_not_tell(shards)):
            asked = f"the operator and {', '.join(heads)}" if heads else "the operator"
            turn.do(KillProcess("redis", process.instance, f"it did not answer {asked} for {patience_s:g} s"))
        return
    if process is not None and not is_counted(turn, process):
        count_exit(turn, process)
    if may_start(turn, "redis"):
        turn.do(StartRedis(None if process is None else process.instance))
        turn.explain("starting redis")

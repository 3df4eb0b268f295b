"""The failover ledger: what was lost, and when each step of the answer was taken.

Rules:
 1. One line for each lost member, worker or Redis; opened in the turn that notices it, never opened twice for the same
    start of a process.
 2. A process that never ran is no loss.
 3. Times come from `now` and from servers' own notes (`probe.views`), never from what should have happened. A line is
    closed without a new view only when the lost member was heard again.
 4. The newest `KEPT` lines stay; `failover_count` counts all, and `lost_before` holds what the others lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from outlast.api.server_status import HEADS
from outlast.api.view import View
from outlast_operator.planner.health import Standing, how_it_ended
from outlast_operator.planner.observed import Probe, Process
from outlast_operator.planner.redis_contact import answers
from outlast_operator.planner.status import Failover
from outlast_operator.planner.tally import keep_newest
from outlast_operator.planner.turn import Turn
from outlast_operator.planner.views import Shard
from outlast_operator.planner.workers import slot_clocks

KEPT = 100


def write_ledger(turn: Turn, shards: list[Shard]) -> None:
    lines = [_advance(turn, shards, f) for f in turn.status.failovers]
    opened = [*_lost_members(turn, shards), *_lost_workers(turn, shards), *_lost_redis(turn)]
    for f in opened:
        if f.kind == "server":
            turn.tell("ServerLost", f"{f.target} ({f.role}) is lost: {f.cause}", warning=f.cause != "Planned")
    lines += [_advance(turn, shards, f) for f in opened]
    kept, lost_before = keep_newest(lines, KEPT, turn.status.lost_before)
    turn.record(failovers=kept, lost_before=lost_before, failover_count=turn.status.failover_count + len(opened))


# --- opening ----------------------------------------------------------------------------------------------------------


def _lost_members(turn: Turn, shards: list[Shard]) -> Iterator[Failover]:
    known = {f.boot for f in turn.status.failovers if f.kind == "server" and not f.closed}
    for s in shards:
        if s.view is None:
            continue
        following = turn.status.views[s.shard]
        for i, m in enumerate(s.view.members):
            st = s.standings[m.boot]
            dropped = st.well and m.boot not in {n.boot for n in following.members}
            failed = st.cause == "RestoreFailed" and following is not s.view
            if m.boot not in known and (dropped or failed or m.boot in s.newly_lost):
                yield Failover(
                    m.name, _cause(st), turn.now, boot=m.boot, shard=s.shard, role=_role(i, len(s.view.members)),
                    signal=st.signal, version=_last_version(turn, s.shard, st), message=st.message,
                )  # fmt: skip


def _last_version(turn: Turn, shard: int, st: Standing) -> int:
    """The shard's when this member was lost: its own word, if it held the state. Else what earlier losses, which nobody
    has made good yet, have left of it: a Redis that turns out to be empty, a checkpoint that cannot be read or a server
    that dies while it restores must neither hide what was lost nor count it again. Else what was recorded last."""
    if st.probe is not None and st.probe.initialised and st.cause != "RestoreFailed":
        return st.probe.version
    open_lines = [f for f in turn.status.failovers if f.kind == "server" and f.shard == shard and not f.closed]
    left = [f.version - f.gradients.get("lost", 0) for f in open_lines]
    return max(left, default=turn.recorded.progress.version)


def _cause(st: Standing) -> str:
    return st.cause or ("Planned" if st.leaving else "Unreachable")


def _role(position: int, length: int) -> str:
    if length == 1:
        return "single"
    return "head" if position == 0 else "tail" if position == length - 1 else "middle"


def _lost_workers(turn: Turn, shards: list[Shard]) -> Iterator[Failover]:
    """Workers whose exit was counted in this turn and that are to be restarted. One that left in order is no loss, also
    where its end may have been rolled back: mostly it has heard of the job's end before the operator."""
    clocks = slot_clocks(shards) or {}
    for p in _counted_now(turn, "worker"):
        if p.name not in turn.status.done and p.exit_code != 0:
            slot = int(p.name.rsplit("-", 1)[1])
            yield Failover(
                p.name, _how_it_went(p), turn.now, kind="worker", role="worker",
                boot=p.instance, shard=slot, signal=p.exit_signal, version=clocks.get(slot, 0), message=p.reason,
            )  # fmt: skip


def _how_it_went(process: Process) -> str:
    return "Killed" if process.exit_signal else "Unreachable" if process.unreachable else "Exited"


def _lost_redis(turn: Turn) -> Iterator[Failover]:
    for p in _counted_now(turn, "redis"):
        if turn.spec.own_redis:
            yield Failover(
                "redis", "Planned" if p.leaving else _how_it_went(p), turn.now, kind="redis", role="redis",
                boot=p.instance, signal=p.exit_signal, message=p.reason,
            )  # fmt: skip


def _counted_now(turn: Turn, role: str) -> Iterator[Process]:
    for p in turn.observed.processes.values():
        if p.role == role and p.instance in turn.exits_counted and not p.never_ran:
            yield p


# --- following up -----------------------------------------------------------------------------------------------------


def _advance(turn: Turn, shards: list[Shard], f: Failover) -> Failover:
    f = _count_what_workers_tell(shards, _learn_cause(turn, f))
    if f.successor:
        f = _count_replayed(shards, f)
    if f.closed:
        return f
    if f.kind == "redis":
        return _advance_redis(turn, f)
    return _advance_worker(turn, shards, f) if f.kind == "worker" else _advance_server(turn, shards, f)


def _learn_cause(turn: Turn, f: Failover) -> Failover:
    """Its connection was closed first; how it ended is known when its exit is, which may be after it was replaced.
    Of one that was dropped for another reason (its peers could not reach it) the end is our own doing."""
    process = turn.process(f.target)
    if f.cause != "Unreachable" or f.message or process is None or process.boot != f.boot or process.alive:
        return f
    return replace(f, cause=how_it_ended(process), signal=process.exit_signal, message=process.reason)


def _advance_server(turn: Turn, shards: list[Shard], f: Failover) -> Failover:
    if f.shard >= len(shards):
        return f
    s, view = shards[f.shard], turn.status.views[f.shard]
    if f.t_decided is None:
        if view is not s.view and (f.boot not in {m.boot for m in view.members} or s.failed_restore):
            f = _count_lost(turn, s, view, f)
            f = replace(f, t_decided=turn.now, epoch=view.epoch, restore=view.restore)
            f = _follow_successor(turn, view, f)
        elif _is_back(s, f):
            f = replace(f, t_decided=turn.now, epoch=view.epoch, message="it came back before it was replaced")
            return replace(f, t_promoted=turn.now, t_first_update=turn.now)
    if f.t_decided is None or f.epoch is None:
        return f
    times = [(e, v, p) for p in _probes_of(turn, s) for e, v in p.views.items() if e >= f.epoch]
    if f.t_promoted is None and s.head is not None and s.head.epoch >= f.epoch and s.head.serving:
        head = s.head
        installed = [v.installed_t + p.clock_offset_s for _, v, p in times if v.installed_t is not None and p is head]
        f = replace(f, t_promoted=min(installed, default=turn.now))
        if head.backlog:
            f = replace(f, gradients={**f.gradients, "buffered": head.backlog})
    updated = [v.first_update_t + p.clock_offset_s for _, v, p in times if v.first_update_t is not None]
    return replace(f, t_first_update=min(updated)) if updated else f


def _is_back(s: Shard, f: Failover) -> bool:
    """Whether it was heard since. An operator that was held up, or has just begun, takes nobody's silence for a loss:
    that is no sign of life."""
    st = s.standings.get(f.boot)
    heard = st is not None and st.well and st.probe is not None and st.probe.t_heard > f.t_detected
    return heard and not s.failed_restore


def _follow_successor(turn: Turn, view: View, f: Failover) -> Failover:
    """Note who is to apply what the outage left in the buffer. Hybrid: elsewhere nothing lies there, or everything goes
    through it (Stateless), and nobody can tell what was left by the outage."""
    if not turn.spec.traits.diverts or f.role not in HEADS or view.head is None:
        return f
    probe = turn.probe(view.head.name, view.head.boot)
    return replace(f, successor=view.head.boot, replayed_before=probe.replayed if probe is not None else 0)


def _count_replayed(shards: list[Shard], f: Failover) -> Failover:
    """Once, when the new head has taken all that the log held at its promotion: each word of it would be a write."""
    head = shards[f.shard].head if f.shard < len(shards) else None
    if head is None or f.t_promoted is None:
        return f
    if head.boot != f.successor:  # lost itself: the line of its own loss tells the rest
        return replace(f, successor="", replayed_before=0)
    if head.log_end_t is None or head.log_end_t + head.clock_offset_s < f.t_promoted:
        return f
    replayed = max(0, head.replayed - f.replayed_before)
    return replace(f, successor="", replayed_before=0, gradients={**f.gradients, "replayed": replayed})


def _probes_of(turn: Turn, s: Shard) -> list[Probe]:
    if s.view is None:
        return []
    return [p for m in s.view.members if (p := turn.probe(m.name, m.boot)) is not None]


def _count_lost(turn: Turn, s: Shard, view: View, f: Failover) -> Failover:
    """What a rollback costs this shard: its version when it was lost less the checkpoint's."""
    if s.view is None or view.history == s.view.history:
        return replace(f, gradients={"lost": 0})
    refs = {c.name: c.version for p in turn.observed.probes.values() for c in p.checkpoints}
    restored = refs.get(view.restore or "", 0)
    version = max(f.version, restored)  # a server that was cut off may have written on
    return replace(f, history=view.history, version=version, gradients={"lost": version - restored})


def _count_what_workers_tell(shards: list[Shard], f: Failover) -> Failover:
    """The version that was heard last may not have been the last: workers have pulled later ones, of a server that was
    cut off, say."""
    head = shards[f.shard].head if f.history and f.shard < len(shards) else None
    if head is None or head.history != f.history or head.former_version <= f.version:
        return f
    lost = f.gradients["lost"] + head.former_version - f.version
    return replace(f, version=head.former_version, gradients={**f.gradients, "lost": lost})


def _advance_worker(turn: Turn, shards: list[Shard], f: Failover) -> Failover:
    process = turn.process(f.target)
    if process is not None and process.instance != f.boot:
        f = replace(f, t_decided=turn.now if f.t_decided is None else f.t_decided)
        if f.t_promoted is None and process.phase == "running":
            f = replace(f, t_promoted=turn.now)
    clocks = slot_clocks(shards)
    if f.t_promoted is not None and clocks is not None and clocks.get(f.shard, 0) > f.version:
        f = replace(f, t_first_update=turn.now)
    return f


def _advance_redis(turn: Turn, f: Failover) -> Failover:
    process = turn.process("redis")
    if process is not None and process.instance != f.boot and answers(turn):
        return replace(f, t_decided=turn.now, t_promoted=turn.now, t_first_update=turn.now)
    return f

"""The views of all shards in one turn: first ones, repairs, growth, hand-over, rollback.

Rules:
 1. A loss is answered in the turn that sees it, if a caught-up member is left. Growth waits: a joining server is
    taken in only when every member has confirmed the recorded view, so that no repair is held up by it.
 2. A first view (of a job, or after a total loss) waits for all servers of the shard, at most `timeoutSeconds` after
    the first of them is ready; the others join later. Servers that a drill holds back are not waited for.
 3. A rollback is recorded for all shards in one write.
 4. A server that was in a view and is in it no more is never a candidate: servers.py ends it, and starts another.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from outlast.api.view import BUFFER, EMPTY, Member, View, last_state_name
from outlast_operator.planner.checkpoint_sets import Candidates, parts_of, what_may_be_seen
from outlast_operator.planner.health import Standing, is_newly_lost, standing, surely_dead
from outlast_operator.planner.membership import fresh_view, next_view, worst_linked
from outlast_operator.planner.observed import Probe
from outlast_operator.planner.rollback import best_parts, first_restore, newest_checkpoint, state_before_snapshots
from outlast_operator.planner.turn import Turn, server_names


@dataclass
class Shard:
    """What is known of a shard in this turn. `lost`: boots that the next view must do without."""

    shard: int
    view: View | None
    standings: dict[str, Standing] = field(default_factory=dict)  # by boot: members and joining
    fresh: list[Member] = field(default_factory=list)  # started, empty, in no view, longest ready first
    lost: set[str] = field(default_factory=set)
    newly_lost: set[str] = field(default_factory=set)  # not well, and no turn before has noticed it
    hopeless: set[str] = field(default_factory=set)  # of those, to be ended whether a view drops them yet or not
    failed_restore: bool = False
    next: View | None = None  # None: nobody would be kept
    waits: str = ""  # why a view that keeps nobody is not recorded yet
    awaited: tuple[str, ...] = ()  # the servers that this is for

    @property
    def head(self) -> Probe | None:
        """The head's probe, if it is heard and has confirmed the recorded view: an older word tells of no head now."""
        if self.view is None or self.view.head is None:
            return None
        s = self.standings[self.view.head.boot]
        return s.probe if s.heard and s.confirms(self.view.epoch) else None

    def confirmed(self, members: tuple[Member, ...]) -> bool:
        assert self.view is not None
        return all(self.standings[m.boot].heard and self.standings[m.boot].confirms(self.view.epoch) for m in members)


def survey(turn: Turn) -> list[Shard]:
    """Look at every shard: who is well, who is lost, who is ready."""
    return [_survey_shard(turn, shard) for shard in range(turn.spec.servers.shards)]


def plan_views(turn: Turn, shards: list[Shard]) -> None:
    """Put the next views into the draft."""
    for s in shards:
        if s.view is not None:
            s.next = _follow(turn, s)
            if s.next is None:
                s.next = _succeed_the_last(turn, s)
    needy = [s for s in shards if s.view is not None and (s.next is None or s.failed_restore)]
    if needy and not (turn.spec.traits.through_buffer and not any(s.failed_restore for s in needy)):
        _roll_back(turn, shards, needy)
    else:
        for s in shards:
            if s.view is None:
                _first(turn, s)
            elif s.next is None:
                _rebuild_from_buffer(turn, s)
    _record(turn, shards)


# --- looking ----------------------------------------------------------------------------------------------------------


def _survey_shard(turn: Turn, shard: int) -> Shard:
    view = turn.status.views.get(shard)
    s = Shard(shard, view)
    if view is not None:
        s.standings = {m.boot: standing(turn, m) for m in (*view.members, *view.joining)}
        s.lost = {boot for boot, st in s.standings.items() if not st.well}
        s.newly_lost = {boot for boot, st in s.standings.items() if is_newly_lost(turn, st)}
        _drop_badly_linked(turn, s, view)
        _judge_restores(turn, s, view)
        s.hopeless = s.lost - (_hopeful(turn, s, view) if turn.spec.traits.chained else set())
        if not any(m.boot not in s.lost for m in view.members):
            s.lost = set(s.hopeless)
    s.fresh = _fresh(turn, shard, s)
    return s


def _hopeful(turn: Turn, s: Shard, view: View) -> set[str]:
    """Members that are silent, or refuse while their process seems to run, and may be the last to hold what was
    acknowledged (none, while another member is well)."""
    if any(m.boot not in s.lost for m in view.members):
        return set()
    times = turn.spec.recovery.failover
    patience_s = times.assume_dead_seconds - times.timeout_seconds  # the rest is for ending them, which gives proof
    silent = [st for m in view.members if (st := s.standings[m.boot]).silent or st.refused]
    return {st.member.boot for st in silent if not turn.due((st.t_heard or 0.0) + patience_s)}


def _drop_badly_linked(turn: Turn, s: Shard, view: View) -> None:
    well = {b for b in s.standings if b not in s.lost}
    links: set[tuple[str, str]] = set()
    for boot in well:
        probe = s.standings[boot].probe
        if probe is not None and probe.epoch == view.epoch:
            links |= {(min(boot, peer), max(boot, peer)) for peer in probe.broken if peer in well}
    timeout_s = turn.spec.recovery.failover.timeout_seconds
    lasting = [(a, b) for a, b in sorted(links) if turn.unheard(f"broken:{a}:{b}", True, timeout_s)]
    worst = worst_linked(view, lasting)
    if worst is not None:
        s.standings[worst] = replace(s.standings[worst], cause="Unreachable", message="its peers cannot reach it")
        s.lost.add(worst)


def _judge_restores(turn: Turn, s: Shard, view: View) -> None:
    """A member that could not restore is dropped while another could; if none could, the shard needs a rollback."""
    candidates = [m for m in view.members if m.boot not in s.lost]
    failed = [m for m in candidates if _restore_error(s, view, m.boot)]
    for m in failed:
        message = str(_restore_error(s, view, m.boot))
        s.standings[m.boot] = replace(s.standings[m.boot], cause="RestoreFailed", message=message)
    if failed and len(failed) == len(candidates):
        s.failed_restore = True
    elif failed:
        s.lost |= {m.boot for m in failed}


def _restore_error(s: Shard, view: View, boot: str) -> str | None:
    probe = s.standings[boot].probe
    if probe is None or probe.epoch != view.epoch:
        return None
    # A head that Redis refused rebuilds in a view that names nothing; else the error is of a restore before.
    return probe.restore_error if view.restore or probe.restoring == BUFFER else None


def _fresh(turn: Turn, shard: int, s: Shard) -> list[Member]:
    ready: list[tuple[float, Member]] = []
    timeout_s = turn.spec.recovery.failover.timeout_seconds
    for name in server_names(turn.spec, shard):
        process, probe = turn.process(name), turn.observed.probes.get(name)
        if process is None or not process.alive or probe is None or probe.boot in s.standings:
            continue
        this_start = probe.t_heard >= process.t_started and process.boot in (None, probe.boot)
        empty = probe.epoch == 0 and probe.boot not in turn.status.boots and not (probe.leaving or probe.left)
        if this_start and empty and not probe.refused and probe.t_heard + timeout_s > turn.now:
            ready.append((process.t_started, Member(name, probe.boot, process.address or probe.address)))
    return [m for _, m in sorted(ready, key=lambda r: (r[0], r[1].name))]


# --- deciding ---------------------------------------------------------------------------------------------------------


def _follow(turn: Turn, s: Shard) -> View | None:
    view = s.view
    assert view is not None
    calm = not s.lost and s.confirmed(view.members)
    if turn.spec.traits.through_buffer and calm and s.fresh and all(s.standings[m.boot].leaving for m in view.members):
        return None  # the replacement is there, and Redis holds the state
    tail = s.standings[view.members[-1].boot]
    tail_says = tail.probe if tail.well and tail.probe is not None and tail.probe.epoch == view.epoch else None
    kept = [s.standings[m.boot] for m in view.members if m.boot not in s.lost]
    following = next_view(
        view,
        lost=s.lost,
        leaving={boot for boot, st in s.standings.items() if st.leaving},
        caught_up=tail_says.caught_up if tail_says is not None and view.members[-1].boot not in s.lost else (),
        fresh=s.fresh if calm and tail_says is not None and tail_says.initialised else (),
        replicas=turn.spec.servers.replicas,
        epoch=_highest_epoch(turn, s),
        restored=all(has_restored(st, view) for st in kept),
    )
    if following is None or following is view:
        return following
    return following.with_(otherwise=_without_snapshot(turn, view))


def has_restored(st: Standing, view: View) -> bool:
    return st.probe is not None and st.probe.initialised and st.probe.history == view.history and st.probe.epoch > 0


def _highest_epoch(turn: Turn, s: Shard) -> int:
    """Of the recorded view, and of what any server of the shard ever installed: a lost record must not repeat one."""
    names = server_names(turn.spec, s.shard)
    heard = [p.epoch for name in names if (p := turn.observed.probes.get(name)) is not None]
    return max([s.view.epoch if s.view is not None else 0, *heard])


def _succeed_the_last(turn: Turn, s: Shard) -> View | None:
    """The only member left without a replacement, and left its state: a successor goes on from it, and no other shard
    is concerned. None: there is no such state, or nobody can read it."""
    view = s.view
    assert view is not None
    if len(view.members) > 1 or not surely_dead(turn, s.standings[view.members[0].boot]):
        return None
    name = last_state_name(s.shard, view.members[0].boot)
    candidates = _candidates(s)
    readable = [m for m in candidates if name in _last_states(turn, m)]
    if not readable or name in turn.status.rejected_checkpoints:
        return None
    joining = [m for m in candidates if m in s.fresh and m not in readable[:1]][: turn.spec.servers.replicas - 1]
    epoch = _highest_epoch(turn, s) + 1
    return fresh_view(s.shard, epoch, view.history, readable[:1], joining, name, _without_snapshot(turn, view))


def _left_in_order(turn: Turn, s: Shard) -> str | None:
    """The only member's name, if it has left and a successor may go on from what it wrote as it ended."""
    if s.next is not None or s.view is None or len(s.view.members) > 1:
        return None
    st = s.standings[s.view.members[0].boot]
    held = st.probe is not None and st.probe.initialised and st.cause == "Planned"
    rejected = last_state_name(s.shard, st.member.boot) in turn.status.rejected_checkpoints
    return st.member.name if held and not rejected else None


def _last_states(turn: Turn, member: Member) -> tuple[str, ...]:
    probe = turn.probe(member.name, member.boot)
    return probe.last_states if probe is not None else ()


def _rebuild_from_buffer(turn: Turn, s: Shard) -> None:
    assert s.view is not None
    if not s.fresh:
        _wait(turn, [s], f"shard {s.shard} is rebuilt from Redis: waiting for a server to start")
        return
    epoch, otherwise = _highest_epoch(turn, s) + 1, _without_snapshot(turn, s.view)
    s.next = fresh_view(s.shard, epoch, s.view.history, s.fresh[:1], (), BUFFER, otherwise)


def _without_snapshot(turn: Turn, view: View) -> str | None:
    """`View.otherwise` of the next view in this history. No shard of a job that trains begins anew alone: when one has
    its initial weights, so have all, or the job goes back to them."""
    runs = turn.status.buffer_runs
    known_to_be_held = bool(runs) if view.otherwise == EMPTY else view.shard in runs
    return None if known_to_be_held else view.otherwise


def _first(turn: Turn, s: Shard) -> None:
    if _enough(turn, s, s.fresh):
        members, restore = s.fresh[: turn.spec.servers.replicas], first_restore(turn.spec)
        epoch = _highest_epoch(turn, s) + 1
        s.next = fresh_view(s.shard, epoch, 0, members, (), restore, state_before_snapshots(turn.spec, restore))


def _enough(turn: Turn, s: Shard, candidates: list[Member]) -> bool:
    """Whether a view that keeps nobody may start with these: all of them are ready, or time is up."""
    key = f"ready:{s.shard}"
    if not candidates:
        return False
    ready = {m.name for m in candidates}
    names = [n for n in server_names(turn.spec, s.shard) if n in ready or not turn.held(n)]
    if len(candidates) >= min(turn.spec.servers.replicas, len(names)):
        return True
    return turn.unheard(key, True, turn.spec.recovery.failover.timeout_seconds)


def _roll_back(turn: Turn, shards: list[Shard], needy: list[Shard]) -> None:
    """Take all shards to the newest complete checkpoint, if what must be proved is proved and all have candidates."""
    rejected = set(turn.status.rejected_checkpoints)
    for s in needy:
        if s.failed_restore and s.view is not None and s.view.restore not in (None, BUFFER):
            rejected.add(str(s.view.restore))
    turn.record(rejected_checkpoints=tuple(sorted(rejected)))
    candidates = {s.shard: _candidates(s) for s in shards}
    numbers = ", ".join(str(s.shard) for s in needy)
    if lacks := _what_a_rollback_lacks(turn, shards, needy, candidates):
        _wait(turn, shards, f"rollback for shard {numbers}: {lacks}")
        return
    available = [{c for m in candidates[s.shard] for c in parts_of(turn, m)} for s in shards]
    chosen = newest_checkpoint(available, rejected)
    last_members = [name for s in needy if (name := _left_in_order(turn, s)) is not None]
    awaited = what_may_be_seen(turn, candidates, chosen, last_members)
    if awaited.why:
        _wait(turn, shards, f"rollback for shard {numbers}: {awaited.why}", awaited.servers)
        return
    fallback = turn.spec.recovery.checkpoint.restore_from
    restore = chosen.name if chosen is not None else fallback if fallback and fallback not in rejected else None
    history = 1 + max(s.view.history for s in shards if s.view is not None)
    for s in shards:
        # Members restore one and the same part; who has another one, or none, joins and gets the state from them.
        part = None if chosen is None else best_parts(available[s.shard])[chosen.name]
        readable = [m for m in candidates[s.shard] if part is None or part in parts_of(turn, m)]
        joining = [m for m in candidates[s.shard] if m in s.fresh and m not in readable]
        members = readable[: turn.spec.servers.replicas]
        room = turn.spec.servers.replicas - len(members)
        epoch = _highest_epoch(turn, s) + 1
        s.next = fresh_view(
            s.shard, epoch, history, members, joining[:room], restore, state_before_snapshots(turn.spec, restore)
        )
    _forget_what_was_rolled_back(turn)
    where = restore or "the initial weights"
    turn.tell("RolledBack", f"history {history}: all shards go back to {where}", warning=True)


def _wait(turn: Turn, shards: list[Shard], why: str, servers: tuple[str, ...] = ()) -> None:
    for s in shards:
        s.waits, s.awaited = why, servers
    turn.explain(why)


def _what_a_rollback_lacks(turn: Turn, shards: list[Shard], needy: list[Shard], candidates: Candidates) -> str:
    """What must be proved or ready first, and is not yet; "" if nothing."""
    ready = [_enough(turn, s, candidates[s.shard]) for s in shards if s in needy or s.view is None]
    proved = [surely_dead(turn, st) for s in needy if s.next is None for st in _members(s)]
    if not all(proved):
        return "waiting until every old server is proved dead"
    # Heard within timeoutSeconds, or silent and no candidate: what it holds must be known, or that it is not here.
    standings = {boot: st for s in shards for boot, st in s.standings.items()}
    members = [standings[m.boot] for here in candidates.values() for m in here if m.boot in standings]
    if unheard := sorted(st.member.name for st in members if not st.heard):
        return f"waiting for a report from {', '.join(unheard)}"
    return "" if all(ready) and all(candidates.values()) else "waiting until servers are ready"


def _members(s: Shard) -> list[Standing]:
    return [s.standings[m.boot] for m in s.view.members] if s.view is not None else []


def _candidates(s: Shard) -> list[Member]:
    """Who may be in a view that restores from a checkpoint: what they hold is replaced."""
    if s.view is None:
        return s.fresh
    well = [m for m in (*s.view.members, *s.view.joining) if m.boot not in s.lost and s.standings[m.boot].well]
    staying = [m for m in well if not s.standings[m.boot].leaving]
    return [*(staying or well), *s.fresh]


def _forget_what_was_rolled_back(turn: Turn) -> None:
    """Workers that were done may have work again; a goal that was reached may not be any more; what Redis holds is of
    the former history."""
    goal = turn.status.goal if turn.status.goal == "seconds" else None
    turn.record(done=(), goal=goal, t_rolled_back=turn.now, buffer_runs={})


def _record(turn: Turn, shards: list[Shard]) -> None:
    views, boots = dict(turn.status.views), dict(turn.status.boots)
    for s in shards:
        if s.next is None or s.next is s.view:
            continue
        assert s.view is None or s.next.epoch > s.view.epoch, "an epoch is recorded once"
        views[s.shard] = s.next
        for m in (*s.next.members, *s.next.joining):
            process = turn.process(m.name)
            if m.boot not in boots and process is not None:
                boots[m.boot] = process.instance
        turn.tell("ViewRecorded", _describe(s.next))
    turn.record(views=views, boots=boots)


def _describe(view: View) -> str:
    text = f"shard {view.shard}, epoch {view.epoch}: {' -> '.join(m.name for m in view.members)}"
    if view.joining:
        text += f"; joining: {', '.join(m.name for m in view.joining)}"
    return text + (f"; restoring from {view.restore}" if view.restore else "")

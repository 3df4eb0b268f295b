"""Is this member well, silent or gone, and is it proved that it acts no more?

Rules:
 1. A member is a name *and* a boot id. A process that runs under the name with another boot is not it.
 2. `gone`: it exited, its name runs something else, or its connection was closed and a new one refused (which a
    firewall may do as well, so the last of a chain are given time: views.py). `silent`: nothing was heard from it for
    `timeoutSeconds`. An operator's start counts as the last heartbeat, and so does the start of the process: neither
    is a word of the member's, so one that is not silent need not be `heard`. `well` says that a member is not dropped;
    what it holds or serves is known only of one that is heard.
 3. To drop a member while others keep the state needs no proof (the new epoch fences it); to start without any does:
    see rollback.py. Proof is an exit that the runtime saw (reaped, container terminated), remembered in
    `JobStatus.dead`; failing that, `assumeDeadSeconds` of silence.
"""

from __future__ import annotations

from dataclasses import dataclass

from outlast.api.view import Member
from outlast_operator.planner.observed import Probe, Process
from outlast_operator.planner.turn import Turn


@dataclass(frozen=True)
class Standing:
    """How one member of a view is, as far as known."""

    member: Member
    probe: Probe | None
    gone: bool = False
    silent: bool = False
    proven_dead: bool = False
    leaving: bool = False
    cause: str = ""
    signal: int | None = None
    message: str = ""
    refused: bool = False  # gone by its connection alone: its process seems to run
    t_heard: float | None = None  # when it last showed life, where that is known
    heard: bool = False  # it spoke within `timeoutSeconds`

    @property
    def well(self) -> bool:
        return not (self.gone or self.silent)

    def confirms(self, epoch: int) -> bool:
        return self.probe is not None and self.probe.epoch >= epoch


def remember_the_dead(turn: Turn) -> None:
    """Note which instances are proved dead, and forget the boots nobody needs any more."""
    status, observed = turn.status, turn.observed
    in_views = {m.boot for v in status.views.values() for m in (*v.members, *v.joining)}
    alive = {p.instance for p in observed.processes.values() if p.alive}
    boots = {b: i for b, i in status.boots.items() if b in in_views or i in alive}
    ended = {p.instance for p in observed.processes.values() if not p.alive and p.proven_dead}
    known = (set(status.dead) | observed.dead | ended) & set(boots.values())
    turn.record(boots=boots, dead=tuple(sorted(known)))


def standing(turn: Turn, member: Member) -> Standing:
    """Judge one member from its process and its last probe. Wakes the loop when silence would become a loss."""
    instance = turn.status.boots.get(member.boot)
    process = turn.process(member.name)
    probe = turn.probe(member.name, member.boot)
    latest = turn.observed.probes.get(member.name)
    leaving = probe is not None and (probe.leaving or probe.left)
    dead = instance in turn.status.dead
    planned = "Planned" if leaving else ""
    if process is None or process.instance != instance:
        cause = planned or ("Exited" if process is None else "Restarted")
        return Standing(member, probe, True, proven_dead=dead, leaving=leaving, cause=cause)
    if not process.alive:
        cause = planned or how_it_ended(process)
        proven = dead or process.proven_dead
        return Standing(member, probe, True, False, proven, leaving, cause, process.exit_signal, process.reason)
    other = latest is not None and latest.boot != member.boot and latest.t_heard > process.t_started
    if other or process.boot not in (None, member.boot):
        return Standing(member, probe, True, proven_dead=dead, leaving=leaving, cause=planned or "Restarted")
    if probe is not None and probe.refused:
        why = planned or "Unreachable"
        return Standing(member, probe, True, False, dead, leaving, why, t_heard=probe.t_heard, refused=True)
    timeout_s = turn.spec.recovery.failover.timeout_seconds
    t_heard = max(turn.observed.t_operator_start, process.t_started, probe.t_heard if probe is not None else 0.0)
    silent = turn.due(t_heard + timeout_s)
    heard = probe is not None and not turn.due(probe.t_heard + timeout_s)
    cause = "Silent" if silent else ""
    return Standing(member, probe, False, silent, dead, leaving, cause, t_heard=t_heard, heard=heard)


def how_it_ended(process: Process) -> str:
    """The cause of a server's exit. With code 0 it left in order: its last word of that may not have been heard."""
    return "Killed" if process.exit_signal else "Planned" if process.exit_code == 0 else "Exited"


def surely_dead(turn: Turn, s: Standing) -> bool:
    """Proved dead, or lost for so long that the job goes on without proof (what it still acknowledges is lost)."""
    lost = lost_since(turn, s)
    if s.proven_dead or lost is None:
        return s.proven_dead
    patience_s = turn.spec.recovery.failover.assume_dead_seconds
    return turn.due(max(lost, turn.observed.t_operator_start) + patience_s)


def lost_since(turn: Turn, s: Standing) -> float | None:
    """Since when there is no sign of life from it: last heard, if it fell silent, else when the loss was noticed."""
    return turn.since(f"lost:{s.member.boot}", not s.well, start=s.t_heard)


def is_newly_lost(turn: Turn, s: Standing) -> bool:
    """Whether no turn before has noticed its loss. What was lost while the job was suspended is no news."""
    return lost_since(turn, s) is not None and f"lost:{s.member.boot}" not in turn.recorded.since

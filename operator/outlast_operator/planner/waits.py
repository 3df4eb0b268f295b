"""Waits: what the job's processes wait for before they run, and what a wait costs the job (nothing).

Rules:
 1. A start that is refused, or a pod that cannot start, is a wait and not a failure: it is no loss, and counts neither
    towards `runPolicy.backoffLimit` nor towards `runPolicy.activeDeadlineSeconds`, unless the job trains meanwhile. Nor
    does `runPolicy.startDeadlineSeconds` count while the job is suspended.
 2. A refused request is sent again for the first of those that wait for the same reason alone; when it is granted, the
    next follow at once. Many pods without a quota cost the API server no more than one. What was refused and is not
    wanted any more is no wait.
 3. Final is only a template that the API server cannot read as a pod. It ends a job that has not trained yet; of one
    that has, the process waits until the template is fixed.
 4. Each cause is one event, and stands in the condition PodsReady for as long as it lasts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from outlast_operator.planner.actions import KillProcess, StartProcess, StartRedis
from outlast_operator.planner.backoff import fail
from outlast_operator.planner.servers import is_wanted
from outlast_operator.planner.status import POD_REJECTED, Wait
from outlast_operator.planner.turn import Turn, server_names
from outlast_operator.planner.views import Shard

NAMES_SHOWN = 5


def note_waits(turn: Turn, shards: list[Shard]) -> None:
    """Record what waits now, tell of each new cause, and end the job where a wait is final or has lasted too long."""
    _replace_outdated(turn)
    wanted = set(unready(turn, shards))
    waits = {
        name: replace(wait, retry_at=None)
        for name, wait in turn.observed.waits.items()
        if wait.blocks or name in wanted
    }
    for name in _being_started(turn):
        if name not in waits and name in turn.recorded.waits:
            waits[name] = turn.recorded.waits[name]  # another operator's request was refused; ours has no answer yet
    waits |= _rejected(turn, wanted - set(waits))
    _tell(turn, waits)
    turn.record(waits=waits)
    _count_time(turn, bool(waits) and not turn.spec.suspend and not trains(turn, shards))
    _end_job(turn, waits)


def _count_time(turn: Turn, waiting: bool) -> None:
    before = turn.recorded.t_waiting
    if waiting:  # a recorded time in the future is that of another operator, whose clock was ahead
        turn.record(t_waiting=turn.now if before is None else min(before, turn.now))
    elif before is not None:
        turn.record(t_waiting=None, waited_s=turn.status.waited_s + max(0.0, turn.now - before))


def _rejected(turn: Turn, names: set[str]) -> dict[str, Wait]:
    """Processes whose pods ended again and again before they ran: a node refuses them. One that is deleted is none: the
    operator ends pods too, and replaces them."""
    found = {}
    for name in names:
        process, attempt = turn.process(name), turn.status.attempts.get(name)
        again = attempt is not None and attempt.exits > 1
        if process is not None and process.never_ran and not process.leaving and process.reason and again:
            found[name] = Wait(POD_REJECTED, process.reason)
    return found


def trains(turn: Turn, shards: list[Shard]) -> bool:
    """Whether every shard has a serving head and enough workers run."""
    running = sum(p.role == "worker" and p.phase == "running" for p in turn.observed.processes.values())
    return all(s.head is not None and s.head.serving for s in shards) and running >= turn.spec.workers.min_replicas


def active_until(turn: Turn) -> float | None:
    """When `runPolicy.activeDeadlineSeconds` is over; None without one, and while a wait holds it up."""
    limit_s, start = turn.spec.run_policy.active_deadline_seconds, turn.status.t_start
    if limit_s is None or start is None or turn.recorded.t_waiting is not None:
        return None
    return start + turn.status.waited_s + limit_s


def unready(turn: Turn, shards: list[Shard]) -> list[str]:
    """Names of the processes that the job should have, or has, and that do not run."""
    if turn.status.outcome is not None:
        return []
    living = {p.name for p in turn.observed.processes.values() if p.alive}
    names = [n for s in shards for n in server_names(turn.spec, s.shard) if n in living or is_wanted(turn, s, n)]
    computing = not turn.spec.suspend
    names += [f"worker-{slot}" for slot in range(turn.spec.workers.replicas) if computing]
    if turn.spec.training.evaluated and computing:
        names.append("evaluator")
    if turn.spec.own_redis:
        names.append("redis")
    running = {p.name for p in turn.observed.processes.values() if p.phase == "running"}
    return [name for name in names if name not in running and name not in turn.status.done]


def summary(waits: Mapping[str, Wait]) -> tuple[str, str]:
    """(reasons, words): `QuotaExceeded`, `server-0, server-1: exceeded quota: …`."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name in sorted(waits):
        groups.setdefault((waits[name].reason, waits[name].message), []).append(name)
    reasons = sorted({reason for reason, _ in groups})
    words = [f"{_shortened(names)}: {message}" for (_, message), names in groups.items()]
    return ",".join(reasons), "; ".join(words)


def _shortened(names: list[str]) -> str:
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _being_started(turn: Turn) -> list[str]:
    started = [a.name for a in turn.actions if isinstance(a, StartProcess)]
    return started + ["redis" for a in turn.actions if isinstance(a, StartRedis)]


def _tell(turn: Turn, waits: Mapping[str, Wait]) -> None:
    known = {wait.reason for wait in turn.recorded.waits.values()}
    for reason in sorted({wait.reason for wait in waits.values()} - known):
        _, words = summary({name: wait for name, wait in waits.items() if wait.reason == reason})
        turn.tell(reason, words, warning=True)


def _replace_outdated(turn: Turn) -> None:
    for name, wait in turn.observed.waits.items():
        process = turn.process(name)
        if wait.outdated and process is not None and process.alive:
            turn.do(KillProcess(name, process.instance, "its template was changed before it could start"))


def _end_job(turn: Turn, waits: Mapping[str, Wait]) -> None:
    has_trained = turn.status.t_running is not None or turn.status.trained_s > 0
    final = {name: wait for name, wait in waits.items() if wait.final}
    if final and not has_trained:
        fail(turn, *summary(final))
    limit_s, since = turn.spec.run_policy.start_deadline_seconds, turn.status.t_waiting
    if limit_s is not None and since is not None and turn.due(since + limit_s):
        _, words = summary(waits)
        message = f"not started for {limit_s} s (runPolicy.startDeadlineSeconds): {words}"
        fail(turn, "StartDeadlineExceeded", message)

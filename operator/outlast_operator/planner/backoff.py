"""When a name whose process exited may be started again.

Rules:
 1. Every exit is counted once, by the instance that ended. The first restart is at once, then after 1, 2, 4, … 30 s.
 2. Progress, or a long life, starts the count anew. Waiting for a node or an image is no life, and a process that
    never ran has failed at nothing.
 3. Only exits with an error of its own count towards `runPolicy.backoffLimit`: a process that was killed, evicted or
    lost with its node has failed at nothing. The signals of a crash (SEGV, ABRT, BUS, FPE, ILL) are its own errors.
"""

from __future__ import annotations

from dataclasses import replace

from outlast.process.exit_codes import EXIT_CONFIGURATION
from outlast_operator.planner.observed import Process
from outlast_operator.planner.status import Attempt
from outlast_operator.planner.turn import Turn

LONGEST_DELAY_S = 30.0
LONG_LIFE_S = 60.0
OWN_SIGNALS = frozenset({4, 6, 7, 8, 11})


def delay_s(exits: int) -> float:
    """Seconds to wait after that many exits in a row."""
    return 0.0 if exits < 2 else min(2.0 ** min(exits - 2, 10), LONGEST_DELAY_S)


def is_own_error(process: Process) -> bool:
    if process.exit_signal:
        return process.exit_signal in OWN_SIGNALS
    return process.exit_code not in (None, 0) and process.proven_dead and not process.never_ran


def ending(process: Process) -> str:
    """How it ended, in words: `signal 9`, `exit code 1`, or what is known instead."""
    if process.exit_signal:
        return f"signal {process.exit_signal}"
    if process.exit_code is not None:
        return f"exit code {process.exit_code}"
    return f"no exit code: {process.reason or 'its process is gone'}"


def is_counted(turn: Turn, process: Process) -> bool:
    """Whether an earlier turn has already dealt with this exit."""
    attempt = turn.status.attempts.get(process.name)
    return attempt is not None and attempt.instance == process.instance


def count_exit(turn: Turn, process: Process, clock: int | None = None, progressed: bool = False) -> Attempt:
    """Remember an exit, and until when its name waits. `clock` grows with progress; None where it is not known."""
    before = turn.status.attempts.get(process.name, Attempt())
    since_start_s = (process.t_exited if process.t_exited is not None else turn.now) - process.t_started
    lived_s = since_start_s if process.lived_s is None else process.lived_s
    # Of one that never ran the clock is the work of another: of the worker that its slot is lent to.
    mark = before.clock if clock is None or process.never_ran else clock
    if progressed or lived_s >= LONG_LIFE_S or mark > before.clock >= 0:
        before = Attempt()
    exits = before.exits + 1
    failures = before.failures + (1 if is_own_error(process) else 0)
    extra_s = turn.spec.recovery.failover.delay_seconds if process.role == "server" else 0.0
    attempt = Attempt(failures, exits, process.instance, turn.now, turn.now + max(delay_s(exits), extra_s), mark)
    turn.record(attempts={**turn.status.attempts, process.name: attempt})
    turn.exits_counted.add(process.instance)
    return attempt


def may_start(turn: Turn, name: str) -> bool:
    """Neither held back by a drill, nor in back-off, nor refused a moment ago; if it is, the loop is woken when that
    ends."""
    attempt = turn.status.attempts.get(name)
    longest_s = max(LONGEST_DELAY_S, turn.spec.recovery.failover.delay_seconds)
    if attempt is not None and attempt.until > turn.now + longest_s:  # recorded by a clock that was ahead
        attempt = replace(attempt, until=turn.now + longest_s)
        turn.record(attempts={**turn.status.attempts, name: attempt})
    waits = attempt is not None and not turn.due(attempt.until)
    return not (turn.held(name) or waits) and _may_ask(turn, name)


def _may_ask(turn: Turn, name: str) -> bool:
    """Whether the start may be requested. Of those of a role that were refused for one reason, the first that this turn
    wants to start is requested again, and no other (waits.py): a name that is not wanted any more stands for nobody. A
    job that has no server yet starts none before it has what they need."""
    if turn.observed.storage is None:
        return False  # claims.py wakes for that
    observed = turn.observed.waits
    missing = [w.retry_at or turn.now for w in observed.values() if w.blocks]
    if missing and not turn.status.views:
        turn.wake(min(missing))
        return False
    wait = observed.get(name)
    if wait is None or wait.retry_at is None:
        return True
    first = turn.first_refused.setdefault((_role_of(name), wait.reason), name)
    return name == first and turn.due(wait.retry_at)


def _role_of(name: str) -> str:
    return name.partition("-")[0]


def fail(turn: Turn, reason: str, message: str) -> None:
    """End the job; the first reason stays."""
    if turn.status.outcome is None:
        turn.record(outcome="Failed", reason=reason, message=message, t_completed=turn.now)
        turn.tell(reason, message, warning=True)


def fails_for_good(turn: Turn, process: Process, failures: int) -> bool:
    """Whether this exit ends the job: an error that no restart can mend, or one error too many."""
    limit = turn.spec.run_policy.backoff_limit
    if process.exit_code == EXIT_CONFIGURATION:
        fail(turn, "ConfigurationError", f"{process.name}: {process.reason or 'configuration error; see its log'}")
    elif failures > limit:
        what = process.reason or ending(process)
        message = f"{process.name} failed {failures} times in a row without progress, runPolicy.backoffLimit is {limit}"
        fail(turn, "BackoffLimitExceeded", f"{message}; the last failure: {what}")
    return turn.status.outcome is not None

"""The loop of an operator: the one seam between deciding and doing, and what a loop sleeps on.

A runtime is local processes, Kubernetes pods, or a test's fake.

Rules:
 1. A turn is `observe -> plan -> install recorded views -> write_status (if it changed) -> execute the other actions`.
    After a Conflict, observe again and execute nothing more. Views that are installed were recorded by an earlier turn
    (the planner asserts it), so they need not wait for a store that answers slowly or not at all.
 2. `execute` must be safe to repeat and must not block for long: an unreachable server is no error, the action will be
    planned again. It refuses what comes late (see each action's docstring).
 3. `observe` reads the recorded status in the same breath as it reports its resource_version.
 4. A loop sleeps until something happens, or until the plan wants to be woken, and for a heartbeat at most. A gap in
    which it could not listen counts as a fresh start of its operator: silence meanwhile proves nothing.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from outlast_operator.planner.actions import Action, InstallView, Plan
from outlast_operator.planner.observed import ObservedJob
from outlast_operator.planner.plan import plan as decide
from outlast_operator.planner.status import JobStatus

if TYPE_CHECKING:
    from outlast.api.spec import JobSpec

log = logging.getLogger("outlast.runtime")

QUIET_S = 0.002  # events that come together are answered by one turn


class Conflict(Exception):
    """The recorded status is not the one that was observed: another client wrote it."""


class Runtime(Protocol):
    def observe(self) -> ObservedJob:
        """Everything known now, without waiting for processes that do not answer."""
        ...

    def write_status(self, status: JobStatus, expected_version: str | None) -> str:
        """Record `status` durably if the recorded version is `expected_version` (None: nothing recorded yet).

        Returns the new version. Raises `Conflict` otherwise.
        """
        ...

    def execute(self, action: Action) -> None:
        """Carry one action out, or start to. Errors that a repetition may cure are logged, not raised."""
        ...


class Waker:
    """What one loop sleeps on. Any thread may `wake` it; the rest belongs to the loop."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._woken = clock, threading.Event()
        self.t_listening = clock()  # since when it has listened without a gap
        self.heartbeat_s = math.inf

    def wake(self) -> None:
        self._woken.set()

    def wait(self, until: float) -> None:
        """Sleep until something happens, or `until`."""
        self._woken.wait(max(0.0, until - self._clock()))
        if self._woken.is_set():
            time.sleep(QUIET_S)
        self._woken.clear()
        if self._clock() > until + self.heartbeat_s:  # this process was held up
            self.listen_anew()

    def listen_anew(self) -> None:
        self.t_listening = self._clock()


def run_turn(runtime: Runtime, spec: JobSpec, now: float) -> tuple[ObservedJob, Plan, bool]:
    """One turn. The flag says that the status changed, so that another turn should follow at once."""
    observed = runtime.observe()
    plan = decide(spec, observed, now)
    for action in plan.actions:
        if isinstance(action, InstallView):
            runtime.execute(action)
    changed = replace(plan.status, resource_version=None) != replace(observed.status, resource_version=None)
    if changed:
        try:
            runtime.write_status(plan.status, observed.status.resource_version)
        except Conflict as conflict:
            log.info("%s", conflict)
            return observed, plan, True
    for action in plan.actions:
        if not isinstance(action, InstallView):
            runtime.execute(action)
    return observed, plan, changed


def is_over(observed: ObservedJob) -> bool:
    """The outcome is recorded and no process is left to wait for."""
    return observed.status.outcome is not None and not any(p.alive for p in observed.processes.values())

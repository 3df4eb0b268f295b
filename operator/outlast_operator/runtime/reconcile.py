"""The one seam between deciding and doing: what a runtime (local processes, Kubernetes pods, a test's fake) provides.

Rules:
 1. A turn is `observe -> plan -> install recorded views -> write_status (if it changed) -> execute the other actions`.
    After a Conflict, observe again and execute nothing more. Views that are installed were recorded by an earlier turn
    (the planner asserts it), so they need not wait for a store that answers slowly or not at all.
 2. `execute` must be safe to repeat and must not block for long: an unreachable server is no error, the action will be
    planned again. It refuses what comes late (see each action's docstring).
 3. `observe` reads the recorded status in the same breath as it reports its resource_version.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from outlast_operator.planner.actions import Action, InstallView, Plan
from outlast_operator.planner.observed import ObservedJob
from outlast_operator.planner.status import JobStatus

log = logging.getLogger("outlast.runtime")


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


def run_turn(runtime: Runtime, decide: Callable[[ObservedJob, float], Plan], now: float) -> tuple[Plan, bool]:
    """One turn. The flag says that the status changed, so that another turn should follow at once."""
    observed = runtime.observe()
    plan = decide(observed, now)
    for action in plan.actions:
        if isinstance(action, InstallView):
            runtime.execute(action)
    changed = replace(plan.status, resource_version=None) != replace(observed.status, resource_version=None)
    if changed:
        try:
            runtime.write_status(plan.status, observed.status.resource_version)
        except Conflict as conflict:
            log.info("%s", conflict)
            return plan, True
    for action in plan.actions:
        if not isinstance(action, InstallView):
            runtime.execute(action)
    return plan, changed


def is_over(observed: ObservedJob) -> bool:
    """The outcome is recorded and no process is left to wait for."""
    return observed.status.outcome is not None and not any(p.alive for p in observed.processes.values())

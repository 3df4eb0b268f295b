"""What each strategy means for the planner: how long a chain is, and where state comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from outlast.api.spec import JobSpec


@dataclass(frozen=True)
class Policy:
    """What the planner needs to know of a strategy."""

    chain_length: int  # members of a view; servers beyond it stand by
    from_buffer: bool  # state is rebuilt from Redis
    waits_for_silent: bool  # the last, silent members are given assumeDeadSeconds
    needs_redis: bool


def policy(spec: JobSpec) -> Policy:
    match spec.recovery.strategy:
        case "Checkpoint":
            return Policy(1, from_buffer=False, waits_for_silent=False, needs_redis=False)
        case "Stateless":
            return Policy(1, from_buffer=True, waits_for_silent=False, needs_redis=True)
        case "Chain":
            return Policy(spec.servers.replicas, from_buffer=False, waits_for_silent=True, needs_redis=False)
        case "Hybrid":
            return Policy(spec.servers.replicas, from_buffer=False, waits_for_silent=True, needs_redis=True)
        case other:
            raise AssertionError(f"unknown strategy {other!r}")

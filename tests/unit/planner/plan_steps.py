"""What tests of the planner begin with and ask: a world in which the job trains, what was done, what is said."""

from __future__ import annotations

from typing import Any

from plan_world import World, make_spec

from outlast.api.server_status import CheckpointRef
from outlast_operator.planner.status import Condition


def running(strategy: str = "Chain", **changes: Any) -> World:
    """A world in which the job trains."""
    world = World(make_spec(strategy, **changes))
    world.run(1.0)
    assert world.status.state == "Running", world.plans[-1].reason
    world.executed.clear()
    world.plans.clear()
    return world


def running_apart(strategy: str = "Chain", node_local: bool = False, **changes: Any) -> World:
    """A world in which the job trains, each server with a directory of its own."""
    world = World(make_spec(strategy, **changes))
    world.own, world.node_local = {}, node_local
    world.run(1.5)
    assert world.status.state == "Running", world.plans[-1].reason
    world.executed.clear()
    return world


def own(world: World) -> dict[str, list[CheckpointRef]]:
    assert world.own is not None
    return world.own


def of(world: World, kind: type) -> list[Any]:
    return [a for a in world.executed if isinstance(a, kind)]


def condition(world: World, type_: str) -> Condition:
    return next(c for c in world.status.conditions if c.type == type_)

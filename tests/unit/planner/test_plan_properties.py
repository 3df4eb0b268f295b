"""The planner against random trouble: whatever happens, views stay sound, and when it stops the job comes back.

The checkers live in the world (plan_world.py): an epoch is recorded once; epochs, histories and incarnations never go
back; nobody is a member who was not one or joined before; who was dropped stays out; a view that keeps nobody has
proof; no empty head leads members that hold state; only recorded views are installed; and what was acknowledged in a
history, or stood in the checkpoint that it began with, is never gone in it.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from plan_world import World, make_spec

from outlast_operator.planner.actions import Action

PATIENCE_S = 90.0
SERVERS = st.integers(0, 5)
EVENTS = st.one_of(
    st.tuples(st.sampled_from(["kill", "pause", "resume", "leave", "cut off", "hold", "kill worker"]), SERVERS),
    st.tuples(st.just("link"), st.tuples(SERVERS, SERVERS)),
    st.tuples(st.sampled_from(["kill redis", "restart operator", "late", "carry out"]), st.none()),
    st.tuples(st.sampled_from(["turn", "die after"]), st.integers(0, 3)),
    st.tuples(st.just("wait"), st.sampled_from([0.05, 0.2, 1.0, 1.5, 6.0])),
)


def server(world: World, i: int) -> str | None:
    names = sorted(world.servers)
    return names[i % len(names)] if names else None


class Trouble:
    """Applies events to a world; keeps the actions of an operator that was held up after its write."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.held_up: list[Action] = []

    def happen(self, kind: str, value: Any) -> None:
        w = self.world
        name = server(w, value) if isinstance(value, int) else None
        match kind:
            case "kill" if name:
                w.kill(name)
            case "pause" if name:
                w.servers[name].paused = w.servers[name].process.alive
            case "resume" if name:
                w.servers[name].paused = False
            case "leave" if name:
                w.servers[name].leaving = True
            case "cut off" if name:
                w.cut_off(name)
            case "hold" if name:
                w.held[name] = w.now + 3
            case "kill worker":
                w.kill(f"worker-{value % w.spec.workers.replicas}")
            case "link":
                a, b = (server(w, i) for i in value)
                if a and b and a != b:
                    w.servers[a].broken = (w.servers[b].boot,)
            case "kill redis":
                w.kill("redis")
            case "restart operator":
                w.restart_operator()
            case "late":
                self.held_up += w.turn(actions=0).actions
            case "carry out":
                for action in self.held_up:
                    w.execute(action)
                self.held_up.clear()
            case "turn":
                for _ in range(value + 1):
                    w.turn()
            case "die after":
                w.turn(actions=value)
            case "wait":
                end = w.now + value
                while w.now < end - 1e-9:
                    w.turn()
                    w.turn()
                    w.advance(min(0.25, end - w.now))


def settled(world: World) -> bool:
    """Every shard has its full chain, installed by all, and trains."""
    status = world.status
    if status.state != "Running" or len(status.views) != world.spec.servers.shards:
        return False
    views = status.views.values()
    full = all(len(v.members) == world.spec.servers.replicas and not v.joining for v in views)
    installed = all(world.servers[m.name].view == v for v in views for m in v.members)
    return full and installed and all(p.alive for p in world.others.values())


@pytest.mark.parametrize(
    ("strategy", "shards"), [("Chain", 1), ("Chain", 2), ("Checkpoint", 1), ("Checkpoint", 2), ("Stateless", 1)]
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(events=st.lists(EVENTS, max_size=25))
def test_whatever_happens_views_stay_sound_and_the_job_comes_back(
    strategy: str, shards: int, events: list[tuple[str, Any]]
) -> None:
    quick = {"timeoutSeconds": 1, "assumeDeadSeconds": 5}
    world = World(make_spec(strategy, servers__shards=shards, workers__replicas=2, recovery__failover=quick))
    trouble = Trouble(world)
    for _ in range(4):
        world.turn()
        world.advance()
    for kind, value in events:
        trouble.happen(kind, value)
        assert not world.wrongs, world.wrongs
    world.heal()
    deadline = world.now + PATIENCE_S
    while not settled(world) and world.now < deadline:
        world.turn()
        world.turn()
        world.advance(0.25)
    note(world.plans[-1].reason)
    note(str(world.status.views))
    assert not world.wrongs, world.wrongs
    assert settled(world), f"not settled: {world.status.state}, {world.plans[-1].reason}"
    before = dict(world.acknowledged)
    for _ in range(4):
        world.turn()
        world.advance()
    assert world.acknowledged != before, "it trains"

"""Who reaches Redis: what is shown of it, and that one that answers anybody is not ended."""

from __future__ import annotations

import pytest
from plan_steps import condition
from plan_world import World, make_spec

from outlast_operator.planner.actions import KillProcess
from outlast_operator.planner.network import SEEN_S
from outlast_operator.planner.redis_contact import FRESH_S
from outlast_operator.planner.servers import MUTE_PATIENCE_S

STEP_S = 0.5
STRATEGIES = pytest.mark.parametrize("strategy", ["Stateless", "Hybrid"])


def running(strategy: str = "Stateless", **changes: object) -> World:
    world = World(make_spec(strategy, **changes))
    world.run(2.0)
    return world


def wait(world: World, duration_s: float) -> None:
    """Turns and time, in longer steps than `World.run`."""
    for _ in range(round(duration_s / STEP_S)):
        world.turn()
        world.turn()
        world.advance(STEP_S)


def kills(world: World) -> list[KillProcess]:
    return [a for a in world.executed if isinstance(a, KillProcess) and a.name == "redis"]


@STRATEGIES
def test_a_redis_that_the_operator_alone_does_not_reach_is_not_ended_and_the_direction_is_named(strategy: str) -> None:
    world = running(strategy)
    world.redis_unreachable = {"operator"}
    wait(world, 2 * MUTE_PATIENCE_S)
    assert kills(world) == []
    assert (condition(world, "BufferHealthy").status, condition(world, "BufferHealthy").reason) == (
        "True",
        "RedisAnswersServers",
    )
    assert condition(world, "NetworkOpen").reason == "OperatorToRedis"
    assert "the operator to Redis (port 6379)" in condition(world, "NetworkOpen").message
    world.redis_unreachable = set()
    wait(world, 1.0)
    assert condition(world, "NetworkOpen").status == "True"
    assert condition(world, "BufferHealthy").reason == "RedisAnswers"


def test_in_an_outage_nobody_can_tell_and_redis_keeps_what_workers_sent() -> None:
    world = running()
    world.redis_unreachable = {"operator"}
    world.held = dict.fromkeys(("server-0", "server-1"), world.now + 3 * MUTE_PATIENCE_S)
    world.kill("server-0")
    wait(world, 2 * MUTE_PATIENCE_S)
    assert kills(world) == []
    assert condition(world, "BufferHealthy").reason == "RedisDown"


@STRATEGIES
def test_a_redis_that_answers_nobody_is_replaced(strategy: str) -> None:
    world = running(strategy)
    before = world.others["redis"].instance
    world.redis_unreachable = {"operator", *world.servers}
    wait(world, MUTE_PATIENCE_S - 1.0)
    assert kills(world) == []
    assert condition(world, "BufferHealthy").reason == "RedisDown"
    assert condition(world, "NetworkOpen").status == "True", "no direction is known to be closed"
    wait(world, FRESH_S + 2.0)
    assert [a.instance for a in kills(world)] == [before]
    assert world.others["redis"].instance != before


@STRATEGIES
def test_a_redis_that_loads_its_file_does_not_answer_and_is_not_ended(strategy: str) -> None:
    world = running(strategy)
    world.redis_loading = True
    wait(world, 2 * MUTE_PATIENCE_S)
    assert kills(world) == []
    assert condition(world, "BufferHealthy").reason == "RedisDown"
    assert condition(world, "NetworkOpen").status == "True", "every direction is open"


def test_of_heads_that_do_not_tell_the_operators_own_silence_is_enough() -> None:
    """The chart was upgraded; running servers keep their trainer image."""
    world = running()
    world.older_trainer = True
    world.redis_unreachable = {"operator", *world.servers}
    wait(world, MUTE_PATIENCE_S + FRESH_S + 2.0)
    assert len(kills(world)) == 1
    assert kills(world)[0].why == f"it did not answer the operator for {MUTE_PATIENCE_S:g} s"


def test_an_operator_that_has_just_started_has_not_waited_for_redis() -> None:
    world = running()
    world.redis_unreachable = {"operator", *world.servers}
    wait(world, MUTE_PATIENCE_S - 5.0)
    world.restart_operator()
    wait(world, MUTE_PATIENCE_S - 5.0)
    assert kills(world) == []
    wait(world, 10.0)
    assert len(kills(world)) == 1


def test_a_head_that_alone_does_not_reach_redis_is_named() -> None:
    world = running("Hybrid")
    world.redis_unreachable = {"server-0"}
    wait(world, SEEN_S + 1.0)
    assert condition(world, "NetworkOpen").reason == "ServerToRedis"
    assert "server-0 to Redis (port 6379)" in condition(world, "NetworkOpen").message
    assert condition(world, "BufferHealthy").reason == "RedisAnswers"
    assert kills(world) == []


def test_of_a_redis_with_a_url_only_its_field_is_named() -> None:
    world = World(make_spec("Hybrid", recovery__buffer__url="redis://:secret@elsewhere:6379/0"))
    wait(world, 1.0)
    world.others["redis"] = world._process("redis", "redis")  # as the world's heads find it
    world.redis_unreachable = {"operator"}
    wait(world, SEEN_S + 1.0)
    assert "the operator to the Redis at recovery.buffer.url" in condition(world, "NetworkOpen").message
    assert "secret" not in condition(world, "NetworkOpen").message


def test_what_a_former_redis_answered_says_nothing_of_the_next() -> None:
    world = running()
    world.kill("redis")
    world.redis_unreachable = {"operator", *world.servers}
    wait(world, 1.0)
    assert world.others["redis"].alive
    assert condition(world, "BufferHealthy").reason == "RedisDown"

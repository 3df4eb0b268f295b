"""Workers out of reach: which words count, when a slot gets another process, and who is still counted as ready."""

from __future__ import annotations

import pytest
from plan_world import World, make_spec

from outlast.worker.events import Action
from outlast_operator.planner.actions import StartProcess
from outlast_operator.planner.backoff import LONG_LIFE_S
from outlast_operator.planner.reach import RECONNECT_S

WORDS = ("absent", "unreachable", "leaving")


def running(strategy: str = "Chain", old: bool = False, **more: object) -> World:
    world = World(make_spec(strategy, workers__replicas=2, **more))
    world.run(2.0)
    if old:
        world.now += LONG_LIFE_S
        world.run(0.2)
    assert world.status.progress.workers_ready == 2
    world.executed.clear()
    return world


def starts(world: World) -> list[Action]:
    return [a for a in world.executed if isinstance(a, StartProcess) and a.role == "worker"]


def say(world: World, *words: str) -> None:
    if "absent" in words:
        world.head().absent[1] = world.now
    pod = {word: True for word in words if word != "absent"}
    world.seems("worker-1", **pod)


@pytest.mark.parametrize("word", WORDS)
def test_one_word_alone_gives_no_worker_up(word: str) -> None:
    world = running()
    say(world, word)
    world.run(30.0)
    assert starts(world) == []


@pytest.mark.parametrize("strategy", ["Checkpoint", "Chain", "Stateless", "Hybrid"])
@pytest.mark.parametrize("other", ["unreachable", "leaving"])
def test_a_heads_word_and_the_clusters_give_it_up_at_once(strategy: str, other: str) -> None:
    world = running(strategy)
    say(world, "absent", other)
    world.run(RECONNECT_S - 0.2)
    assert starts(world) == []
    world.run(0.4)
    [start] = starts(world)
    assert isinstance(start, StartProcess)
    assert (start.name, start.incarnation) == ("worker-1", 2), "the older one may run on: it is fenced"
    line = world.status.failovers[-1]
    assert (line.target, line.cause, line.message) == ("worker-1", "Unreachable", "its node does not answer")
    assert world.status.attempts["worker-1"].failures == 0, "it has failed at nothing"


def test_whom_the_cluster_gives_up_needs_no_second_word_later() -> None:
    """The head knew for long; then the node controller says it as well."""
    world = running()
    say(world, "absent")
    world.run(10.0)
    assert starts(world) == []
    say(world, "unreachable")
    world.run(0.2)
    assert len(starts(world)) == 1


def test_one_that_is_connected_again_is_not_given_up() -> None:
    world = running()
    say(world, "absent", "unreachable")
    world.run(RECONNECT_S / 2)
    world.head().absent.clear()
    world.run(30.0)
    assert starts(world) == []


@pytest.mark.parametrize("word", ["absent", "unreachable"])
def test_who_is_out_of_reach_is_not_counted(word: str) -> None:
    world = running(workers__minReplicas=2)
    say(world, word)
    world.run(RECONNECT_S + 0.2)
    progress = world.status.progress
    assert (progress.workers_ready, progress.workers_active) == (1, 1)
    ready = next(c for c in world.status.conditions if c.type == "Ready")
    assert (ready.status, ready.reason) == ("False", "TooFewWorkers")
    world.head().absent.clear()
    world.seems("worker-1", unreachable=False)
    world.run(5.2)
    assert world.status.progress.workers_ready == 2


def test_fewer_workers_are_shown_at_once() -> None:
    world = running()
    world.run(1.0)  # the last note of the progress is younger than the interval
    say(world, "unreachable")
    world.run(0.2)
    assert world.status.progress.workers_ready == 1
    writes = len(world.history)
    world.run(2.0)
    assert len(world.history) == writes


@pytest.mark.parametrize(
    ("old", "connected", "ready"),
    [(True, (0,), 1), (True, (0, 1), 2), (True, None, 2), (False, (0,), 2)],
    ids=["not with this head", "with this head", "a head of an older release", "it may still be starting"],
)
def test_a_new_head_misses_a_worker_that_it_has_never_heard(
    old: bool, connected: tuple[int, ...] | None, ready: int
) -> None:
    """Head and worker were on one node: no head that lives has seen the connection end."""
    world = running(old=old)
    world.kill(world.status.views[0].members[0].name)
    world.run(0.3)
    world.head().connected = connected
    world.run(6.0)
    assert world.status.progress.workers_ready == ready


def test_a_job_that_has_reached_its_goal_starts_no_worker_for_one_that_is_given_up() -> None:
    world = running(training__stopAfter={"updates": 1})
    say(world, "absent", "unreachable")
    world.run(5.0)
    assert starts(world) == []

"""The condition NetworkOpen: which direction is closed, as long as it is."""

from __future__ import annotations

from dataclasses import replace

from plan_world import World, make_spec

from outlast_operator.planner.network import SEEN_S
from outlast_operator.planner.status import Condition


def network(world: World) -> Condition:
    return next(c for c in world.status.conditions if c.type == "NetworkOpen")


def test_what_is_connected_is_open() -> None:
    world = World(make_spec(workers__replicas=2))
    world.run(2.0)
    world.head().connected = (0, 1)
    world.run(20.0)
    assert (network(world).status, network(world).reason) == ("True", "NothingBlocked")


def test_operator_to_server() -> None:
    world = World(make_spec())
    world.run(0.5)
    server = world.servers["server-1"]
    spoke, server.cut_off = server.process, True
    server.process = replace(spoke, phase="starting", boot=None, unheard=True)
    world.run(SEEN_S - 0.5)
    assert network(world).status == "True", "it may still be starting"
    world.run(1.0)
    assert (network(world).status, network(world).reason) == ("False", "OperatorToServer")
    assert "the operator to server-1 (port 7070)" in network(world).message
    server.process, server.cut_off = spoke, False
    world.run(0.2)
    assert network(world).status == "True"


def test_server_to_server_is_said_for_as_long_as_replicas_are_missing() -> None:
    """A member is dropped for its links after some seconds, and the next one is lost in the same way."""
    world = World(make_spec())
    world.run(2.0)
    head, tail = world.head(), world.servers["server-2"]
    head.broken = (tail.boot,)
    world.run(0.3)
    assert (network(world).status, network(world).reason) == ("False", "ServerToServer")
    assert "server-0 to server-2 (port 7070)" in network(world).message
    world.held["server-2"] = world.now + 60
    world.run(10.0)
    head.broken = ()
    world.run(1.0)
    assert network(world).reason == "ServerToServer", "no replica has been taken in since"
    world.held.clear()
    world.run(5.0)
    assert network(world).status == "True"


def test_worker_to_server() -> None:
    world = World(make_spec(workers__replicas=2))
    world.run(1.0)
    world.head().connected = (0,)
    world.run(SEEN_S + 1.0)
    assert (network(world).status, network(world).reason) == ("False", "WorkerToServer")
    assert "worker-1 to the servers (port 7070)" in network(world).message
    world.head().connected = (0, 1)
    world.run(0.2)
    assert network(world).status == "True"


def test_a_worker_that_was_connected_once_is_no_word_on_the_network() -> None:
    world = World(make_spec(workers__replicas=2))
    world.run(1.0)
    world.head().connected = (0,)
    world.head().absent = {1: world.now}
    world.run(SEEN_S + 1.0)
    assert network(world).status == "True"

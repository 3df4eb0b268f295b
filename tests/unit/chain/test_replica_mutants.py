"""Mutants: replicas with one rule taken out. The checkers must fail on each, or they see nothing.

Each mutant meets one scripted interleaving (which the real replica survives) and the random histories of
`test_replica_stateful`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from replica_world import World, gradient, view
from test_replica_stateful import ChainMachine

from outlast.chain.events import Identity
from outlast.chain.replica import Replica, ReplicaSettings


class SkipsTheEpochCheck(Replica):
    """Heeds everybody, of whatever epoch."""

    def current(self, epoch: int) -> bool:
        return self.view is not None

    def _from_upstream(self, sender: str, epoch: int) -> bool:
        return self.view is not None


class DropsTheDedup(Replica):
    """Takes every push for a new one."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._admission._ordering.duplicate = lambda identity: False  # type: ignore[method-assign]


class AcknowledgesBeforeTheTail(Replica):
    """Answers when the head has applied."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._admission.safe_seq = lambda: self._state.last_seq  # type: ignore[method-assign]


def rolled_back_while_the_head_goes_on(make: Callable[..., Replica]) -> None:
    """b is back at the checkpoint, in the next view, when an entry of a's old history arrives."""
    world = _chain(make)
    checkpoint = world.snapshot("c")
    world.push("a", gradient(0, 1))
    world.install(view(2, "abc", history=2, restore="ckpt"), "b")
    world.load("b", *checkpoint)
    world.deliver("a", "b")
    world.install(view(2, "abc", history=2, restore="ckpt"), "ac")
    world.load("a", *checkpoint)
    world.load("c", *checkpoint)
    world.push("a", gradient(1, 1, history=2))
    world.join_up()
    world.check()


def worker_sends_again(make: Callable[..., Replica]) -> None:
    world = _chain(make)
    for _ in range(2):
        world.push("a", gradient(0, 1))
        world.run()
    world.check()


def head_dies_before_the_tail_has_it(make: Callable[..., Replica]) -> None:
    world = _chain(make)
    token = world.push("a", gradient(0, 1))
    _believe(world, token, "a", Identity(0, 1, 1))
    world.cut("a", "b")
    del world.replicas["a"]
    world.install(view(2, "bc"))
    world.join_up()
    world.check()


def _chain(make: Callable[..., Replica]) -> World:
    world = World("abc", ReplicaSettings(slots=2), make)
    world.install(view(1, "abc"))
    world.join_up()
    world.init("a")
    world.run()
    return world


def _believe(world: World, token: Any, boot: str, identity: Identity) -> None:
    if world.acknowledged(token):
        world.promise(boot, identity)


MUTANTS = [
    pytest.param(SkipsTheEpochCheck, rolled_back_while_the_head_goes_on, id="skip the epoch check"),
    pytest.param(DropsTheDedup, worker_sends_again, id="drop the dedup"),
    pytest.param(AcknowledgesBeforeTheTail, head_dies_before_the_tail_has_it, id="acknowledge before the tail"),
]


@pytest.mark.parametrize(("mutant", "script"), MUTANTS)
def test_the_script_fails_the_mutant_and_not_the_replica(mutant: type[Replica], script: Callable[..., None]) -> None:
    script(Replica)
    with pytest.raises(AssertionError):
        script(mutant)


@pytest.mark.parametrize(("mutant", "script"), MUTANTS)
def test_random_histories_find_the_mutant(mutant: type[Replica], script: Callable[..., None]) -> None:
    machine = type("Mutated", (ChainMachine,), {"make": mutant})
    quick = settings(
        max_examples=400,
        stateful_step_count=60,
        deadline=None,
        phases=[Phase.generate],
        derandomize=True,
        database=None,
    )
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine, settings=quick)

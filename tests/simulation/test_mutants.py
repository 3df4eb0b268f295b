"""Mutants: one rule taken out of a replica or of the planner. The checkers must find each, or they see nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from faults import EVERY_LINK, EVERY_SERVER
from model_log import ModelLog, _Shard
from scenarios import simulate
from world import Scenario

from outlast.api.spec import JobSpec
from outlast.chain.events import Disconnected, Ready, Restored
from outlast.chain.replica import Replica
from outlast_operator.planner.actions import Plan
from outlast_operator.planner.observed import ObservedJob
from outlast_operator.planner.plan import plan

SEEDS = 120


class FencesNobody(ModelLog):
    """Redis without its check of the epoch: whoever claimed last, an older server goes on writing."""

    def _guard(self, shard: int, epoch: int) -> _Shard | None:
        self._live()
        return self._state.shards.get(shard)


class GoesOnAlone(Replica):
    """A head whose successor is out of reach makes a view of its own, without a new epoch."""

    def _disconnected(self, event: Disconnected, ready: Ready) -> None:
        super()._disconnected(event, ready)
        self._downstream.is_tail = self.is_head


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


class ForgetsTheTable(Replica):
    """Takes a checkpoint's parameters without its table of applied steps."""

    def _restored(self, event: Restored, ready: Ready) -> None:
        super()._restored(replace(event, applied={}), ready)


class NeverWaitsForTheSlowest(Replica):
    """BoundedStaleness without the bound."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._admission._gate = lambda clock: None  # type: ignore[method-assign]


class SealsNobody(Replica):
    """The tail vouches for entries that a caught-up joining replica lacks."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        down = self._downstream
        advance = down.advance

        def careless(ready: Ready) -> None:
            if down.is_tail:
                down.stable_seq = max(down.stable_seq, self._state.last_seq)
            advance(ready)

        down.advance = careless  # type: ignore[method-assign]


def promotes_whoever_joins(spec: JobSpec, observed: ObservedJob, now: float) -> Plan:
    """Believes that everybody has caught up."""
    joining = tuple(m.boot for view in observed.status.views.values() for m in view.joining)
    probes = {name: replace(probe, caught_up=joining) for name, probe in observed.probes.items()}
    return plan(spec, replace(observed, probes=probes), now)


def rolls_back_at_every_loss(spec: JobSpec, observed: ObservedJob, now: float) -> Plan:
    """Takes a lost head for a total loss, as a classical checkpointing system would."""
    answer = plan(spec, observed, now)
    views = {}
    for shard, view in answer.status.views.items():
        before = observed.status.views.get(shard)
        lost = before is not None and view.epoch > before.epoch and view.head != before.head
        views[shard] = view.with_(history=view.history + 1) if lost else view
    return replace(answer, status=replace(answer.status, views=views))


FENCED = ("lose-head", "kill-head", "slow")
TOTAL_LOSS = ("kill-servers", "kill-head")
CHAIN = Scenario("mutant", faults=EVERY_SERVER + EVERY_LINK, count=(2, 6))
MUTANTS: list[Any] = [
    pytest.param(
        replace(CHAIN, strategy="Stateless", make_log=FencesNobody, faults=FENCED, updates=500),
        id="skip the epoch check in Redis",
    ),
    pytest.param(replace(CHAIN, make_replica=GoesOnAlone), id="acknowledge outside of any view"),
    pytest.param(replace(CHAIN, make_replica=DropsTheDedup), id="drop the dedup"),
    pytest.param(replace(CHAIN, make_replica=AcknowledgesBeforeTheTail), id="acknowledge before the tail"),
    pytest.param(replace(CHAIN, make_replica=SealsNobody), id="vouch for what a caught-up joiner lacks"),
    pytest.param(replace(CHAIN, make_replica=ForgetsTheTable, faults=TOTAL_LOSS), id="restore without the table"),
    pytest.param(
        replace(CHAIN, make_replica=NeverWaitsForTheSlowest, consistency="BoundedStaleness", faults=("pause-worker",)),
        id="no bound on staleness",
    ),
    pytest.param(
        replace(CHAIN, plan=promotes_whoever_joins, faults=("kill-head", "slow"), count=(4, 10)),
        id="promote who has not caught up",
    ),
    pytest.param(replace(CHAIN, plan=rolls_back_at_every_loss), id="roll back without need"),
]


def found_by(scenario: Scenario) -> tuple[int, str] | None:
    """The first seed whose checkers object, and what they say."""
    for seed in range(SEEDS):
        try:
            simulate(scenario, seed)
        except AssertionError as error:
            return seed, str(error)
    return None


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_checkers_find_the_mutant(mutant: Scenario) -> None:
    found = found_by(mutant)
    assert found is not None, f"{SEEDS} seeds, and no checker objected"


def test_without_a_mutation_they_do_not_object() -> None:
    for seed in range(4):
        simulate(CHAIN, seed)

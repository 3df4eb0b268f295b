"""What each strategy means with each consistency: the one table that both planes, the README and the benches ask."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

Consistency = Literal["Sync", "Async", "BoundedStaleness"]
Strategy = Literal["Checkpoint", "Chain", "Stateless", "Hybrid"]

CHAIN_LENGTH = 3  # where servers.replicas is left out


@dataclass(frozen=True)
class Traits:
    """One row. The other attributes follow from its columns."""

    chained: bool  # servers.replicas servers hold a shard's state, and the tail acknowledges; else one server
    buffer: Literal["Never", "InOutages", "Always"]  # when gradients go to Redis, which acknowledges them then
    barrier: bool  # an update is made of one push of every slot: a version's weights are exact, and so is a replay
    bounded: bool  # no slot runs more than maxStaleness steps ahead of the slowest
    in_flight: int  # pushes that a worker does not wait for; one more would break the bound, or the barrier

    @property
    def buffered(self) -> bool:
        """The job needs a Redis, and workers compute on while no head answers."""
        return self.buffer != "Never"

    @property
    def through_buffer(self) -> bool:
        """Heads take gradients from Redis alone, and are rebuilt from it; workers pull weights."""
        return self.buffer == "Always"

    @property
    def diverts(self) -> bool:  # to Redis, while no head answers
        return self.buffer == "InOutages"

    @property
    def asks_ahead(self) -> bool:
        """A worker asks for weights before it needs them."""
        return self.through_buffer and self.in_flight > 0

    @property
    def waits_for_slots(self) -> bool:  # one without a worker holds up the others
        return self.barrier or self.bounded


TABLE: dict[tuple[str, str], Traits] = {
    # strategy and consistency            chained  buffer     barrier  bounded  in flight
    ("Checkpoint", "Sync"): Traits(False, "Never", True, False, 0),
    ("Checkpoint", "Async"): Traits(False, "Never", False, False, 1),
    ("Checkpoint", "BoundedStaleness"): Traits(False, "Never", False, True, 0),
    ("Chain", "Sync"): Traits(True, "Never", True, False, 0),
    ("Chain", "Async"): Traits(True, "Never", False, False, 1),
    ("Chain", "BoundedStaleness"): Traits(True, "Never", False, True, 0),
    ("Stateless", "Async"): Traits(False, "Always", False, False, 1),
    ("Stateless", "BoundedStaleness"): Traits(False, "Always", False, True, 0),
    ("Hybrid", "Sync"): Traits(True, "Never", True, False, 0),  # as Chain: a round is not buffered
    ("Hybrid", "Async"): Traits(True, "InOutages", False, False, 1),
    ("Hybrid", "BoundedStaleness"): Traits(True, "InOutages", False, True, 0),
}


def strategies(wanted: Callable[[Traits], bool]) -> tuple[str, ...]:
    """The strategies that are as wanted with one consistency at least, in the order of the table."""
    return tuple(dict.fromkeys(strategy for (strategy, _), row in TABLE.items() if wanted(row)))


STRATEGIES: tuple[str, ...] = get_args(Strategy)
CHAINED = strategies(lambda row: row.chained)
BUFFERED = strategies(lambda row: row.buffered)


def traits_of(report: Mapping[str, Any]) -> Traits | None:
    """Of the job that a report tells of; None where it does not say, or not in words of this version."""
    return TABLE.get((str(report.get("strategy")), str(report.get("consistency"))))


def default_replicas(strategy: Any) -> int:
    """`servers.replicas` left out. `strategy` as its author wrote it; None: the default, which has a chain."""
    return CHAIN_LENGTH if strategy is None or strategy in CHAINED else 1

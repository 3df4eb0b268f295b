"""How far a worker computes ahead of its servers: no threads, no clock, the same object in the simulator.

What must be waited for comes out of generators: each `Until` that they yield is waited for by their caller, which
sends back whether it came. A worker that is stopped waits for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from outlast.api.strategy import Traits
from outlast.chain.events import DataPlan
from outlast.worker.events import Outgoing
from outlast.worker.session import Session

_ANSWER_TIMEOUT_S = 0.25  # Stateless, Hybrid: how long a worker waits for an answer before it computes on
_TO_REDIS = 3  # gradients on their way there: what it takes at once and then keeps back must not hold up a worker
_CLOCK_INTERVAL_S = 0.005  # BoundedStaleness with Stateless: between two looks at the slowest slot's clock
_SYNC_INTERVAL_S = 0.01  # Sync: until a shard that has moved on or back is asked again


@dataclass(frozen=True)
class Until:
    """Wait until `ready()`, at most `timeout_s` seconds (None: as long as it takes)."""

    ready: Callable[[], object]
    timeout_s: float | None = None


Waits = Generator[Until, bool, None]


class Answers(Protocol):
    """What servers have told (`Inbox`)."""

    data: DataPlan
    clocks: dict[int, int]

    @property
    def arrivals(self) -> int: ...
    @property
    def arrivals_by_shard(self) -> list[int]: ...
    @property
    def versions(self) -> tuple[int, ...]: ...
    @property
    def histories(self) -> tuple[int, ...]: ...
    @property
    def torn(self) -> bool: ...
    def arrived_since(self, seen: list[int]) -> bool: ...


class Servers(Protocol):
    """A worker's connection to its job (`Client`), as far as its pace depends on it."""

    @property
    def session(self) -> Session: ...
    @property
    def inbox(self) -> Answers: ...
    @property
    def stopped(self) -> bool: ...
    @property
    def resync(self) -> bool: ...
    def take_resync(self) -> bool: ...
    def request(self, versions: Sequence[int | None] | None = None) -> None: ...


class Pacing:
    """The pace of one worker."""

    def __init__(self, servers: Servers, traits: Traits, max_staleness: int) -> None:
        self._servers, self._session, self._inbox = servers, servers.session, servers.inbox
        self._traits, self._max_staleness = traits, max_staleness
        self._gave_up = False  # the last wait timed out: no other one before weights come in
        self._seen = 0  # arrivals when weights were last loaded

    def load(self, copy: Callable[[], None]) -> None:
        """Before each gradient: `copy` the newest weights, if any came since the last time."""
        seen, self._seen = self._seen, self._inbox.arrivals
        if self._seen != seen:
            copy()
        if self._traits.asks_ahead:
            self._servers.request()  # they come while the next gradient is computed

    def after_push(self, item: Outgoing) -> Waits:
        """Wait for what the consistency asks for; strategies that compute on wait for no dead or slow server."""
        session = self._session
        if self._traits.through_buffer and not self._traits.asks_ahead:
            self._servers.request()
        if not self._traits.buffered:
            if self._traits.in_flight == 0:
                yield Until(lambda: item.outcome is not None)
            else:
                yield Until(lambda: session.unanswered <= self._traits.in_flight)
            return
        if (
            self._traits.through_buffer or session.outage()
        ):  # to Redis: no faster than it takes them; memory is for when it is away
            yield Until(lambda: session.unanswered <= _TO_REDIS or session.buffer_down)
        if self._traits.bounded:
            yield from self._slowest(item.last - self._max_staleness)
        elif not self._gave_up or self._inbox.arrivals != self._seen:
            self._gave_up = not (yield Until(self._answered, _ANSWER_TIMEOUT_S))

    def _answered(self) -> bool:
        if self._session.outage():
            return True
        if self._traits.through_buffer:
            return self._inbox.arrivals > self._seen
        return self._session.unanswered <= self._traits.in_flight

    def _slowest(self, clock: int) -> Waits:
        """Until every slot's clock has reached `clock`: a slow worker is no outage, however long it takes."""
        session, inbox = self._session, self._inbox
        yield Until(lambda: session.outage() or session.unanswered <= self._traits.in_flight)
        while self._traits.through_buffer and not session.outage() and not self._servers.stopped:
            seen = inbox.arrivals_by_shard
            self._servers.request()
            yield Until(lambda seen=seen: session.outage() or inbox.arrived_since(seen))  # type: ignore[misc]
            if _slowest_clock(inbox.clocks, inbox.data.slots) >= clock:
                return
            yield Until(session.outage, _CLOCK_INTERVAL_S)

    def must_synchronise(self, step: int) -> bool:
        """Sync: whether the weights at hand are not of `step`, or not of one version."""
        return self._traits.barrier and (
            self._servers.take_resync() or self._inbox.torn or self._inbox.versions[0] != step
        )

    def synchronise(self) -> Waits:
        """Pull from all shards until all are of one version (Sync) or simply there.

        Shards ahead keep the version before, which a worker lost between two shards' pushes makes necessary.
        """
        servers, inbox = self._servers, self._inbox
        wanted: list[int | None] = [None] * len(inbox.versions)
        newest = wanted
        while not servers.stopped:
            seen = inbox.arrivals_by_shard
            servers.take_resync()
            servers.request(wanted)
            yield Until(lambda seen=seen: servers.resync or inbox.arrived_since(seen))  # type: ignore[misc]
            if servers.take_resync() or (self._traits.barrier and len(set(inbox.histories)) > 1):
                wanted = newest  # a shard has moved on or back, or has not heard of a rollback yet
                yield Until(lambda: False, _SYNC_INTERVAL_S)
            elif self._traits.barrier and inbox.torn:
                wanted = [min(inbox.versions)] * len(newest)
            else:
                return


def _slowest_clock(clocks: Mapping[int, int], slots: int) -> int:
    return min(clocks.get(slot, 0) for slot in range(slots))

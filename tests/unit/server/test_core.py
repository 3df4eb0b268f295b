"""The core obeys a `Ready` in its order, and publishes nothing that Redis cannot repeat. Its ports are fakes."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from outlast.api.job import read_spec
from outlast.buffer.types import BufferUnavailable, ClaimNeeded, Fenced
from outlast.chain.events import (
    DataPlan,
    Entry,
    Finish,
    HigherEpoch,
    Kind,
    Ready,
    Record,
    Refusal,
    Refused,
    SendAcks,
    SendEntry,
    SendState,
    Weights,
)
from outlast.server.core import Core
from outlast.server.ports import Ports
from outlast.server.shard_log import ShardLog

ENTRY = Entry(1, Kind.UPDATE, 1)
RECORD = Record(1, 1, Kind.UPDATE, 1.0, (), (), 7)


@dataclass
class World:
    """All of the core's ports, and a replica that answers with what it is told to."""

    readies: list[Ready]
    away: int = 0  # calls to Redis that fail
    fenced: bool = False
    said: list[Any] = field(default_factory=list)
    weights_held: bool = True

    def __post_init__(self) -> None:
        training = {"task": "outlast.tasks.synthetic", "stopAfter": {"updates": 9}}
        spec = read_spec({"training": training, "recovery": {"strategy": "Stateless"}})
        self.events: list[Any] = []
        self.replica: Any = SimpleNamespace(
            boot="boot", shard=0, epoch=1, view=None, finished=False, role="head", step=self._step
        )
        ports: Any = self
        self.core = Core(spec, self.replica, ports, lambda: self.said.append("notice"), lambda: 0.0)
        self.core.connect(Ports(ports, ports, ports, ports))

    def _step(self, event: Any) -> Ready:
        self.events.append(event)
        return self.readies.pop(0) if self.readies else Ready()

    def __getattr__(self, name: str) -> Any:
        """Any other call of a port."""
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args: self.said.append((name, *args))

    def record(self, record: Record) -> bool:
        if self.away:
            self.away -= 1
            raise BufferUnavailable("Redis is away")
        self.said.append("record")
        return not self.fenced

    def apply(self, entry: Entry, replica: object) -> None:
        self.said.append("apply")

    def publish(self) -> bool:
        self.said.append("publish")
        return True

    def weights(self, version: int | None, slot: int | None) -> Any:
        return ("weights", version) if self.weights_held else None


class Request:
    slot, wants_weights = 0, True

    def __init__(self) -> None:
        self.answers: list[tuple[Any, Any]] = []

    def answer(self, reply: Any, weights: Any, view: Any) -> None:
        self.answers.append((reply, weights))


def decided(request: Request) -> Ready:
    return Ready(
        records=[RECORD],
        apply=[ENTRY],
        send=[SendEntry("b", ENTRY, 0), SendState("c"), SendAcks("a", 1, 0)],
        reply=[Weights(request, 1, DataPlan())],
        trim=7,
    )


def words(said: list[Any]) -> list[str]:
    return [s if isinstance(s, str) else s[0] for s in said]


ORDER = ["record", "apply", "applied", "publish", "send_entry", "send_state", "send_acks", "trim_to"]


def test_what_is_decided_is_obeyed_in_order() -> None:
    request = Request()
    world = World([decided(request)])
    world.core.step(Finish())
    assert words(world.said) == ORDER
    assert request.answers[0][1] == ("weights", None), "Async: the newest"


def test_a_state_is_saved_between_decisions_only() -> None:
    """A stretch of the log may become several entries. The replica counts all of them from the first one on."""
    newest = Entry(2, Kind.DELTA, 2)
    world = World([Ready(apply=[ENTRY, newest])])
    world.core.step(Finish())
    assert world.said == ["apply", "apply", ("applied", newest), "publish"]


def test_while_redis_is_away_nothing_is_applied_or_published() -> None:
    request = Request()
    world = World([decided(request)], away=2)
    work = world.core.stepping(Finish())
    for _ in range(2):
        next(work)
        assert world.said == []
    assert list(work) == []
    assert words(world.said) == ORDER
    assert len(request.answers) == len(world.events) == 1


def test_what_redis_refuses_is_neither_applied_nor_published() -> None:
    request = Request()
    world = World([decided(request)], fenced=True)
    world.core.step(Finish())
    assert words(world.said) == ["record", "publish"], "the second event has nothing to publish"
    assert world.events == [Finish(), HigherEpoch(2)]
    assert request.answers == []


def test_weights_of_a_version_that_is_gone_are_refused() -> None:
    request = Request()
    world = World([Ready(reply=[Weights(request, 1, DataPlan())])], weights_held=False)
    world.core.step(Finish())
    ((reply, weights),) = request.answers
    assert isinstance(reply, Refused)
    assert (reply.reason, weights) == (Refusal.VERSION, None)


def test_a_restore_drops_the_state_and_is_asked_for() -> None:
    world = World([Ready(restore="buffer")])
    world.core.step(Finish())
    assert world.said == [("clear",), ("restore_later", "buffer"), "notice"]
    assert world.core.rebuilding
    world.core.rebuilt()
    assert not world.core.rebuilding


# --- the shard's log ---


class Redis:
    """Claims and records of one shard, in runs that forget the claim."""

    def __init__(self) -> None:
        self.run, self.claimed_run, self.away = "1", "", False

    def run_id(self) -> str:
        return self.run

    def claim(self, shard: int, epoch: int, history: int, offset: int) -> bool:
        if self.away:
            raise BufferUnavailable("Redis is away")
        self.claimed_run = self.run
        return True

    def record(self, shard: int, epoch: int, record: Record) -> bool:
        if self.claimed_run != self.run:
            raise ClaimNeeded("claim first")
        return True


def shard_log(redis: Redis, world: World, initialised: bool) -> ShardLog:
    world.replica.initialised = initialised
    unused: Any = None
    log: Any = redis
    return ShardLog(world.core, unused, log)


def test_a_server_that_is_being_rebuilt_claims_the_next_run_without_a_snapshot() -> None:
    world, redis = World([]), Redis()
    log = shard_log(redis, world, initialised=False)
    log.claim_if_needed(1, 0)
    redis.run = "2"
    assert log.claim_if_needed(1, 0) == "2"
    assert world.said == []


def test_a_server_that_holds_a_state_saves_it_in_the_next_run() -> None:
    world, redis = World([]), Redis()
    log = shard_log(redis, world, initialised=True)
    log.claim_if_needed(1, 0)
    redis.run = "2"
    log.claim_if_needed(1, 0)
    assert world.said == [("snapshot_now",)]


@pytest.mark.parametrize(("error", "claimed"), [(BufferUnavailable("away"), "1"), (Fenced("a higher epoch"), "2")])
def test_a_claim_counts_once_the_state_is_saved(
    error: Exception, claimed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, redis = World([]), Redis()
    log = shard_log(redis, world, initialised=True)
    log.claim_if_needed(1, 0)
    redis.run = "2"

    def fail() -> None:
        raise error

    monkeypatch.setattr(world, "snapshot_now", fail, raising=False)
    with pytest.raises(type(error)):
        log.claim_if_needed(1, 0)
    assert log.claimed == (1, claimed)


def test_redis_may_go_away_between_a_refused_record_and_the_claim() -> None:
    """The decision was half obeyed then: the replica had moved on, and the entry was never applied."""
    world, redis = World([Ready(records=[RECORD], apply=[ENTRY])]), Redis()
    log = shard_log(redis, world, initialised=True)
    others: Any = world
    world.core.connect(Ports(others, others, log, others))
    redis.away = True
    work = world.core.stepping(Finish())
    next(work)
    assert world.said == []
    redis.away = False
    assert list(work) == []
    assert words(world.said) == ["apply", "applied"]

"""What a head takes from Redis: groups, records that a replay obeys, and when an entry leaves."""

from __future__ import annotations

from typing import Any

import pytest
from replica_world import World, chain, gradient, status, view

from outlast.chain.events import Acks, FromLog, HigherEpoch, Identity, Install, Kind, Replay, Restored
from outlast.chain.replica import ReplicaSettings
from outlast.chain.staleness import ReducedRate


def log(*contributions: Any, start: int = 1) -> tuple[tuple[int, int, Any], ...]:
    return tuple((start + i, 1, c) for i, c in enumerate(contributions))


def test_a_backlog_is_grouped_into_one_update() -> None:
    world = chain("a", strategy="Hybrid", policy="Mean", group_max=3)
    ready = world.step("a", from_log(log(*(gradient(0, s) for s in range(1, 6)))))
    assert [len(e.parts) for e in ready.apply] == [3, 2]
    assert [e.version for e in ready.apply] == [3, 5]
    assert [e.offset for e in ready.apply] == [3, 5]
    assert ready.trim == 5


@pytest.mark.parametrize("strategy", ["Hybrid", "Stateless"])
@pytest.mark.parametrize("kind", [Kind.UPDATE, Kind.DELTA])
def test_a_gradient_in_the_log_tells_what_the_shard_held_before_its_rollback(strategy: str, kind: Kind) -> None:
    world = chain("a", strategy=strategy)
    checkpoint = world.snapshot("a")
    world.install(view(2, "a", history=2, restore="ckpt"))
    world.load("a", *checkpoint)
    world.step("a", from_log(log(gradient(0, 9, 500, history=1, kind=kind)), epoch=2))
    assert status(world, "a").former_version == 500


def from_log(items: Any, epoch: int = 1, pending: int = 0) -> FromLog:
    return FromLog(epoch, items, pending)


def test_a_pseudo_gradient_in_the_log_stands_alone() -> None:
    world = chain("a", strategy="Hybrid")
    delta = gradient(1, 1, last=4, kind=Kind.DELTA)
    ready = world.step("a", from_log(log(gradient(0, 1), delta, gradient(0, 2), gradient(0, 3))))
    assert [(e.kind, len(e.parts)) for e in ready.apply] == [("update", 1), ("delta", 1), ("update", 2)]


@pytest.mark.parametrize(("pending", "rate"), [(0, 1.0), (51, 0.1)], ids=["few", "more than above"])
def test_the_reduced_rate_counts_what_is_pending(pending: int, rate: float) -> None:
    world = chain("a", strategy="Hybrid", policy="Sum", reduced_rate=ReducedRate(50, 0.001), base_lr=0.01)
    ready = world.step("a", from_log(log(gradient(0, 1), gradient(0, 2)), pending=pending))
    assert ready.apply[0].rate == pytest.approx(rate)


def test_record_before_publish_a_replay_obeys_the_record() -> None:
    def stateless() -> World:
        return chain("a", slots=1, strategy="Stateless", policy="InverseStaleness")

    world = stateless()
    items = log(gradient(0, 1), gradient(0, 1), gradient(0, 2), gradient(0, 3), gradient(0, 4))
    first = world.step("a", from_log(items))
    world.step("a", from_log(log(gradient(0, 5), start=6)))
    (record,) = first.records
    assert record.parts == ((1, 1.0), (3, 1.0), (4, 1.0), (5, 3 / 4)), "as stale as a pull ahead makes it, and one more"
    assert (record.skipped, record.last_offset) == ((2,), 5)
    again = stateless()
    (entry,) = again.step("a", Replay(record, items)).apply
    (before,) = first.apply
    assert (entry.seq, entry.version, entry.rate, entry.parts) == (
        before.seq,
        before.version,
        before.rate,
        before.parts,
    )
    assert again.step("a", Replay(record, items)).apply == [], "once"
    with pytest.raises(ValueError, match="trimmed"):
        stateless().step("a", Replay(record, items[:1]))


def test_record_before_publish_without_reproducible_copies_nothing_is_compensated() -> None:
    world = chain("a", slots=1, strategy="Stateless", policy="DelayCompensation")
    (entry,) = world.step("a", from_log(log(*(gradient(0, step) for step in range(1, 5))))).apply
    assert [(p.weight, p.compensate_from) for p in entry.parts] == [(1.0, None)] * 3 + [(3 / 4, None)]


def test_record_before_publish_a_refused_record_taints_the_state() -> None:
    world = chain("a", strategy="Stateless")
    world.step("a", from_log(log(gradient(0, 1))))  # Redis: fenced. The shell drops the rest and says so.
    world.step("a", HigherEpoch(2))
    ready = world.step("a", Install(view(2, "a")))
    assert ready.restore == "buffer"
    assert not world.replicas["a"].initialised


@pytest.mark.parametrize("fenced", [False, True])
def test_a_rollback_to_the_initial_weights_takes_a_survivor_along(fenced: bool) -> None:
    """What Redis has is of the history that was given up: no shard may go on with it while another one begins anew."""
    world = chain("a", strategy="Stateless")
    world.step("a", from_log(log(gradient(0, 1))))
    if fenced:
        world.step("a", HigherEpoch(2))
    ready = world.step("a", Install(view(2, "a", history=2)))
    assert ready.restore == "empty"
    assert (world.replicas["a"].initialised, world.replicas["a"].restoring) == (False, None)
    assert world.refused(world.push("a", gradient(0, 1))) == "empty"


def test_table_not_offset_the_log_is_skipped_by_the_table_and_never_by_offset() -> None:
    world = chain("a", strategy="Hybrid")
    world.step("a", from_log(log(gradient(0, 1), start=100)))
    ready = world.step("a", from_log(log(gradient(0, 1), gradient(0, 2))))  # another run of Redis: offsets start again
    assert [e.identities for e in ready.apply] == [(Identity(0, 2, 2),)]
    assert status(world, "a").duplicates == 1


def test_at_the_end_what_is_left_in_the_log_stays_there() -> None:
    world = chain("a", strategy="Hybrid", stop_updates=3)
    ready = world.step("a", from_log(log(*(gradient(0, s) for s in range(1, 9)))))
    assert [e.version for e in ready.apply] == [3]
    assert (ready.trim, world.replicas["a"].offset) == (3, 3)
    assert world.step("a", from_log(log(gradient(0, 9)))).apply == []
    assert world.refused(world.push("a", gradient(1, 1))) == "finished"
    assert world.acknowledged(world.push("a", gradient(0, 3))), "what was applied is still acknowledged"


def test_leave_when_safe_an_entry_leaves_redis_when_its_update_is_stable() -> None:
    world = chain("ab", strategy="Hybrid")
    ready = world.step("a", from_log(log(gradient(0, 1))))
    assert ready.trim is None
    world.deliver("a", "b")
    _, acks = world.flight["b", "a"].popleft()
    assert world.step("a", Acks("b", 1, acks.received, acks.stable)).trim == 1


def test_leave_when_safe_a_skipped_duplicate_leaves_redis_when_its_original_is_stable() -> None:
    world = chain("ab", strategy="Hybrid")
    world.push("a", gradient(0, 1))
    ready = world.step("a", from_log(log(gradient(0, 1))))
    assert (ready.apply, ready.trim) == ([], None)
    assert world.step("a", Acks("b", 1, 2, 2)).trim == 1


def test_stateless_takes_no_direct_gradient() -> None:
    world = chain("a", strategy="Stateless")
    token = world.push("a", gradient(0, 1))
    assert world.refused(token) == "not-head"
    assert "buffer" in world.answer(token).detail  # type: ignore[union-attr]


def test_stateless_with_nothing_in_redis_waits_for_initial_weights() -> None:
    world = World("a", ReplicaSettings(strategy="Stateless"))
    world.install(view(1, "a", restore="buffer"))
    assert world.refused(world.push("a", gradient(0, 1))) == "stopped"
    data = world.replicas["a"].data
    world.step("a", Restored(0, 0, 0, {}, data, source="ckpt-h0000-v00000001"))  # of a view that this one followed
    assert world.refused(world.push("a", gradient(0, 1))) == "stopped"
    world.step("a", Restored(0, 0, 0, {}, data, source="buffer"))
    assert world.refused(world.push("a", gradient(0, 1))) == "empty"


def test_stateless_holds_back_pulls() -> None:
    world = chain("a", strategy="Stateless", consistency="BoundedStaleness", max_staleness=2)
    world.step("a", from_log(log(*(gradient(0, s) for s in (1, 2, 3)))))
    fast, slow, reader = world.pull("a", slot=0), world.pull("a", slot=1), world.pull("a", slot=None)
    assert [world.shown(t) for t in (fast, slow, reader)] == [None, 3, 3]
    world.step("a", from_log(log(gradient(1, 1), start=4)))
    assert world.shown(fast) == 4

"""A server's departure: it serves until another has its state, saves when none comes in time, and goes."""

from __future__ import annotations

import pytest

from outlast.api.view import Member, View
from outlast.chain.events import Contribution, DataPlan, Finish, Identity, Install, Kind, Push, Restored
from outlast.chain.replica import Replica, ReplicaSettings
from outlast.server.leave import Leave, LeaveStep

SERVE, SAVE, GO = LeaveStep.SERVE, LeaveStep.SAVE, LeaveStep.GO
GRACE_S, LATE_S, TOO_LATE_S = 30.0, 21.0, 29.5


def member(boot: str) -> Member:
    return Member(f"server-{boot}", boot, f"unix:/{boot}")


def replica(members: str, joining: str = "", *, holds: bool = True, restore: str | None = None) -> Replica:
    """Of boot `a`, in a view with these boots; with the first weights if it `holds` any."""
    made = Replica("server-a", "a", 0, ReplicaSettings(strategy="Checkpoint"))
    view = View(0, 1, 0, tuple(map(member, members)), tuple(map(member, joining)), restore)
    made.step(Install(view))
    if holds:
        made.step(Push(object(), 1, 1, Contribution(Identity(0, 0, 0), 0, 0, object(), Kind.INIT, 1.0)))
        assert made.initialised
    return made


def out_of_view() -> Replica:
    made = replica("a")
    made.step(Install(View(0, 2, 0, (member("b"),))))
    return made


@pytest.mark.parametrize(
    ("made", "not_replaced", "after_s", "expected"),
    [
        pytest.param(Replica("server-a", "a", 0, ReplicaSettings()), False, 0.0, GO, id="in no view yet"),
        pytest.param(out_of_view(), False, 0.0, GO, id="another holds the state"),
        pytest.param(replica("a"), False, 0.0, SERVE, id="alone: wait for a replacement"),
        pytest.param(replica("a", "b"), False, 0.0, SERVE, id="alone: the replacement joins"),
        pytest.param(replica("a"), False, LATE_S, SAVE, id="alone: none came"),
        pytest.param(replica("a", "b"), False, LATE_S, SAVE, id="alone: it came too late"),
        pytest.param(replica("a"), True, 0.0, SAVE, id="alone: none comes"),
        pytest.param(replica("a", holds=False), False, 0.0, GO, id="alone, and nothing is held"),
        pytest.param(replica("a", holds=False, restore="buffer"), False, 0.0, SERVE, id="alone: it still loads"),
        pytest.param(replica("a", holds=False, restore="buffer"), True, 0.0, GO, id="it loads, and nobody comes"),
        pytest.param(replica("ab"), False, LATE_S, SERVE, id="until a view goes on without it"),
        pytest.param(replica("ab"), False, TOO_LATE_S, GO, id="before it is killed"),
        pytest.param(replica("ba", holds=False), True, 0.0, SERVE, id="the head has yet to learn of it"),
        pytest.param(replica("b", "a", holds=False), False, 0.0, SERVE, id="the next view may name it alone"),
        pytest.param(replica("b", "a", holds=False), False, TOO_LATE_S, GO, id="joining, before it is killed"),
    ],
)
def test_what_a_leaving_server_does(made: Replica, not_replaced: bool, after_s: float, expected: LeaveStep) -> None:
    assert Leave(100.0, GRACE_S).step(made, not_replaced, 100.0 + after_s) is expected


def test_a_member_of_a_finished_job_goes_when_it_is_dismissed() -> None:
    made = replica("b", "a", holds=False)
    made.step(Install(View(0, 2, 0, (member("b"), member("a")))))
    made.step(Restored(1, 0, 0, {}, DataPlan(slots=1), epoch=2))
    made.step(Finish())
    leave = Leave(0.0, GRACE_S)
    assert made.finished
    assert leave.step(made, False, 1.0) is SERVE
    assert leave.step(made, True, 1.0) is GO


def test_the_patience_follows_the_grace_period() -> None:
    short, long = Leave(0.0, 30.0), Leave(0.0, 300.0)
    assert short.step(replica("a"), False, 60.0) is SAVE
    assert long.step(replica("a"), False, 60.0) is SERVE
    assert 0.0 < short.left_s(20.0) < 10.0
    assert short.left_s(40.0) == 0.0

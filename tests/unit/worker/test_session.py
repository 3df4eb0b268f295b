"""How a worker's session with several shards ends: each counts on its own, and none is cheated of what is under way."""

from __future__ import annotations

from dataclasses import replace

import pytest

from outlast.api.strategy import TABLE
from outlast.api.view import Member, View
from outlast.chain.events import Kind, Refusal
from outlast.worker.events import Ask, Dial, Idle, Outcome, Outgoing, SendPush
from outlast.worker.session import Session

HEADS = [Member(f"server-{shard}", f"boot-{shard}", f"tcp:server-{shard}:1") for shard in (0, 1)]
VIEWS = [View(shard=shard, epoch=1, history=0, members=(HEADS[shard],)) for shard in (0, 1)]


def connected(strategy: str) -> Session:
    session = Session(2, TABLE[strategy, "Async"])
    for shard in (0, 1):
        session.heard(shard, {"another": VIEWS[shard]}, now=0.0)
        session.dialled(shard, HEADS[shard])
    return session


def submitted(session: Session, step: int) -> Outgoing:
    item = Outgoing(step, step, (0, 0), session.history, None, Kind.UPDATE)
    session.submit(item)
    return item


def test_a_shard_that_has_its_goal_leaves_the_others_what_is_under_way() -> None:
    session = connected("Chain")
    first = submitted(session, 1)
    session.acknowledged(0, first)
    session.lost(1, now=1.0)
    second = submitted(session, 2)
    session.refused(0, Refusal.FINISHED, None, now=1.0)  # it had its last update with `first`
    assert not session.finished
    assert (first.outcome, second.outcome) == (None, None)

    session.heard(1, {"another": replace(VIEWS[1], epoch=2)}, now=1.1)
    session.dialled(1, HEADS[1])
    assert session.next_action(1, 1.1) == SendPush(first, 2, want_weights=False)
    session.acknowledged(1, first)
    assert first.outcome is Outcome.SERVER
    assert isinstance(session.next_action(0, 1.2), Idle), "it is asked no more"
    session.acknowledged(1, second)
    assert second.outcome is Outcome.UNAPPLIED, "no model holds it: a shard lacks it"

    third = submitted(session, 3)
    assert session.next_action(1, 1.2) == SendPush(third, 2, want_weights=True), "until the second has its goal, too"
    session.refused(1, Refusal.FINISHED, None, now=1.3)
    assert session.finished
    assert third.outcome is Outcome.UNAPPLIED
    assert session.unanswered == 0


def test_a_head_that_was_lost_is_dialled_again_in_its_epoch_only_if_it_answers_itself() -> None:
    """A dial of a lost host takes as long as a time-out, and its fellows tell of the next view within milliseconds."""
    session = connected("Chain")
    session.lost(0, now=1.0)
    session.heard(0, {"another": VIEWS[0]}, now=1.0)
    assert isinstance(session.next_action(0, 1.0), Idle)
    assert session.next_action(0, 1.2) == Ask()
    session.heard(0, {"another": VIEWS[0], "boot-0": VIEWS[0]}, now=1.2)
    assert session.next_action(0, 1.2) == Dial(HEADS[0])
    session.lost(0, now=1.3)
    promoted = replace(VIEWS[0], epoch=2, members=(Member("server-9", "boot-9", "tcp:server-9:1"),))
    session.heard(0, {"another": promoted, "boot-0": VIEWS[0]}, now=1.5)
    assert session.next_action(0, 1.5) == Dial(promoted.members[0])


def test_a_rollback_takes_the_goal_back() -> None:
    session = connected("Chain")
    session.refused(0, Refusal.FINISHED, None, now=1.0)
    session.heard(1, {"another": replace(VIEWS[1], epoch=2, history=1)}, now=1.1)
    session.heard(0, {"another": replace(VIEWS[0], epoch=2, history=1)}, now=1.1)
    session.dialled(0, HEADS[0])
    item = submitted(session, 1)
    assert session.next_action(0, 1.2) == SendPush(item, 2, want_weights=True)


def test_a_closed_log_sends_hybrids_gradients_to_the_heads_that_lack_them() -> None:
    session = connected("Hybrid")
    item = submitted(session, 1)
    session.acknowledged(0, item)
    session.lost(1, now=1.0)
    assert session.next_for_buffer() is item
    session.buffered(item, closed=True)  # the first shard has its goal, and has closed the log
    assert (item.outcome, session.next_for_buffer(), session.finished) == (None, None, False)
    session.heard(1, {"another": replace(VIEWS[1], epoch=2)}, now=1.1)
    session.dialled(1, HEADS[1])
    session.pulled(1)
    assert session.next_action(1, 1.1) == SendPush(item, 2, want_weights=True)


@pytest.mark.parametrize("end", ["refused", "closed"])
def test_with_stateless_one_end_is_the_end_of_all(end: str) -> None:
    session = connected("Stateless")
    item = submitted(session, 1)
    if end == "refused":
        session.refused(0, Refusal.FINISHED, None, now=1.0)
    else:
        session.buffered(item, closed=True)
        assert item.outcome is Outcome.UNAPPLIED
    assert session.finished

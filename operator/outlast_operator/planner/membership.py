"""Who is in the next view: pure functions over views.

Rules:
 1. The next view has the next epoch, and keeps members of the recorded one in their order (so that every successor's
    history is a prefix of its predecessor's: the update-propagation invariant, van Renesse & Schneider, OSDI 2004,
    §2.3). Only who caught up, by the word of the tail of this very epoch, is appended, at the tail.
 2. A view that would keep nobody is not made here: `next_view` returns None, and rollback.py decides.
 3. A leaving member is kept while no other member holds the state: if all members leave, until a joining server has
    caught up. Without a joining server only the head is kept; it serves on until a replacement joins.
    A leaving member takes no replacement's room: a shard with one server has two for the time of the handover.
 4. Where members cannot reach each other, the one with most broken links goes; of two, the later in the chain.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from outlast.api.view import Member, View


def next_view(
    view: View,
    *,
    lost: Collection[str] = (),
    leaving: Collection[str] = (),
    caught_up: Collection[str] = (),
    fresh: Sequence[Member] = (),
    replicas: int = 1,
    epoch: int | None = None,
    restored: bool = True,
) -> View | None:
    """The view that follows, the same object if nothing changes, or None if every member is lost.

    `lost`, `leaving`, `caught_up` are boot ids; `fresh` are started servers of the shard, empty and in no view;
    `replicas` bounds joining servers and members that do not leave together; `epoch` is at least this one's (a server
    was seen with it); `restored` False: some member may still have to load `view.restore`, so the next view names it.
    """
    kept = [m for m in view.members if m.boot not in lost]
    if not kept:
        return None
    arriving = [j for j in view.joining if j.boot not in lost and j.boot not in leaving]
    promoted = [j for j in arriving if j.boot in caught_up]
    staying = [m for m in kept if m.boot not in leaving]
    members = (*(staying or (kept if arriving else kept[:1])), *promoted)
    joining = [j for j in arriving if j not in promoted]
    known = {m.name for m in (*members, *joining)}
    newcomers = [f for f in fresh if f.name not in known and f.boot not in lost and f.boot not in leaving]
    occupied = sum(m.boot not in leaving for m in members) + len(joining)
    joining += newcomers[: max(0, replicas - occupied)]
    seen = view.epoch if epoch is None else max(epoch, view.epoch)
    if members == view.members and tuple(joining) == view.joining and seen == view.epoch:
        return view
    return view.with_(
        epoch=seen + 1, members=members, joining=tuple(joining), restore=None if restored else view.restore
    )


def fresh_view(
    shard: int,
    epoch: int,
    history: int,
    members: Sequence[Member],
    joining: Sequence[Member],
    restore: str | None,
    otherwise: str | None = None,
) -> View:
    """A view that keeps nobody's place: the first of a job, or the first after a total loss or rollback."""
    assert members, "a view needs a member"
    assert epoch > 0, "epoch 0 means no view"
    return View(shard, epoch, history, tuple(members), tuple(joining), restore, otherwise)


def worst_linked(view: View, broken: Iterable[tuple[str, str]]) -> str | None:
    """The boot to drop, given links (pairs of boots) that stayed broken; None if there are none."""
    order = [m.boot for m in (*view.members, *view.joining)]
    counts = Counter(boot for link in broken for boot in link if boot in order)
    if not counts:
        return None
    return max(counts, key=lambda boot: (counts[boot], order.index(boot)))

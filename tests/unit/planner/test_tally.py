"""Totals over the failover ledger: each loss once, and never less than before."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_world import World, make_spec

from outlast_operator.planner import failovers as ledger
from outlast_operator.planner.status import Failover, JobStatus
from outlast_operator.planner.tally import keep_newest, outage_s, total_lost, updates_lost


def line(t: float, until: float | None = None, lost: int = 0, **more: object) -> Failover:
    told: dict[str, object] = {"role": "single", "t_decided": t + 0.5, "gradients": {"lost": lost}, **more}
    return Failover("server-0", "Killed", t, t_first_update=until, **told)  # type: ignore[arg-type]


def test_a_rollback_of_two_shards_counts_once() -> None:
    lines = [line(1.0, lost=40), line(1.0, lost=43, shard=1), line(9.0, lost=5)]
    assert updates_lost(lines) == 48
    assert updates_lost([line(1.0, lost=40), line(1.0, lost=43, role="tail"), line(2.0, t_decided=None)]) == 40


def test_outages_that_overlap_count_once() -> None:
    assert outage_s([line(1.0, 5.0), line(3.0, 4.0, shard=1), line(4.0, 7.0), line(10.0)], now=12.0) == 8.0
    assert outage_s([line(1.0, 5.0, role="tail"), line(1.0, 5.0, kind="worker", role="worker")], now=9.0) == 0.0
    assert outage_s([line(5.0, 4.0)], now=9.0) == 0.0, "it came back before it was replaced"


LOSS = st.tuples(st.none() | st.integers(0, 9), st.integers(0, 9))  # how long the outage lasted; updates lost


@given(st.lists(st.tuples(st.integers(0, 20), st.lists(LOSS, min_size=1, max_size=3)), max_size=12), st.integers(1, 5))
def test_no_total_changes_with_what_is_kept(losses: list[tuple[int, list[tuple[int | None, int]]]], kept: int) -> None:
    """Each time one to three shards lose all their servers, and one rollback answers it."""
    lines: tuple[Failover, ...] = ()
    every: list[Failover] = []
    lost_before = 0
    for i, (t, shards) in enumerate(sorted(losses, key=lambda loss: loss[0])):
        new = [line(t, None if s is None else t + s, lost, t_decided=100.0 + i) for s, lost in shards]
        every += new
        lines, lost_before = keep_newest([*lines, *new], kept, lost_before)
        assert len(lines) <= kept
        assert total_lost(JobStatus(failovers=lines, lost_before=lost_before)) == updates_lost(every)


def test_no_total_of_a_job_shrinks_when_its_ledger_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "KEPT", 3)
    world = World(make_spec("Checkpoint"))
    world.run(1.0)
    lost = 0
    for _ in range(8):
        world.kill("server-0")
        world.run(1.1)
        lost += world.status.failovers[-1].gradients["lost"]
    world.run(6.0)
    assert (len(world.status.failovers), world.status.failover_count) == (3, 8)
    assert world.status.progress.gradients["lost"] == lost > 0
    for name, shown in (("lost", "gradients"), ("idle", "cost")):
        told = [getattr(s.progress, shown).get(name, 0) for s in world.history]
        assert told[-1] > 0
        assert told == sorted(told), name
    assert JobStatus.from_json(world.status.to_json()).lost_before == world.status.lost_before > 0


def test_what_an_older_release_recorded_has_dropped_nothing() -> None:
    raw = {k: v for k, v in JobStatus(failovers=(line(1.0),)).to_json().items() if k != "lost_before"}
    assert replace(JobStatus.from_json(raw), failovers=()) == JobStatus()

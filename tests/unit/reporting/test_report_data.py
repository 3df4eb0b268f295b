"""report.json from synthetic observations: above all, that `lost` and `duplicates` are what they claim to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from outlast.api.job import read_spec
from outlast.api.server_status import Evaluation
from outlast.api.spec import JobSpec
from outlast.process.ledger import Fact, LedgerRecord
from outlast_operator.local.forkserver_client import ProcessRecord
from outlast_operator.local.monitor import Heard, ResourceSample, ServerSample
from outlast_operator.local.run import Loss, Run, unplanned
from outlast_operator.planner.status import Failover, JobStatus
from outlast_operator.reporting.data import build_report, count_gradients, in_words

T0 = 1000.0  # t_start


def spec(**servers: int) -> JobSpec:
    return read_spec(
        {
            "training": {"task": "outlast.tasks.synthetic", "stopAfter": {"updates": 100}},
            "recovery": {"strategy": "Chain"},
            "servers": {"shards": 1, "replicas": 3} | servers,
            "cost": {"hourly": {"server": 36.0, "worker": 3600.0}},
        }
    )


def records(fact: Fact, slot: int, steps: Sequence[int], t: float = T0, every: float = 0.0) -> list[LedgerRecord]:
    return [LedgerRecord(t + i * every, fact, slot, step, step) for i, step in enumerate(steps)]


def promised(fact: Fact, slot: int, steps: Sequence[int]) -> list[LedgerRecord]:
    """What a worker computed, and then saw acknowledged in the way of `fact`."""
    return records(Fact.COMPUTED, slot, steps) + records(fact, slot, steps)


def run_of(ledger: Sequence[LedgerRecord] = (), tables: dict[int, dict[str, Any]] | None = None, **changes: Any) -> Run:
    heard = Heard(ledger=sorted(ledger, key=lambda r: r.t))
    run = Run("job", spec(), T0, T0 + 100.0, heard, tables=tables or {})
    return replace(run, **changes)


def table(applied: dict[str, list[int]], **more: Any) -> dict[str, Any]:
    count = sum(b - a + 1 for flat in applied.values() for a, b in zip(flat[::2], flat[1::2], strict=True))
    return {"applied": applied, "applied_total": count, "version": count, "digest": "d", "unread": []} | more


def test_everything_acknowledged_and_applied_loses_nothing() -> None:
    steps = range(1, 11)
    ledger = records(Fact.COMPUTED, 0, steps) + promised(Fact.ACKNOWLEDGED, 0, steps)
    assert count_gradients(run_of(ledger, {0: table({"0": [1, 10]})})) == {
        "computed": 10,
        "acknowledged": 10,
        "applied": 10,
        "buffered": 0,
        "replayed": 0,
        "lost": 0,
        "duplicates": 0,
        "unapplied_at_end": 0,
    }


def test_lost_is_what_was_acknowledged_and_is_not_held() -> None:
    ledger = promised(Fact.ACKNOWLEDGED, 0, range(1, 11)) + promised(Fact.ACKNOWLEDGED, 1, range(1, 6))
    counts = count_gradients(run_of(ledger, {0: table({"0": [1, 4, 8, 10], "1": [1, 5]})}))
    assert counts["lost"] == 3
    assert counts["applied"] == 12


def test_what_redis_acknowledged_can_be_lost_too() -> None:
    ledger = promised(Fact.BUFFERED, 0, range(1, 6))
    counts = count_gradients(run_of(ledger, {0: table({"0": [1, 3]})}))
    assert (counts["buffered"], counts["replayed"], counts["lost"]) == (5, 3, 2)


def test_computed_but_never_acknowledged_is_not_lost() -> None:
    counts = count_gradients(run_of(records(Fact.COMPUTED, 0, range(1, 4)), {0: table({})}))
    assert (counts["computed"], counts["lost"]) == (3, 0)


def test_acknowledged_twice_counts_once() -> None:
    ledger = promised(Fact.ACKNOWLEDGED, 0, [1, 2, 2, 1]) + promised(Fact.BUFFERED, 0, [2])
    counts = count_gradients(run_of(ledger, {0: table({"0": [1, 1]})}))
    assert (counts["acknowledged"], counts["lost"]) == (2, 1)


def test_recomputed_after_a_rollback_under_the_same_identity_is_not_lost() -> None:
    ledger = records(Fact.COMPUTED, 0, [1, 2, 3, 2, 3]) + promised(Fact.ACKNOWLEDGED, 0, [1, 2, 3, 2, 3])
    counts = count_gradients(run_of(ledger, {0: table({"0": [1, 3]})}))
    assert (counts["computed"], counts["lost"]) == (3, 0)


def test_what_came_after_the_goal_is_unapplied_and_not_lost() -> None:
    ledger = [
        *promised(Fact.BUFFERED, 0, range(1, 9)),
        *records(Fact.UNAPPLIED, 1, [4]),  # refused, never acknowledged
    ]
    counts = count_gradients(run_of(ledger, {0: table({"0": [1, 5]}, unread=[[0, 6, 7]])}))
    assert counts["unapplied_at_end"] == 3  # 0/6, 0/7 and 1/4
    assert counts["lost"] == 1  # 0/8 is nowhere


def test_unread_that_was_applied_is_not_unapplied() -> None:
    counts = count_gradients(run_of(promised(Fact.BUFFERED, 0, [1, 2]), {0: table({"0": [1, 2]}, unread=[[0, 2, 2]])}))
    assert (counts["unapplied_at_end"], counts["lost"]) == (0, 0)


def test_a_gradient_that_one_shard_lacks_is_lost() -> None:
    ledger = promised(Fact.ACKNOWLEDGED, 0, range(1, 6))
    run = run_of(ledger, {0: table({"0": [1, 5]}), 1: table({"0": [1, 4]})}, spec=spec(shards=2))
    assert count_gradients(run)["lost"] == 1
    assert count_gradients(run)["applied"] == 4


def test_what_a_restored_job_brought_along_is_not_this_runs() -> None:
    counts = count_gradients(run_of(promised(Fact.ACKNOWLEDGED, 0, [101, 102]), {0: table({"0": [1, 102]})}))
    assert (counts["applied"], counts["lost"]) == (2, 0)


def test_without_a_surviving_table_everything_is_lost() -> None:
    ledger = promised(Fact.ACKNOWLEDGED, 0, range(1, 6))
    assert count_gradients(run_of(ledger))["lost"] == 5
    assert count_gradients(run_of(ledger, {0: table({"0": [1, 5]})}, spec=spec(shards=2)))["lost"] == 5


def test_duplicates_are_what_was_applied_more_than_once() -> None:
    run = run_of(tables={0: table({"0": [1, 10]}, applied_total=12)})
    assert count_gradients(run)["duplicates"] == 2


def test_intervals_of_local_steps_count_each_step() -> None:
    ledger = [LedgerRecord(T0, Fact.ACKNOWLEDGED, 0, 3, 7), LedgerRecord(T0, Fact.ACKNOWLEDGED, 0, 6, 8)]
    assert count_gradients(run_of(ledger, {0: table({"0": [3, 7]})}))["acknowledged"] == 6


# --- failures ---


def sample(t: float, version: int, epoch: int = 1, backlog: int = 0, name: str = "server-0") -> ServerSample:
    return ServerSample(T0 + t, name, name, 0, "head", epoch, True, version, backlog, backlog * 10)


def killed_run(**changes: Any) -> Run:
    """Ten gradients a second; the head dies at 20 s, workers wait until 22 s; the run goes on to 40 s."""
    times = [0.1 * i for i in range(200)] + [22.0 + 0.1 * i for i in range(181)]
    ledger = [LedgerRecord(T0 + t, Fact.COMPUTED, 0, i + 1, i + 1) for i, t in enumerate(times)]
    heard = Heard(
        ledger=ledger,
        samples=[sample(t / 2, t) for t in range(41)] + [sample(22.05 + t / 2, 41 + t, 2) for t in range(36)],
        first_updates={(0, 1): T0 + 0.1, (0, 2): T0 + 22.01},
        resources=[ResourceSample(T0 + 1.0, "server-0", 0.5, 1000)],
        evaluations=[Evaluation(10, 0.5, 1.0, 2000, T0 + 5.0), Evaluation(80, 0.9, 0.2, 10000, T0 + 40.0)],
        traffic={"a": (10, 20), "b": (1, 2)},
    )
    line = Failover("server-0", "Killed", T0 + 20.03, epoch=2, t_decided=T0 + 20.1, t_promoted=T0 + 20.2)
    run = Run(
        "job", spec(), T0, T0 + 41.0, heard, JobStatus(failovers=(line,)), [Loss(("server-0",), "KILL", T0 + 20.0)]
    )
    return replace(run, **changes)


def test_a_failure_has_the_times_that_were_observed() -> None:
    (failure,) = build_report(killed_run())["failures"]
    assert failure == {
        "target": "server-0",
        "signal": "KILL",
        "t_killed_s": 20.0,
        "t_detected_s": 20.03,
        "t_promoted_s": 20.2,
        "t_first_update_s": 22.01,
        "epoch": 2,
        "gradients_per_s": {"before": 10.0, "during": pytest.approx(0.498), "after": 10.0},
        "t_backlog_applied_s": None,
        "backlog_peak": 0,
    }


def test_an_update_that_never_came_is_null() -> None:
    run = killed_run()
    heard = replace(run.heard, first_updates={(0, 1): T0 + 0.1}, samples=run.heard.samples[:41])
    line = replace(run.status.failovers[0], t_promoted=None, epoch=None)
    report = build_report(replace(run, heard=heard, status=JobStatus(failovers=(line,))))
    (failure,) = report["failures"]
    assert failure["t_first_update_s"] is None
    assert failure["t_promoted_s"] is None
    assert failure["gradients_per_s"]["after"] is None
    assert "none came before the end" in in_words(report)[1]


def test_after_a_rollback_the_next_update_is_the_next_growth() -> None:
    samples = [sample(19.0, 150), sample(21.0, 100, 2), sample(21.5, 100, 2), sample(22.0, 101, 2)]
    run = killed_run(status=JobStatus())
    (failure,) = build_report(replace(run, heard=replace(run.heard, samples=samples, first_updates={})))["failures"]
    assert failure["t_first_update_s"] == 22.0
    assert failure["epoch"] == 2


def test_the_backlog_is_applied_when_the_log_is_seen_empty_after_it_grew() -> None:
    run = killed_run()
    backlog = [sample(21.0, 41, 2, 0), sample(22.0, 41, 2, 30), sample(22.5, 60, 2, 7), sample(23.0, 70, 2, 0)]
    (failure,) = build_report(replace(run, heard=replace(run.heard, samples=backlog)))["failures"]
    assert (failure["t_backlog_applied_s"], failure["backlog_peak"]) == (23.0, 30)


def test_a_backlog_that_the_next_failure_cut_off_is_told_from_none() -> None:
    """Both have no time; of the first it is known that something waited."""
    backlog = [sample(22.0, 41, 2, 30), sample(24.0, 60, 2, 7), sample(26.0, 70, 2, 0)]
    losses = [Loss(("server-0",), "KILL", T0 + 20.0), Loss(("server-0",), "KILL", T0 + 25.0)]
    run = killed_run(losses=losses)
    first, second = build_report(replace(run, heard=replace(run.heard, samples=backlog)))["failures"]
    assert (first["t_backlog_applied_s"], first["backlog_peak"]) == (None, 30)
    assert (second["t_backlog_applied_s"], second["backlog_peak"]) == (None, 0)


def test_windows_of_two_failures_do_not_overlap() -> None:
    second = Loss(("worker-0",), "KILL", T0 + 25.0)
    first, other = build_report(killed_run(losses=[Loss(("server-0",), "KILL", T0 + 20.0), second]))["failures"]
    assert first["gradients_per_s"]["after"] == pytest.approx(10.0, rel=0.05)
    assert other["target"] == "worker-0"
    assert other["t_detected_s"] is None
    assert other["gradients_per_s"]["before"] == pytest.approx(10.0, rel=0.05)


def test_a_crash_that_nobody_ordered_is_a_failure_too() -> None:
    line = Failover("worker-1", "Killed", T0 + 7.1, kind="worker")
    ends = [ProcessRecord("worker-1", 1, "fork", T0, t_exited=T0 + t, signal=9) for t in (3.0, 7.0, 9.0)]
    assert unplanned(JobStatus(failovers=(line,)), [], ends) == [Loss(("worker-1",), "KILL", T0 + 7.0)]
    drilled = [Loss(("worker-1",), "KILL", T0 + 7.0)]
    assert unplanned(JobStatus(failovers=(line,)), drilled, ends) == []


# --- the whole ---


def test_the_report_has_the_schemas_fields_and_no_other() -> None:
    report = build_report(replace(killed_run(), tables={0: table({"0": [1, 381]})}))
    assert list(report) == [
        "schema", "job", "strategy", "consistency", "workers", "servers", "seed", "duration_s", "series", "resources",
        "final", "gradients", "failures", "bytes", "cost",
    ]  # fmt: skip
    assert report["final"] == {"accuracy": 0.9, "loss": 0.2, "version": 381, "digest": "d"}
    assert report["bytes"] == {"pushed": 11, "pulled": 22, "buffer_peak": 0}
    assert report["resources"] == [{"t_s": 1.0, "process": "server-0", "cpu_s": 0.5, "rss_bytes": 1000}]
    assert all(set(row) == {"t_s", "version", "accuracy", "loss", "gradients"} for row in report["series"])
    times = [row["t_s"] for row in report["series"]]
    assert times == sorted(times)
    evaluated = [(row["t_s"], row["accuracy"]) for row in report["series"] if row["accuracy"] is not None]
    assert evaluated == [(5.0, 0.5), (40.0, 0.9)]


def test_cost_is_rent_idleness_and_work_done_twice() -> None:
    cost = build_report(killed_run())["cost"]
    assert cost["total"] == pytest.approx(41.0 * (3 * 0.01 + 2 * 1.0))
    assert cost["idle"] == pytest.approx(2.0, abs=0.11)  # one slot stood still for two seconds, at 1 a second
    assert cost["recomputed"] == 0.0


def test_repeated_and_lost_gradients_cost_a_step_each() -> None:
    ledger = records(Fact.COMPUTED, 0, [1, 2, 3, 3, 4], every=0.5) + records(Fact.ACKNOWLEDGED, 0, [4])
    cost = build_report(run_of(ledger, {0: table({"0": [1, 3]})}))["cost"]
    assert cost["recomputed"] == pytest.approx(2 * 0.5)


def test_an_empty_run_still_makes_a_report() -> None:
    report = build_report(run_of())
    assert report["final"] == {"accuracy": None, "loss": None, "version": 0, "digest": ""}
    assert in_words(report) == [
        "Killed:            nothing",
        "Until next update: training was never interrupted",
        "Lost:              nothing (0 of 0 gradients were acknowledged, 0 are in the model, none twice)",
    ]

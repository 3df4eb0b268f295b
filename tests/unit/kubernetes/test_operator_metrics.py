"""The operator's metrics: each job's status as samples, each failover once."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from outlast.api.view import Member, View
from outlast.process.metrics import sample_names
from outlast_operator.kubernetes.job.record import Record
from outlast_operator.kubernetes.metrics import BUCKETS_S, FAMILIES, JobMetrics, OperatorState, goodput, metrics_text
from outlast_operator.planner.status import Condition, Failover, JobStatus, Progress

LOST = Failover("server-0", "Killed", 100.0, boot="b0", role="head")
ANSWERED = replace(LOST, t_decided=100.1, t_promoted=100.2, t_first_update=100.4)
STATUS = JobStatus(
    state="Running",
    conditions=(
        Condition("Ready", "True", "Training", "", 1.0),
        Condition("PrimaryAvailable", "False", "NoHead", "", 1.0),
        Condition("BufferHealthy", "Unknown", "NotUsed", "", 1.0),
    ),
    views={0: View(0, 3, 1, (Member("server-1", "b1", "tcp:s:1"),))},
    failovers=(ANSWERED,),
    progress=Progress(
        version=812, accuracy=0.9, loss=0.3, percent=40.0, workers_ready=2, servers_ready=3,
        gradients={"applied": 812, "lost": 0}, cost={"total": 2.0, "idle": 0.25, "recomputed": 0.25},
    ),
)  # fmt: skip


def samples(metrics: JobMetrics, operator: OperatorState = OperatorState()) -> dict[str, float]:  # noqa: B008
    """name{label=value,…} -> value, without the labels that say which job."""
    found = {}
    for family in text_string_to_metric_families(metrics.text(operator)):
        for sample in family.samples:
            labels = {
                k: v for k, v in sample.labels.items() if (k, v) not in (("namespace", "a"), ("training_job", "j"))
            }
            inner = ",".join(f"{k}={v}" for k, v in sorted(labels.items()))
            found[f"{sample.name}{{{inner}}}" if inner else sample.name] = sample.value
    return found


@pytest.fixture
def metrics() -> JobMetrics:
    found = JobMetrics()
    found.observe_status("a", "j", STATUS)
    return found


def test_a_job(metrics: JobMetrics) -> None:
    told = samples(metrics)
    assert told["outlast_jobs{state=Running}"] == 1
    assert told["outlast_job_condition{type=Ready}"] == 1
    assert told["outlast_job_condition{type=PrimaryAvailable}"] == 0
    assert "outlast_job_condition{type=BufferHealthy}" not in told, "unknown is neither"
    assert told["outlast_job_version"] == 812
    assert told["outlast_job_progress_ratio"] == pytest.approx(0.4)
    assert told["outlast_job_epoch{shard=0}"] == 3
    assert told["outlast_job_gradients{fact=applied}"] == 812
    assert told["outlast_job_cost{part=idle}"] == 0.25
    assert told["outlast_job_goodput_ratio"] == pytest.approx(0.75)


def test_a_failover_counts_once_when_it_is_closed() -> None:
    metrics = JobMetrics()
    metrics.observe_status("a", "j", replace(STATUS, failovers=(LOST,)))
    assert not any(name.startswith("outlast_failover") for name in samples(metrics)), "its cause may still change"
    for _ in range(3):
        metrics.observe_status("a", "j", STATUS)
    told = samples(metrics)
    assert told["outlast_failovers_total{cause=Killed,kind=server}"] == 1
    assert told["outlast_failover_seconds_count{kind=server}"] == 1
    assert told["outlast_failover_seconds_sum{kind=server}"] == pytest.approx(0.4)
    assert told["outlast_failover_seconds_bucket{kind=server,le=0.25}"] == 0
    assert told["outlast_failover_seconds_bucket{kind=server,le=0.5}"] == 1
    assert told["outlast_failover_seconds_bucket{kind=server,le=+Inf}"] == 1


def test_counts_survive_the_ledgers_forgetting(metrics: JobMetrics) -> None:
    """The status keeps the newest lines alone; what was counted stays counted, and another line adds to it."""
    another = replace(ANSWERED, t_detected=200.0, t_first_update=260.0, cause="Silent")
    metrics.observe_status("a", "j", replace(STATUS, failovers=(another,)))
    metrics.observe_status("a", "j", replace(STATUS, failovers=(another,)))
    told = samples(metrics)
    assert told["outlast_failovers_total{cause=Killed,kind=server}"] == 1
    assert told["outlast_failovers_total{cause=Silent,kind=server}"] == 1
    assert told["outlast_failover_seconds_count{kind=server}"] == 2


def test_a_boundary_belongs_to_its_bucket() -> None:
    metrics = JobMetrics()
    exact = replace(LOST, t_detected=0.0, t_first_update=BUCKETS_S[2])
    metrics.observe_status("a", "j", replace(STATUS, failovers=(exact,)))
    assert samples(metrics)[f"outlast_failover_seconds_bucket{{kind=server,le={BUCKETS_S[2]}}}"] == 1


def test_a_job_that_is_gone_is_told_of_no_more(metrics: JobMetrics) -> None:
    metrics.observe_status("b", "k", STATUS)
    metrics.forget("a", "j")
    assert "outlast_job_version" not in samples(metrics)
    assert "outlast_job_version{namespace=b,training_job=k}" in samples(metrics)
    metrics.keep_only([("a", "j")])
    assert not any("job_version" in name for name in samples(metrics))
    metrics.observe_status("a", "j", replace(STATUS, failovers=()))
    assert not any(name.startswith("outlast_failover") for name in samples(metrics)), "another job of that name"


def test_the_operator_itself() -> None:
    operator = OperatorState(True, False, 3, 1, {("GET", "pods"): 5})
    told = samples(JobMetrics(), operator)
    assert told["outlast_operator_leading"] == 1
    assert told["outlast_operator_healthy"] == 0
    assert told["outlast_operator_loops"] == 3
    assert told["outlast_operator_failing_loops"] == 1
    assert told["outlast_api_requests_total{resource=pods,verb=GET}"] == 5
    assert told["outlast_operator_info{version=0.1.0}"] == 1


def test_every_family_is_told(metrics: JobMetrics) -> None:
    told = {name.split("{")[0] for name in samples(metrics, OperatorState(requests={("GET", "pods"): 1}))}
    assert told == set(sample_names(FAMILIES))


def test_a_name_with_odd_characters_is_escaped() -> None:
    metrics = JobMetrics()
    metrics.observe_status("a", "j", replace(STATUS, state='odd"\\\n'))
    assert samples(metrics)['outlast_jobs{state=odd"\\\n}'] == 1


@pytest.mark.parametrize(
    ("cost", "expected"),
    [({}, None), ({"total": 0.0}, None), ({"total": 4.0}, 1.0), ({"total": 1.0, "idle": 2.0}, 0.0)],
)
def test_goodput(cost: dict[str, float], expected: float | None) -> None:
    assert goodput(cost) == expected


class FakeController:
    """As much of a controller as metrics look at."""

    healthy = True

    def __init__(self, jobs: list[dict[str, Any]]) -> None:
        self.cache = SimpleNamespace(jobs=lambda: jobs)
        self.api = SimpleNamespace(requests={("GET", "pods"): 2})

    def counts(self) -> dict[str, int]:
        return {"loops": 1, "failing": 0}


def stored(name: str, status: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"namespace": "a", "name": name, "uid": name, "resourceVersion": "1"}, "status": status}


def test_what_is_recorded_is_told_by_the_leader_alone() -> None:
    invalid = {"state": "Failed", "conditions": [{"type": "Failed", "status": "True", "reason": "InvalidSpec"}]}
    recorded = {"record": Record(STATUS).to_text()}
    foreign = {**stored("x", recorded), "spec": {"managedBy": "kueue.x-k8s.io/multikueue"}}
    controller: Any = FakeController([stored("j", recorded), stored("bad", invalid), stored("new", {}), foreign])
    text = metrics_text(controller, leading=True)
    assert 'outlast_job_version{namespace="a",training_job="j"} 812.0' in text
    assert 'outlast_job_condition{namespace="a",training_job="bad",type="Failed"} 1.0' in text
    assert 'outlast_jobs{namespace="a",state="Pending"} 1.0' in text
    assert 'training_job="x"' not in text
    assert 'outlast_failovers_total{cause="Killed",kind="server",namespace="a",training_job="j"} 1.0' in text
    waiting = metrics_text(controller, leading=False)
    assert "training_job" not in waiting
    assert "outlast_operator_leading 0.0" in waiting


def test_a_record_that_cannot_be_read_hides_no_other_job() -> None:
    shown = {"state": "Running", "conditions": [{"type": "Ready", "status": "True", "reason": "Training"}]}
    controller: Any = FakeController([
        stored("j", {"record": Record(STATUS).to_text()}), stored("newer", {**shown, "record": "9:x"}),
    ])  # fmt: skip
    text = metrics_text(controller, leading=True)
    assert 'outlast_job_version{namespace="a",training_job="j"} 812.0' in text
    assert 'outlast_job_condition{namespace="a",training_job="newer",type="Ready"} 1.0' in text

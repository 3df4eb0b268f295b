"""Metrics of servers and workers: what is told, and that nobody pays for it who does not ask."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from outlast.api.config import ProcessConfig
from outlast.api.server_status import CheckpointRef, ServerStatus
from outlast.chain.events import Contribution, DataPlan, Identity
from outlast.chain.ordering import Ordering
from outlast.chain.settings import ReplicaSettings
from outlast.chain.state import ReplicatedState
from outlast.process import metrics
from outlast.process.ledger import Fact

STATUS = ServerStatus(
    "server-0", "b", role="head", serving=True, version=7, epoch=2, applied_total=7, duplicates=1, staleness=(5, 7),
    replayed=3, pushed_bytes=100, pulled_bytes=200, parameters=10, backlog=4, buffer_bytes=50,
    checkpoints=(CheckpointRef("c", 0, 5),),
)  # fmt: skip


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    metrics.stop()


def config(port: Any = None, name: str = "server-0") -> ProcessConfig:
    extras = {} if port is None else {"metrics_port": port}
    return ProcessConfig("mnist", "uid", "t", "server", name, {}, (), extras=extras)


def scrape(port: int) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """(name, labels but the process's own) -> value."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            assert sample.labels["training_job"] == "mnist"
            labels = {k: v for k, v in sample.labels.items() if k not in ("training_job", "process")}
            found[sample.name, tuple(sorted(labels.items()))] = sample.value
    return found


def test_a_servers_samples() -> None:
    samples = list(metrics.server_samples(STATUS, 1000))
    values = {name: value for name, labels, value in samples if not labels}
    assert values["outlast_server_version"] == 7
    assert values["outlast_server_serving"] == 1
    assert values["outlast_server_staleness_sum"] == 5
    assert values["outlast_server_staleness_count"] == 7
    assert values["outlast_server_replayed_gradients_total"] == 3
    assert values["outlast_server_buffer_max_bytes"] == 1000
    assert values["outlast_server_checkpoint_version"] == 5
    assert ("outlast_server_role", {"role": "head"}, 1.0) in samples


def test_a_replica_serves_nobody_and_a_fresh_one_has_no_checkpoint() -> None:
    values = {n: v for n, _, v in metrics.server_samples(replace(STATUS, role="tail", checkpoints=()), 1)}
    assert values["outlast_server_serving"] == 0
    assert "outlast_server_checkpoint_version" not in values


def test_a_workers_samples() -> None:
    counts = metrics.WorkerCounts(waited_s=3.0, sent_bytes=40, t_started=100.0)
    counts.gradients[Fact.COMPUTED] = 6
    samples = list(metrics.worker_samples(counts, 80, 2, True, False, now=110.0))
    assert ("outlast_worker_gradients_total", {"fact": "computed"}, 6.0) in samples
    assert ("outlast_worker_gradients_total", {"fact": "buffered"}, 0.0) in samples
    values = {name: value for name, labels, value in samples if not labels}
    assert values["outlast_worker_busy_seconds_total"] == 7
    assert values["outlast_worker_waiting_seconds_total"] == 3
    assert values["outlast_worker_outage"] == 1


def test_every_family_has_a_sample_and_every_sample_a_family() -> None:
    samples = [
        *metrics.server_samples(STATUS, 1),
        *metrics.worker_samples(metrics.WorkerCounts(), 0, 0, False, False, 0),
    ]
    known = metrics.sample_names(metrics.FAMILIES)
    assert {name for name, _, _ in samples} == set(known)


def test_endpoint_tells_what_is_so_now() -> None:
    state = [STATUS]
    port = metrics.publish(config(0), lambda: metrics.server_samples(state[0], 1))
    assert port
    assert scrape(port)["outlast_server_version", ()] == 7
    state[0] = replace(STATUS, version=8)
    assert scrape(port)["outlast_server_version", ()] == 8
    assert scrape(port)["outlast_server_role", (("role", "head"),)] == 1


def test_a_process_has_one_endpoint() -> None:
    first = metrics.publish(config(0), lambda: metrics.server_samples(STATUS, 1))
    second = metrics.publish(config(0), lambda: metrics.server_samples(replace(STATUS, version=9), 1))
    assert first == second
    assert first
    assert scrape(first)["outlast_server_version", ()] == 9


def test_no_port_no_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(metrics.PORT_VARIABLE, raising=False)
    assert metrics.publish(config(), lambda: iter(())) is None
    monkeypatch.setenv(metrics.PORT_VARIABLE, "9090")
    assert metrics.wanted_port(config()) == 9090
    assert metrics.wanted_port(config(0)) == 0, "what the control plane says comes first"


@pytest.mark.parametrize("text", ["http", "-1", "70000"])
def test_what_is_no_port_is_a_warning(text: str, caplog: pytest.LogCaptureFixture) -> None:
    assert metrics.publish(config(text), lambda: iter(())) is None
    assert f"OUTLAST_METRICS_PORT={text} is no port" in caplog.text


def test_a_port_that_is_taken_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        with caplog.at_level(logging.WARNING):
            assert metrics.publish(config(taken.getsockname()[1]), lambda: iter(())) is None
    assert "cannot be listened on" in caplog.text


def test_nobody_pays_who_does_not_ask() -> None:
    heavy = "{'prometheus_client', 'torch', 'http.server'}"
    code = f"import sys, outlast.process.metrics; assert not {heavy} & set(sys.modules)"
    path = str(Path(__file__).parents[3] / "trainer")
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_staleness_is_counted_as_gradients_are_ordered() -> None:
    state = ReplicatedState(DataPlan(slots=2))
    ordering = Ordering(state, ReplicaSettings(slots=2))

    def contribution(step: int, version: int, history: int = 0) -> Contribution:
        return Contribution(Identity(0, step, step), version, history, None)

    state.apply(ordering.initial(contribution(1, 0)))
    for step, version in ((1, 0), (2, 0), (3, 2)):  # pulled when the parameters held 0, 0 and 2 updates
        state.apply(ordering.single(contribution(step, version)))
    assert ordering.staleness == (0 + 1 + 0, 3)

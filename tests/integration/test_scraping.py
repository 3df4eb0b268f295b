"""Metrics over real processes: servers and workers count what they do, and say so while they do it."""

from __future__ import annotations

import re
import urllib.request

import pytest
from jobs import Lab, Running, make_job
from prometheus_client.parser import text_string_to_metric_families

pytestmark = pytest.mark.timeout(120)


def port_of(run: Running, name: str) -> int | None:
    found = re.search(r"metrics on port (\d+)", run.log(name))
    return None if found is None else int(found[1])


def scrape(run: Running, name: str) -> dict[str, float]:
    """name, or name/fact -> value."""
    port = port_of(run, name)
    assert port is not None
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        sample.name + (f"/{sample.labels['fact']}" if "fact" in sample.labels else ""): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.parametrize("strategy", ["Chain", "Stateless"])
def test_servers_and_workers_tell(lab: Lab, strategy: str) -> None:
    run = lab.start(make_job(strategy, updates=100_000, compute_ms=2), env={"OUTLAST_METRICS_PORT": "0"})
    run.wait_version(60)
    run.wait_until(lambda: port_of(run, "worker-0"), "metrics of worker-0")
    server = scrape(run, run.head())
    assert server["outlast_server_version"] >= 60
    assert server["outlast_server_serving"] == 1
    assert server["outlast_server_applied_gradients_total"] >= 60
    assert server["outlast_server_staleness_count"] >= 60
    replayed = server["outlast_server_replayed_gradients_total"]
    assert replayed >= 60 if strategy == "Stateless" else replayed == 0
    if strategy == "Chain":
        assert server["outlast_server_received_bytes_total"] >= 60 * 16_000
    before = scrape(run, "worker-0")
    kept = "buffered" if strategy == "Stateless" else "acknowledged"
    wanted = before[f"outlast_worker_gradients_total/{kept}"] + 20
    run.wait_until(
        lambda: scrape(run, "worker-0")[f"outlast_worker_gradients_total/{kept}"] >= wanted, "twenty more gradients"
    )
    after = scrape(run, "worker-0")
    assert after["outlast_worker_gradients_total/computed"] >= wanted
    assert after["outlast_worker_busy_seconds_total"] > before["outlast_worker_busy_seconds_total"]
    assert after["outlast_worker_received_bytes_total"] > 0
    assert (after["outlast_worker_sent_bytes_total"] > 20 * 16_000) == (strategy == "Chain")
    assert after["outlast_worker_outage"] == 0
    run.close()

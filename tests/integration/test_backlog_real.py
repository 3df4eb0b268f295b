"""The backlog experiment's simulation against the real thing: the same outage of a real Stateless run.

Asynchronous runs do not repeat, so their accuracies are compared as means over seeds, within what seeds differ by; what
tells a right simulation from a wrong one is that local steps gain a lot here and the paper's rule next to nothing.
A kill comes when a server was *heard* to be at an update: the workers are paced, and the server is heard often, so that
this is soon after it was, on any machine.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from rich.console import Console

from outlast.api.job import TrainingJob
from outlast.process.ledger import Fact
from outlast_bench.promises.common import Progress, run_job
from outlast_bench.study.backlog.policies import BY_NAME
from outlast_bench.study.backlog.records import BacklogRecord
from outlast_bench.study.backlog.unit import Experiment, Unit
from outlast_operator.reporting.data import steps_of

KILLED_AT = 150  # updates: on the steep part
AFTER = 60  # updates from there to the end: some come before the kill, some are stale gradients, until it is noticed
HEARTBEAT_S = 0.05
SEEDS = (0, 1, 2)  # an odd number: single losses jump on the steep part of asynchronous training, their median does not
TEST_IMAGES = 1_000  # for the simulated ones, whose losses they tell to some 0.05; real ones end with all 10,000


def real(policy: str, seed: int, down_s: float, updates: int) -> tuple[dict[str, Any], int]:
    """A run that ends after the drain, with an evaluation on all images; and how many local steps it took."""
    papers = {"policy": "Sum", "reducedRate": {"above": 50, "lr": 0.001}, "outage": {"mode": "StaleGradients"}}
    document = {
        "apiVersion": "outlast.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "backlog"},
        "spec": {
            "training": {
                "task": "paced_mnist.PacedFashionMnist",
                "seed": seed,
                "optimizer": {"lr": 0.01},
                "stopAfter": {"updates": updates},
                "evaluate": {"everySeconds": 3600},
            },
            "workers": {"replicas": 2},
            "recovery": {
                "strategy": "Stateless",
                "staleness": papers if policy == "SumReducedRate" else {},
                "buffer": {"durability": "None"},
                "failover": {"heartbeatSeconds": HEARTBEAT_S},
            },
        },
    }
    kill = f"servers@update={KILLED_AT}+{down_s:g}s"
    with Progress(Console(quiet=True), 1, policy) as progress:
        ran = run_job(TrainingJob.load(document), [kill], progress, label=policy, deadline_s=120.0)
    ran.discard()
    return ran.report, steps_of(ran.result.run.heard.ledger, Fact.LOCAL).count


@pytest.fixture(autouse=True)
def _beside_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent)


def simulated(policy: str, seed: int, outage: int, later: int) -> BacklogRecord:
    unit = Unit(2, seed, (outage,), KILLED_AT, later, TEST_IMAGES, True, policies=(BY_NAME[policy],))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker has; several that wait for each other on a busy machine take very long
    try:
        return Experiment(unit).run()[0]
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_local_steps_come_to_what_the_simulation_says() -> None:
    found, expected, start = [], [], []
    for seed in SEEDS:
        report, steps = real("LocalSteps", seed, 3.0, KILLED_AT + AFTER)
        assert steps > 40, report["gradients"]
        assert report["gradients"]["applied"] >= KILLED_AT + AFTER - 2 + 0.9 * steps, "two updates hold them all"
        record = simulated("LocalSteps", seed, steps, AFTER - 2)
        found.append(report["final"]["loss"])
        expected.append(record.policies["LocalSteps"].evaluations.losses[-1])
        start.append(record.start.evaluations.losses[0])
    print(f"loss: real {found}, simulated {expected}, at the kill {start}")  # noqa: T201
    assert median(found) == pytest.approx(median(expected), abs=0.3), (found, expected, start)
    assert median(found) < median(start) - 0.3, (found, start)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_papers_rule_comes_to_what_the_simulation_says() -> None:
    """The run's end cuts the backlog off, so that exactly as many of it are applied as the simulation is told."""
    found, expected = [], []
    for seed in SEEDS:
        report, _ = real("SumReducedRate", seed, 4.0, KILLED_AT + 120)
        assert report["gradients"]["unapplied_at_end"] > 0, "the backlog was longer than what is applied of it"
        found.append(report["final"]["loss"])
        expected.append(simulated("SumReducedRate", seed, 120, 1).policies["SumReducedRate"].evaluations.losses[0])
    print(f"loss: real {found}, simulated {expected}")  # noqa: T201
    assert median(found) == pytest.approx(median(expected), abs=0.3), (found, expected)

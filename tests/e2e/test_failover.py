"""A job trains; its servers are lost in every way; it trains on, and nothing that was acknowledged is lost."""

from __future__ import annotations

import time
from collections.abc import Callable

import e2e_faults as faults
import pytest
from e2e_cluster import Cluster, wait_until
from e2e_figures import KILLS, Figures
from e2e_jobs import Job, seconds_of

from outlast.ledger import Fact

StartJob = Callable[..., Job]


def start_training(start_job: StartJob, strategy: str) -> tuple[Job, float]:
    """A job in which every server and worker works; seconds from before `kubectl apply` to the first update."""
    before = time.monotonic()
    job = start_job(strategy)
    first = wait_until("the first update", lambda: job.first_fact_after(before, Fact.ACKNOWLEDGED), 120)
    job.wait_whole()
    wait_until("both workers", lambda: job.status["workers"].get("ready") == 2, 60)
    return job, first - before


def first_update_after(job: Job, target: str, epoch: int, moment: faults.Moment) -> float:
    """Seconds from the kill to the first update in the new epoch, as the ledger in the status has it."""

    def found() -> float | None:
        for line in job.status.get("failovers") or []:
            if line["target"] == target and line.get("epoch", 0) > epoch and line.get("firstUpdateTime"):
                return seconds_of(line["firstUpdateTime"]) - moment[0]
        return None

    return wait_until(f"the first update after the loss of {target} in epoch {epoch}", found, 60)


def stop(job: Job) -> None:
    """Suspend: the last member writes a checkpoint, and then nothing changes any more."""
    job.cluster.patch(job.namespace, job.name, {"suspend": True})
    job.wait_condition("Suspended", timeout_s=90)
    wait_until("the end of all processes", lambda: not job.living("server") and not job.living("worker"), 90)


@pytest.mark.parametrize("way", list(faults.KILLS))
@pytest.mark.parametrize("strategy", ["Chain", "Hybrid"])
def test_a_chain_survives_the_loss_of_its_head(
    cluster: Cluster, start_job: StartJob, figures: Figures, strategy: str, way: str
) -> None:
    job, first_s = start_training(start_job, strategy)
    figures.time(f"{strategy}: apply to first update", first_s, at_most=25)
    times = []
    for _ in range(KILLS):
        epoch, head = job.view()["epoch"], job.head()
        moment = faults.KILLS[way](cluster, head)
        times.append(first_update_after(job, head.spec.hostname, epoch, moment))
        job.wait_whole(beyond_epoch=epoch)
    assert job.view()["epoch"] > KILLS
    stop(job)
    figures.number(f"{strategy}, head lost by {way}: acknowledged gradients lost", job.lost(), "==", 0)
    figures.time(f"{strategy}, head lost by {way}: kill to first update of the new epoch", times, at_most=3)


def test_a_drained_head_hands_over(cluster: Cluster, start_job: StartJob, figures: Figures) -> None:
    job, _ = start_training(start_job, "Chain")
    pauses = []
    for _ in range(KILLS):
        epoch, head = job.view()["epoch"], job.head()
        _, moment = faults.drain(cluster, head)
        job.wait_whole(beyond_epoch=epoch)
        wait_until("a later update", lambda: job.first_fact_after(time.monotonic() - 1, Fact.ACKNOWLEDGED), 30)
        pauses.append(job.longest_pause(moment, time.monotonic()))
    stop(job)
    figures.number("Chain, head drained: acknowledged gradients lost", job.lost(), "==", 0)
    figures.time("Chain, head drained: pause of all workers", pauses, at_most=1)

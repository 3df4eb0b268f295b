"""A job trains; its servers are lost in every way; it trains on, and nothing that was acknowledged is lost."""

from __future__ import annotations

import time
from statistics import mean

import e2e_faults as faults
import pytest
from e2e_cluster import Cluster
from e2e_figures import KILLS, Figures
from e2e_jobs import EVALUATED
from e2e_selection import every, kept
from e2e_steps import (
    StartJob,
    busy_seconds,
    first_update_after,
    idle_shares,
    start_training,
    stop,
    updates_go_on,
    wait_drained,
)

UNDISTURBED_S = 10.0
AT_HAND = 64  # gradients: two groups that a server applies at once


@pytest.mark.parametrize("way", list(faults.KILLS))
@pytest.mark.parametrize("strategy", kept(["Chain", "Hybrid"], ["Hybrid"]))
def test_a_chain_survives_the_loss_of_its_head(
    cluster: Cluster, start_job: StartJob, figures: Figures, strategy: str, way: str
) -> None:
    job, first_s = start_training(start_job, strategy, training=EVALUATED)
    figures.time(f"{strategy}: apply to first update, with a new claim a server", first_s, at_most=18)
    times = []
    for _ in range(KILLS):
        epoch, head = job.view()["epoch"], job.head()
        moment = faults.KILLS[way](cluster, head)
        times.append(first_update_after(job, head.spec.hostname, epoch, moment))
        job.wait_whole(beyond_epoch=epoch)
    assert job.view()["epoch"] > KILLS
    stop(job)
    figures.number(f"{strategy}, head lost by {way}: acknowledged gradients lost", job.lost(), "==", 0)
    figures.time(f"{strategy}, head lost by {way}: kill to first update of the new epoch", times, at_most=2)


def test_a_drained_head_hands_over(cluster: Cluster, start_job: StartJob, figures: Figures) -> None:
    job, _ = start_training(start_job, "Chain", training=EVALUATED)
    pauses, times = [], []
    for _ in range(KILLS):
        epoch, head = job.view()["epoch"], job.head()
        moment = faults.drain(cluster, head)
        times.append(first_update_after(job, head.spec.hostname, epoch, moment))
        job.wait_whole(beyond_epoch=epoch)
        updates_go_on(job)
        pauses.append(job.longest_pause(moment[1], time.monotonic()))
    stop(job)
    figures.number("Chain, head drained: acknowledged gradients lost", job.lost(), "==", 0)
    figures.time("Chain, head drained: kubectl delete pod to first update of the new epoch", times, at_most=1.5)
    figures.time("Chain, head drained: pause of all workers", pauses, at_most=1)


@every
def test_a_job_without_claims_starts(start_job: StartJob, figures: Figures) -> None:
    _, first_s = start_training(start_job, "Chain", recovery={"checkpoint": {"volume": {"emptyDir": {}}}})
    figures.time("Chain: apply to first update, on emptyDir", first_s, at_most=15)


def test_a_checkpoint_is_restored(cluster: Cluster, start_job: StartJob, figures: Figures) -> None:
    job, _ = start_training(start_job, "Checkpoint", training=EVALUATED, recovery={"checkpoint": {"everyUpdates": 50}})
    times, lost = [], []
    for _ in range(KILLS):
        job.wait_condition("CheckpointAvailable")
        view, server = job.view(), job.head()
        moment = faults.kill_process(cluster, server)
        times.append(first_update_after(job, server.spec.hostname, view["epoch"], moment))
        line = next(f for f in reversed(job.status["failovers"]) if f["target"] == server.spec.hostname)
        assert job.view()["history"] == view["history"] + 1, "a rollback is a new history"
        assert line["restore"].startswith("ckpt-"), line
        lost.append(line["gradients"]["lost"])
    figures.number("Checkpoint, server killed: most gradients lost", max(lost), "<=", 100)
    figures.time("Checkpoint, server killed: kill to first update", times, at_most=30)


def test_stateless_workers_compute_on(cluster: Cluster, start_job: StartJob, figures: Figures) -> None:
    # EverySecond: a disk that syncs some hundred times a second holds workers back, whatever becomes of servers.
    buffer = {"durability": "EverySecond", "dtype": "bfloat16"}
    job, _ = start_training(start_job, "Stateless", training=EVALUATED, recovery={"buffer": buffer})
    start, before = time.monotonic(), busy_seconds(job)
    time.sleep(UNDISTURBED_S)  # the measured time: what two workers wait for Redis on a machine that they share with it
    undisturbed = max(idle_shares(job, start, before))
    start, before = time.monotonic(), busy_seconds(job)
    times, outages = [], []
    for _ in range(KILLS):
        epoch, server = job.view()["epoch"], job.head()
        killed, busy = time.monotonic(), busy_seconds(job)
        moment = faults.delete_by_force(cluster, server)
        times.append(first_update_after(job, server.spec.hostname, epoch, moment))
        outages.append(max(idle_shares(job, killed, busy)))
        wait_drained(job, AT_HAND)  # one outage after another would fill the buffer, and then workers are to wait
    idle = max(idle_shares(job, start, before))
    figures.idle("Stateless, server lost: share of time in which a worker was not busy", idle, at_most=0.05)
    figures.idle("Stateless, server lost: the same, from kill to first update", mean(outages), at_most=0.05)
    figures.idle("Stateless, server lost: all along, beyond that before the loss", idle - undisturbed, at_most=0.05)
    figures.time("Stateless, server lost: kill to first update", times, at_most=30)
    stop(job)
    figures.number("Stateless, server lost: acknowledged gradients lost", job.lost(), "==", 0)

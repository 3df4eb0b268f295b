"""The operator and the API server are lost, alone and in the middle of a failover; several things are lost at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import e2e_faults as faults
import pytest
from e2e_cluster import END_S, Cluster, Json, wait_until
from e2e_figures import FULL, Figures
from e2e_jobs import EVALUATED, Job, has_ended, is_ready
from e2e_release import NAMESPACES, RELEASE, all_operators, leader, living_operators
from e2e_selection import every, kept
from e2e_steps import StartJob, start_training, stop, updates_go_on

UNREAD = 64  # gradients: two groups that a server applies at once
AWAY_S = 60 if FULL else 12


def operators(cluster: Cluster, system: str) -> list[str]:
    return [pod.metadata.name for pod in living_operators(cluster, system)]


def processes_of_operators(cluster: Cluster, system: str, names: list[str]) -> list[str]:
    pods = [pod for pod in living_operators(cluster, system) if pod.metadata.name in names]
    assert len(pods) == len(names), f"of the operators {names} only {[p.metadata.name for p in pods]} live"
    return [pid for pod in pods for pid in faults.processes_of(cluster, pod)]


def states_of(cluster: Cluster, system: str) -> dict[str, Any]:
    """The operators that are there to stay -> what is told of their container, None before anything is."""
    return {p.metadata.name: (p.status.container_statuses or [None])[0] for p in living_operators(cluster, system)}


def ended(cluster: Cluster, system: str, names: list[str]) -> bool:
    """Whether the containers of these operators, which had never been started again, have ended."""
    states = states_of(cluster, system)
    return all(states[name].restart_count > 0 or states[name].state.running is None for name in names)


def are_well(states: dict[str, Any]) -> bool:
    return len(states) == 2 and all(s is not None and s.ready and not s.restart_count for s in states.values())


def refresh_operators(cluster: Cluster, system: str) -> None:
    """Both are well and one leads; none was ever started again, for a kubelet waits longer from crash to crash."""

    def renewed() -> bool:
        states = states_of(cluster, system)
        used = [name for name, state in states.items() if state is not None and state.restart_count]
        if used:  # their objects may stay for a minute after their end, until the kubelet tidies up
            cluster.kubectl("delete", "pod", "-n", system, *used, "--wait=false")
        return are_well(states)

    wait_until("two operators that never ended", renewed, 100)
    wait_until("a leader", lambda: leader(cluster, system) in operators(cluster, system), 60)


@pytest.fixture
def operators_to_kill(cluster: Cluster, release: str) -> Iterator[str]:
    """The operator's namespace."""
    refresh_operators(cluster, release)
    yield release
    refresh_operators(cluster, release)


def ends_right(job: Job, epoch: int, figures: Figures, case: str) -> None:
    job.wait_whole(beyond_epoch=epoch, timeout_s=120)
    updates_go_on(job)
    stop(job)
    figures.number(f"{case}: acknowledged gradients lost", job.lost(), "==", 0)


# How far a failover has come, as the API server shows it; what comes later holds as well, so that no step is missed.
STEPS: dict[str, Callable[[Job, int, Any], bool]] = {
    "with the head": lambda job, epoch, head: True,
    "once the new view is recorded": lambda job, epoch, head: job.view()["epoch"] > epoch,
    "once the replacement's pod is made": lambda job, epoch, head: replaced(job, head),
    "once the replacement joins": lambda job, epoch, head: job.view()["epoch"] > epoch + 1,
}


def replaced(job: Job, lost: Any) -> bool:
    """Whether there is another pod under a lost one's stable name."""
    alike = [p for p in job.pods() if p.spec.hostname == lost.spec.hostname]
    return any(p.metadata.uid != lost.metadata.uid and p.status.phase in ("Pending", "Running") for p in alike)


@pytest.mark.parametrize("step", kept(list(STEPS), ["once the new view is recorded"]))
def test_the_leading_operator_dies_in_a_failover(
    cluster: Cluster, operators_to_kill: str, start_job: StartJob, figures: Figures, step: str
) -> None:
    """kill -9: it gives no Lease back, and whoever leads next, itself or the other, finds the failover half done."""
    job, _ = start_training(start_job, "Chain")
    epoch, head, name = job.view()["epoch"], job.head(), leader(cluster, operators_to_kill)
    pids = processes_of_operators(cluster, operators_to_kill, [name])
    faults.kill_process(cluster, head)
    wait_until(step, lambda: STEPS[step](job, epoch, head), 60, poll_s=0.02)
    faults.signal_processes(cluster, pids, "KILL")
    wait_until("the operator's end", lambda: ended(cluster, operators_to_kill, [name]), 60)
    ends_right(job, epoch, figures, f"operator killed {step}")


@every
def test_both_operators_die_in_a_failover(
    cluster: Cluster, operators_to_kill: str, start_job: StartJob, figures: Figures
) -> None:
    job, _ = start_training(start_job, "Chain")
    epoch, names = job.view()["epoch"], operators(cluster, operators_to_kill)
    assert len(names) == 2
    pids = processes_of_operators(cluster, operators_to_kill, names)
    faults.kill_process(cluster, job.head())
    faults.signal_processes(cluster, pids, "KILL")
    wait_until("the operators' end", lambda: ended(cluster, operators_to_kill, names), 60)
    ends_right(job, epoch, figures, "both operators killed with the head")


@every
def test_a_leading_operator_that_hangs_in_a_failover_is_replaced(
    cluster: Cluster, operators_to_kill: str, start_job: StartJob, figures: Figures
) -> None:
    """It does not know that its Lease has run out: what it goes on to write is refused as out of date."""
    job, _ = start_training(start_job, "Chain")
    epoch, name = job.view()["epoch"], leader(cluster, operators_to_kill)
    pids = processes_of_operators(cluster, operators_to_kill, [name])
    faults.signal_processes(cluster, pids, "STOP")
    try:
        faults.kill_process(cluster, job.head())
        wait_until("another leader", lambda: leader(cluster, operators_to_kill) not in ("", name), 60)
        job.wait_whole(beyond_epoch=epoch, timeout_s=120)
    finally:
        faults.signal_processes(cluster, pids, "CONT")
    mended = job.view()["epoch"]
    updates_go_on(job)
    assert job.view()["epoch"] >= mended
    ends_right(job, epoch, figures, "the leading operator hangs in a failover")


def test_a_server_dies_while_no_operator_is_there(
    cluster: Cluster, release: str, start_job: StartJob, figures: Figures
) -> None:
    job, _ = start_training(start_job, "Chain")
    epoch = job.view()["epoch"]
    cluster.kubectl("scale", "deployment", RELEASE, "-n", release, "--replicas=0")
    try:
        wait_until("the end of the operators", lambda: all(map(has_ended, all_operators(cluster, release))), END_S)
        updates_go_on(job)  # training needs no operator
        assert job.view()["epoch"] == epoch, "an operator that ends takes nobody for lost"
        faults.kill_process(cluster, job.head())
        time.sleep(AWAY_S)  # the fault: nobody is there to answer
        assert job.view()["epoch"] == epoch
    finally:
        cluster.kubectl("scale", "deployment", RELEASE, "-n", release, "--replicas=2")
    ends_right(job, epoch, figures, f"operator away for {AWAY_S} s")


def test_the_api_server_restarts(cluster: Cluster, start_job: StartJob, figures: Figures) -> None:
    if cluster.provider != "modules":
        pytest.skip("the API server of this cluster is not ours to restart")
    job, _ = start_training(start_job, "Chain")
    epoch, start = job.view()["epoch"], time.monotonic()
    cluster.restart("kube-apiserver")
    updates_go_on(job)
    figures.time("API server restarted: pause of all workers", job.longest_pause(start, time.monotonic()), at_most=1)
    faults.kill_process(cluster, job.head())
    ends_right(job, epoch, figures, "API server restarted, then the head killed")


@pytest.mark.parametrize("strategy", kept(["Stateless", "Hybrid"], ["Hybrid"]))
def test_redis_is_lost(cluster: Cluster, start_job: StartJob, figures: Figures, strategy: str) -> None:
    """With its data. Of Stateless what no server had read yet goes with it; Hybrid's head has acknowledged the rest."""
    job, _ = start_training(start_job, strategy)
    redis, history = job.pods(role="redis")[0], job.view()["history"]
    faults.delete_by_force(cluster, redis)
    wait_until("another Redis", lambda: is_ready(job.replacement_of(redis)), 60)
    version = job.status["version"]
    updates_go_on(job)
    wait_until("progress", lambda: job.status["version"] > version, 60)
    assert job.view()["history"] == history, "its server lives and holds what the log is made anew from"
    stop(job)
    bound = UNREAD if strategy == "Stateless" else 0
    figures.number(f"{strategy}, Redis and its data lost: acknowledged gradients lost", job.lost(), "<=", bound)


@every
def test_a_worker_is_lost(cluster: Cluster, start_job: StartJob, figures: Figures) -> None:
    job, _ = start_training(start_job, "Chain")
    epoch, lost, other = job.view()["epoch"], job.pod_of("worker-0"), job.pod_of("worker-1")
    start = time.monotonic()
    faults.delete_by_force(cluster, lost)
    wait_until("another worker-0", lambda: is_ready(job.replacement_of(lost)), 60)
    wait_until("both workers", lambda: job.status["workers"].get("ready") == 2, 60)
    updates_go_on(job)
    figures.time("Chain, a worker lost: pause of the other", job.longest_pause(start, time.monotonic()), at_most=1)
    assert job.pod_of("worker-1").metadata.uid == other.metadata.uid, "a worker that had not failed was replaced"
    assert job.view()["epoch"] == epoch, "a lost worker changes no chain"
    stop(job)
    figures.number("Chain, a worker lost: acknowledged gradients lost", job.lost(), "==", 0)


@pytest.mark.parametrize(
    "roles",
    [pytest.param(("worker",), marks=every), ("worker", "server", "evaluator")],
    ids=["workers", "everything"],
)
def test_all_pods_are_lost_at_once(cluster: Cluster, start_job: StartJob, roles: tuple[str, ...]) -> None:
    job, _ = start_training(start_job, "Chain", training=EVALUATED, recovery={"checkpoint": {"everyUpdates": 50}})
    job.wait_condition("CheckpointAvailable")
    view, lost = job.view(), [pod for role in roles for pod in job.living(role)]
    for pod in lost:
        faults.delete_by_force(cluster, pod)
    for pod in lost:
        wait_until(f"another {pod.spec.hostname}", lambda p=pod: is_ready(job.replacement_of(p)), 120)
    updates_go_on(job)
    wait_until("both workers", lambda: job.status["workers"].get("ready") == 2, 60)
    assert job.condition("Failed") != "True"
    if "server" in roles:
        assert job.view()["history"] == view["history"] + 1, "a rollback is a new history"
        restored = {line.get("restore") for line in job.status["failovers"]} - {None}
        assert restored, "it went on from a checkpoint, not from new weights"
        assert all(name.startswith("ckpt-") for name in restored)
    else:
        assert job.view()["epoch"] == view["epoch"], "lost workers change no chain"


@every
def test_jobs_in_two_namespaces_do_not_see_each_other(cluster: Cluster, start_job: StartJob, namespace: str) -> None:
    """Two jobs of one name: what happens to one, and its end, leave the other as it is."""
    assert namespace != NAMESPACES[1]
    job, _ = start_training(start_job, "Chain")
    other, _ = start_training(partial(start_job, within=NAMESPACES[1], named=job.name), "Chain")

    def untouched() -> tuple[Json, set[str]]:
        return other.view(), {pod.metadata.uid for pod in other.pods()}

    before, epoch = untouched(), job.view()["epoch"]
    faults.delete_by_force(cluster, job.head())
    job.wait_whole(beyond_epoch=epoch)
    updates_go_on(job)
    updates_go_on(other)
    assert untouched() == before
    job.delete()
    updates_go_on(other)
    assert untouched() == before

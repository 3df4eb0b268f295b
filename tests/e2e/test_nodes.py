"""Nodes lose their power, their network or their disk, and the control plane goes away: nothing acknowledged is lost.

In make test one case of each; all of them in make e2e-full.
"""

from __future__ import annotations

import glob
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import e2e_faults as faults
import e2e_power as power
import pytest
from e2e_cluster import Cluster, Json, script, wait_until
from e2e_figures import FULL, Figures
from e2e_jobs import EVALUATED, Job
from e2e_selection import every
from e2e_steps import ACKNOWLEDGED, StartJob, first_update_after, start_training, stop, updates_go_on

full = pytest.mark.skipif(not FULL, reason="for make e2e-full: too long for every run")
AWAY_S = 300 if FULL else 45  # of the API server
WITHOUT_OPERATOR_S, WITH_OPERATOR_S, COUNTED_S, REPLACED_S, ACTS_S = 3.5, 12.0, 20.0, 5.0, 5.0


@pytest.fixture(autouse=True)
def nodes(cluster: Cluster, start_job: StartJob) -> Iterator[list[str]]:
    """Made well again before the job is looked at or deleted."""
    found = power.names(cluster)
    if cluster.provider != "modules" or len(found) < 3:
        pytest.skip(f"these tests cut the power of one of three nodes; {cluster.provider} with {len(found)} cannot")
    with power.made_well(cluster):
        yield found


def apart(role: str, replicas: int) -> Json:
    """Processes of a job on as many nodes: who loses all workers with one node computes nothing until it has others."""
    constraint = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "DoNotSchedule",
        "nodeTaintsPolicy": "Honor",
        "labelSelector": {"matchLabels": {"outlast.dev/role": role}},
        "matchLabelKeys": ["outlast.dev/job-name"],
    }
    return {"replicas": replicas, "template": {"spec": {"topologySpreadConstraints": [constraint]}}}


def staying(role: Json) -> Json:
    """Its pods are not evicted from a node that is cut off: who alone saw what was acknowledged there lives on."""
    keys = ("node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready")
    tolerations = [{"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300} for key in keys]
    spec = {**role["template"]["spec"], "tolerations": tolerations}
    return {**role, "template": {"spec": spec}}


def servers_on(job: Job, node: str) -> list[Any]:
    return [p for p in job.living("server") if p.spec.node_name == node]


def workers_on(job: Job, node: str) -> list[Any]:
    return [p for p in job.living("worker") if p.spec.node_name == node]


def uids(job: Job) -> set[str]:
    return {pod.metadata.uid for pod in job.pods()}


def node_of(job: Job, process: str) -> str:
    return str(job.pod_of(process).spec.node_name)


def every_worker_goes_on(job: Job) -> None:
    now, slots = time.monotonic(), set(range(job.document["spec"]["workers"]["replicas"]))

    def going_on() -> bool:
        return slots <= {r.slot for r in job.facts(*ACKNOWLEDGED) if r.t > now}

    wait_until("a later update of each worker", going_on, 120)


def end(job: Job, figures: Figures, what: str) -> None:
    updates_go_on(job)
    stop(job)
    figures.number(f"{what}: acknowledged gradients lost", job.lost(), "==", 0)


VICTIMS = ["head", "tail", "worker", "leading operator", "head and leading operator"]


@pytest.mark.parametrize("victim", [VICTIMS[0], *(pytest.param(v, marks=full) for v in VICTIMS[1:])])
def test_a_node_loses_its_power(cluster: Cluster, start_job: StartJob, figures: Figures, victim: str) -> None:
    job, _ = start_training(
        start_job, "Chain", training=EVALUATED, servers=apart("server", 3), workers=apart("worker", 2)
    )
    members = [m["name"] for m in job.view()["members"]]
    target = {"head": members[0], "tail": members[-1], "worker": "worker-1"}.get(victim.split(" and ")[0], members[1])
    node = node_of(job, target)
    with_operator = "operator" in victim
    power.lead_from(cluster, lambda name: (name == node) == with_operator)
    power.find_names_on(cluster, node)
    epoch, lost_workers = job.view()["epoch"], workers_on(job, node)
    lost_server = servers_on(job, node)[0].spec.hostname
    moment = power.fault("power-off", node)
    what = f"Chain, the power of a node with {victim} cut"
    first = first_update_after(job, lost_server, epoch, moment)
    figures.time(f"{what}: to the first update", first, WITH_OPERATOR_S if with_operator else WITHOUT_OPERATOR_S)
    if lost_workers:
        wait_until("the lost worker not to be counted", lambda: job.status["workers"]["ready"] < 2, 60)
        figures.time(f"{what}: WORKERS right", time.monotonic() - moment[1], COUNTED_S)
    job.wait_whole(beyond_epoch=epoch, timeout_s=120)
    for worker in lost_workers:
        another = wait_until("another process of its slot", lambda w=worker: job.replacement_of(w), 120)
        state, since = power.condition(cluster, node, "Ready")
        assert state != "True"
        late = max(0.0, power.created(another) - since - power.toleration_s(worker))
        figures.time(f"{what}: worker replaced, beyond tolerationSeconds after NotReady", late, REPLACED_S)
    wait_until("both workers", lambda: job.status["workers"].get("ready") == 2, 90)
    power.fault("power-on", node)
    wait_until("its node to be ready", lambda: power.are_ready(cluster), power.READY_S)
    end(job, figures, what)


CUTS = [("Chain", 31), ("Chain", 29), ("Chain", 90), ("Hybrid", 29), ("Hybrid", 31), ("Hybrid", 90)]


@pytest.mark.parametrize(
    ("strategy", "seconds"), [CUTS[0], *(pytest.param(*c, marks=full) for c in CUTS[1:])], ids=lambda v: str(v)
)
def test_a_cut_off_head_acknowledges_nothing_that_is_lost(
    cluster: Cluster, start_job: StartJob, figures: Figures, strategy: str, seconds: int
) -> None:
    """A worker on the head's node reaches that head all along, and nobody else."""
    job, _ = start_training(start_job, strategy, training=EVALUATED, workers=apart("worker", 3))
    epoch, head = job.view()["epoch"], job.head()
    node = head.spec.node_name
    power.lead_from(cluster, lambda name: name != node)
    power.find_names_on(cluster, node)
    assert workers_on(job, node), "three workers lie on three nodes"
    moment = power.fault("cut", node)
    what = f"{strategy}, the head's node cut off for {seconds} s"
    first = first_update_after(job, head.spec.hostname, epoch, moment)
    figures.time(f"{what}: to the first update", first, WITHOUT_OPERATOR_S)
    time.sleep(max(0.0, moment[1] + seconds - time.monotonic()))  # the fault: it lasts as long as that
    power.fault("heal", node)
    job.wait_whole(beyond_epoch=epoch, timeout_s=120)
    wait_until("all workers", lambda: job.status["workers"].get("ready") == 3, 120)
    end(job, figures, what)


@pytest.mark.parametrize("seconds", [31, pytest.param(29, marks=full), pytest.param(90, marks=full)])
def test_what_a_cut_off_single_server_acknowledged_is_counted_as_lost(
    cluster: Cluster, start_job: StartJob, figures: Figures, seconds: int
) -> None:
    job, _ = start_training(
        start_job, "Checkpoint", training=EVALUATED, workers=staying(apart("worker", 3)),
        recovery={"checkpoint": {"everyUpdates": 200}},
    )  # fmt: skip
    job.wait_condition("CheckpointAvailable")
    view, server = job.view(), job.head()
    old = faults.processes_of(cluster, server)
    node = server.spec.node_name
    power.lead_from(cluster, lambda name: name != node)
    (beside,) = workers_on(job, node)  # three workers lie on three nodes
    moment = power.fault("cut", node)
    time.sleep(max(0.0, moment[1] + seconds - time.monotonic()))  # the fault: it lasts as long as that
    if seconds > 30:  # assumeDeadSeconds
        wait_until("the old server to be given up", lambda: server.metadata.uid not in uids(job), 30)
    power.fault("heal", node)
    # It was told to end while it was cut off. Until its kubelet ends it, the worker beside it stays with it.
    wait_until("the end of the old server", lambda: faults.have_ended(cluster, old), 60)
    ended = time.monotonic()
    job.wait_whole(beyond_epoch=view["epoch"], timeout_s=120)
    if seconds > 30:  # else it may have been heard in time, and hand over what it holds
        assert job.view()["history"] == view["history"] + 1
    every_worker_goes_on(job)  # what the worker beside the server had pulled is known once its next gradient is applied
    given_up = job.replacement_of(beside) is not None
    stop(job)
    counted = sum((line.get("gradients") or {}).get("lost", 0) for line in job.status.get("failovers") or [])
    what = f"Checkpoint, the server's node cut off for {seconds} s"
    # Where that worker is given up too, before its node is known to be back, nobody who lives knows what it alone saw.
    slot, unknown = int(beside.spec.hostname.rsplit("-", 1)[1]), 0
    if given_up:
        seen = [r for r in job.facts(*ACKNOWLEDGED) if r.slot == slot and moment[1] < r.t < ended]
        unknown = sum(r.last - r.first + 1 for r in seen)
    uncounted = max(0, job.lost() - counted - unknown)
    figures.number(f"{what}: acknowledged gradients lost and not counted", uncounted, "==", 0)


@every
def test_the_api_server_is_away(cluster: Cluster, start_job: StartJob, figures: Figures) -> None:
    job, _ = start_training(start_job, "Chain", training=EVALUATED)
    epoch, tail, before = job.view()["epoch"], job.pod_of(job.view()["members"][-1]["name"]), power.restarts(cluster)
    pids = faults.processes_of(cluster, tail)
    script("cluster.sh", "stop", "kube-apiserver", "KILL")
    updates_go_on(job)  # training needs no API server
    time.sleep(AWAY_S)  # the fault
    faults.signal_processes(cluster, pids, "KILL")
    script("cluster.sh", "start", "kube-apiserver")
    back = time.monotonic()
    wait_until("the operator to act", lambda: job.view()["epoch"] > epoch, 60)
    figures.time(f"API server away for {AWAY_S} s: back to the operator's act", time.monotonic() - back, ACTS_S)
    job.wait_whole(beyond_epoch=epoch, timeout_s=120)
    assert power.restarts(cluster) == before, "a restart of the operator brings no API server back"
    end(job, figures, f"API server away for {AWAY_S} s")


@every
def test_etcd_restarts(cluster: Cluster, start_job: StartJob, figures: Figures) -> None:
    job, _ = start_training(start_job, "Chain")
    before = power.restarts(cluster)
    cluster.restart("etcd")
    updates_go_on(job)
    epoch = job.view()["epoch"]
    faults.kill_process(cluster, job.head())
    job.wait_whole(beyond_epoch=epoch)
    assert power.restarts(cluster) == before
    end(job, figures, "etcd restarted, then the head killed")


@every
def test_a_full_disk_costs_the_pods_of_its_node_alone(cluster: Cluster, start_job: StartJob, figures: Figures) -> None:
    job, _ = start_training(start_job, "Chain", recovery={"checkpoint": {"everyUpdates": 200}})
    epoch, node = job.view()["epoch"], job.head().spec.node_name
    power.fault("fill", node)
    wait_until("the disk's pressure", lambda: power.condition(cluster, node, "DiskPressure")[0] == "True", 60)
    job.wait_whole(beyond_epoch=epoch, timeout_s=180)
    assert not servers_on(job, node)
    updates_go_on(job)
    power.fault("free", node)
    end(job, figures, "Chain, a full disk under the head's node")


def newest_set(job: Job, shards: int) -> str:
    """The newest checkpoint of which nodes that have power hold a part of each shard; empty if there is none."""
    uid, found = job.read()["metadata"]["uid"], defaultdict[str, set[str]](set)
    for kubelet in job.cluster.nodes.kubelets().values():
        for part in glob.glob(f"{kubelet}/local-path/*/{uid}/ckpt-*/part-*.safetensors"):
            found[Path(part).parent.name].add(Path(part).name.split("-")[1])
    return max((name for name, parts in found.items() if len(parts) == shards), default="")


@pytest.mark.parametrize("shards", [1, pytest.param(2, marks=full)])
def test_the_tails_node_is_lost_with_its_claim_and_then_all_servers(
    cluster: Cluster, start_job: StartJob, figures: Figures, shards: int
) -> None:
    """Every member had written its part: the newest set lies on other claims, too."""
    job, _ = start_training(
        start_job, "Chain", training=EVALUATED, servers={"shards": shards},
        recovery={"checkpoint": {"everyUpdates": 100}},
    )  # fmt: skip
    wait_until("a second checkpoint", lambda: newest_set(job, shards) > "ckpt-h0000-v00000100", 90)
    history, node = job.view()["history"], node_of(job, job.view()["members"][-1]["name"])
    power.lead_from(cluster, lambda name: name != node)
    power.fault("power-off", node)
    newest = newest_set(job, shards)
    for pod in [p for p in job.living("server") if p.spec.node_name != node]:
        faults.delete_by_force(cluster, pod)
    wait_until("a rollback", lambda: job.view().get("history", 0) == history + 1, 120)
    restored = {line["restore"] for line in job.status["failovers"] if line.get("restore")}
    assert restored, [(f["target"], f["cause"], f.get("message")) for f in job.status["failovers"]]
    assert min(restored) >= newest, "an older set than was there"
    updates_go_on(job, timeout_s=120)
    power.fault("power-on", node)
    for shard in range(shards):
        job.wait_whole(shard=shard, timeout_s=180)
    stop(job)
    counted = sum((line.get("gradients") or {}).get("lost", 0) for line in job.status["failovers"])
    what = f"Chain, {shards} shards, the tail's node and then all servers lost"
    figures.number(f"{what}: gradients lost and not counted", max(0, job.lost() - counted), "==", 0)

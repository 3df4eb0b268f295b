"""One job's loop over an API server in memory: its spec, its children, its end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from loop_world import Json, World

from outlast_operator.kubernetes.cluster.clock import Pulse
from outlast_operator.kubernetes.job import loop as loop_module
from outlast_operator.kubernetes.job.loop import HURRY_S, RUNNING_RETRY_S, JobLoop, managed_by_us
from outlast_operator.kubernetes.job.runtime import Deposed, JobGone


def test_a_loop_that_was_stopped_acts_no_more_even_in_the_middle_of_a_turn() -> None:
    """Its operator may have lost the Lease and lead again, with another loop for the job."""
    world = World()
    create = world.api.create

    def stopped_meanwhile(group: str, namespace: str, plural: str, *more: Any, **options: Any) -> Json:
        if plural == "pods":
            world.loop.stop()
        return create(group, namespace, plural, *more, **options)

    world.api.create = stopped_meanwhile  # type: ignore[method-assign]
    with pytest.raises(Deposed):
        world.settle()
    assert len(world.api.names("pods")) == 1


def test_a_job_gets_its_children_and_its_pods() -> None:
    world = World()
    world.settle()
    assert world.api.names("secrets") == ["mnist-token"]
    assert world.api.names("services") == ["mnist-servers"]
    assert world.api.names("persistentvolumeclaims") == [f"mnist-checkpoints-server-{n}" for n in range(3)]
    started = [name.rsplit("-", 1)[0] for name in world.api.names("pods")]
    servers_and_workers = ["mnist-server-0", "mnist-server-1", "mnist-server-2", "mnist-worker-0", "mnist-worker-1"]
    assert started == ["mnist-evaluator", *servers_and_workers]
    assert world.status["state"] == "Pending"
    assert world.status["workers"]["selector"] == "outlast.dev/job-name=mnist,outlast.dev/role=worker"


def test_a_job_at_rest_is_not_written() -> None:
    world = World()
    world.settle()
    version = world.job["metadata"]["resourceVersion"]
    for _ in range(5):
        world.now += 1.0
        world.settle()
    assert world.job["metadata"]["resourceVersion"] == version


def test_an_invalid_job_says_why_and_starts_when_it_is_mended() -> None:
    world = World(servers={"replicas": 1})
    world.settle()
    assert world.status["state"] == "Failed"
    assert "spec.servers.replicas: 1 is too few for recovery.strategy Chain" in world.condition("Failed")["message"]
    assert world.events() == ["InvalidSpec"]
    assert world.api.names("pods") == []
    version = world.job["metadata"]["resourceVersion"]
    world.settle()
    assert world.job["metadata"]["resourceVersion"] == version
    world.edit(servers={"replicas": 2})
    world.settle()
    assert world.status["state"] == "Pending"
    assert world.condition("Failed")["status"] == "False"


def test_a_change_that_is_refused_is_said_and_the_job_goes_on() -> None:
    world = World()
    world.settle()
    world.edit(training={**world.spec["training"], "optimizer": {"lr": 0.5}})
    world.settle()
    accepted = world.condition("SpecAccepted")
    assert accepted["status"] == "False"
    assert "spec.training.optimizer: cannot be changed in a job that exists" in accepted["message"]
    assert "ChangeRefused" in world.events()
    assert world.status["state"] == "Pending"
    world.edit(training=world.spec["training"])
    world.settle()
    assert world.condition("SpecAccepted")["status"] == "True"


def test_all_pods_of_a_queued_job_tell_one_count_of_their_group() -> None:
    world = World()
    job = world.api.get("", "n", "trainingjobs", "mnist")
    job["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "gpus"}
    world.cache.put_job(world.api.replace("", "n", "trainingjobs", "mnist", job))
    world.loop = JobLoop(world.tools, world.job)
    world.settle()
    world.edit(workers={"replicas": 5})  # kubectl scale
    world.settle()
    status = {"containerStatuses": [{"name": "outlast", "state": {"terminated": {"exitCode": 1}}}]}
    world.cache.put_pod(world.api.report("n", world.api.names("pods")[-1], status))
    for _ in range(3):
        world.now += 5.0
        world.settle()
    pods = [world.api.get("", "n", "pods", name)["metadata"] for name in world.api.names("pods")]
    assert len(pods) == 7, "three servers, two workers, the evaluator, and what replaces the lost pod"
    assert {pod["annotations"]["kueue.x-k8s.io/pod-group-total-count"] for pod in pods} == {"6"}
    assert "suspend: true first" in world.condition("SpecAccepted")["message"]
    assert "ChangeRefused" in world.events()


def test_a_typing_error_does_not_bring_the_first_spec_back() -> None:
    world = World()
    world.settle()
    world.edit(training={**world.spec["training"], "stopAfter": {"updates": 5}}, workers={"replicas": 5})
    world.settle()
    world.edit(workers={"replicas": 0})
    world.loop = JobLoop(world.tools, world.job)  # nothing is known but what is recorded
    world.settle()
    runtime = world.loop._runtime
    assert runtime is not None
    assert runtime.acceptance.spec is not None
    assert runtime.acceptance.spec.training.stop_after.updates == 5
    assert runtime.acceptance.spec.workers.replicas == 5
    assert world.condition("SpecAccepted")["status"] == "False"


def test_a_refusal_is_told_once() -> None:
    world = World()
    world.settle()
    world.edit(training={**world.spec["training"], "seed": 7})
    world.settle()
    version = world.job["metadata"]["resourceVersion"]
    world.loop = JobLoop(world.tools, world.job)
    world.settle()
    assert world.job["metadata"]["resourceVersion"] == version
    assert world.events().count("ChangeRefused") == 1


def test_somebody_elses_secret_is_not_used() -> None:
    world = World()
    world.api.create("", "n", "secrets", {"kind": "Secret", "metadata": {"name": "mnist-token"}, "data": {}})
    world.settle()
    assert world.events() == ["NameTaken"]
    assert "has another owner" in world.condition("PodsReady")["message"]
    assert world.api.names("pods") == []


def test_a_deleted_job_ends_its_loop() -> None:
    world = World()
    world.settle()
    world.cache.remove_job(world.job)
    with pytest.raises(JobGone):
        world.loop._turn()


@pytest.mark.parametrize(
    ("how", "hurried"), [("gone", True), ("stopped", False), ("orphaned", False), ("orphans to be", False)]
)
def test_the_pods_of_a_deleted_job_are_hurried(how: str, hurried: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.settle()
    pods = world.api.names("pods")
    dismissed: list[str] = []
    monkeypatch.setattr(world.loop._runtime, "dismiss", dismissed.extend)
    uids = [world.api.objects["n", "pods", name]["metadata"]["uid"] for name in pods]
    if how == "orphans to be":
        job = world.api.get("", "n", "trainingjobs", "mnist")
        job["metadata"] |= {"finalizers": ["orphan"], "deletionTimestamp": "2026-01-01T00:00:00Z"}
        world.cache.put_job(world.api.replace("", "n", "trainingjobs", "mnist", job))
    elif how != "stopped":
        world.cache.remove_job(world.job)
    if how == "orphaned":
        for name in pods:
            world.api.patch("", "n", "pods", name, {"metadata": {"ownerReferences": []}})
    world.loop.stop(gone=how != "stopped")
    world.loop._run()
    assert sorted(world.api.deletions) == ([(name, HURRY_S) for name in pods] if hurried else [])
    assert sorted(dismissed) == (sorted(uids) if hurried else []), "servers are told not to wait"


def test_after_an_error_whatever_happens_wakes_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.settle()
    waits: list[float] = []
    monkeypatch.setattr(world.loop._waker, "wait", lambda until: waits.append(until - world.now))
    monkeypatch.setattr(loop_module, "FIRST_RETRY_S", 0.01)
    for _ in range(12):
        world.loop._failed("n/mnist", "no answer", trace=False)
    assert waits == sorted(waits), "ever more slowly"
    assert waits[-1] == pytest.approx(RUNNING_RETRY_S, abs=0.02)


def test_silence_while_this_process_was_held_up_proves_nothing() -> None:
    world = World()
    pulse = Pulse(lambda: world.now)
    world.tools = replace(world.tools, t_resumed=pulse.t_resumed)
    world.loop = JobLoop(world.tools, world.job)
    world.settle()
    runtime = world.loop._runtime
    assert runtime is not None
    for held_up_s, excused in ((0.4, False), (20.0, True), (0.4, False)):
        before, world.now = runtime.observe().t_operator_start, world.now + held_up_s
        assert (runtime.observe().t_operator_start == world.now) is excused
        assert excused or runtime.observe().t_operator_start == before


def test_a_job_whose_deletion_nobody_told_is_known_to_be_gone() -> None:
    world = World()
    world.settle()
    del world.api.objects["n", "trainingjobs", "mnist"]
    world.cache.remove_pod(next(iter(world.cache.pods(world.loop.ref.id)[0].values())))  # something to record
    world.now += 60.0
    with pytest.raises(JobGone):
        world.settle()
    assert world.cache.jobs() == []


def test_a_secret_that_was_deleted_comes_back_as_it_was() -> None:
    world = World()
    world.settle()
    before = world.api.objects.pop(("n", "secrets", "mnist-token"))["data"]
    name = world.api.names("pods")[1]
    waiting = {"reason": "CreateContainerConfigError", "message": 'secret "mnist-token" not found'}
    status = {"containerStatuses": [{"name": "outlast", "state": {"waiting": waiting}}]}
    world.cache.put_pod(world.api.report("n", name, status))
    for _ in range(8):
        world.now += 2.0
        world.settle()
    assert world.api.objects["n", "secrets", "mnist-token"]["data"] == before


def test_a_pod_that_never_started_follows_its_template() -> None:
    world = World()
    world.settle()
    (old,) = (name for name in world.api.names("pods") if "worker-0" in name)
    waiting = {"reason": "ErrImagePull", "message": "not found"}
    status = {"containerStatuses": [{"name": "outlast", "state": {"waiting": waiting}}]}
    world.cache.put_pod(world.api.report("n", old, status))
    world.edit(workers={"template": {"spec": {"containers": [{"image": "fixed:2"}]}}})
    world.settle()
    assert [name for name, _ in world.api.deletions] == [old]
    world.cache.remove_pod(world.api.objects.pop(("n", "pods", old)))
    world.settle()
    (new,) = (name for name in world.api.names("pods") if "worker-0" in name)
    assert world.api.get("", "n", "pods", new)["spec"]["containers"][0]["image"] == "fixed:2"
    assert world.status["failoverCount"] == 0


@pytest.mark.parametrize(
    ("spec", "ours"),
    [({}, True), ({"managedBy": "outlast.dev/operator"}, True), ({"managedBy": "kueue.x-k8s.io/multikueue"}, False)],
)
def test_who_manages_a_job(spec: Json, ours: bool) -> None:
    assert managed_by_us({"spec": spec}) is ours


def test_pods_that_are_kept_hold_up_neither_the_ttl_nor_our_rest() -> None:
    policy = {"activeDeadlineSeconds": 60, "cleanPodPolicy": "None", "ttlSecondsAfterFinished": 300}
    world = World(runPolicy=policy, recovery={"strategy": "Hybrid"})
    world.settle()
    pods = world.api.names("pods")
    world.now += 61.0
    world.settle()
    assert world.status["state"] == "Failed"
    deleted = [name for name, _ in world.api.deletions if name in pods]
    assert deleted == [], "the very turn that records the end keeps to the policy"
    version, t_end = world.job["metadata"]["resourceVersion"], world.now
    assert world.loop._turn() == t_end + 300.0, "nothing is to be done before"
    assert (world.api.names("pods"), world.job["metadata"]["resourceVersion"]) == (pods, version)
    world.now = t_end + 301.0
    world.settle()
    assert world.api.names("trainingjobs") == []


def test_a_job_that_has_ended_is_removed_though_a_pod_does_not_end() -> None:
    world = World(runPolicy={"activeDeadlineSeconds": 60, "ttlSecondsAfterFinished": 2})
    world.settle()
    world.now += 61.0
    world.settle()
    assert world.api.names("pods"), "they are asked to end, and nobody says that they have"
    world.now += 3.0
    world.settle()
    assert world.api.names("trainingjobs") == []


def test_a_turn_looks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.settle()
    looks, pods = [], world.cache.pods
    monkeypatch.setattr(world.cache, "pods", lambda uid: looks.append(uid) or pods(uid))
    assert world.loop._turn() is not None
    assert len(looks) == 2, "the observer, and who labels"

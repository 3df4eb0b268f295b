"""One job's loop over an API server in memory: its spec, its children, its record, its end."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from fake_api import AtOnce, FakeApi

from outlast_operator.kubernetes import loop as loop_module
from outlast_operator.kubernetes.api import ApiError
from outlast_operator.kubernetes.cache import Cache
from outlast_operator.kubernetes.clock import Pulse
from outlast_operator.kubernetes.loop import (
    FIRST_RETRY_S,
    HURRY_S,
    RUNNING_RETRY_S,
    UNREADABLE_S,
    JobLoop,
    managed_by_us,
)
from outlast_operator.kubernetes.pools import Pools
from outlast_operator.kubernetes.record import UnreadableRecord, read_record
from outlast_operator.kubernetes.runtime import Deposed, JobGone, Tools
from outlast_operator.manifests.pods import Images
from outlast_operator.state import StartProcess

Json = dict[str, Any]


class World:
    """One TrainingJob and one operator."""

    def __init__(self, **parts: Any) -> None:
        self.api = FakeApi()
        self.now = 1_700_000_000.0
        self.cache = Cache(lambda namespace, name: None)
        self.spec: Json = {
            "training": {"task": "a.b", "optimizer": {"lr": 0.1}, "stopAfter": {"updates": 10}},
            "recovery": {"strategy": "Chain"},
            **parts,
        }
        made = self.api.create("", "n", "trainingjobs", self._job())
        self.cache.put_job(made)
        self.leads = True
        self.tools = Tools(
            self.api, self.cache, Images("t", "r"), Pools(AtOnce(), AtOnce(), AtOnce()),  # type: ignore[arg-type]
            lambda: self.now, lambda: self.leads,
        )  # fmt: skip
        self.loop = JobLoop(self.tools, made)

    def _job(self) -> Json:
        meta = {"name": "mnist", "generation": 1}
        return {"apiVersion": "outlast.dev/v1alpha1", "kind": "TrainingJob", "metadata": meta, "spec": self.spec}

    @property
    def job(self) -> Json:
        return self.api.objects["n", "trainingjobs", "mnist"]

    @property
    def status(self) -> Json:
        return self.job.get("status") or {}

    def edit(self, **parts: Any) -> None:
        """A user changes the spec."""
        job = self.api.get("", "n", "trainingjobs", "mnist")
        job["spec"] = {**job["spec"], **parts}
        job["metadata"]["generation"] += 1
        self.cache.put_job(self.api.replace("", "n", "trainingjobs", "mnist", job))

    def settle(self) -> None:
        """Turns until the loop would sleep."""
        for _ in range(20):
            if self.loop._turn() is not None:
                return
        pytest.fail("the loop does not come to rest")

    def condition(self, type_: str) -> Json:
        return next(c for c in self.status["conditions"] if c["type"] == type_)

    def events(self) -> list[str]:
        return [o["reason"] for (_, plural, _), o in self.api.objects.items() if plural == "events"]


def test_a_job_gets_its_children_and_its_pods() -> None:
    world = World()
    world.settle()
    assert world.api.names("secrets") == ["mnist-token"]
    assert world.api.names("services") == ["mnist-servers"]
    assert world.api.names("persistentvolumeclaims") == ["mnist-checkpoints"]
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


def test_another_operator_goes_on_from_the_record() -> None:
    world = World()
    world.settle()
    pods = world.api.names("pods")
    world.loop = JobLoop(world.tools, world.job)
    world.settle()
    assert world.api.names("pods") == pods


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
    lost = world.api.get("", "n", "pods", world.api.names("pods")[-1])
    lost["status"] = {"containerStatuses": [{"name": "outlast", "state": {"terminated": {"exitCode": 1}}}]}
    world.cache.put_pod(world.api.replace("", "n", "pods", lost["metadata"]["name"], lost))
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


def test_a_status_that_somebody_else_wrote_is_not_overwritten() -> None:
    world = World()
    job = world.api.get("", "n", "trainingjobs", "mnist")
    world.api.replace("", "n", "trainingjobs", "mnist", {**job, "status": {"state": "Mine"}}, "status")
    assert world.loop._turn() is None, "after a conflict it looks again"
    assert world.status == {"state": "Mine"}
    assert world.api.names("pods") == [], "nothing is done before it is recorded"
    world.settle()
    assert world.status["state"] == "Pending"


def test_somebody_elses_secret_is_not_used() -> None:
    world = World()
    world.api.create("", "n", "secrets", {"kind": "Secret", "metadata": {"name": "mnist-token"}, "data": {}})
    with pytest.raises(ApiError, match="belongs to somebody else"):
        world.settle()
    assert world.events() == ["NameTaken"]


def test_a_deleted_job_ends_its_loop() -> None:
    world = World()
    world.settle()
    world.cache.remove_job(world.job)
    with pytest.raises(JobGone):
        world.loop._turn()


def test_who_may_be_deposed_writes_and_does_nothing() -> None:
    world = World()
    world.settle()
    before = dict(world.api.objects)
    world.api.objects.pop(("n", "pods", world.api.names("pods")[0]))  # something to answer
    runtime = world.loop._runtime
    assert runtime is not None
    observed = runtime.observe()
    world.leads = False
    with pytest.raises(Deposed):
        runtime.write_status(observed.status, observed.status.resource_version)
    with pytest.raises(Deposed):
        runtime.execute(StartProcess("server-9", "server"))
    with pytest.raises(Deposed):
        world.loop._turn()
    assert world.api.objects.items() <= before.items()


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
    runtime = world.loop._runtime
    assert runtime is not None
    waits: list[float] = []
    monkeypatch.setattr(runtime, "wait", lambda until: waits.append(until - world.now))
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
        before, world.now = runtime.t_operator_start, world.now + held_up_s
        assert (runtime.observe().t_operator_start == world.now) is excused
        assert excused or runtime.t_operator_start == before


def test_a_job_whose_deletion_nobody_told_is_known_to_be_gone() -> None:
    world = World()
    world.settle()
    del world.api.objects["n", "trainingjobs", "mnist"]
    world.cache.remove_pod(next(iter(world.cache.pods(world.loop.ref.uid)[0].values())))  # something to record
    world.now += 60.0
    with pytest.raises(JobGone):
        world.settle()
    assert world.cache.jobs() == []


def test_a_template_that_the_api_server_refuses_ends_in_failed() -> None:
    world = World()
    refusal = ApiError(422, "Invalid", "spec.containers[0].image: Required value")
    world.api.refuse = lambda plural, body: refusal if plural == "pods" else None
    for _ in range(200):
        world.settle()
        if world.status["state"] == "Failed":
            break
        world.now += 5.0
    failed = world.condition("Failed")
    assert failed["reason"] == "BackoffLimitExceeded"
    assert "spec.containers[0].image: Required value" in failed["message"]


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
    assert world.api.deletions == [], "the very turn that records the end keeps to the policy"
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


def test_a_start_that_was_refused_is_known_to_the_next_operator() -> None:
    """Else the dead pod before it is counted once more, and two operators replace it by two pods."""
    world = World()
    world.settle()
    (first,) = (name for name in world.api.names("pods") if "server-0" in name)
    pod = world.api.get("", "n", "pods", first)
    pod["status"] = {"containerStatuses": [{"name": "outlast", "state": {"terminated": {"exitCode": 1}}}]}
    world.cache.put_pod(world.api.replace("", "n", "pods", first, pod))
    refusal = ApiError(403, "Forbidden", "exceeded quota: team")
    world.api.refuse = lambda plural, body: refusal if plural == "pods" else None
    world.settle()
    world.now += 0.01
    world.settle()
    attempt = record(world).attempts["server-0"]
    assert attempt.instance.startswith("refused-")
    world.loop = JobLoop(world.tools, world.job)
    world.now += 0.01
    world.settle()
    assert record(world).attempts["server-0"] == attempt
    world.api.refuse = lambda plural, body: None
    world.now += 60.0
    world.settle()
    (made,) = (name for name in world.api.names("pods") if "server-0" in name and name != first)
    pod = world.api.get("", "n", "pods", made)
    pod["status"] = {"containerStatuses": [{"name": "outlast", "state": {"terminated": {"exitCode": 1}}}]}
    world.cache.put_pod(world.api.replace("", "n", "pods", made, pod))
    world.loop = JobLoop(world.tools, world.job)
    world.settle()
    assert record(world).attempts["server-0"].instance == pod["metadata"]["uid"], "what replaced it is counted"


def record(world: World) -> Any:
    return read_record(world.job).status


def test_a_turn_looks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.settle()
    looks, pods = [], world.cache.pods
    monkeypatch.setattr(world.cache, "pods", lambda uid: looks.append(uid) or pods(uid))
    assert world.loop._turn() is not None
    assert len(looks) == 2, "the observer, and who labels"


def test_a_rival_that_writes_each_time_before_us_is_given_way(monkeypatch: pytest.MonkeyPatch) -> None:
    world, pauses = World(), list[float]()
    monkeypatch.setattr(world.loop._stopped, "wait", pauses.append)
    replace_it, rival = world.api.replace, itertools.count()

    def replace_after_the_rival(group: str, namespace: str, plural: str, name: str, body: Json, part: str = "") -> Json:
        if next(rival) < 8:
            mark = {"metadata": {"annotations": {"rival": str(next(rival))}}}
            world.api.patch(group, namespace, plural, name, mark)
        return replace_it(group, namespace, plural, name, body, part)

    monkeypatch.setattr(world.api, "replace", replace_after_the_rival)
    world.loop._turn()
    world.loop._turn()
    world.loop._turn()
    assert pauses == [], "a conflict or two are answered at once"
    world.settle()
    assert len(pauses) == 1
    assert FIRST_RETRY_S <= pauses[0] <= 2 * FIRST_RETRY_S
    assert world.status["state"] == "Pending"


@pytest.mark.parametrize("text", ["9:whatever", "1:", "1:bm9uZQ==", "{", "", "scribble"])
@pytest.mark.parametrize("fresh", [True, False], ids=["a new operator", "while it leads"])
def test_a_job_whose_record_cannot_be_read_is_left_as_it_is(
    text: str, fresh: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    world.settle()
    good, pods = world.status, world.api.names("pods")
    shown = {**good, "record": text, "views": [{"shard": 0, "epoch": 3}]}
    write_status(world, shown)
    world.cache.remove_pod(world.api.get("", "n", "pods", pods[0]))  # else it would be replaced
    if fresh:
        world.loop = JobLoop(world.tools, world.job)
    sleeps: list[float | None] = []
    monkeypatch.setattr(world.loop._stopped, "wait", lambda s: None)
    monkeypatch.setattr(world.loop, "_sleep", lambda until: (sleeps.append(until), world.loop._stopped.set()))
    for _ in range(3):
        world.loop._stopped.clear()
        world.loop._turns("n/mnist")
    assert sleeps == [world.now + UNREADABLE_S] * 3
    assert world.loop.failing == 3
    assert (world.status, world.api.names("pods"), world.api.deletions) == (shown, pods, [])
    (event,) = (
        o for (_, plural, _), o in world.api.objects.items() if plural == "events" and "Unreadable" in o["reason"]
    )
    assert event["count"] == 1, "it is not said again each time that something wakes the loop"
    assert "n/mnist: status.record" in event["message"]
    assert "reads formats 0 to 1" in event["message"]
    assert "Run the release that wrote it" in event["message"]
    write_status(world, good)
    world.settle()
    assert world.status["state"] == "Pending", "it goes on where it was"


def test_a_job_that_trains_by_a_spec_which_is_refused_now_keeps_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.settle()
    shown = world.status
    monkeypatch.setattr("outlast_operator.kubernetes.record._spec", lambda raw: None)  # a later release's rule
    world.edit(servers={"replicas": 1})
    world.loop = JobLoop(world.tools, world.job)
    with pytest.raises(UnreadableRecord, match="refuses, and so is the present one: spec"):
        world.loop._turn()
    assert world.status == shown


def write_status(world: World, status: Json) -> None:
    """Somebody else writes it: another operator, a backup."""
    job = world.api.get("", "n", "trainingjobs", "mnist")
    world.cache.put_job(world.api.replace("", "n", "trainingjobs", "mnist", {**job, "status": status}, "status"))

"""One job's loop over an API server in memory: its spec, its children, its record, its end."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from fake_api import AtOnce, FakeApi

from outlast.api.job import read_spec
from outlast.api.view import Member, View
from outlast_operator.kubernetes.cluster.api import ApiError
from outlast_operator.kubernetes.cluster.cache import Cache
from outlast_operator.kubernetes.cluster.clock import Pulse
from outlast_operator.kubernetes.cluster.pools import Pools
from outlast_operator.kubernetes.job import loop as loop_module
from outlast_operator.kubernetes.job.dependents import Dependents
from outlast_operator.kubernetes.job.loop import (
    FIRST_RETRY_S,
    HURRY_S,
    RUNNING_RETRY_S,
    UNREADABLE_S,
    JobLoop,
    managed_by_us,
)
from outlast_operator.kubernetes.job.record import UnreadableRecord, read_record
from outlast_operator.kubernetes.job.runtime import Deposed, JobGone, Tools
from outlast_operator.kubernetes.job.storage import CheckpointStorage
from outlast_operator.kubernetes.manifests.names import JobRef, server_claim
from outlast_operator.kubernetes.manifests.pods import Images
from outlast_operator.planner.actions import StartProcess
from outlast_operator.planner.checkpoints import ServerClaim
from outlast_operator.planner.status import JobStatus

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

    def refuse(self, plural: str, error: ApiError | None) -> None:
        """From now on, of this kind alone until the next call for another."""
        before = self.api.refuse
        self.api.refuse = lambda kind, body: error if kind == plural else before(kind, body)

    def serve(self) -> None:
        """As far as the record tells, servers have been in a view."""
        job = self.api.get("", "n", "trainingjobs", "mnist")
        known = read_record(job)
        view = View(0, 1, 0, (Member("server-0", "b0", "tcp:10.0.0.1:7070"),))
        status = replace(known.status, views={0: view})
        job["status"]["record"] = replace(known, status=status).to_text()
        self.cache.put_job(self.api.replace("", "n", "trainingjobs", "mnist", job, "status"))

    def condition(self, type_: str) -> Json:
        return next(c for c in self.status["conditions"] if c["type"] == type_)

    def events(self) -> list[str]:
        return [o["reason"] for (_, plural, _), o in self.api.objects.items() if plural == "events"]


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


def test_a_template_that_the_api_server_refuses_ends_in_failed() -> None:
    world = World()
    world.refuse("pods", INVALID_TEMPLATE)
    world.settle()
    failed = world.condition("Failed")
    assert (world.status["state"], failed["reason"]) == ("Failed", "TemplateInvalid")
    assert "spec.containers[0].image: Required value" in failed["message"]


QUOTA = ApiError(403, "Forbidden", 'pods "x" is forbidden: exceeded quota: team, used: pods=2, limited: pods=2')
RIGHT = ApiError(403, "Forbidden", 'User "o" cannot get resource "services" in API group ""')
WEBHOOK = ApiError(500, "InternalError", 'failed calling webhook "w.x": context deadline exceeded')
INVALID_TEMPLATE = ApiError(422, "Invalid", "spec.containers[0].image: Required value", ("spec.containers[0].image",))


@pytest.mark.parametrize("error", [QUOTA, WEBHOOK, ApiError(0, "Unreachable", "timed out")], ids=str)
def test_a_refused_start_is_said_at_once_and_cleared_when_its_cause_is_gone(error: ApiError) -> None:
    world = World(runPolicy={"activeDeadlineSeconds": 60, "backoffLimit": 0})
    world.refuse("pods", error)
    for _ in range(200):
        world.settle()
        pods_ready = world.condition("PodsReady")
        assert pods_ready["status"] == "False"
        assert pods_ready["message"].endswith(error.message.partition(": ")[2] or error.message)
        assert world.status["waiting"] == pods_ready["reason"]
        world.now += 1.0
    assert world.status["state"] == "Pending"
    assert world.status["failoverCount"] == 0
    assert len(world.events()) == 1, "one event a cause"
    world.refuse("pods", None)
    for _ in range(4):
        world.now += 1.0
        world.settle()
    assert len(world.api.names("pods")) == 6
    assert "waiting" not in world.status
    assert world.condition("PodsReady")["reason"] == "Starting"


def test_many_pods_that_are_refused_for_one_reason_cost_one_request_a_role() -> None:
    world = World(workers={"replicas": 20})
    world.refuse("pods", QUOTA)
    world.settle()
    asked: list[str] = []
    world.api.refuse = lambda plural, body: (
        asked.append(body["metadata"]["name"]) or QUOTA if plural == "pods" else None
    )
    for _ in range(10):
        world.now += 4.0
        world.settle()
    assert len(set(asked)) == 3, "a server, a worker and the evaluator"
    assert len(asked) <= 30


@pytest.mark.parametrize("plural", ["secrets", "services", "persistentvolumeclaims"])
def test_what_pods_need_and_is_refused_is_said_and_made_later(plural: str) -> None:
    world = World()
    world.refuse(plural, QUOTA)
    for _ in range(5):
        world.settle()
        assert world.status["waiting"] == "QuotaExceeded"
        assert "exceeded quota: team" in world.condition("PodsReady")["message"]
        assert world.api.names("pods") == [], "they would find nothing to start with"
        world.now += 1.0
    assert world.events() == ["QuotaExceeded"]
    world.refuse(plural, None)
    for _ in range(2):
        world.now += 4.0
        world.settle()
    assert len(world.api.names(plural)) == (3 if plural == "persistentvolumeclaims" else 1)
    assert len(world.api.names("pods")) == 6


def test_whether_there_is_a_class_is_found_out_without_holding_the_loop_up() -> None:
    world = World()
    world.api.default_class = None
    for _ in range(3):
        world.settle()
        assert world.api.names("pods") == []
        world.now += 2.0
    world.settle()
    assert world.api.names("persistentvolumeclaims") == []
    assert world.condition("CheckpointStorage")["reason"] == "NodeLocal"
    assert len(world.api.names("pods")) == 6


def test_a_claim_of_another_owner_is_said_and_the_job_starts_when_it_is_gone() -> None:
    world = World()
    name = "mnist-checkpoints-server-0"
    world.api.default_class = None
    world.api.create("", "n", "persistentvolumeclaims", {"metadata": {"name": name}, "spec": {}})
    for _ in range(10):
        world.settle()
        world.now += 4.0
    assert world.status["waiting"] == "NameTaken"
    assert world.events() == ["NameTaken"]
    assert world.api.names("persistentvolumeclaims") == [name]
    del world.api.objects["n", "persistentvolumeclaims", name]
    world.api.default_class = "standard"
    world.settle()
    assert len(world.api.names("pods")) == 6


def second_server(world: World) -> None:
    """The planner starts the server of a shard's other name."""
    runtime = world.loop._runtime
    assert runtime is not None
    runtime.execute(StartProcess("server-1", "server", index=1, storage="PerServer"))


def test_the_claim_of_a_second_name_is_made_when_its_server_starts() -> None:
    world = World(recovery={"strategy": "Checkpoint"})
    world.settle()
    assert world.api.names("persistentvolumeclaims") == ["mnist-checkpoints-server-0"]
    second_server(world)
    assert world.api.names("persistentvolumeclaims") == [f"mnist-checkpoints-server-{n}" for n in range(2)]
    assert any("server-1" in name for name in world.api.names("pods"))


def test_a_server_whose_claim_is_refused_or_anothers_is_not_started() -> None:
    """Its pod would wait for a claim without saying why, or write into somebody else's volume."""
    world = World(recovery={"strategy": "Checkpoint"})
    world.settle()
    runtime = world.loop._runtime
    assert runtime is not None
    world.refuse("persistentvolumeclaims", QUOTA)
    second_server(world)
    world.refuse("persistentvolumeclaims", None)
    assert runtime._executor.refusals.waits["server-1"].reason == "QuotaExceeded"
    taken = {"metadata": {"name": "mnist-checkpoints-server-1"}, "spec": {}}
    world.api.create("", "n", "persistentvolumeclaims", taken)
    second_server(world)
    assert runtime._executor.refusals.waits["server-1"].reason == "NameTaken"
    assert not any("server-1" in name for name in world.api.names("pods"))
    del world.api.objects["n", "persistentvolumeclaims", "mnist-checkpoints-server-1"]
    second_server(world)
    assert any("server-1" in name for name in world.api.names("pods"))
    assert runtime._executor.refusals.waits == {}


def test_a_claim_that_is_not_wanted_any_more_is_no_wait() -> None:
    world = World(recovery={"strategy": "Checkpoint"})
    world.settle()
    second_server(world)
    world.refuse("persistentvolumeclaims", QUOTA)
    world.loop = JobLoop(world.tools, world.job)
    del world.api.objects["n", "persistentvolumeclaims", "mnist-checkpoints-server-1"]
    for _ in range(2):
        world.now += 4.0
        world.settle()
    assert "mnist-checkpoints-server-1" in world.condition("PodsReady")["message"]
    (name,) = (name for name in world.api.names("pods") if "server-1" in name)
    world.cache.remove_pod(world.api.objects.pop(("n", "pods", name)))
    for _ in range(2):
        world.now += 4.0
        world.settle()
    assert "mnist-checkpoints-server-1" not in world.condition("PodsReady")["message"]


def test_starts_that_were_refused_are_forgotten_with_what_wanted_them() -> None:
    world = World(runPolicy={"startDeadlineSeconds": 30})
    world.refuse("pods", QUOTA)
    world.settle()
    assert world.loop._runtime is not None
    assert world.loop._runtime._executor.refusals.waits
    world.now += 40.0
    world.settle()
    assert world.status["state"] == "Failed"
    assert world.loop._runtime._executor.refusals.waits == {}


def test_a_claim_that_another_one_replaced_is_waited_for_no_more() -> None:
    api = FakeApi()
    api.refuse = lambda plural, body: QUOTA if plural == "persistentvolumeclaims" else None
    ref = JobRef("mnist", "n", "job-uid")
    dependents = Dependents(api, ref, lambda: 100.0)  # type: ignore[arg-type]
    spec = read_spec({"training": {"task": "a.b", "stopAfter": {"updates": 1}}})
    storage = CheckpointStorage(api, ref, lambda: 100.0)  # type: ignore[arg-type]
    for generation in (0, 1):
        status = JobStatus(claims={"server-0": ServerClaim(generation)})
        dependents.ensure(spec, storage.claims(spec, status, "PerServer", {"server-0"})[:1], False, {})
        (name,) = dependents.waits
        assert name == f"PersistentVolumeClaim {server_claim(ref, 'server-0', generation)}"


def test_a_full_quota_does_not_take_a_running_job_from_the_next_operator() -> None:
    """A quota is asked before the API server notices that an object exists: so it is looked for first."""
    world = World()
    world.settle()
    world.refuse("secrets", QUOTA)
    world.refuse("services", QUOTA)
    world.loop = JobLoop(world.tools, world.job)
    world.settle()
    assert "waiting" not in world.status
    assert world.loop._runtime is not None
    assert world.loop._runtime._observer.secrets.token is not None


def test_a_job_that_has_servers_is_planned_for_though_a_right_is_missing() -> None:
    world = World()
    world.settle()
    world.serve()
    world.api.hidden = lambda plural, name: RIGHT if plural == "services" else None
    world.loop = JobLoop(world.tools, world.job)
    lost = world.api.names("pods")[1]
    world.cache.remove_pod(world.api.objects.pop(("n", "pods", lost)))
    world.settle()
    assert "cannot get resource" in world.condition("PodsReady")["message"]
    assert len(world.api.names("pods")) == 6, "the lost server was started again"


def test_while_the_token_is_not_known_the_silence_of_servers_proves_nothing() -> None:
    world = World()
    world.settle()
    world.api.hidden = lambda plural, name: RIGHT if plural == "secrets" else None
    world.loop = JobLoop(world.tools, world.job)
    for _ in range(3):
        world.now += 100.0
        world.settle()
        assert world.loop._runtime is not None
        assert world.loop._runtime.observe().t_operator_start == world.now


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


def test_a_volume_that_cannot_be_mounted_is_said_in_the_kubelets_words() -> None:
    """They stand in Events alone, which are asked for by what the cache keeps of a pod."""
    world = World()
    world.settle()
    (name,) = (name for name in world.api.names("pods") if "worker-0" in name)
    pod = world.api.get("", "n", "pods", name)
    about = {"kind": "Pod", "namespace": "n", "name": name, "uid": pod["metadata"]["uid"]}
    words = 'MountVolume.SetUp failed for volume "data" : configmap "code" not found'
    told = {"metadata": {"name": "told"}, "involvedObject": about, "reason": "FailedMount", "message": words}
    world.api.create("", "n", "events", told)
    for _ in range(5):
        world.now += 1.0
        world.settle()
    assert world.status["waiting"] == "FailedMount"
    assert world.condition("PodsReady")["message"] == f"worker-0: {words}"


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


def test_a_start_that_was_refused_keeps_its_name_and_its_words_for_the_next_operator() -> None:
    """Else two operators replace a dead pod by two."""
    world = World()
    world.settle()
    (first,) = (name for name in world.api.names("pods") if "server-0" in name)
    status = {"containerStatuses": [{"name": "outlast", "state": {"terminated": {"exitCode": 1}}}]}
    world.cache.put_pod(world.api.report("n", first, status))
    asked: list[str] = []
    world.api.refuse = lambda plural, body: (
        asked.append(body["metadata"]["name"]) or QUOTA if plural == "pods" else None
    )
    world.settle()
    attempt, version = record(world).attempts["server-0"], world.job["metadata"]["resourceVersion"]
    for _ in range(3):
        world.loop = JobLoop(world.tools, world.job)
        world.now += 0.01
        world.settle()
        assert record(world).attempts["server-0"] == attempt, "it is counted once"
        assert world.job["metadata"]["resourceVersion"] == version, "and the words stay as they are"
    assert len(asked) == 4
    assert len(set(asked)) == 1
    world.api.refuse = lambda plural, body: None
    world.now += 60.0
    world.settle()
    assert asked[0] in world.api.names("pods")


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
    world.loop._stopped.clear()
    world.settle()
    assert world.status["state"] == "Pending", "it goes on where it was"


def test_a_job_that_trains_by_a_spec_which_is_refused_now_keeps_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.settle()
    shown = world.status
    monkeypatch.setattr("outlast_operator.kubernetes.job.record._spec", lambda raw: None)  # a later release's rule
    world.edit(servers={"replicas": 1})
    world.loop = JobLoop(world.tools, world.job)
    with pytest.raises(UnreadableRecord, match="refuses, and so is the present one: spec"):
        world.loop._turn()
    assert world.status == shown


def write_status(world: World, status: Json) -> None:
    """Somebody else writes it: another operator, a backup."""
    job = world.api.get("", "n", "trainingjobs", "mnist")
    world.cache.put_job(world.api.replace("", "n", "trainingjobs", "mnist", {**job, "status": status}, "status"))

"""What the API server or a kubelet refuses a job: said at once, tried again, and forgotten with its cause."""

from __future__ import annotations

import pytest
from fake_api import FakeApi
from loop_world import QUOTA, World

from outlast.api.job import read_spec
from outlast_operator.kubernetes.cluster.api import ApiError
from outlast_operator.kubernetes.job.dependents import Dependents
from outlast_operator.kubernetes.job.loop import JobLoop
from outlast_operator.kubernetes.job.storage import CheckpointStorage
from outlast_operator.kubernetes.manifests.names import JobRef, server_claim
from outlast_operator.planner.actions import StartProcess
from outlast_operator.planner.checkpoints import ServerClaim
from outlast_operator.planner.status import JobStatus

RIGHT = ApiError(403, "Forbidden", 'User "o" cannot get resource "services" in API group ""')
WEBHOOK = ApiError(500, "InternalError", 'failed calling webhook "w.x": context deadline exceeded')
INVALID_TEMPLATE = ApiError(422, "Invalid", "spec.containers[0].image: Required value", ("spec.containers[0].image",))


def test_a_template_that_the_api_server_refuses_ends_in_failed() -> None:
    world = World()
    world.refuse("pods", INVALID_TEMPLATE)
    world.settle()
    failed = world.condition("Failed")
    assert (world.status["state"], failed["reason"]) == ("Failed", "TemplateInvalid")
    assert "spec.containers[0].image: Required value" in failed["message"]


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

"""Actions on pods: done once, refused when they come late, and never done to anybody else's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from fake_api import AtOnce, FakeApi

from outlast.api.job import read_spec
from outlast.api.spec import JobSpec
from outlast.api.view import Member, View
from outlast_operator.kubernetes.cluster.api import ApiError
from outlast_operator.kubernetes.cluster.cache import Cache
from outlast_operator.kubernetes.cluster.pools import Pools
from outlast_operator.kubernetes.job.dependents import Secrets
from outlast_operator.kubernetes.job.events import Events
from outlast_operator.kubernetes.job.executor import KILL_GRACE_S, REDIS_RESTARTS, Executor, read_slots
from outlast_operator.kubernetes.job.observer import Observer, Sight
from outlast_operator.kubernetes.manifests.names import JobRef, pod_name
from outlast_operator.kubernetes.manifests.pods import Images
from outlast_operator.planner.actions import AssignSlot, KillProcess, StartProcess, StartRedis, TermProcess

JOB = JobRef("mnist", "n", "job-uid")
SERVER = StartProcess("server-0", "server")
Json = dict[str, Any]


def spec(**parts: Any) -> JobSpec:
    raw: Json = {"training": {"task": "a.b", "stopAfter": {"updates": 1}}, "recovery": {"strategy": "Hybrid"}}
    return read_spec({**raw, **parts})


class Operator:
    """One operator's view of one job, over an API server that several may share."""

    def __init__(self, api: FakeApi, **parts: Any) -> None:
        self.api, self.now = api, 1_000_000_000.0
        self.cache = Cache(lambda namespace, name: None)
        events = Events(api, JOB, AtOnce(), lambda: self.now)  # type: ignore[arg-type]
        self.observer = Observer(self.cache, JOB, spec(**parts), lambda: None, lambda: self.now)
        self.observer.secrets = Secrets("token")
        self.executor = Executor(
            api,
            self.cache,
            JOB,
            Images("t", "r"),
            self.observer,
            events,
            Pools(AtOnce(), AtOnce(), AtOnce()),
            lambda: self.now,
        )

    def look(self) -> Sight:
        return self.observer.look()

    def do(self, action: Any, ended: bool = False) -> None:
        self.executor.execute(action, self.look(), ended)

    def pods(self) -> list[str]:
        return self.api.names("pods")

    def becomes(self, name: str, **state: Any) -> None:
        """The kubelet reports of a pod's container."""
        pod = self.api.objects["n", "pods", name]
        pod["status"] = {"containerStatuses": [{"name": "outlast", "state": state, "restartCount": 0}]}
        pod["metadata"]["resourceVersion"] = str(10_000 + int(pod["metadata"]["resourceVersion"]))
        self.cache.put_pod(copy.deepcopy(pod))


@pytest.fixture
def operator() -> Operator:
    return Operator(FakeApi())


def test_a_start_is_done_once(operator: Operator) -> None:
    operator.do(SERVER)
    operator.do(SERVER)
    assert operator.pods() == [pod_name(JOB, "server-0", None)]
    assert operator.look().processes["server-0"].phase == "starting"


def test_two_operators_make_one_pod() -> None:
    api = FakeApi()
    one, other = Operator(api), Operator(api)
    one.do(SERVER)
    other.do(SERVER)
    assert len(one.pods()) == 1
    assert other.look().processes["server-0"].instance == one.look().processes["server-0"].instance


def test_a_name_in_use_is_not_given_away(operator: Operator) -> None:
    operator.do(SERVER)
    operator.do(StartProcess("server-0", "server", replaces="somebody-else"))
    assert len(operator.pods()) == 1


def test_a_replacement_keeps_the_newest_dead_pod_for_its_log(operator: Operator) -> None:
    operator.do(SERVER)
    for _ in range(3):
        operator.becomes(sorted(operator.pods(), key=operator.api.names("pods").index)[-1], terminated={"exitCode": 1})
        living = operator.look().processes["server-0"]
        if living.alive:
            break
        operator.do(StartProcess("server-0", "server", replaces=living.instance))
    assert operator.look().processes["server-0"].alive


def test_what_cannot_be_proved_dead_is_removed_by_force_when_it_is_replaced(operator: Operator) -> None:
    operator.do(SERVER)
    old = operator.pods()[0]
    instance = operator.look().processes["server-0"].instance
    operator.becomes(old, running={})
    operator.do(StartProcess("server-0", "server", replaces=instance))
    assert (old, 0) in operator.api.deletions
    assert operator.pods() == [pod_name(JOB, "server-0", instance)]
    assert not operator.look().dead, "an object that is gone proves nothing"


@pytest.mark.parametrize(
    ("deleting", "ready", "forced"),
    [(True, "True", False), (False, "False", True), (True, "False", True)],
    ids=["the node answers", "it does not", "it does not, and the pod is to go"],
)
def test_a_worker_that_is_given_up_is_left_to_its_grace_where_its_node_answers(
    operator: Operator, deleting: bool, ready: str, forced: bool
) -> None:
    """What it still does there (saving its own files, say) is its user's affair; the slot waits for none of it."""
    operator.do(StartProcess("worker-0", "worker", slot=0, incarnation=1))
    [old] = operator.pods()
    said = [{"type": "Ready", "status": ready}, {"type": "ContainersReady", "status": "True"}]
    status = {"conditions": said, "containerStatuses": [{"name": "outlast", "state": {"running": {}}}]}
    reported = operator.api.report("n", old, status)
    if deleting:
        reported = operator.api.delete("", "n", "pods", old, reported["metadata"]["uid"])
    operator.cache.put_pod(reported)
    instance = operator.look().processes["worker-0"].instance
    operator.do(StartProcess("worker-0", "worker", slot=0, incarnation=2, replaces=instance))
    assert ((old, 0) in operator.api.deletions) is forced
    assert pod_name(JOB, "worker-0", instance, 2) in operator.pods()
    assert operator.look().processes["worker-0"].incarnation == 2


def test_an_older_incarnation_of_a_worker_is_not_started(operator: Operator) -> None:
    operator.do(StartProcess("worker-0", "worker", slot=0, incarnation=3))
    operator.becomes(operator.pods()[0], terminated={"exitCode": 1})
    instance = operator.look().processes["worker-0"].instance
    operator.do(StartProcess("worker-0", "worker", slot=0, incarnation=3, replaces=instance))
    assert len(operator.pods()) == 1
    operator.do(StartProcess("worker-0", "worker", slot=0, incarnation=4, replaces=instance))
    assert len(operator.pods()) == 2


def test_a_kill_meets_the_very_pod_or_nobody(operator: Operator) -> None:
    operator.do(SERVER)
    operator.do(KillProcess("server-0", "another-uid"))
    assert operator.api.deletions == []
    instance = operator.look().processes["server-0"].instance
    operator.do(KillProcess("server-0", instance))
    operator.do(KillProcess("server-0", instance))  # planned again each turn, asked for once in a while
    assert operator.api.deletions == [(operator.pods()[0], 1)]


def test_a_pod_of_ours_that_was_made_anew_under_its_name_is_not_deleted(operator: Operator) -> None:
    operator.do(SERVER)
    name = operator.pods()[0]
    instance = operator.look().processes["server-0"].instance
    operator.api.objects["n", "pods", name]["metadata"]["uid"] = "made-anew"
    operator.do(KillProcess("server-0", instance))
    assert operator.api.deletions == []
    assert operator.look().processes["server-0"].alive is False, "the one we knew is gone"


def test_somebody_elses_pod_under_the_name_is_left_alone(operator: Operator) -> None:
    name = pod_name(JOB, "server-0", None)
    operator.api.create(
        "api/v1", "n", "pods", {"metadata": {"name": name, "labels": {"outlast.dev/job-name": "mnist"}}}
    )
    operator.do(SERVER)
    assert operator.look().processes == {}
    wait = operator.executor.refusals.waits["server-0"]
    assert (wait.reason, wait.final) == ("NameTaken", False)
    assert "has another owner" in wait.message
    assert operator.api.deletions == []


@pytest.mark.parametrize(
    "error",
    [
        ApiError(422, "Invalid", "spec.containers[0].image: Required value", ("spec.containers[0].image",)),
        ApiError(403, "Forbidden", "exceeded quota"),
        ApiError(500, "InternalError", "failed calling webhook"),
        ApiError(0, "Unreachable", "timed out"),
    ],
    ids=str,
)
def test_a_start_that_is_refused_is_a_wait_and_keeps_its_pods_name(operator: Operator, error: ApiError) -> None:
    asked: list[str] = []

    def refuse(plural: str, body: Json) -> ApiError:
        asked.append(body["metadata"]["name"])
        return error

    operator.api.refuse = refuse
    for _ in range(3):
        operator.do(SERVER)
        assert operator.look().processes == {}, "no process was lost"
        assert operator.executor.refusals.waits["server-0"].message == error.message
    assert set(asked) == {pod_name(JOB, "server-0", None)}
    operator.api.refuse = lambda plural, body: None
    operator.do(SERVER)
    assert operator.executor.refusals.waits == {}
    assert operator.look().processes["server-0"].phase == "starting"


def test_a_field_that_no_pod_has_is_not_dropped_without_a_word(operator: Operator) -> None:
    operator.do(SERVER)
    operator.do(StartRedis())
    assert operator.api.strict == ["pods", "pods"]


def test_redis_is_left_to_the_kubelet_until_it_fails_again_and_again(operator: Operator) -> None:
    operator.do(StartRedis())
    name = operator.pods()[0]
    waiting = {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": {"exitCode": 1}}}
    for restarts, deleted in ((1, False), (5, True)):
        pod = operator.api.objects["n", "pods", name]
        pod["status"] = {"containerStatuses": [{"name": "redis", "restartCount": restarts, **waiting}]}
        pod["metadata"]["resourceVersion"] = str(10_000 * restarts)
        operator.cache.put_pod(copy.deepcopy(pod))
        operator.do(StartRedis(operator.look().processes["redis"].instance))
        assert bool(operator.api.deletions) is deleted


def test_an_evicted_redis_is_replaced(operator: Operator) -> None:
    operator.do(StartRedis())
    old = operator.pods()[0]
    operator.cache.put_pod(operator.api.report("n", old, {"phase": "Failed", "reason": "Evicted"}))
    lost = operator.look().processes["redis"]
    assert not lost.alive
    for _ in range(2):
        operator.do(StartRedis(lost.instance))
    assert operator.api.deletions[0] == (old, KILL_GRACE_S)
    assert operator.look().processes["redis"].alive


def test_crashes_that_are_far_apart_do_not_cost_redis_its_file(operator: Operator) -> None:
    operator.do(StartRedis())
    name = operator.pods()[0]
    ended = {"exitCode": 1, "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-03T00:00:00Z"}
    for restarts in range(1, REDIS_RESTARTS + 2):
        pod = operator.api.objects["n", "pods", name]
        status = {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": ended}}
        pod["status"] = {"containerStatuses": [{"name": "redis", "restartCount": restarts, **status}]}
        pod["metadata"]["resourceVersion"] = str(10_000 * restarts)
        operator.cache.put_pod(copy.deepcopy(pod))
        operator.do(StartRedis(operator.look().processes["redis"].instance))
    assert operator.api.deletions == []


def test_at_the_end_pods_go_as_the_policy_says() -> None:
    for policy, deletions in (("Running", 1), ("None", 0)):
        operator = Operator(FakeApi(), runPolicy={"cleanPodPolicy": policy})
        operator.do(SERVER)
        operator.do(TermProcess("server-0", operator.look().processes["server-0"].instance), ended=True)
        assert len(operator.api.deletions) == deletions, policy


@pytest.mark.parametrize(("policy", "left"), [("All", 0), ("Running", 1)])
def test_pods_that_have_ended_stay_unless_all_are_to_go(policy: str, left: int) -> None:
    operator = Operator(FakeApi(), runPolicy={"cleanPodPolicy": policy})
    operator.do(SERVER)
    operator.becomes(operator.pods()[0], terminated={"exitCode": 0})
    operator.executor.clean_up(operator.look())
    assert len(operator.api.deletions) == 1 - left


@pytest.mark.parametrize(("policy", "left"), [("All", 0), ("Running", 0), ("None", 1)])
def test_a_sidecar_does_not_keep_a_pod_after_the_end(policy: str, left: int) -> None:
    operator = Operator(FakeApi(), runPolicy={"cleanPodPolicy": policy})
    operator.do(SERVER)
    proxy = {"name": "proxy", "state": {"running": {}}}
    ours = {"name": "outlast", "state": {"terminated": {"exitCode": 0}}}
    status = {"phase": "Running", "containerStatuses": [ours, proxy]}
    operator.cache.put_pod(operator.api.report("n", operator.pods()[0], status))
    for _ in range(2):
        operator.executor.clean_up(operator.look())
    assert len(operator.api.deletions) == 1 - left


def test_a_worker_is_told_its_further_slots(operator: Operator) -> None:
    operator.do(StartProcess("worker-0", "worker", slot=0))
    operator.do(AssignSlot(2, 5, "worker-0"))
    version = operator.api.objects["n", "pods", operator.pods()[0]]["metadata"]["resourceVersion"]
    operator.do(AssignSlot(2, 5, "worker-0"))
    annotations = operator.api.objects["n", "pods", operator.pods()[0]]["metadata"]["annotations"]
    assert annotations["outlast.dev/slots"] == '{"2": 5}'
    assert operator.api.objects["n", "pods", operator.pods()[0]]["metadata"]["resourceVersion"] == version


def test_a_pod_of_another_uid_under_the_name_is_not_changed(operator: Operator) -> None:
    operator.do(StartProcess("worker-0", "worker", slot=0))
    other = operator.api.objects["n", "pods", operator.pods()[0]]
    other["metadata"]["uid"] = "another"
    before = copy.deepcopy(other)
    operator.do(AssignSlot(2, 5, "worker-0"))
    assert operator.api.objects["n", "pods", operator.pods()[0]] == before


def test_a_pod_that_a_policy_keeps_from_being_changed_is_still_there(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator.do(StartProcess("worker-0", "worker", slot=0))

    def denied(*args: Any, **options: Any) -> None:
        raise ApiError(422, "Invalid", "ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no labels today")

    with monkeypatch.context() as patched:
        patched.setattr(operator.api, "patch", denied)
        with pytest.raises(ApiError, match="no labels today"):
            operator.do(AssignSlot(2, 5, "worker-0"))
    operator.do(AssignSlot(2, 5, "worker-0"))
    annotations = operator.api.objects["n", "pods", operator.pods()[0]]["metadata"]["annotations"]
    assert annotations["outlast.dev/slots"] == '{"2": 5}'


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1}', "3"])
def test_an_annotation_that_makes_no_sense_counts_for_nothing(text: str) -> None:
    assert read_slots(text) == {}


def test_dismissal_reaches_the_servers_in_those_pods_that_listen(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    class Watch:
        def __init__(self, name: str, error: Exception | None = None) -> None:
            self.name, self.error, self.control = name, error, self

        def finish(self) -> None:
            if self.error is not None:
                raise self.error
            told.append(self.name)

        def leave(self) -> None:
            assert told[-1] == self.name, "it is finished before it is told to leave"

    for i in range(5):
        operator.do(StartProcess(f"server-{i}", "server"))
    sight = operator.look()
    of_name = {view.name: view for view in sight.pods.values()}
    errors = {"server-1": ConnectionError("gone"), "server-2": RuntimeError("refused")}
    lines = {view.uid: Watch(name, errors.get(name)) for name, view in of_name.items()}
    monkeypatch.setattr(operator.observer, "boot_of", lambda uid: uid if uid in lines else None)
    monkeypatch.setattr(operator.observer, "watch_of", lines.get)
    operator.executor.dismiss([of_name[f"server-{i}"].uid for i in range(4)], sight)
    assert sorted(told) == ["server-0", "server-3"], "server-4 is not among them"


# --- what is deleted meanwhile ---


def gone_unheard(operator: Operator, start: StartProcess) -> Sight:
    """The pod is deleted, and no watch has told of it."""
    operator.do(start)
    name = pod_name(JOB, start.name, None)
    operator.becomes(name, running={})
    sight = operator.look()
    del operator.api.objects["n", "pods", name]
    return sight


def test_a_label_for_a_pod_that_is_gone_is_asked_for_once(
    operator: Operator, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    sight = gone_unheard(operator, SERVER)
    monkeypatch.setattr(operator.observer, "boot_of", lambda uid: "b0")
    views = {0: View(0, 1, 0, (Member("server-0", "b0", "tcp:10.0.0.1:7070"),))}
    asked: list[str] = []
    patch = operator.api.patch

    def counted(group: str, namespace: str, plural: str, name: str, body: Json) -> Json:
        asked.append(name)
        return patch(group, namespace, plural, name, body)

    monkeypatch.setattr(operator.api, "patch", counted)
    for _ in range(3):
        operator.executor.label_chains(views, sight)
    assert len(asked) == 1
    assert "was not labelled" not in caplog.text
    assert operator.cache.pods(JOB.id)[0] == {}, "what the API server answers is the newest state"


def test_a_slot_for_a_worker_that_is_gone_is_no_error(operator: Operator) -> None:
    sight = gone_unheard(operator, StartProcess("worker-1", "worker", slot=1))
    operator.executor.execute(AssignSlot(0, 2, "worker-1"), sight, False)
    assert operator.cache.pods(JOB.id)[0] == {}

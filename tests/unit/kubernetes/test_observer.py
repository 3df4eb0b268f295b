"""What is seen of a job: the newest pod of each name, its server's word, and who is proved dead by what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from outlast.api.job import read_spec
from outlast_operator.kubernetes.cluster.cache import Cache
from outlast_operator.kubernetes.job import observer as module
from outlast_operator.kubernetes.job.dependents import Secrets
from outlast_operator.kubernetes.job.observer import WAITS_S, Observer
from outlast_operator.kubernetes.manifests.names import JobRef, owner
from outlast_operator.kubernetes.manifests.pods import template_digest
from outlast_operator.planner.observed import Probe, RedisState
from outlast_operator.planner.status import Wait

Json = dict[str, Any]
T0 = 1_767_225_600.0  # 2026-01-01T00:00:00Z


class Line:
    """In place of a watch: what a server says, by address."""

    def __init__(self, address: str, *settings: Any) -> None:
        self.address, self.probe, self.closed = address, None, False
        self.may_dial: Callable[[], bool] = settings[-1]
        self.t_closed: float | None = None
        OPEN.append(self)

    def says(self, boot: str, t: float, **more: Any) -> None:
        self.probe = Probe("server-0", boot, t_heard=t, **more)

    def close(self) -> None:
        self.closed = True


OPEN: list[Line] = []


class World:
    def __init__(self, strategy: str = "Checkpoint") -> None:
        self.now, self.version = T0, 0
        self.cache = Cache(lambda namespace, name: None)
        raw = {"training": {"task": "a.b", "stopAfter": {"updates": 1}}, "recovery": {"strategy": strategy}}
        spec = read_spec(raw)
        self.spec = spec
        self.observer = self.another_observer()

    def another_observer(self) -> Observer:
        observer = Observer(self.cache, JobRef("mnist", "n", "j"), self.spec, lambda: None, lambda: self.now)
        observer.secrets = Secrets("t")
        return observer

    def pod(self, uid: str, ip: str = "10.0.0.1", created: str = "00:00:01", **state: Any) -> Json:
        self.version += 1
        return {
            "metadata": {
                "name": f"mnist-server-0-{uid}", "namespace": "n", "uid": uid, "resourceVersion": str(self.version),
                "creationTimestamp": f"2026-01-01T{created}Z", "labels": {"outlast.dev/role": "server"},
                "annotations": {"outlast.dev/process": "server-0"},
                "ownerReferences": [owner(JobRef("mnist", "n", "j"))],
            },
            "status": {"podIP": ip, "containerStatuses": [{"name": "outlast", "state": state, "restartCount": 0}]},
        }  # fmt: skip

    def look(self, after_s: float = 1.0) -> module.Sight:
        self.now += after_s
        return self.observer.look()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    OPEN.clear()
    monkeypatch.setattr(module, "ServerWatch", Line)
    return World()


def test_a_server_runs_when_it_has_spoken(world: World) -> None:
    world.cache.put_pod(world.pod("u1", running={}))
    assert world.look().processes["server-0"].phase == "starting"
    OPEN[0].says("boot-1", world.now)
    process = world.look().processes["server-0"]
    assert (process.phase, process.boot, process.address) == ("running", "boot-1", "tcp:10.0.0.1:7070")
    assert len(OPEN) == 1


def test_the_kubelets_word_proves_a_death(world: World) -> None:
    world.cache.put_pod(world.pod("u1", running={}))
    world.look()
    OPEN[0].says("boot-1", world.now)
    world.cache.put_pod(world.pod("u1", terminated={"exitCode": 137}))
    process = world.look().processes["server-0"]
    assert (process.alive, process.proven_dead, process.exit_signal, process.boot) == (False, True, 9, "boot-1")
    assert OPEN[0].closed


def test_a_pod_that_was_removed_by_force_is_dead_when_its_connection_is_closed(world: World) -> None:
    world.cache.put_pod(world.pod("u1", running={}))
    world.look()
    OPEN[0].says("boot-1", world.now)
    world.look()
    world.cache.remove_pod(world.pod("u1", running={}))
    process = world.look().processes["server-0"]
    assert (process.alive, process.proven_dead) == (False, False)
    assert not OPEN[0].closed, "it is listened to until its end is known"
    assert OPEN[0].probe is not None
    OPEN[0].probe = replace(OPEN[0].probe, refused=True)
    OPEN[0].t_closed = world.now
    world.look()
    assert world.look().processes["server-0"].proven_dead
    assert OPEN[0].closed


@pytest.mark.parametrize("closed_before_s", [None, 0.5], ids=["a new one was refused", "it was closed long before"])
def test_what_no_kubelet_nor_the_connections_end_tells_is_no_proof(world: World, closed_before_s: float | None) -> None:
    world.cache.put_pod(world.pod("u1", running={}))
    world.look()
    OPEN[0].says("boot-1", world.now)
    if closed_before_s is not None:
        OPEN[0].t_closed = world.now - closed_before_s
    world.look()
    world.cache.remove_pod(world.pod("u1", running={}))
    assert OPEN[0].probe is not None
    OPEN[0].probe = replace(OPEN[0].probe, refused=True)
    world.look()
    assert not world.look().processes["server-0"].proven_dead


@pytest.mark.parametrize(
    "becomes",
    [
        {"status": {"phase": "Failed"}},
        {"status": {"phase": "Succeeded"}},
        {"status": {"podIP": "10.0.0.9"}},
        {"status": {"containerStatuses": [{"name": "outlast", "state": {"terminated": {"exitCode": 0}}}]}},
        {"metadata": {"ownerReferences": []}},
        None,
    ],
    ids=["evicted", "done", "another address", "its container ended", "orphaned", "deleted"],
)
def test_the_address_of_a_pod_that_lives_no_more_is_not_dialled(world: World, becomes: Json | None) -> None:
    world.cache.put_pod(world.pod("u1", running={}))
    world.look()
    [line] = OPEN
    assert line.may_dial()
    after = world.pod("u1", running={})
    after["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:10Z"
    world.cache.put_pod(after)
    assert line.may_dial(), "within its grace it may have to hand over"
    after = world.pod("u1", running={})
    for part, values in (becomes or {}).items():
        after[part] |= values
    world.cache.remove_pod(after) if becomes is None else world.cache.put_pod(after)
    assert not line.may_dial(), "at once, without another look"


def test_a_server_of_another_namespace_is_never_dialled(world: World) -> None:
    world.cache.put_pod(world.pod("u1", running={}))
    forged = world.pod("u2", ip="10.9.9.9", created="00:00:09", running={})
    forged["metadata"]["namespace"] = "attacker"
    world.cache.put_pod(forged)
    assert world.look().processes["server-0"].instance == "u1"
    assert [line.address for line in OPEN] == ["tcp:10.0.0.1:7070"]


def test_the_newest_pod_has_the_name_and_the_old_one_is_among_the_dead(world: World) -> None:
    world.cache.put_pod(world.pod("u1", running={}))
    world.look()
    OPEN[0].says("boot-1", world.now)
    world.look()
    world.cache.put_pod(world.pod("u1", terminated={"exitCode": 1}))
    world.cache.put_pod(world.pod("u2", ip="10.0.0.2", created="00:00:09", running={}))
    sight = world.look()
    assert sight.processes["server-0"].instance == "u2"
    assert sight.dead == {"u1"}
    assert sight.probes["server-0"].boot == "boot-1", "the last word, until the new one speaks"
    OPEN[1].says("boot-2", world.now)
    assert world.look().probes["server-0"].boot == "boot-2"


def test_a_living_pod_has_the_name_whatever_the_clocks_say(world: World) -> None:
    """Two API servers' clocks apart: the dead one seems to be the newer."""
    world.cache.put_pod(world.pod("u1", created="00:00:09", terminated={"exitCode": 1}))
    world.cache.put_pod(world.pod("u2", created="00:00:08", running={}))
    assert world.look().processes["server-0"].instance == "u2"


def test_a_probe_is_never_taken_for_another_pods(world: World) -> None:
    world.cache.put_pod(world.pod("u1", running={}))
    world.look()
    OPEN[0].says("boot-1", world.now)
    world.look()
    world.cache.remove_pod(world.pod("u1", terminated={"exitCode": 1}))
    world.cache.put_pod(world.pod("u2", created="00:00:09", running={}))  # the same address
    sight = world.look()
    assert sight.processes["server-0"].boot is None
    assert sight.probes["server-0"].t_heard < sight.processes["server-0"].t_started


def test_a_job_without_a_buffer_asks_no_redis(world: World) -> None:
    assert world.look().redis.up is False


def test_waiting_for_a_node_is_no_life(world: World) -> None:
    world.cache.put_pod(world.pod("u1"))
    world.look()
    times = {"startedAt": "2026-01-01T00:02:00Z", "finishedAt": "2026-01-01T00:02:01Z"}
    world.cache.put_pod(world.pod("u1", terminated={"exitCode": 1, **times}))
    process = world.look(after_s=120.0).processes["server-0"]
    assert process.t_exited is not None
    assert process.t_exited - process.t_started > 100
    assert process.lived_s == 1.0


def test_a_life_that_no_kubelet_tells_is_as_long_as_it_was_seen(world: World) -> None:
    world.cache.put_pod(world.pod("u1"))
    world.look()
    world.cache.put_pod(world.pod("u1", running={}))
    world.look(after_s=120.0)
    world.cache.remove_pod(world.pod("u1", running={}))
    assert world.look(after_s=5.0).processes["server-0"].lived_s == 5.0


def test_a_pod_waits_for_as_long_as_its_image_cannot_be_pulled(world: World) -> None:
    world.cache.put_pod(world.pod("u1", waiting={"reason": "ErrImagePull", "message": "no"}))
    assert world.look().waits == {}, "for a moment it is no news"
    for _ in range(3):
        sight = world.look(after_s=WAITS_S)
        assert sight.processes["server-0"].alive
        assert sight.waits["server-0"].message == "its image cannot be pulled: no"
        world.cache.put_pod(world.pod("u1", waiting={"reason": "ImagePullBackOff", "message": "Back-off"}))
    world.cache.put_pod(world.pod("u1", running={}))
    assert world.look().waits == {}


def test_the_status_of_a_pod_is_newer_than_its_events(world: World) -> None:
    world.cache.put_pod(world.pod("u1", waiting={"reason": "ContainerCreating"}))
    world.observer.told = {"u1": Wait("FailedMount", 'configmap "code" not found')}
    world.look()
    assert world.look(after_s=WAITS_S).waits["server-0"].reason == "FailedMount"
    world.cache.put_pod(world.pod("u1", waiting={"reason": "ErrImagePull", "message": "no"}))
    world.look()
    assert world.look(after_s=WAITS_S).waits["server-0"].reason == "ImagePullBackOff"


def test_a_wait_stands_until_another_reason_has_lasted(world: World) -> None:
    world.look()
    world.cache.put_pod(world.pod("u1", waiting={"reason": "ErrImagePull", "message": "no"}))
    world.look()
    assert world.look(after_s=WAITS_S).waits["server-0"].reason == "ImagePullBackOff"
    world.cache.put_pod(world.pod("u1", waiting={"reason": "CreateContainerConfigError", "message": "no secret"}))
    assert world.look().waits["server-0"].reason == "ImagePullBackOff", "for a moment the other is no news"
    assert world.look(after_s=WAITS_S).waits["server-0"].reason == "CreateContainerConfigError"


def test_an_operator_that_begins_tells_a_wait_at_once(world: World) -> None:
    world.now = T0 + 60.0
    world.observer = world.another_observer()
    world.cache.put_pod(world.pod("u1", waiting={"reason": "ErrImagePull", "message": "no"}))
    assert world.look(after_s=5.0).waits["server-0"].reason == "ImagePullBackOff", "its first look may come late"
    world.cache.put_pod(world.pod("u2", waiting={"reason": "ErrImagePull", "message": "no"}))
    assert world.look(after_s=0.1).waits == {}, "this one was made after it"


def test_a_pod_that_waits_is_known_to_be_outdated_when_its_template_changes(world: World) -> None:
    pod = world.pod("u1", waiting={"reason": "ErrImagePull", "message": "no"})
    pod["metadata"]["annotations"]["outlast.dev/template"] = template_digest(world.observer.spec, "server")
    world.cache.put_pod(pod)
    world.look()
    assert not world.look(after_s=WAITS_S).waits["server-0"].outdated
    raw = world.observer.spec.to_json()
    raw["servers"]["template"] = {"spec": {"containers": [{"image": "another"}]}}
    world.observer.spec = read_spec(raw)
    assert world.look().waits["server-0"].outdated


def test_without_the_token_no_server_is_dialled(world: World) -> None:
    world.observer.secrets = Secrets()
    world.cache.put_pod(world.pod("u1", running={}))
    world.look()
    assert OPEN == []
    world.observer.secrets = Secrets("t")
    world.look()
    assert len(OPEN) == 1


def test_of_pods_that_are_long_gone_nothing_is_remembered(world: World) -> None:
    for count in range(20):
        uid = f"u{count}"
        world.cache.put_pod(world.pod(uid, terminated={"exitCode": 1}))
        world.look()
        world.cache.remove_pod(world.pod(uid, terminated={"exitCode": 1}))
        sight = world.look()
        assert sight.processes["server-0"].proven_dead
    assert len(world.observer._known) < 5
    assert len(world.observer._dead) < 5


class Asked:
    """In place of a watch of Redis."""

    def __init__(self, url: str, *settings: Any) -> None:
        self.may_dial: Callable[[], bool] = settings[-1]
        self.url, self.closed, self.state = url, False, RedisState(True, f"run-{len(REDIS)}")
        REDIS.append(self)

    def close(self) -> None:
        self.closed = True


REDIS: list[Asked] = []


@pytest.fixture
def hybrid(monkeypatch: pytest.MonkeyPatch) -> World:
    REDIS.clear()
    monkeypatch.setattr(module, "ServerWatch", Line)
    monkeypatch.setattr(module, "RedisWatch", Asked)
    return World("Hybrid")


def redis_pod(world: World, uid: str, ip: str, **state: Any) -> Json:
    pod = world.pod(uid, ip, **state)
    pod["metadata"]["labels"]["outlast.dev/role"] = "redis"
    pod["metadata"]["annotations"]["outlast.dev/process"] = "redis"
    pod["status"]["containerStatuses"][0]["name"] = "redis"
    return pod


def test_a_redis_that_is_gone_is_not_asked_any_more(hybrid: World) -> None:
    """Whoever has its address next would be told the job's password."""
    hybrid.cache.put_pod(redis_pod(hybrid, "r1", "10.0.0.7", running={}))
    assert hybrid.look().redis == RedisState(True, "run-0")
    assert REDIS[0].may_dial()
    hybrid.cache.remove_pod(redis_pod(hybrid, "r1", "10.0.0.7", running={}))
    assert not REDIS[0].may_dial()
    assert hybrid.look().redis == RedisState(False, "run-0")
    assert REDIS[0].closed
    hybrid.cache.put_pod(redis_pod(hybrid, "r2", "10.0.0.8", created="00:01:01", running={}))
    assert hybrid.look().redis == RedisState(True, "run-1")
    assert [watch.closed for watch in REDIS] == [True, False]
    assert "10.0.0.8" in REDIS[1].url


def test_a_redis_that_is_restarted_in_place_starts_anew(hybrid: World) -> None:
    """What it answered before says nothing of the next run (planner/redis_contact.py)."""
    pod = redis_pod(hybrid, "r1", "10.0.0.7", running={})
    hybrid.cache.put_pod(pod)
    assert hybrid.look().processes["redis"].t_started == hybrid.now
    ended = redis_pod(hybrid, "r1", "10.0.0.7", terminated={"exitCode": 137})
    hybrid.cache.put_pod(ended)
    t_exited = hybrid.now + 5.0
    assert hybrid.look(5.0).processes["redis"].t_exited == t_exited
    restarted = redis_pod(hybrid, "r1", "10.0.0.7", running={})
    restarted["status"]["containerStatuses"][0] |= {"restartCount": 1, "lastState": {"terminated": {"exitCode": 137}}}
    hybrid.cache.put_pod(restarted)
    process = hybrid.look().processes["redis"]
    assert (process.instance, process.t_started) == ("r1.1", hybrid.now)
    hybrid.look()
    ended["status"]["containerStatuses"][0]["restartCount"] = 1
    hybrid.cache.put_pod({**ended, "metadata": {**ended["metadata"], "resourceVersion": "99"}})
    again = hybrid.look().processes["redis"]
    assert (again.t_started, again.t_exited) == (process.t_started, hybrid.now)


def test_the_redis_of_a_job_that_has_ended_is_not_asked_any_more(hybrid: World) -> None:
    hybrid.cache.put_pod(redis_pod(hybrid, "r1", "10.0.0.7", running={}))
    hybrid.look()
    assert hybrid.observer.look(ended=True).redis.up is False
    assert REDIS[0].closed
    hybrid.observer.look(ended=True)
    assert len(REDIS) == 1

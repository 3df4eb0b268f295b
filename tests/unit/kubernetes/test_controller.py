"""All jobs of an operator: who leads acts, who lost the lead does nothing any more."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from fake_api import FakeApi

from outlast_operator.kubernetes import controller as module
from outlast_operator.kubernetes.cluster.api import PLURAL, ApiError
from outlast_operator.kubernetes.controller import BLIND_AUDITS, DEAF_AUDITS, UNANSWERED_AUDITS, Controller
from outlast_operator.kubernetes.manifests.pods import Images

Json = dict[str, Any]
PATIENCE_S = 10.0


class Held(FakeApi):
    """Lists are answered when `answer` is set; `listing` tells that somebody waits. `error` is raised then."""

    def __init__(self) -> None:
        super().__init__()
        self.listing, self.answer = threading.Event(), threading.Event()
        self.error: Exception | None = None

    def list(self, group: str, namespace: str | None, plural: str, **query: str) -> Json:
        self.listing.set()
        assert self.answer.wait(PATIENCE_S)
        if self.error is not None:
            raise self.error
        return super().list(group, namespace, plural, **query)


class Loop:
    """In place of a job's loop."""

    all: list[Loop] = []  # noqa: RUF012
    made: list[str] = []  # noqa: RUF012
    ended: list[str] = []  # noqa: RUF012  # uids of those that were stopped because their job is gone

    def __init__(self, tools: Any, job: Json) -> None:
        self.all.append(self)
        self.made.append(job["metadata"]["name"])
        self.ref = SimpleNamespace(uid=job["metadata"]["uid"])
        self.alive, self.failing = False, 0

    def start(self) -> None:
        self.alive = True

    def wake(self) -> None:
        pass

    def stop(self, gone: bool = False) -> None:
        self.alive = False
        if gone:
            self.ended.append(self.ref.uid)


class World:
    def __init__(self) -> None:
        self.api, self.lost = Held(), threading.Event()
        self.controller = Controller(self.api, Images("t", "r"), ["n"], self.lost.set)  # type: ignore[arg-type]
        self.api.create("", "n", PLURAL, {"metadata": {"name": "mnist"}, "spec": {}})


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    Loop.all, Loop.made, Loop.ended = [], [], []
    monkeypatch.setattr(module, "JobLoop", Loop)
    made = World()
    yield made
    made.controller.stop()


def until(holds: Callable[[], bool]) -> None:
    """Threads of the controller that have begun have ended."""
    for thread in threading.enumerate():
        if thread.name == "begin":
            thread.join(PATIENCE_S)
    assert holds()


def test_who_leads_begins_with_a_list(world: World) -> None:
    world.controller.lead(True)
    world.api.answer.set()
    until(lambda: world.controller.leading)
    assert Loop.made == ["mnist"]
    assert not world.lost.is_set()


@pytest.mark.parametrize("made_anew", [False, True])
def test_the_loop_of_a_deleted_job_is_told_that_it_is_gone(world: World, made_anew: bool) -> None:
    world.controller.lead(True)
    world.api.answer.set()
    until(lambda: world.controller.leading)
    [job] = world.controller.cache.jobs()
    if made_anew:
        del world.api.objects["n", PLURAL, "mnist"]
        world.controller.cache.put_job(world.api.create("", "n", PLURAL, {"metadata": {"name": "mnist"}, "spec": {}}))
    else:
        world.controller.cache.remove_job(job)
    assert Loop.ended == [job["metadata"]["uid"]]
    assert len(Loop.made) == 1 + made_anew


def test_a_lead_that_is_lost_while_it_begins_is_lost(world: World) -> None:
    world.controller.lead(True)
    assert world.api.listing.wait(PATIENCE_S)
    world.controller.lead(False)
    world.api.answer.set()
    until(lambda: not world.controller.leading)
    assert Loop.made == []


def test_a_lead_that_is_lost_and_gained_again_has_new_loops_and_no_old_one(world: World) -> None:
    """As after minutes without an API server: the process stays."""
    world.api.answer.set()
    world.controller.lead(True)
    until(lambda: world.controller.leading)
    [first] = Loop.all
    world.controller.lead(False)
    assert not first.alive
    [job] = world.controller.cache.jobs()
    world.controller.cache.put_job({**job, "metadata": {**job["metadata"], "resourceVersion": "99"}})
    assert len(Loop.all) == 1, "who does not lead begins no loop"
    world.controller.lead(True)
    until(lambda: world.controller.leading)
    assert [loop.alive for loop in Loop.all] == [False, True]
    assert Loop.ended == [], "nobody's job is gone"
    assert not world.lost.is_set()


def test_who_never_led_loses_nothing(world: World) -> None:
    world.controller.lead(False)
    assert not world.lost.is_set()


def test_a_lead_that_cannot_be_used_is_given_up(world: World) -> None:
    world.api.error = KeyError("items")
    world.api.answer.set()
    world.controller.lead(True)
    until(world.lost.is_set)
    assert not world.controller.leading


def test_a_list_that_fails_is_tried_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PRIME_RETRY_S", 0.0)
    errors = iter([ApiError(0, "Unreachable", "no")])
    real = world.controller._list

    def failing(version: str) -> Any:
        for error in errors:
            raise error
        return real(version)

    monkeypatch.setattr(world.controller, "_list", failing)
    world.api.answer.set()
    world.controller.lead(True)
    until(lambda: world.controller.leading)


class Audited:
    """A controller whose watches tell nothing: what it knows it has from audits alone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "IN_FLIGHT_S", 0.0)
        self.api = Held()
        self.api.answer.set()
        self.controller = Controller(self.api, Images("t", "r"), ["n"])  # type: ignore[arg-type]

    def happens(self, name: str) -> None:
        self.api.create("", "n", PLURAL, {"metadata": {"name": name}, "spec": {}})


@pytest.fixture
def audited(monkeypatch: pytest.MonkeyPatch) -> Audited:
    return Audited(monkeypatch)


def test_a_standby_whose_watches_are_deaf_is_not_healthy(audited: Audited) -> None:
    assert not audited.controller.leading
    for count in range(DEAF_AUDITS):
        assert audited.controller.healthy
        audited.happens(f"job-{count}")
        audited.controller.audit()
    assert not audited.controller.healthy
    audited.controller.audit()
    assert audited.controller.healthy, "nothing has been missed since"


def test_what_a_new_list_is_about_to_tell_is_no_deafness(audited: Audited) -> None:
    for count in range(DEAF_AUDITS):
        audited.happens(f"job-{count}")
        audited.controller.audit(counts=False)
    assert audited.controller.healthy
    assert len(audited.controller.cache.jobs()) == DEAF_AUDITS, "it is put right all the same"


@pytest.mark.parametrize(
    ("error", "patience"),
    [
        (KeyError("items"), BLIND_AUDITS),
        (ApiError(403, "Forbidden", "no"), BLIND_AUDITS),
        (ApiError(0, "Unreachable", "no"), UNANSWERED_AUDITS),
    ],
    ids=["a fault of ours", "a right is missing", "the API server is away"],
)
def test_who_cannot_audit_is_not_healthy_for_ever(audited: Audited, error: Exception, patience: int) -> None:
    audited.api.error = error
    for _ in range(patience):
        assert audited.controller.healthy
        audited.controller.audit()
    assert not audited.controller.healthy
    audited.api.error = None
    audited.controller.audit()
    assert audited.controller.healthy


def test_a_watch_that_is_begun_anew_is_audited_at_once(audited: Audited) -> None:
    audited.api.listing.clear()
    audited.controller.start()
    audited.controller.relisted()
    assert audited.api.listing.wait(PATIENCE_S), "long before the next minute"
    audited.controller.stop()

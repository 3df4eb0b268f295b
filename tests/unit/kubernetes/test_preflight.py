"""The preflight: what must hold before the operator serves, what it says meanwhile, and what holds nothing up."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from fake_api import FakeApi

from outlast_operator.kubernetes.cluster.api import ApiError
from outlast_operator.kubernetes.preflight import SETTLE_S, Preflight
from outlast_operator.kubernetes.rights import IN_CLUSTER, IN_NAMESPACES

Json = dict[str, Any]
NO_RESOURCE = ApiError(404, "NotFound", "the server could not find the requested resource")
NO_RIGHT = ApiError(403, "Forbidden", "cannot list resource trainingjobs")
AWAY = ApiError(0, "Unreachable", "connection refused")


class Guarded(FakeApi):
    """An API server that refuses lists by namespace, and reviews by (namespace, verb, resource)."""

    def __init__(self) -> None:
        super().__init__()
        self.unlisted: dict[str | None, ApiError] = {}
        self.denied: set[tuple[str, str, str]] = set()
        self.asked: set[tuple[str, str, str]] = set()

    def list(self, group: str, namespace: str | None, plural: str, **query: str) -> Json:
        if namespace in self.unlisted:
            raise self.unlisted[namespace]
        return super().list(group, namespace, plural, **query)

    def create(self, group: str, namespace: str, plural: str, body: Json) -> Json:
        assert plural == "selfsubjectaccessreviews"
        asked = body["spec"]["resourceAttributes"]
        resource = f"{asked['resource']}/{asked['subresource']}".rstrip("/")
        key = (asked["namespace"], asked["verb"], resource)
        self.asked.add(key)
        return {**body, "status": {"allowed": key not in self.denied}}


class Waits(threading.Event):
    """Each wait moves the clock, and does what is due at that time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.due: dict[float, Any] = {}

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        assert self.now < 1000, "it waits for ever"
        self.now += timeout
        for t in [t for t in self.due if t <= self.now]:
            self.due.pop(t)()
        return self.is_set()


class World:
    def __init__(self, namespaces: list[str] | None, log: Path) -> None:
        self.api, self.stop, self.log = Guarded(), Waits(), log
        log.touch()
        self.preflight = Preflight(
            self.api, namespaces, ("system", "outlast"), self.stop, lambda: self.stop.now, log  # type: ignore[arg-type]
        )  # fmt: skip


@pytest.fixture
def everywhere(tmp_path: Path) -> World:
    return World(None, tmp_path / "termination-log")


@pytest.fixture
def two(tmp_path: Path) -> World:
    return World(["a", "b"], tmp_path / "termination-log")


def test_with_everything_there_it_serves_at_once(everywhere: World) -> None:
    assert everywhere.preflight.missing, "not ready before it has looked"
    assert everywhere.preflight.wait() == [None]
    assert everywhere.preflight.missing == ""
    assert everywhere.stop.now == 0
    assert ("system", "update", "leases") in everywhere.api.asked


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (NO_RESOURCE, "the cluster has no resource TrainingJob; apply crds/trainingjobs.outlast.dev.yaml, or install"),
        (NO_RIGHT, f"TrainingJobs in all namespaces cannot be listed: {NO_RIGHT}; grant it with the chart's roles"),
        (AWAY, f"TrainingJobs in all namespaces cannot be listed: {AWAY}; the operator retries"),
    ],
    ids=["no resource", "no right", "API server away"],
)
def test_it_waits_says_why_and_serves_when_it_can(everywhere: World, error: ApiError, words: str) -> None:
    everywhere.api.unlisted[None] = error
    said: list[str] = []
    everywhere.stop.due = {
        100: lambda: said.append(everywhere.preflight.missing + everywhere.log.read_text()),
        200: lambda: everywhere.api.unlisted.clear(),
    }
    assert everywhere.preflight.wait() == [None]
    assert everywhere.stop.now >= 200
    assert said[0].count(words) == 2
    assert everywhere.preflight.missing == everywhere.log.read_text() == ""


REQUIRED = [(r.resource, verb) for r in IN_NAMESPACES if r.required for verb in r.verbs]
OPTIONAL = [(r.resource, verb) for r in (*IN_NAMESPACES, *IN_CLUSTER) if not r.required for verb in r.verbs]


@pytest.mark.parametrize(("resource", "verb"), REQUIRED)
def test_each_required_right_is_waited_for_and_named(everywhere: World, resource: str, verb: str) -> None:
    everywhere.api.denied.add(("", verb, resource))
    said: list[str] = []
    everywhere.stop.due = {100: lambda: (said.append(everywhere.preflight.missing), everywhere.api.denied.clear())}
    assert everywhere.preflight.wait() == [None]
    assert everywhere.stop.now >= 100
    assert f"{verb} " in said[0]
    assert resource in said[0]


@pytest.mark.parametrize(("resource", "verb"), OPTIONAL)
def test_every_other_right_holds_nothing_up_and_is_told(
    everywhere: World, caplog: pytest.LogCaptureFixture, resource: str, verb: str
) -> None:
    everywhere.api.denied.add(("", verb, resource))
    served = everywhere.preflight.wait()
    assert everywhere.stop.now == 0
    with caplog.at_level(logging.WARNING):
        everywhere.preflight.warn_of_degradation(served)
    (line,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("no right to")]
    assert resource in line
    assert f"no right to {verb}" in line


def test_with_namespaces_nothing_of_the_clusters_scope_is_asked_for(two: World) -> None:
    two.preflight.warn_of_degradation(two.preflight.wait())
    assert {namespace for namespace, _, _ in two.api.asked} == {"a", "b", "system"}
    assert not {resource for _, _, resource in two.api.asked} & {r.resource for r in IN_CLUSTER}


def test_the_lease_is_waited_for_even_where_namespaces_could_be_served(two: World) -> None:
    two.api.denied.add(("system", "create", "leases"))
    two.stop.due = {100: two.api.denied.clear}
    assert two.preflight.wait() == ["a", "b"]
    assert two.stop.now >= 100


def test_a_namespace_that_stays_refused_is_left_out_and_the_others_are_served(two: World) -> None:
    two.api.unlisted["b"] = NO_RIGHT
    assert two.preflight.wait() == ["a"]
    assert SETTLE_S <= two.stop.now < SETTLE_S + 5, "roles that come with the operator are seen some seconds later"
    assert two.preflight.missing == ""
    assert two.preflight.left_out == ["b"]


def test_all_namespaces_refused_is_waited_for(two: World) -> None:
    two.api.unlisted |= {"a": NO_RIGHT, "b": NO_RIGHT}
    two.stop.due = {300: lambda: two.api.unlisted.pop("a")}
    assert two.preflight.wait() == ["a"]
    assert two.stop.now >= 300


def test_the_operator_begins_anew_when_a_namespace_can_be_served_again(two: World) -> None:
    two.api.unlisted["b"] = NO_RIGHT
    two.preflight.wait()
    two.stop.due = {two.stop.now + 100: two.api.unlisted.clear}
    two.preflight.watch_left_out()
    for thread in threading.enumerate():
        if thread.name == "left-out":
            thread.join(10)
    assert two.stop.is_set()


def test_told_to_stop_it_serves_nothing(everywhere: World) -> None:
    everywhere.api.unlisted[None] = AWAY
    everywhere.stop.due = {50: everywhere.stop.set}
    assert everywhere.preflight.wait() == []
    assert "TrainingJobs in all namespaces cannot be listed" in everywhere.log.read_text(), "the termination message"

"""A job's record, and who else writes it: the operator before, the one after, a rival, somebody's hand."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from loop_world import QUOTA, Json, World

from outlast_operator.kubernetes.job.loop import FIRST_RETRY_S, UNREADABLE_S, JobLoop
from outlast_operator.kubernetes.job.record import UnreadableRecord, read_record
from outlast_operator.kubernetes.job.runtime import Deposed
from outlast_operator.planner.actions import StartProcess


def record(world: World) -> Any:
    return read_record(world.job).status


def write_status(world: World, status: Json) -> None:
    """Somebody else writes it: another operator, a backup."""
    job = world.api.get("", "n", "trainingjobs", "mnist")
    world.cache.put_job(world.api.replace("", "n", "trainingjobs", "mnist", {**job, "status": status}, "status"))


def test_another_operator_goes_on_from_the_record() -> None:
    world = World()
    world.settle()
    pods = world.api.names("pods")
    world.loop = JobLoop(world.tools, world.job)
    world.settle()
    assert world.api.names("pods") == pods


def test_a_status_that_somebody_else_wrote_is_not_overwritten() -> None:
    world = World()
    job = world.api.get("", "n", "trainingjobs", "mnist")
    world.api.replace("", "n", "trainingjobs", "mnist", {**job, "status": {"state": "Mine"}}, "status")
    assert world.loop._turn() is None, "after a conflict it looks again"
    assert world.status == {"state": "Mine"}
    assert world.api.names("pods") == [], "nothing is done before it is recorded"
    world.settle()
    assert world.status["state"] == "Pending"


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

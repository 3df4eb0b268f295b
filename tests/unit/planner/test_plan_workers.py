"""Workers: incarnations, failures, back-off, and the slots that they are lent."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest
from plan_steps import of, running
from plan_world import make_spec

from outlast_operator.planner.actions import AssignSlot, SetSlots, StartProcess, TermProcess
from outlast_operator.planner.backoff import LONGEST_DELAY_S, count_exit
from outlast_operator.planner.observed import ObservedJob, Process
from outlast_operator.planner.status import Attempt, JobStatus
from outlast_operator.planner.turn import Turn


def test_a_killed_worker_comes_back_at_once_with_the_next_incarnation() -> None:
    world = running()
    world.kill("worker-0")
    result = world.turn()
    assert result.status.incarnations == {0: 2}
    assert [(a.name, a.incarnation) for a in of(world, StartProcess)] == [("worker-0", 2)]


def test_a_worker_that_fails_without_progress_is_backed_off_then_fails_the_job() -> None:
    world = running(runPolicy__backoffLimit=3)
    for server in world.servers.values():
        server.paused = True  # nothing moves
    patient = {"timeoutSeconds": 1000, "assumeDeadSeconds": 1000}
    world.spec = make_spec(runPolicy__backoffLimit=3, recovery__failover=patient)
    starts = []
    for _ in range(200):
        if world.others["worker-0"].alive:
            starts.append(world.now)
            world.end("worker-0", code=1)
        world.turn()
        world.advance(0.1)
    assert world.status.outcome == "Failed"
    assert world.status.reason == "BackoffLimitExceeded"
    gaps = [round(b - a) for a, b in pairwise(starts)]
    assert gaps == [0, 1, 2]


@pytest.mark.parametrize(("lived_s", "exits"), [(1.0, 4), (None, 1)], ids=["it waited", "it lived"])
def test_a_start_that_waited_long_and_failed_at_once_is_backed_off(lived_s: float | None, exits: int) -> None:
    before = JobStatus(attempts={"worker-0": Attempt(failures=3, exits=3, instance="a")})
    turn = Turn.begin(make_spec(), ObservedJob(before), 500.0)
    ended = Process("worker-0", "worker", "b", "exited", exit_code=1, proven_dead=True, t_started=380.0)
    attempt = count_exit(turn, replace(ended, t_exited=500.0, lived_s=lived_s))
    assert attempt.exits == exits


def test_an_operator_whose_clock_was_ahead_holds_nothing_back_for_long() -> None:
    world = running(recovery__failover__timeoutSeconds=2)
    ahead_s = 3600.0
    world.kill("worker-0")
    world.turn(actions=0)
    version, text = world.store
    status = world.status
    later = replace(status.attempts["worker-0"], until=world.now + ahead_s)
    text = json.dumps(replace(status, attempts={"worker-0": later}, since={"x": world.now + ahead_s}).to_json())
    world.store = (version, text)
    world.run(LONGEST_DELAY_S - 1)
    assert not world.others["worker-0"].alive
    world.run(2.0)
    assert world.others["worker-0"].alive
    turn = Turn.begin(world.spec, ObservedJob(replace(status, since={"x": world.now + ahead_s})), world.now)
    assert turn.lasted("x", True, 5.0) is False
    assert turn.wake_at == world.now + 5.0


def test_kills_are_no_failures() -> None:
    world = running(runPolicy__backoffLimit=0)
    world.kill("worker-0")
    world.run(1.0)
    assert world.status.state == "Running"


@pytest.mark.parametrize("name", ["worker-0", "server-1"])
def test_exit_code_3_fails_the_job_at_once_with_its_message(name: str) -> None:
    world = running()
    world.end(name, code=3)
    owner = world.servers.get(name)
    if owner is not None:
        owner.process = replace(owner.process, reason="shapes differ")
    else:
        world.others[name] = replace(world.others[name], reason="shapes differ")
    world.turn()
    assert world.status.outcome == "Failed"
    assert world.status.message == f"{name}: shapes differ"
    world.run(5.0)
    assert not any(s.process.alive for s in world.servers.values())


def test_an_operator_that_dies_after_recording_an_incarnation_starts_the_same_one_later() -> None:
    world = running()
    world.kill("worker-0")
    world.turn(actions=0)
    world.turn()
    assert world.status.incarnations == {0: 2}
    assert world.others["worker-0"].incarnation == 2


def test_an_incarnation_that_was_ever_seen_is_not_used_again() -> None:
    """Its pod was removed by force while no operator ran: the process may live on, and must be fenced."""
    world = running()
    assert world.status.incarnations == {0: 1}
    del world.others["worker-0"]
    world.restart_operator()
    world.turn()
    assert world.status.incarnations == {0: 2}
    assert of(world, StartProcess)[-1].incarnation == 2
    world.turn()
    assert world.status.incarnations == {0: 2}, "what was started is not started again"


def test_sync_lends_a_slot_without_a_worker_after_grace_seconds() -> None:
    world = running(training__consistency="Sync", workers__replicas=2, workers__graceSeconds=5)
    world.held["worker-1"] = world.now + 1000
    world.kill("worker-1")
    world.run(4.8)
    assert not of(world, AssignSlot)
    world.run(0.5)
    assert of(world, AssignSlot)[0] == AssignSlot(1, 2, "worker-0")
    world.held.clear()
    world.run(0.3)
    assert world.others["worker-1"].incarnation == 3
    assert world.status.adopted == {}


@pytest.mark.parametrize(("lost", "adopter"), [((1,), "worker-0"), ((0,), "worker-1"), ((0, 1), "worker-2")])
def test_sync_lends_the_slot_of_a_worker_whose_node_is_lost(lost: tuple[int, ...], adopter: str) -> None:
    """Its pod runs by the API server's word for minutes; that it is not connected any more the head knows."""
    world = running(training__consistency="Sync", workers__replicas=3, workers__graceSeconds=5)
    for slot in lost:
        world.head().absent[slot] = world.now
    world.run(4.8)
    assert not of(world, AssignSlot)
    world.run(0.5)
    assert {a.slot: a.worker for a in of(world, AssignSlot)} == dict.fromkeys(lost, adopter)


@pytest.mark.parametrize("back", ["connected again", "started anew"])
def test_a_worker_that_comes_back_keeps_its_slot(back: str) -> None:
    world = running(training__consistency="Sync", workers__replicas=2, workers__graceSeconds=5)
    world.head().absent[1] = world.now
    world.run(2.0)
    if back == "connected again":
        world.head().absent.clear()
    else:  # and loads its data before it connects
        world.kill("worker-1")
    world.run(10.0)
    assert not of(world, AssignSlot)


def test_more_workers_are_started_and_the_heads_told() -> None:
    world = running()
    world.spec = make_spec(workers__replicas=3)
    world.run(0.2)
    assert [a.name for a in of(world, StartProcess)] == ["worker-1", "worker-2"]
    assert {a.slots for a in of(world, SetSlots)} == {3}
    world.spec = make_spec(workers__replicas=1)
    world.run(0.2)
    assert {a.name for a in of(world, TermProcess)} == {"worker-1", "worker-2"}

"""What waits costs the job nothing: no failure, no loss, no time of its deadline; and it is said, once a cause."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from plan_steps import condition
from plan_world import World, make_spec

from outlast_operator.planner.actions import Emit, KillProcess, StartProcess
from outlast_operator.planner.backoff import LONGEST_DELAY_S, delay_s
from outlast_operator.planner.plan import plan
from outlast_operator.planner.status import JobStatus, Wait
from outlast_operator.planner.waits import NAMES_SHOWN, summary
from outlast_operator.planner.workers import REFUSED_AGAIN_S

QUOTA = Wait("QuotaExceeded", "exceeded quota: team", retry_at=0.0)
NODE = Wait("Unschedulable", "no node takes it: 0/3 nodes are available")
NAMES = ("server-0", "server-1", "server-2", "worker-0")


def waiting_world(wait: Wait = QUOTA, **changes: Any) -> World:
    """Nothing of the job has ever started."""
    world = World(make_spec(**changes))
    world.waits = {name: replace(wait, retry_at=world.now + 1e9) for name in NAMES}
    return world


def events(world: World) -> list[Emit]:
    return [a for a in world.executed if isinstance(a, Emit)]


def test_a_job_whose_pods_are_refused_waits_without_end() -> None:
    world = waiting_world(runPolicy__backoffLimit=0, runPolicy__activeDeadlineSeconds=5)
    for _ in range(100):
        world.now += 10.0
        world.turn()
    assert (world.status.outcome, world.status.state, world.status.failover_count) == (None, "Pending", 0)
    assert condition(world, "PodsReady").reason == "QuotaExceeded"
    assert condition(world, "PodsReady").message == f"{', '.join(NAMES)}: exceeded quota: team"
    assert [(e.type, e.reason) for e in events(world)] == [("Warning", "QuotaExceeded")]


def test_each_cause_has_its_event_and_its_words() -> None:
    world = waiting_world()
    world.turn()
    del world.waits["worker-0"]
    world.turn()
    world.others["worker-0"] = replace(world.others["worker-0"], phase="starting")
    world.waits["worker-0"] = NODE
    for _ in range(3):
        world.turn()
    assert [e.reason for e in events(world)] == ["QuotaExceeded", "Unschedulable"]
    assert condition(world, "PodsReady").reason == "QuotaExceeded,Unschedulable"
    assert condition(world, "PodsReady").message == (
        "server-0, server-1, server-2: exceeded quota: team; worker-0: no node takes it: 0/3 nodes are available"
    )


def test_the_words_go_with_the_cause() -> None:
    world = waiting_world()
    world.turn()
    world.waits = {}
    world.turn()
    world.turn()
    assert condition(world, "PodsReady").status == "True"
    assert world.status.waits == {}


def test_a_deadline_does_not_count_what_was_waited() -> None:
    world = waiting_world(runPolicy__activeDeadlineSeconds=60)
    for _ in range(10):
        world.now += 100.0
        world.turn()
    world.waits = {}
    world.run(2.0)
    assert world.status.waited_s == pytest.approx(900.0, abs=1.0)
    world.now += 50.0
    world.run(1.0)
    assert world.status.outcome is None
    world.now += 10.0
    world.run(1.0)
    assert world.status.reason == "DeadlineExceeded"
    assert "s of waiting not counted" in world.status.message


def test_while_a_job_trains_a_wait_does_not_stop_its_clock() -> None:
    world = World(make_spec(runPolicy__activeDeadlineSeconds=60))
    world.run(2.0)
    world.waits = {"server-2": NODE}
    world.servers["server-2"].process = replace(world.servers["server-2"].process, phase="starting")
    world.run(1.0)
    world.now += 60.0
    world.run(1.0)
    assert world.status.reason == "DeadlineExceeded"


@pytest.mark.parametrize("wait", [QUOTA, NODE], ids=["refused", "no node"])
def test_a_start_deadline_makes_a_failure_of_a_wait(wait: Wait) -> None:
    world = waiting_world(wait, runPolicy__startDeadlineSeconds=30)
    world.turn()
    world.now += 29.0
    world.turn()
    assert world.status.outcome is None
    world.now += 2.0
    world.turn()
    assert world.status.reason == "StartDeadlineExceeded"
    assert wait.message in world.status.message
    assert condition(world, "PodsReady").status == "Unknown"


def test_a_start_deadline_is_none_for_a_job_that_trains() -> None:
    world = World(make_spec(runPolicy__startDeadlineSeconds=10))
    world.run(2.0)
    world.servers["server-2"].process = replace(world.servers["server-2"].process, phase="starting")
    world.waits = {"server-2": NODE}
    for _ in range(5):
        world.run(0.2)
        world.now += 10.0
    assert condition(world, "PodsReady").reason == "Unschedulable"
    assert world.status.outcome is None


def test_a_start_deadline_does_not_count_while_the_job_is_suspended() -> None:
    """It was created so, for a queue, and what its pods need is refused meanwhile."""
    world = World(make_spec(suspend=True, runPolicy__startDeadlineSeconds=60))
    world.waits = {"Secret mnist-token": replace(QUOTA, retry_at=1e12, blocks=True)}
    for _ in range(12):
        world.turn()
        world.advance(10.0)
    assert world.status.outcome is None
    world.spec = make_spec(runPolicy__startDeadlineSeconds=60)
    world.turn()
    world.advance(59.0)
    world.turn()
    assert world.status.outcome is None, "it counts from the end of the suspension"
    world.advance(1.0)
    world.turn()
    assert world.status.reason == "StartDeadlineExceeded"


@pytest.mark.parametrize(("trained", "outcome"), [(False, "Failed"), (True, None)])
def test_a_wrong_template_ends_a_job_only_before_it_has_trained(trained: bool, outcome: str | None) -> None:
    world = World(make_spec(workers__replicas=2))
    if trained:
        world.run(2.0)
        world.kill("server-2")
    final = Wait("TemplateInvalid", 'unknown field "spec.nodeSelectr"', retry_at=1e12, final=True)
    world.waits = {"server-2": final}
    world.run(1.0)
    assert world.status.outcome == outcome
    if trained:
        assert condition(world, "PodsReady").reason == "TemplateInvalid"
        assert condition(world, "PrimaryAvailable").status == "True"
    else:
        assert (world.status.reason, world.status.message) == (
            "TemplateInvalid",
            'server-2: unknown field "spec.nodeSelectr"',
        )


def test_a_lost_server_whose_replacement_is_refused_is_lost_once() -> None:
    world = World(make_spec(workers__replicas=2))
    world.run(2.0)
    world.kill("server-0")
    world.run(1.0)
    world.kill("server-1")
    world.waits = {"server-1": replace(QUOTA, reason="WebhookFailed", retry_at=1e12)}
    for _ in range(20):
        world.run(0.1)
        world.now += 0.5
    assert world.status.failover_count == 2
    assert world.status.outcome is None
    assert condition(world, "PodsReady").reason == "WebhookFailed"
    assert condition(world, "PrimaryAvailable").status == "True"
    assert world.status.state == "Running"


@pytest.mark.parametrize(
    ("name", "others", "asked"),
    [
        ("server-0", {}, True),
        ("server-1", {"server-0": "QuotaExceeded"}, False),
        ("worker-0", {"server-0": "QuotaExceeded"}, True),
        ("server-1", {"server-0": "PodSecurityViolated"}, True),
    ],
    ids=["the first", "the second of its role", "the first of another role", "for another reason"],
)
def test_of_those_refused_for_one_reason_the_first_is_asked_for_again(
    name: str, others: dict[str, str], asked: bool
) -> None:
    world = World(make_spec())
    world.waits = {other: replace(QUOTA, reason=reason, retry_at=1e12) for other, reason in others.items()}
    world.waits[name] = replace(QUOTA, retry_at=world.now)
    turn = plan(world.spec, world.observe(), world.now)
    started = {a.name for a in turn.actions if isinstance(a, StartProcess)}
    assert (name in started) is asked
    assert not started & set(others)


SINGLE = pytest.mark.parametrize("strategy", ["Checkpoint", "Stateless"])


@SINGLE
def test_a_shard_with_one_server_is_ready_with_one(strategy: str) -> None:
    world = World(make_spec(strategy))
    world.turn()
    assert condition(world, "PodsReady").reason == "Starting"
    world.run(2.0)
    assert (condition(world, "PodsReady").status, condition(world, "PodsReady").reason) == ("True", "AllRun")


@SINGLE
def test_a_stand_in_that_is_refused_is_said_for_as_long_as_it_is_wanted(strategy: str) -> None:
    world = World(make_spec(strategy))
    world.run(2.0)
    world.servers["server-0"].leaving = True
    world.waits = {"server-1": replace(QUOTA, retry_at=1e12)}
    world.run(1.0)
    assert condition(world, "PodsReady").message == "server-1: exceeded quota: team"
    world.kill("server-0")
    world.run(1.0)
    assert world.servers["server-0"].process.alive, "its name is started again"
    assert world.status.waits == {}
    assert condition(world, "PodsReady").status == "True"


@SINGLE
def test_a_stand_in_that_runs_instead_of_the_first_name_is_all_that_a_shard_needs(strategy: str) -> None:
    world = World(make_spec(strategy))
    world.run(2.0)
    world.servers["server-0"].leaving = True
    world.run(8.0)
    assert world.members() == ["server-1"]
    assert not world.servers["server-0"].process.alive
    assert condition(world, "PodsReady").status == "True"
    world.servers["server-1"].process = replace(world.servers["server-1"].process, phase="starting")
    world.waits = {"server-1": NODE}
    world.turn()
    assert condition(world, "PodsReady").message == f"server-1: {NODE.message}"


@SINGLE
def test_a_name_that_is_not_wanted_any_more_keeps_no_other_from_being_asked_for(strategy: str) -> None:
    """The quota fits the job exactly, and takes a moment to count a pod that has ended."""
    world = World(make_spec(strategy))
    world.run(2.0)
    world.servers["server-0"].leaving = True
    world.waits = {"server-1": replace(QUOTA, retry_at=world.now + 0.5)}
    world.run(0.3)
    world.kill("server-0")
    world.waits["server-0"] = replace(QUOTA, retry_at=world.now + 0.5)
    world.run(5.0)
    assert world.servers["server-0"].process.alive


def test_an_entry_of_a_lowered_number_of_workers_stands_for_nobody() -> None:
    world = World(make_spec(workers__replicas=2))
    world.waits = {f"worker-{slot}": replace(QUOTA, retry_at=world.now + 0.5) for slot in (5, 1, 0)}
    world.run(1.0)
    assert world.others["worker-0"].alive


def test_a_name_in_back_off_stands_for_nobody() -> None:
    world = World(make_spec(workers__replicas=2))
    world.run(2.0)
    for name in ("worker-0", "worker-1"):
        world.kill(name)
    world.held["worker-0"] = world.now + 60.0
    world.waits = {f"worker-{slot}": replace(QUOTA, retry_at=world.now) for slot in (0, 1)}
    world.run(1.0)
    assert world.others["worker-1"].alive
    assert not world.others["worker-0"].alive


@pytest.mark.parametrize("consistency", ["Sync", "BoundedStaleness"])
def test_a_slot_whose_worker_is_refused_is_lent_after_its_grace(
    consistency: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request is refused at once, and sent again 3 s later."""
    world = World(make_spec(training__consistency=consistency, workers__replicas=2, workers__graceSeconds=10))
    world.run(2.0)
    execute, asked = world.execute, []

    def refuse(action: Any) -> None:
        if isinstance(action, StartProcess) and action.name == "worker-0":
            asked.append(world.now)
            world.waits["worker-0"] = replace(QUOTA, retry_at=world.now + 3.0)
        else:
            execute(action)

    monkeypatch.setattr(world, "execute", refuse)
    world.kill("worker-0")
    t_lost, lent = world.now, 0
    while world.now < t_lost + 120.0:
        world.turn()
        world.turn()
        lent += world.status.adopted == {0: 1}
        world.advance(0.5)
    assert lent > 200, "but for the grace and the turn of each request"
    assert 4 <= len(asked) <= 10
    assert world.wrongs == []
    monkeypatch.undo()
    while not world.others["worker-0"].alive:
        assert world.now < t_lost + 120.0 + REFUSED_AGAIN_S + 1.0
        world.turn()
        world.advance(0.5)
    granted = world.others["worker-0"]
    world.others["worker-0"] = replace(granted, phase="starting")
    world.waits.pop("worker-0", None)
    world.run(5.0)
    world.others["worker-0"] = replace(world.others["worker-0"], phase="running")
    world.run(5.0)
    assert world.others["worker-0"].instance == granted.instance, "it has its own time to start"
    assert world.status.adopted == {}


@pytest.mark.parametrize("consistency", ["Sync", "BoundedStaleness"])
@pytest.mark.parametrize("slot", [0, 1], ids=["the borrower moves its clock", "its clock stands"])
def test_a_slot_whose_pods_nodes_reject_is_lent_after_its_grace(consistency: str, slot: int) -> None:
    """No pod of it lives for longer than a second. The world tells of the clock of slot 0 alone."""
    world = World(make_spec(training__consistency=consistency, workers__replicas=2, workers__graceSeconds=60))
    world.run(2.0)
    name = f"worker-{slot}"
    ended = {"phase": "exited", "never_ran": True, "lived_s": 0.0, "reason": "UnexpectedAdmissionError"}
    lent, starts = 0, world.starts
    for _ in range(300):
        if world.others[name].alive:
            world.others[name] = replace(world.others[name], **ended, t_exited=world.now)
        for _ in range(3):
            world.turn()
            if world.others[name].alive:
                world.others[name] = replace(world.others[name], phase="starting")
        lent += world.status.adopted == {slot: 1 - slot}
        world.advance(1.0)
    assert lent > 210, "but for the grace and the turn of each start"
    assert 8 <= world.starts - starts <= 20, "with back-off: each start takes the slot from its borrower"
    assert world.wrongs == []


def test_the_loop_wakes_when_a_request_may_be_sent_again() -> None:
    world = waiting_world()
    world.waits = {name: replace(QUOTA, retry_at=world.now + 3.0) for name in NAMES}
    assert plan(world.spec, world.observe(), world.now).wake_at == world.now + 3.0


def test_nothing_of_a_new_job_starts_before_what_its_pods_need() -> None:
    world = World(make_spec())
    world.waits = {"Secret mnist-token": replace(QUOTA, retry_at=world.now + 2.0, blocks=True)}
    turn = plan(world.spec, world.observe(), world.now)
    assert not [a for a in turn.actions if isinstance(a, StartProcess)]
    assert turn.wake_at == world.now + 2.0


def test_another_operator_keeps_the_words_until_its_own_request_is_answered() -> None:
    world = waiting_world()
    world.turn()
    world.waits = {}
    status = plan(world.spec, world.observe(), world.now).status
    assert set(status.waits) == set(NAMES)


def test_a_pod_that_waits_with_an_old_template_is_replaced() -> None:
    world = World(make_spec())
    world.turn()
    process = replace(world.servers["server-0"].process, phase="starting")
    world.servers["server-0"].process = process
    world.waits = {"server-0": replace(NODE, outdated=True)}
    killed = [a for a in plan(world.spec, world.observe(), world.now).actions if isinstance(a, KillProcess)]
    assert [(a.name, a.instance) for a in killed] == [("server-0", process.instance)]


@pytest.mark.parametrize("code", [None, 1, 137])
def test_a_process_that_never_ran_is_no_loss_and_no_failure(code: int | None) -> None:
    world = World(make_spec(runPolicy__backoffLimit=0))
    world.run(2.0)
    ended = {"phase": "exited", "exit_code": code, "proven_dead": code is not None, "never_ran": True, "lived_s": 0.0}
    for _ in range(3):
        world.others["worker-0"] = replace(world.others["worker-0"], **ended, t_exited=world.now)
        world.run(0.2)
        world.now += 0.5 + 30.0 * (not world.others["worker-0"].alive)
        world.run(0.2)
    assert world.status.outcome is None
    assert world.status.failover_count == 0
    assert not [e for e in events(world) if e.reason == "WorkerLost"]


def test_a_pod_that_nodes_refuse_again_and_again_waits_in_their_words() -> None:
    world = World(make_spec())
    world.run(1.0)
    refused = {"phase": "exited", "never_ran": True, "lived_s": 0.0, "reason": "OutOfcpu: node has too little"}
    for tries, shown in ((1, {}), (2, {"worker-0": Wait("PodRejected", "OutOfcpu: node has too little")})):
        process = replace(world.others["worker-0"], **refused, t_exited=world.now, instance=f"refused-{tries}")
        world.others["worker-0"] = process
        assert plan(world.spec, world.observe(), world.now).status.waits == shown
        world.turn(actions=0)
        world.turn(actions=0)


def test_a_back_off_is_as_long_after_weeks() -> None:
    assert delay_s(100_000) == LONGEST_DELAY_S


def test_a_pod_that_was_deleted_before_it_ran_is_rejected_by_no_node() -> None:
    world = World(make_spec())
    world.run(1.0)
    deleted = {"phase": "exited", "never_ran": True, "lived_s": 0.0, "reason": "its pod was deleted", "leaving": True}
    for tries in range(3):
        server = world.servers["server-2"]
        server.process = replace(server.process, **deleted, t_exited=world.now, instance=f"deleted-{tries}")
        assert plan(world.spec, world.observe(), world.now).status.waits == {}
        world.turn(actions=0)
        world.turn(actions=0)
    assert world.status.attempts["server-2"].exits == 3
    assert condition(world, "PodsReady").reason == "Starting"


def test_words_name_a_few_and_count_the_rest() -> None:
    waits = {f"worker-{slot}": QUOTA for slot in range(NAMES_SHOWN + 3)}
    reasons, words = summary(waits)
    assert reasons == "QuotaExceeded"
    assert words == "worker-0, worker-1, worker-2, worker-3, worker-4 and 3 more: exceeded quota: team"


def test_waits_are_remembered() -> None:
    status = JobStatus(waits={"server-0": Wait("QuotaExceeded", "exceeded quota")}, waited_s=3.0)
    assert JobStatus.from_json(status.to_json()) == status


# --- the state of a young job ---


@pytest.mark.parametrize(("updated", "state"), [(False, "Starting"), (True, "FailingOver")])
def test_a_head_that_serves_no_more_is_a_failover_only_after_an_update(updated: bool, state: str) -> None:
    world = World(make_spec())
    world.run(1.0)
    assert world.status.t_running is not None
    head = world.head().process.name
    probe = replace(world.heard[head], serving=False)
    status = world.status
    if not updated:
        probe = replace(probe, views={})
        status = replace(status, progress=replace(status.progress, gradients={}))
    observed = replace(world.observe(), status=status)
    probes = {name: replace(p, views={} if not updated else p.views) for name, p in observed.probes.items()}
    observed = replace(observed, probes={**probes, head: probe})
    assert plan(world.spec, observed, world.now).status.state == state


# --- the evaluator ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1, 3, 137])
def test_an_evaluator_that_fails_never_ends_the_training(code: int) -> None:
    world = World(make_spec(training__evaluate={"everySeconds": 5}, runPolicy__backoffLimit=1))
    world.run(2.0)
    assert condition(world, "EvaluationHealthy").status == "True"
    for _ in range(6):
        world.end("evaluator", code=code)
        world.run(0.1)
        world.now += 30.0
        world.run(0.1)
    assert world.status.outcome is None
    assert condition(world, "EvaluationHealthy").reason == "EvaluatorFailed"
    assert f"exit code {code}" in condition(world, "EvaluationHealthy").message
    assert world.others["evaluator"].alive, "it is started again"


def test_a_final_evaluation_that_cannot_start_does_not_keep_the_job() -> None:
    world = World(make_spec(training__evaluate={"everySeconds": 5}, training__stopAfter__updates=50))
    world.turn()
    world.end("evaluator", code=1)
    world.waits = {"evaluator": replace(QUOTA, retry_at=1e12)}
    world.run(4.0)
    assert world.status.goal == "updates"
    world.now += 600.0
    world.run(2.0)
    assert world.status.outcome == "Succeeded"
    assert [e for e in events(world) if e.reason == "NoFinalEvaluation"]

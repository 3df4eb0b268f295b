"""How a pod reads as a process: when it runs, when it has ended, what proves it dead, what is said of it."""

from __future__ import annotations

from typing import Any

import pytest

from outlast_operator.kubernetes.job.pods import (
    OVERDUE_S,
    UNMOUNTED_S,
    PodView,
    Since,
    parse_time,
    pull_trouble,
    read_pod,
)
from outlast_operator.planner.backoff import is_own_error
from outlast_operator.planner.observed import Process
from outlast_operator.planner.status import Wait

NOW = parse_time("2026-01-01T00:10:00Z")
Json = dict[str, Any]


def pod(status: Json | None = None, role: str = "server", **meta: Any) -> Json:
    return {
        "metadata": {
            "name": f"job-{role}-0-abcde",
            "namespace": "n",
            "uid": "u1",
            "labels": {"outlast.dev/role": role},
            "annotations": {"outlast.dev/process": f"{role}-0", "outlast.dev/incarnation": "2"},
            "creationTimestamp": "2026-01-01T00:00:00Z",
            **meta,
        },
        "status": status or {},
    }


def state(restarts: int = 0, last: Json | None = None, **now: Any) -> Json:
    name = "outlast"
    return {
        "podIP": "10.0.0.7",
        "containerStatuses": [{"name": name, "state": now, "lastState": last or {}, "restartCount": restarts}],
    }


def read(obj: Json, gone: bool = False) -> PodView:
    view = read_pod(obj, NOW, Since(), gone)
    assert view is not None
    return view


ENDED = {"exitCode": 137, "reason": "Error"}
PULL = {"reason": "ImagePullBackOff", "message": "no such image x:1"}


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        pytest.param({}, {"phase": "starting"}, id="no status yet"),
        pytest.param(state(running={}), {"phase": "running", "address": "tcp:10.0.0.7:7070"}, id="running"),
        pytest.param(
            state(terminated=ENDED),
            {"phase": "exited", "exit_signal": 9, "exit_code": None, "proven_dead": True},
            id="killed: the kubelet's word is proof",
        ),
        pytest.param(
            state(terminated={"exitCode": 3, "message": "line\noutlast: no such task"}),
            {"phase": "exited", "exit_code": 3, "exit_signal": None, "reason": "outlast: no such task"},
            id="its last words",
        ),
        pytest.param(
            state(terminated={"exitCode": 0, "reason": "Completed"}),
            {"exit_code": 0, "proven_dead": True, "reason": ""},
            id="done",
        ),
        pytest.param({"phase": "Failed", "reason": "Evicted"}, {"phase": "exited", "proven_dead": False}, id="evicted"),
        pytest.param(state(waiting=PULL), {"phase": "starting", "never_ran": False}, id="an image may still come"),
        pytest.param(
            state(restarts=1, last={"terminated": ENDED}, waiting={"reason": "CrashLoopBackOff"}),
            {"phase": "exited", "instance": "u1.1"},
            id="waits to be restarted in place",
        ),
        pytest.param(state(restarts=2, running={}), {"phase": "running", "instance": "u1.2"}, id="restarted in place"),
    ],
)
def test_phases(status: Json, expected: Json) -> None:
    view = read(pod(status))
    assert {key: getattr(view, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("states", "phase", "proven_dead"),
    [
        ({"istio-proxy": {"terminated": ENDED}, "trainer": {"running": {}}}, "running", False),
        ({"istio-proxy": {"running": {}}, "trainer": {"terminated": ENDED}}, "exited", True),
        ({"istio-proxy": {"terminated": ENDED}}, "starting", False),
    ],
    ids=["a sidecar ended: ours runs on", "ours ended beside a living sidecar", "nothing is known of ours yet"],
)
def test_a_sidecar_does_not_speak_for_the_process(states: dict[str, Json], phase: str, proven_dead: bool) -> None:
    statuses = [{"name": name, "state": state} for name, state in sorted(states.items())]  # as the kubelet sorts them
    obj = pod({"containerStatuses": statuses})
    obj["metadata"]["annotations"]["outlast.dev/container"] = "trainer"
    view = read(obj)
    assert (view.phase, view.proven_dead) == (phase, proven_dead)


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        ("ErrImagePull", "ImagePullBackOff"),
        ("ImagePullBackOff", "ImagePullBackOff"),
        ("ErrImageNeverPull", "ErrImageNeverPull"),
        ("InvalidImageName", "InvalidImageName"),
        ("CreateContainerConfigError", "CreateContainerConfigError"),
        ("CreateContainerError", "CreateContainerError"),
        ("RunContainerError", "RunContainerError"),
    ],
)
@pytest.mark.parametrize("whose", ["containerStatuses", "initContainerStatuses"])
def test_what_the_kubelet_cannot_start_waits_in_its_words(reason: str, shown: str, whose: str) -> None:
    waiting = {"reason": reason, "message": 'secret "data" not found'}
    view = read(pod({whose: [{"name": "outlast", "state": {"waiting": waiting}}]}))
    assert (view.phase, view.alive) == ("starting", True)
    assert view.wait is not None
    assert view.wait.reason == shown
    assert view.wait.message.endswith(': secret "data" not found')


@pytest.mark.parametrize(
    ("status", "gone", "never_ran"),
    [
        (state(waiting=PULL), True, True),
        ({"phase": "Failed", "reason": "OutOfcpu"}, False, True),
        (state(running={}), True, False),
        (state(terminated=ENDED), False, False),
        ({"phase": "Failed", "reason": "Evicted", **state(running={})}, False, False),
    ],
    ids=["deleted while its image was pulled", "refused by its node", "deleted while it ran", "ended", "evicted"],
)
def test_whether_a_pod_that_has_ended_ever_ran(status: Json, gone: bool, never_ran: bool) -> None:
    view = read(pod(status), gone)
    assert (view.alive, view.never_ran) == (False, never_ran)


def test_what_the_registry_said_is_remembered_while_the_kubelet_waits() -> None:
    said = pull_trouble(pod(state(waiting={"reason": "ErrImagePull", "message": "x:1: not found"})))
    assert said == "x:1: not found"
    assert pull_trouble(pod(state(waiting=PULL))) == ""
    waiting = pod(state(waiting={"reason": "ImagePullBackOff", "message": "Back-off pulling image"}))
    view = read_pod(waiting, NOW, Since(), trouble=said)
    assert view is not None
    assert view.wait == Wait("ImagePullBackOff", "its image cannot be pulled: x:1: not found")


@pytest.mark.parametrize(
    ("ended", "lived_s"),
    [
        ({"startedAt": "2026-01-01T00:05:00Z", "finishedAt": "2026-01-01T00:05:07Z"}, 7.0),
        ({"startedAt": "1970-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:05:07Z"}, 0.0),
        ({"startedAt": None, "finishedAt": None}, 0.0),
    ],
    ids=["seven seconds", "it could not be started", "the kubelet does not know"],
)
def test_a_life_is_what_the_container_ran(ended: Json, lived_s: float) -> None:
    assert read(pod(state(terminated={"exitCode": 1, **ended}))).lived_s == lived_s


def test_memory_is_named_as_the_cause() -> None:
    view = read(pod(state(terminated={"exitCode": 137, "reason": "OOMKilled"})))
    assert "more memory than its limit" in view.reason


@pytest.mark.parametrize(
    ("ended", "code", "signal", "own"),
    [
        ({"exitCode": 137, "reason": "Error"}, None, 9, False),
        ({"exitCode": 139, "reason": "Error"}, None, 11, True),
        ({"exitCode": 137, "reason": "OOMKilled"}, 137, None, True),
        ({"exitCode": 255, "reason": "Error"}, 255, None, True),
        ({"exitCode": 200, "reason": "Error"}, 200, None, True),
        ({"exitCode": 128, "reason": "StartError"}, 128, None, True),
        ({"exitCode": 0, "reason": "Completed"}, 0, None, False),
    ],
    ids=["killed", "crashed", "out of memory", "sys.exit(-1)", "sys.exit(200)", "no such command", "done"],
)
def test_what_counts_towards_the_backoff_limit(ended: Json, code: int | None, signal: int | None, own: bool) -> None:
    view = read(pod(state(terminated=ended), role="worker"))
    assert (view.exit_code, view.exit_signal) == (code, signal)
    process = Process(
        "worker-0", "worker", "u", "exited", exit_code=view.exit_code, exit_signal=view.exit_signal, proven_dead=True
    )
    assert is_own_error(process) is own


def test_an_object_that_is_gone_proves_nothing_by_itself() -> None:
    assert read(pod(state(running={})), gone=True).proven_dead is False
    assert read(pod(state(running={})), gone=True).phase == "exited"
    assert read(pod(state(terminated=ENDED)), gone=True).proven_dead is True


@pytest.mark.parametrize("skew_s", [-3600.0, 0.0, 3600.0], ids=["our clock is behind", "clocks agree", "ours is ahead"])
def test_a_pod_that_should_be_gone_is_on_a_node_that_does_not_answer(skew_s: float) -> None:
    leaving = pod(state(running={}), deletionTimestamp="2026-01-01T00:10:30Z", deletionGracePeriodSeconds=30)
    seen, since = NOW + skew_s, Since()
    for after_s, alive in ((0.0, True), (30 + OVERDUE_S, True), (31 + OVERDUE_S, False)):
        since.note(leaving, seen + after_s)
        view = read_pod(leaving, seen + after_s, since)
        assert view is not None
        assert (view.alive, view.deleting, view.proven_dead) == (alive, True, False), after_s


READY, CONTAINERS = "Ready", "ContainersReady"


def conditions(ready: str, containers: str, reason: str | None = None) -> Json:
    said: Json = {"type": READY, "status": ready, **({} if reason is None else {"reason": reason})}
    return {**state(running={}), "conditions": [said, {"type": CONTAINERS, "status": containers}]}


@pytest.mark.parametrize(
    ("status", "unreachable"),
    [
        (conditions("True", "True"), False),
        (conditions("False", "True"), True),
        (conditions("False", "False", "ContainersNotReady"), False),
        (conditions("False", "True", "ReadinessGatesNotReady"), False),
        (state(running={}), False),
    ],
    ids=["ready", "its node does not answer", "its probe fails", "a readiness gate is closed", "nothing is said"],
)
def test_the_node_controllers_word_is_told_from_the_kubelets(status: Json, unreachable: bool) -> None:
    assert read(pod(status)).unreachable is unreachable
    leaving = read(pod(status, deletionTimestamp="2026-01-01T00:10:30Z", deletionGracePeriodSeconds=3600))
    assert (leaving.alive, leaving.deleting) == (not unreachable, True), "nobody waits for the grace of a lost node"
    assert not leaving.proven_dead
    assert leaving.reason == ("its node does not answer" if unreachable else "")


def test_a_container_that_ended_before_its_node_was_lost_is_proved_dead() -> None:
    status = {**conditions("False", "True"), "containerStatuses": state(terminated=ENDED)["containerStatuses"]}
    assert read(pod(status, deletionTimestamp="2026-01-01T00:10:30Z")).proven_dead


@pytest.mark.parametrize(
    ("reason", "message", "shown"),
    [
        ("Unschedulable", "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.", "Unschedulable"),
        ("SchedulingGated", "Scheduling is blocked due to non-empty scheduling gates", "SchedulingGated"),
        ("Unschedulable", "0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims.", "ClaimUnbound"),
        ("Unschedulable", 'persistentvolumeclaim "data" not found', "ClaimUnbound"),
    ],
)
def test_why_no_node_takes_it(reason: str, message: str, shown: str) -> None:
    condition = {"type": "PodScheduled", "status": "False", "reason": reason, "message": message}
    assert read(pod({"conditions": [condition]})).wait == Wait(shown, f"no node takes it: {message}")


def test_what_is_no_process_of_a_job() -> None:
    assert read_pod(pod(annotations={}), NOW, Since()) is None
    assert read_pod(pod(role="sidecar"), NOW, Since()) is None


def test_the_incarnation_of_a_worker() -> None:
    assert read(pod(role="worker")).incarnation == 2


SCHEDULED = {"type": "PodScheduled", "status": "True"}
UNMOUNTED = {"type": "PodReadyToStartContainers", "status": "False"}


@pytest.mark.parametrize(
    ("conditions", "unmounted_s", "held"),
    [
        pytest.param(
            [{"type": "PodScheduled", "status": "False", "message": m}], 0.0, True, id=m.partition(",")[0]
        )
        for m in (
            "0/3 nodes are available: 1 node(s) were unschedulable, 2 node(s) had volume node affinity conflict.",
            "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) didn't match PersistentVolume's node affinity.",
        )
    ]
    + [
        pytest.param(
            [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available: 3 Insufficient cpu."}],
            0.0,
            False,
            id="no room anywhere",
        ),
        pytest.param([SCHEDULED, UNMOUNTED], UNMOUNTED_S - 1, False, id="its volume is on its way"),
        pytest.param([SCHEDULED, UNMOUNTED], UNMOUNTED_S, True, id="its volume does not come"),
        pytest.param([SCHEDULED, {**UNMOUNTED, "status": "True"}], 99.0, False, id="its image is pulled"),
    ],
)  # fmt: skip
def test_whether_its_claim_holds_a_server_back(conditions: list[Json], unmounted_s: float, held: bool) -> None:
    obj = pod({"conditions": conditions})
    obj["metadata"]["annotations"]["outlast.dev/claim"] = "3"
    since = Since()
    since.note(obj, NOW - unmounted_s)
    view = read_pod(obj, NOW, since)
    assert view is not None
    assert (bool(view.held_by_claim), view.claim) == (held, 3)
    assert view.claim_out_of_reach == (held and not unmounted_s), "by the scheduler's word alone"

"""How a pod reads as a process: when it runs, when it has ended, what proves it dead, what is said of it."""

from __future__ import annotations

from typing import Any

import pytest

from outlast_operator.backoff import is_own_error
from outlast_operator.kubernetes.pods import OVERDUE_S, STUCK_S, PodView, Since, parse_time, pull_trouble, read_pod
from outlast_operator.state import Process

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


def read(obj: Json, stuck_s: float = 1.0, gone: bool = False) -> PodView:
    view = read_pod(obj, NOW, Since(stuck=NOW - stuck_s), gone)
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


def test_an_image_that_cannot_be_pulled_is_a_start_that_failed() -> None:
    view = read(pod(state(waiting=PULL)), stuck_s=STUCK_S)
    assert (view.phase, view.exit_code, view.proven_dead, view.never_ran) == ("exited", 1, True, True)
    assert view.reason == "its image cannot be pulled: no such image x:1"


def test_what_the_registry_said_is_remembered_while_the_kubelet_waits() -> None:
    said = pull_trouble(pod(state(waiting={"reason": "ErrImagePull", "message": "x:1: not found"})))
    assert said == "x:1: not found"
    assert pull_trouble(pod(state(waiting=PULL))) == ""
    waiting = pod(state(waiting={"reason": "ImagePullBackOff", "message": "Back-off pulling image"}))
    view = read_pod(waiting, NOW, Since(), trouble=said)
    assert view is not None
    assert view.waits == "its image cannot be pulled: x:1: not found"


def test_a_name_that_is_none_needs_no_second_try() -> None:
    view = read(pod(state(waiting={"reason": "InvalidImageName", "message": "bad"})), stuck_s=0.0)
    assert (view.phase, view.exit_code) == ("exited", 3)


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


def test_why_no_node_takes_it() -> None:
    condition = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes have nvidia.com/gpu"}
    assert read(pod({"conditions": [condition]})).waits == "no node takes it: 0/3 nodes have nvidia.com/gpu"


def test_what_is_no_process_of_a_job() -> None:
    assert read_pod(pod(annotations={}), NOW, Since()) is None
    assert read_pod(pod(role="sidecar"), NOW, Since()) is None


def test_the_incarnation_of_a_worker() -> None:
    assert read(pod(role="worker")).incarnation == 2

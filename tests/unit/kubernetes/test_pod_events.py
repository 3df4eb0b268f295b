"""What Events alone tell: volumes that cannot be mounted, claims that cannot be bound; asked for only while needed."""

from __future__ import annotations

from typing import Any

import pytest
from fake_api import AtOnce

from outlast_operator.kubernetes.cluster.api import ApiError
from outlast_operator.kubernetes.job.pod_events import ASK_S, DENIED_S, PodEvents, wait_of
from outlast_operator.kubernetes.job.pods import PodView
from outlast_operator.planner.status import Wait

Json = dict[str, Any]
PLACED = PodView("u1", "mnist-server-0-x", "server-0", "server", is_placed=True, claims=frozenset({"data"}))
UNBOUND = PodView("u1", "p", "server-0", "server", wait=Wait("ClaimUnbound", "unbound"), claims=frozenset({"data"}))


def event(reason: str, message: str, kind: str = "Pod", at: str = "10:00:00", **about: str) -> Json:
    about = {"kind": kind, "uid": "u1", "name": "data", **about}
    return {"involvedObject": about, "reason": reason, "message": message, "lastTimestamp": f"2026-01-01T{at}Z"}


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([event("FailedMount", 'configmap\n "code"  not found')], Wait("FailedMount", 'configmap "code" not found')),
        ([event("FailedAttachVolume", "Multi-Attach error")], Wait("FailedAttachVolume", "Multi-Attach error")),
        ([event("FailedCreatePodSandBox", "no network")], Wait("FailedCreatePodSandBox", "no network")),
        (
            [event("FailedBinding", "no storage class is set", "PersistentVolumeClaim", uid="c1")],
            Wait("ClaimUnbound", "claim data: FailedBinding: no storage class is set"),
        ),
        (
            [event("ProvisioningFailed", "only supports ReadWriteOnce", "PersistentVolumeClaim", uid="c1")],
            Wait("ClaimUnbound", "claim data: ProvisioningFailed: only supports ReadWriteOnce"),
        ),
        ([event("WaitForFirstConsumer", "waiting", "PersistentVolumeClaim")], None),
        ([event("FailedBinding", "no", "PersistentVolumeClaim", name="another")], None),
        ([event("FailedMount", "no", uid="u2")], None),
        ([event("FailedMount", "no"), event("Pulling", "image", at="10:00:05")], None),
        ([event("FailedMount", "no", at="10:00:09"), event("Pulled", "image")], Wait("FailedMount", "no")),
        ([event("Pulling", "image")], None),
        (
            [event("FailedMount", "old", at="09:00:00"), event("FailedMount", "new", at="09:30:00")],
            Wait("FailedMount", "new"),
        ),
    ],
    ids=[
        "mount",
        "attach",
        "sandbox",
        "no class",
        "provisioner",
        "first consumer",
        "another claim",
        "another pod",
        "it was mounted later",
        "mounted anew after a restart of the kubelet",
        "no trouble",
        "the newest",
    ],
)
def test_the_newest_word_of_a_pod_or_its_claims(events: list[Json], expected: Wait | None) -> None:
    assert wait_of(PLACED, events) == expected


class Server:
    """An API server's events, and how often they were asked for."""

    def __init__(self, *events: Json, error: ApiError | None = None) -> None:
        self.events, self.error, self.now = list(events), error, 100.0
        self.asked: list[str] = []
        self.woken = 0
        self.follower = PodEvents(self, "n", AtOnce(), lambda: self.now, self.wake)  # type: ignore[arg-type]

    def wake(self) -> None:
        self.woken += 1

    def list(self, group: str, namespace: str, plural: str, **query: str) -> Json:
        if self.error is not None:
            raise self.error
        kind = query["fieldSelector"].removeprefix("involvedObject.kind=")
        self.asked.append(kind)
        return {"items": [e for e in self.events if e["involvedObject"]["kind"] == kind]}


@pytest.mark.parametrize("view", [PLACED, UNBOUND], ids=["it has a node", "it waits for a claim"])
def test_a_pod_that_does_not_start_is_asked_about_now_and_then(view: PodView) -> None:
    server = Server(event("FailedMount", "no"))
    for _ in range(10):
        server.follower.follow([view])
        server.now += ASK_S / 4
    assert server.asked == ["Pod", "PersistentVolumeClaim"] * 3
    assert server.follower.told == {"u1": Wait("FailedMount", "no")}
    assert server.woken == 1, "what is said once more is no news"


@pytest.mark.parametrize(
    "view",
    [
        PodView("u1", "p", "server-0", "server"),
        PodView("u1", "p", "server-0", "server", wait=Wait("Unschedulable", "no node")),
        PodView("u1", "p", "server-0", "server", phase="running", is_placed=True),
        PodView("u1", "p", "server-0", "server", phase="exited", is_placed=True),
    ],
    ids=["just made", "no node", "runs", "has ended"],
)
def test_of_others_nothing_is_asked(view: PodView) -> None:
    server = Server()
    server.follower.told = {"u1": Wait("FailedMount", "no")}
    server.follower.follow([view])
    assert server.asked == []
    assert server.follower.told == {}


def test_without_the_right_it_is_asked_again_much_later() -> None:
    server = Server(error=ApiError(403, "Forbidden", "cannot list resource events"))
    server.follower.follow([PLACED])
    server.error = None
    server.now += DENIED_S - 1
    server.follower.follow([PLACED])
    assert server.asked == []
    server.now += 1
    server.follower.follow([PLACED])
    assert server.asked != []

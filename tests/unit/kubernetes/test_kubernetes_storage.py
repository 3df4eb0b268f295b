"""Where checkpoints go in a cluster, and what becomes of claims."""

from __future__ import annotations

from typing import Any

import pytest
from fake_api import FakeApi

from outlast.api.job import read_spec
from outlast.api.spec import JobSpec
from outlast.api.view import Member, View
from outlast_operator.kubernetes.cluster.api import ApiError
from outlast_operator.kubernetes.job.storage import CLAIMS, RETIRE_S, SELECTED_NODE, CheckpointStorage
from outlast_operator.kubernetes.manifests.names import JobRef
from outlast_operator.planner.actions import StartProcess
from outlast_operator.planner.checkpoints import ServerClaim
from outlast_operator.planner.status import JobStatus

Json = dict[str, Any]
JOB = JobRef("mnist", "n", "uid-of-job")


def spec(strategy: str = "Chain", **checkpoint: Any) -> JobSpec:
    return read_spec({
        "training": {"task": "outlast.tasks.synthetic", "stopAfter": {"updates": 10}},
        "recovery": {"strategy": strategy, "checkpoint": checkpoint},
    })  # fmt: skip


class Cluster:
    def __init__(self, default_class: str | None = "standard") -> None:
        self.api, self.now = FakeApi(), 100.0
        self.api.default_class = default_class
        self.storage = CheckpointStorage(self.api, JOB, lambda: self.now)  # type: ignore[arg-type]

    def choose(self, status: JobStatus | None = None, **checkpoint: Any) -> str | None:
        """One look after another, until it is known or only a refusal keeps it open."""
        while (chosen := self.look(status, **checkpoint)) is None and not self.storage.waits:
            self.now += 0.25
        return chosen

    def look(self, status: JobStatus | None = None, **checkpoint: Any) -> str | None:
        return self.storage.choose(spec(**checkpoint), status or JobStatus())

    def refuse(self, error: ApiError | None) -> None:
        self.api.refuse = lambda plural, body: error

    def take_name(self, name: str, **claim: Any) -> Json:
        """Somebody else has a claim of that name."""
        return self.api.create(
            "", "n", CLAIMS, {"kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": claim}
        )

    @property
    def claims(self) -> list[str]:
        return self.api.names(CLAIMS)


@pytest.mark.parametrize(
    ("checkpoint", "default_class", "chosen"),
    [
        pytest.param({}, "standard", "PerServer", id="the default class"),
        pytest.param({}, None, "NodeLocal", id="no class at all"),
        pytest.param({"claim": {"storageClassName": "fast"}}, None, "PerServer", id="a class by name"),
        pytest.param({"claim": {"accessModes": ["ReadWriteMany"]}}, "standard", "Shared", id="one claim for all"),
        pytest.param({"volume": {"nfs": {"server": "s", "path": "/"}}}, "standard", "Shared", id="a volume"),
        pytest.param({"volume": {"emptyDir": {}}}, "standard", "NodeLocal", id="a volume that goes with its pod"),
    ],
)
def test_where_checkpoints_go(checkpoint: Json, default_class: str | None, chosen: str) -> None:
    cluster = Cluster(default_class)
    assert cluster.choose(**checkpoint) == chosen
    left = ["mnist-checkpoints-server-0"] if (chosen, checkpoint) == ("PerServer", {}) else []
    assert cluster.claims == left, "a claim that is of no use does not stay"


def test_a_claim_without_a_class_may_be_bound_to_an_administrators_volume() -> None:
    cluster = Cluster(None)
    assert cluster.look() is None
    cluster.api.objects["n", CLAIMS, "mnist-checkpoints-server-0"]["status"] = {"phase": "Bound"}
    assert cluster.look() == "PerServer"


def test_what_was_chosen_stays() -> None:
    """Whatever the cluster offers by now; a job of a release that knew only one way keeps that."""
    cluster = Cluster(None)
    assert cluster.choose(JobStatus(storage="PerServer", t_start=1.0)) == "PerServer"
    assert cluster.choose(JobStatus(views={0: View(0, 1, 0, (Member("server-0", "a", "tcp:x:1"),))})) == "Shared"
    assert cluster.claims == []


@pytest.mark.parametrize("default_class", ["standard", None])
@pytest.mark.parametrize(
    "error",
    [
        pytest.param(ApiError(403, "Forbidden", "exceeded quota: storage"), id="403"),
        pytest.param(ApiError(400, "BadRequest", 'admission webhook "w" denied the request'), id="400"),
        pytest.param(ApiError(422, "Invalid", "spec: Invalid value"), id="422"),
        pytest.param(ApiError(429, "TooManyRequests", "too many requests"), id="429"),
        pytest.param(ApiError(500, "InternalError", 'failed calling webhook "w"'), id="500"),
        pytest.param(ApiError(0, "", "no route to host"), id="no answer"),
    ],
)
def test_the_choice_stays_open_until_a_claim_is_accepted(error: ApiError, default_class: str | None) -> None:
    cluster = Cluster(default_class)
    cluster.refuse(error)
    assert cluster.choose() is None
    (wait,) = cluster.storage.waits.values()
    assert wait.message == error.message
    assert wait.blocks
    assert wait.retry_at is not None
    cluster.refuse(None)
    assert cluster.look() is None, "not before the request may be sent again"
    cluster.now = wait.retry_at
    assert cluster.choose() == ("NodeLocal" if default_class is None else "PerServer")
    assert cluster.storage.waits == {}


def test_the_choice_does_not_wait_for_the_right_to_delete(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(None)

    def refuse(*arguments: Any) -> Json:
        raise ApiError(403, "Forbidden", "cannot delete resource")

    monkeypatch.setattr(cluster.api, "delete", refuse)
    assert cluster.choose() == "NodeLocal"


@pytest.mark.parametrize("claim", [{}, {"storageClassName": ""}, {"storageClassName": "fast"}])
def test_a_claim_of_another_owner_is_left_alone(claim: Json) -> None:
    cluster = Cluster(None)
    cluster.take_name("mnist-checkpoints-server-0", **claim)
    assert cluster.choose() is None
    cluster.now += 60.0
    assert cluster.choose() is None
    assert {wait.reason for wait in cluster.storage.waits.values()} == {"NameTaken"}
    assert cluster.claims == ["mnist-checkpoints-server-0"]


def test_a_claim_of_another_owner_is_not_expanded() -> None:
    cluster = Cluster()
    taken = cluster.take_name("mnist-checkpoints-server-0", resources={"requests": {"storage": "1Gi"}})
    cluster.storage.expand(spec(), JobStatus(storage="PerServer"), 20 << 30)
    assert cluster.api.get("", "n", CLAIMS, "mnist-checkpoints-server-0") == taken
    assert cluster.storage.refusal is not None
    assert cluster.storage.refusal.reason == "NameTaken"


@pytest.mark.parametrize(
    ("strategy", "storage", "living", "names"),
    [
        pytest.param("Chain", "PerServer", (), ["server-0", "server-2"], id="those that the job starts with"),
        pytest.param("Chain", "PerServer", ("server-1",), ["server-0", "server-1-2", "server-2"], id="and mounts"),
        pytest.param("Checkpoint", "PerServer", (), ["server-0"], id="not the second name's"),
        pytest.param("Checkpoint", "PerServer", ("server-1",), ["server-0", "server-1-2"], id="which serves"),
        pytest.param("Chain", "Shared", (), [""], id="one for all"),
        pytest.param("Chain", "NodeLocal", (), [], id="none"),
        pytest.param("Chain", None, (), [], id="not known yet"),
    ],
)
def test_the_claims_that_are_kept_there(strategy: str, storage: Any, living: tuple[str, ...], names: list[str]) -> None:
    status = JobStatus(claims={"server-1": ServerClaim(2, used=True)})
    made = Cluster().storage.claims(spec(strategy), status, storage, living)
    assert [c["metadata"]["name"] for c in made] == [f"mnist-checkpoints-{n}".rstrip("-") for n in names]
    assert Cluster().storage.claims(spec(volume={"emptyDir": {}}), status, "NodeLocal", living) == []


@pytest.mark.parametrize(
    ("start", "name"),
    [
        pytest.param(StartProcess("server-1", "server", storage="PerServer", claim=2), "-server-1-2", id="its own"),
        pytest.param(StartProcess("server-1", "server", storage="Shared"), "", id="the one for all"),
        pytest.param(StartProcess("server-1", "server", storage="NodeLocal"), None, id="in its pod"),
        pytest.param(StartProcess("worker-1", "worker"), None, id="a worker"),
    ],
)
def test_the_claim_that_a_process_needs(start: StartProcess, name: str | None) -> None:
    claim = Cluster().storage.claim_of(spec(), start)
    assert (claim and claim["metadata"]["name"]) == (None if name is None else f"mnist-checkpoints{name}")
    assert Cluster().storage.claim_of(spec(volume={"nfs": {"server": "s", "path": "/"}}), start) is None


def make(cluster: Cluster, *generations: tuple[str, int]) -> None:
    for server, generation in generations:
        start = StartProcess(server, "server", storage="PerServer", claim=generation)
        made = cluster.storage.claim_of(spec(), start)
        assert made is not None
        cluster.api.create("", "n", CLAIMS, made)


def node(cluster: Cluster, ready: str) -> None:
    status = {"conditions": [{"type": "Ready", "status": ready}]}
    cluster.api.objects[None, "nodes", "worker-a"] = {"metadata": {"name": "worker-a"}, "status": status}


@pytest.mark.parametrize(
    ("its_node", "member", "deleted"),
    [
        pytest.param("True", True, True, id="the node answers"),
        pytest.param("Unknown", True, False, id="the node does not answer"),
        pytest.param(None, True, True, id="the node is gone"),
        pytest.param("True", False, False, id="the server has its state not back yet"),
    ],
)
def test_a_claim_that_was_given_up_is_deleted(its_node: str | None, member: bool, deleted: bool) -> None:
    cluster = Cluster()
    make(cluster, ("server-1", 0), ("server-1", 1))
    old = cluster.api.objects["n", CLAIMS, "mnist-checkpoints-server-1"]["metadata"]
    old["annotations"] = {SELECTED_NODE: "worker-a"}
    if its_node is not None:
        node(cluster, its_node)
    members = (Member("server-1", "b", "tcp:x:1"),) if member else (Member("server-0", "a", "tcp:x:1"),)
    status = JobStatus(views={0: View(0, 2, 0, members)}, claims={"server-1": ServerClaim(1, used=True)})
    cluster.storage.retire(status)
    left = ["mnist-checkpoints-server-1-1"]
    assert cluster.claims == (left if deleted else ["mnist-checkpoints-server-1", *left])
    node(cluster, "True")
    cluster.now += RETIRE_S
    cluster.storage.retire(status)
    assert cluster.claims == (left if member else ["mnist-checkpoints-server-1", *left])


def test_a_claim_that_was_given_up_unused_is_deleted_at_once() -> None:
    """The one that a server last ran with stays, until the server is a member again."""
    cluster = Cluster()
    make(cluster, ("server-1", 0))
    for generation in range(1, 5):
        make(cluster, ("server-1", generation))
        status = JobStatus(claims={"server-1": ServerClaim(generation, skipped=generation - 1)})
        cluster.storage.retire(status)
        assert cluster.claims == ["mnist-checkpoints-server-1", f"mnist-checkpoints-server-1-{generation}"]
        cluster.now += 1.0


def sizes(cluster: Cluster) -> dict[str, str]:
    found = {name: cluster.api.get("", "n", CLAIMS, name) for name in cluster.claims}
    return {name: claim["spec"]["resources"]["requests"]["storage"] for name, claim in found.items()}


def test_claims_are_expanded_and_later_ones_made_as_large() -> None:
    cluster, wanted = Cluster(), 20 << 30
    status = JobStatus(storage="PerServer", claims={"server-1": ServerClaim(2, used=True)})
    make(cluster, ("server-0", 0), ("server-1", 1), ("server-1", 2))
    assert cluster.storage.claim_bytes(spec(), "PerServer") == 10 << 30
    cluster.storage.expand(spec(), status, wanted)
    assert cluster.storage.claim_bytes(spec(), "PerServer") == wanted
    make(cluster, ("server-2", 0))
    given_up = "mnist-checkpoints-server-1-1"
    assert {name for name, size in sizes(cluster).items() if size != str(wanted)} == {given_up}


@pytest.mark.parametrize("error", [ApiError(403, "Forbidden", "exceeded quota: storage"), ApiError(500, "", "webhook")])
def test_an_expansion_that_is_refused_is_named_and_asked_for_again(
    error: ApiError, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, status = Cluster(), JobStatus(storage="PerServer")
    make(cluster, ("server-0", 0))

    def refuse(*arguments: Any) -> Json:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(cluster.api, "patch", refuse)
        cluster.storage.expand(spec(), status, 20 << 30)
    refusal = cluster.storage.refusal
    assert refusal is not None
    assert refusal.message == error.message
    assert refusal.retry_at is not None
    assert cluster.now < refusal.retry_at <= cluster.now + 5.0
    assert cluster.storage.claim_bytes(spec(), "PerServer") == 10 << 30
    cluster.storage.expand(spec(), status, 20 << 30)
    assert cluster.storage.refusal is None
    assert cluster.storage.claim_bytes(spec(), "PerServer") == 20 << 30


def test_an_expansion_that_no_class_allows_is_asked_for_ever_more_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, asked = Cluster(), []
    make(cluster, ("server-0", 0))

    def expand_when_due() -> None:
        """As planner/claims.py does, for as long as claims are too small."""
        refusal = cluster.storage.refusal
        if refusal is None or cluster.now >= (refusal.retry_at or 0.0):
            cluster.storage.expand(spec(), JobStatus(storage="PerServer"), 20 << 30)

    def refuse(*arguments: Any) -> Json:
        asked.append(cluster.now)
        raise ApiError(403, "Forbidden", "only dynamically provisioned pvc can be resized")

    with monkeypatch.context() as patched:
        patched.setattr(cluster.api, "patch", refuse)
        for _ in range(600):
            expand_when_due()
            cluster.now += 1.0
    assert len(asked) <= 20
    for _ in range(61):  # the shortage clears
        expand_when_due()
        cluster.now += 1.0
    assert cluster.storage.refusal is None
    assert cluster.storage.claim_bytes(spec(), "PerServer") == 20 << 30


def test_a_claim_that_is_larger_than_needed_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody has enlarged it, or the operator before us: no claim can be asked to shrink."""
    cluster = Cluster()
    make(cluster, ("server-0", 0))
    larger = {"spec": {"resources": {"requests": {"storage": "50Gi"}}}}
    cluster.api.patch("", "n", CLAIMS, "mnist-checkpoints-server-0", larger)
    monkeypatch.delattr(FakeApi, "patch")
    cluster.storage.expand(spec(), JobStatus(storage="PerServer"), 20 << 30)
    assert cluster.storage.claim_bytes(spec(), "PerServer") == 20 << 30


def test_what_is_no_claim_has_no_size() -> None:
    assert Cluster().storage.claim_bytes(spec(volume={"nfs": {"server": "s", "path": "/"}}), "Shared") is None
    assert Cluster().storage.claim_bytes(spec(), "NodeLocal") is None

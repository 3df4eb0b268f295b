"""What the operator relies on in an API server, asked of a real one and of the fake that unit tests use.

Where both pass, a unit test over the fake says what would happen on a cluster. What the fake does not have at all
(schemas, admission, watches, garbage collection) stands in test_real.py.
"""

from __future__ import annotations

import secrets
from typing import Any

import pytest
from apiserver_process import ApiServer
from fake_api import FakeApi

from outlast_operator.kubernetes.cluster.api import CORE, JOBS, LEASES, PLURAL, Api, ApiError

Json = dict[str, Any]
SPEC = {"training": {"task": "a.b", "stopAfter": {"updates": 1}}}


@pytest.fixture(params=["fake", "real"])
def api(request: pytest.FixtureRequest) -> Any:
    if request.param == "fake":
        return FakeApi(node=None)
    server: ApiServer = request.getfixturevalue("server")
    return server.api


@pytest.fixture
def where(api: Any, request: pytest.FixtureRequest) -> str:
    return "n" if isinstance(api, FakeApi) else str(request.getfixturevalue("namespace"))


def job(name: str = "mnist", **spec: Any) -> Json:
    metadata = {"name": name, "labels": {"team": "a"}}
    return {"apiVersion": "outlast.dev/v1alpha1", "kind": "TrainingJob", "metadata": metadata, "spec": {**SPEC, **spec}}


def pod(name: str, node: str | None = None, **metadata: Any) -> Json:
    spec: Json = {"containers": [{"name": "c", "image": "i"}], "terminationGracePeriodSeconds": 30}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, **metadata},
        "spec": spec if node is None else {**spec, "nodeName": node},
    }


def refused(call: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        call()
    return caught.value


def version(obj: Json) -> int:
    return int(obj["metadata"]["resourceVersion"])


def test_what_is_not_there(api: Any, where: str) -> None:
    body = job()
    body["metadata"]["resourceVersion"] = "1"
    for call in (
        lambda: api.get(JOBS, where, PLURAL, "absent"),
        lambda: api.patch(JOBS, where, PLURAL, "absent", {"spec": {"suspend": True}}),
        lambda: api.replace(JOBS, where, PLURAL, "mnist", body, "status"),
        lambda: api.delete(JOBS, where, PLURAL, "absent", "uid"),
    ):
        error = refused(call)
        assert (error.code, error.reason) == (404, "NotFound")
        assert error.not_found
    assert api.list(JOBS, where, PLURAL)["items"] == []


def test_a_created_object_gets_its_metadata(api: Any, where: str) -> None:
    made = api.create(JOBS, where, PLURAL, job())
    metadata = made["metadata"]
    assert (metadata["name"], metadata["namespace"], metadata["generation"]) == ("mnist", where, 1)
    assert metadata["uid"]
    assert metadata["creationTimestamp"].endswith("Z")
    assert version(made) > 0
    assert api.get(JOBS, where, PLURAL, "mnist") == made
    other = api.create(JOBS, where, PLURAL, job("other"))
    assert other["metadata"]["uid"] != metadata["uid"]
    assert version(other) > version(made), "one counter for all objects"


def test_a_name_is_taken_once(api: Any, where: str) -> None:
    made = api.create(JOBS, where, PLURAL, job())
    error = refused(lambda: api.create(JOBS, where, PLURAL, job()))
    assert (error.code, error.reason) == (409, "AlreadyExists")
    assert (error.already_exists, error.conflict) == (True, False)
    assert api.get(JOBS, where, PLURAL, "mnist") == made
    assert api.create(CORE, where, "pods", pod("mnist"))["metadata"]["name"] == "mnist", "of another kind it is free"


def test_status_is_written_apart(api: Any, where: str) -> None:
    made = api.create(JOBS, where, PLURAL, {**job(), "status": {"state": "Running"}})
    assert "status" not in made, "a client makes no status"
    written = api.replace(JOBS, where, PLURAL, "mnist", {**made, "status": {"state": "Pending"}}, "status")
    assert written["status"] == {"state": "Pending"}
    assert written["metadata"]["generation"] == 1
    changed = {**written, "spec": {**written["spec"], "suspend": True}, "status": {"state": "Failed"}}
    only_status = api.replace(JOBS, where, PLURAL, "mnist", changed, "status")
    assert only_status["status"] == {"state": "Failed"}
    assert not only_status["spec"].get("suspend")
    changed["metadata"] = only_status["metadata"]
    changed["status"] = {"state": "Running"}
    only_spec = api.replace(JOBS, where, PLURAL, "mnist", changed)
    assert only_spec["status"] == {"state": "Failed"}
    assert only_spec["spec"]["suspend"] is True
    assert only_spec["metadata"]["generation"] == 2
    patched = api.patch(JOBS, where, PLURAL, "mnist", {"status": {"state": "Running"}, "spec": {"suspend": False}})
    assert patched["status"] == {"state": "Failed"}
    assert patched["spec"]["suspend"] is False
    assert patched["metadata"]["generation"] == 3


def test_of_two_writers_one_wins(api: Any, where: str) -> None:
    """Compare-and-swap: views are recorded by it."""
    read = api.create(JOBS, where, PLURAL, job())
    first = api.replace(JOBS, where, PLURAL, "mnist", {**read, "status": {"state": "Running"}}, "status")
    assert version(first) > version(read)
    error = refused(lambda: api.replace(JOBS, where, PLURAL, "mnist", {**read, "status": {}}, "status"))
    assert (error.code, error.reason) == (409, "Conflict")
    assert (error.already_exists, error.conflict) == (False, True)
    assert api.get(JOBS, where, PLURAL, "mnist") == first
    stale = {"metadata": {"resourceVersion": read["metadata"]["resourceVersion"], "labels": {"a": "b"}}}
    error = refused(lambda: api.patch(JOBS, where, PLURAL, "mnist", stale))
    assert (error.code, error.reason) == (409, "Conflict")
    assert api.get(JOBS, where, PLURAL, "mnist") == first


def test_a_write_that_changes_nothing_is_no_news(api: Any, where: str) -> None:
    made = api.create(JOBS, where, PLURAL, job())
    assert version(api.patch(JOBS, where, PLURAL, "mnist", {"metadata": {"labels": {"team": "a"}}})) == version(made)
    assert version(api.replace(JOBS, where, PLURAL, "mnist", made, "status")) == version(made)


def test_a_merge_patch(api: Any, where: str) -> None:
    made = api.create(CORE, where, "pods", pod("p", labels={"a": "1", "b": "2"}, annotations={"c": "3"}))
    patch = {"metadata": {"labels": {"a": None, "b": "4", "d": "5"}, "annotations": {"c": None}}}
    patched = api.patch(CORE, where, "pods", "p", patch)
    assert patched["metadata"]["labels"] == {"b": "4", "d": "5"}
    assert not patched["metadata"].get("annotations")
    assert patched["metadata"]["uid"] == made["metadata"]["uid"]
    assert patched["spec"]["containers"][0]["name"] == "c"
    assert version(patched) > version(made)


def test_lists(api: Any, where: str) -> None:
    names = ["one", "two", "three"]
    made = [api.create(CORE, where, "pods", pod(name, labels={"n": name, "all": "x"})) for name in names]
    found = api.list(CORE, where, "pods")
    assert sorted(item["metadata"]["name"] for item in found["items"]) == sorted(names)
    assert version(found) >= max(version(obj) for obj in made)
    assert [o["metadata"]["name"] for o in api.list(CORE, where, "pods", labelSelector="n=two")["items"]] == ["two"]
    assert len(api.list(CORE, where, "pods", labelSelector="all=x,n!=two")["items"]) == 2
    assert len(api.list(CORE, where, "pods", labelSelector="n")["items"]) == 3
    everywhere = api.list(CORE, None, "pods")["items"]
    assert {obj["metadata"]["uid"] for obj in made} <= {obj["metadata"]["uid"] for obj in everywhere}


def test_only_the_very_object_is_deleted(api: Any, where: str) -> None:
    made = api.create(JOBS, where, PLURAL, job())
    error = refused(lambda: api.delete(JOBS, where, PLURAL, "mnist", "another-uid"))
    assert (error.code, error.reason) == (409, "Conflict")
    assert error.conflict
    api.delete(JOBS, where, PLURAL, "mnist", made["metadata"]["uid"])
    assert refused(lambda: api.get(JOBS, where, PLURAL, "mnist")).not_found
    again = api.create(JOBS, where, PLURAL, job())
    assert again["metadata"]["uid"] != made["metadata"]["uid"]
    assert version(again) > version(made)


def test_a_pod_on_a_node_stays_for_its_grace(api: Any, where: str) -> None:
    made = api.create(CORE, where, "pods", pod("p", node="far-away"))
    uid = made["metadata"]["uid"]
    answer = api.delete(CORE, where, "pods", "p", uid, 20)
    assert answer["kind"] == "Pod"
    leaving = api.get(CORE, where, "pods", "p")
    assert leaving["metadata"]["deletionTimestamp"]
    assert leaving["metadata"]["deletionGracePeriodSeconds"] == 20
    assert version(leaving) > version(made)
    assert api.delete(CORE, where, "pods", "p", uid, 5)["metadata"]["deletionGracePeriodSeconds"] == 5
    assert api.delete(CORE, where, "pods", "p", uid, 60)["metadata"]["deletionGracePeriodSeconds"] == 5, "never longer"
    api.delete(CORE, where, "pods", "p", uid, 0)
    assert refused(lambda: api.get(CORE, where, "pods", "p")).not_found


def test_a_pod_without_a_node_goes_at_once(api: Any, where: str) -> None:
    made = api.create(CORE, where, "pods", pod("p"))
    api.delete(CORE, where, "pods", "p", made["metadata"]["uid"], 30)
    assert refused(lambda: api.get(CORE, where, "pods", "p")).not_found


def test_a_lease_is_compared_and_swapped(api: Any, where: str) -> None:
    spec = {"holderIdentity": "one", "leaseDurationSeconds": 10}
    made = api.create(LEASES, where, "leases", {"metadata": {"name": f"l-{secrets.token_hex(2)}"}, "spec": spec})
    name = made["metadata"]["name"]
    mine = {**made, "spec": {**spec, "holderIdentity": "two"}}
    assert api.replace(LEASES, where, "leases", name, mine)["spec"]["holderIdentity"] == "two"
    assert refused(lambda: api.replace(LEASES, where, "leases", name, mine)).conflict
    del mine["metadata"]
    assert mine
    unversioned = {"metadata": {"name": name}, "spec": spec}
    error = refused(lambda: api.replace(LEASES, where, "leases", name, unversioned))
    assert (error.code, error.reason) == (422, "Invalid"), "a replacement names the version that it replaces"


def test_the_namespace_of_the_body_must_fit(api: Any, where: str) -> None:
    error = refused(lambda: api.create(CORE, where, "pods", pod("p", namespace="elsewhere")))
    assert (error.code, error.reason) == (400, "BadRequest")


def test_the_real_client_and_the_fake_take_the_same_calls() -> None:
    for name in ("get", "list", "create", "replace", "patch", "delete"):
        ours, theirs = getattr(FakeApi, name).__annotations__, getattr(Api, name).__annotations__
        assert ours == theirs, name

"""What no fake has: schemas and defaults, admission, quotas, watches that end, and garbage collection."""

from __future__ import annotations

import json
import secrets
import threading
from typing import Any

import pytest
import urllib3
import yaml
from apiserver_process import ApiServer, wait_until
from spec_cases import job

from outlast.api.job import TrainingJob, read_spec
from outlast_operator.kubernetes import client as client_module
from outlast_operator.kubernetes.client import Client
from outlast_operator.kubernetes.cluster.api import CORE, JOBS, PLURAL, ApiError
from outlast_operator.kubernetes.manifests.children import redis_pod
from outlast_operator.kubernetes.manifests.names import JobRef
from outlast_operator.kubernetes.manifests.pods import Images, process_pod
from outlast_operator.planner.actions import StartProcess

Json = dict[str, Any]
LIMITS = {"limits": {"cpu": "1", "memory": "1Gi"}}
IMAGES = Images("trainer", "redis")
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


@pytest.fixture
def restricted(server: ApiServer) -> str:
    return server.make_namespace(f"r-{secrets.token_hex(4)}", **RESTRICTED)


def create_job(server: ApiServer, namespace: str, text: str = "") -> Json:
    return server.api.create(JOBS, namespace, PLURAL, yaml.safe_load(job(text)))


def owned_by(owner: Json, kind: str = "TrainingJob") -> list[Json]:
    metadata = owner["metadata"]
    reference = {"apiVersion": owner["apiVersion"], "kind": kind, "name": metadata["name"], "uid": metadata["uid"]}
    return [{**reference, "controller": True, "blockOwnerDeletion": True}]


def config_map(name: str, **metadata: Any) -> Json:
    return {"metadata": {"name": name, **metadata}}


def plain_pod(name: str, **container: Any) -> Json:
    return {"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i", **container}]}}


# --- schema and defaults ----------------------------------------------------------------------------------------------


def test_defaults_are_stored_and_are_those_of_python(server: ApiServer, namespace: str) -> None:
    stored = create_job(server, namespace)
    assert stored["spec"]["recovery"]["buffer"]["maxBytes"] == "1Gi"
    assert stored["spec"]["workers"]["replicas"] == 2
    assert "replicas" not in stored["spec"]["servers"], "it follows from the strategy"
    assert read_spec(stored["spec"]) == TrainingJob.load(job("")).spec
    again = server.api.get(JOBS, namespace, PLURAL, "mnist")
    assert again == stored


def test_unknown_fields_are_pruned_unless_asked_to_be_refused(server: ApiServer, namespace: str) -> None:
    body = yaml.safe_load(job("recovery.bufer: {}"))
    stored = server.api.create(JOBS, namespace, PLURAL, body)
    assert "bufer" not in stored["spec"]["recovery"]


def test_opaque_objects_are_stored_as_written(server: ApiServer, namespace: str) -> None:
    written = {"spec": {"containers": [{"name": "outlast", "unheard": {"of": [1, 2.5, None]}}]}}
    stored = create_job(server, namespace, f"workers.template: {json.dumps(written)}")
    assert stored["spec"]["workers"]["template"] == written


def test_scale(server: ApiServer, namespace: str) -> None:
    create_job(server, namespace)
    path = f"apis/outlast.dev/v1alpha1/namespaces/{namespace}/trainingjobs/mnist/scale"
    code, scale = server.request("GET", path)
    assert (code, scale["spec"]["replicas"]) == (200, 2)
    code, answer = server.request("PUT", path, {**scale, "spec": {"replicas": 3}})
    assert code == 200, answer
    assert server.api.get(JOBS, namespace, PLURAL, "mnist")["spec"]["workers"]["replicas"] == 3
    code, answer = server.request("PATCH", path, {"spec": {"replicas": 0}}, "application/merge-patch+json")
    assert code == 422
    assert "greater than or equal to 1" in answer["message"]


def test_a_dry_run_stores_nothing(server: ApiServer, namespace: str) -> None:
    path = f"apis/outlast.dev/v1alpha1/namespaces/{namespace}/trainingjobs?dryRun=All"
    code, answer = server.request("POST", path, yaml.safe_load(job("")))
    assert (code, answer["spec"]["workers"]["replicas"]) == (201, 2)
    assert server.api.list(JOBS, namespace, PLURAL)["items"] == []


# --- admission --------------------------------------------------------------------------------------------------------


def test_restricted_pod_security_admits_the_pods_of_every_role(server: ApiServer, restricted: str) -> None:
    stored = create_job(server, restricted)
    ref = JobRef("mnist", restricted, stored["metadata"]["uid"])
    spec = TrainingJob.load(job("")).spec
    pods = [
        process_pod(ref, spec, IMAGES, StartProcess("server-0", "server")),
        process_pod(ref, spec, IMAGES, StartProcess("worker-0", "worker")),
        process_pod(ref, spec, IMAGES, StartProcess("evaluator", "evaluator")),
        redis_pod(ref, spec, IMAGES, None),
    ]
    for pod in pods:
        code, answer = server.request("POST", f"{CORE}/namespaces/{restricted}/pods?dryRun=All", pod)
        assert code == 201, answer["message"]
        assert answer["metadata"]["ownerReferences"][0]["uid"] == stored["metadata"]["uid"]


def test_pod_security_refuses_in_its_own_words(server: ApiServer, restricted: str) -> None:
    with pytest.raises(ApiError) as caught:
        server.api.create(CORE, restricted, "pods", plain_pod("p"))
    assert (caught.value.code, caught.value.reason) == (403, "Forbidden")
    assert 'violates PodSecurity "restricted' in caught.value.message


def test_a_quota_refuses_and_admits_again(server: ApiServer, namespace: str) -> None:
    quota = {"metadata": {"name": "team"}, "spec": {"hard": {"limits.cpu": "1", "limits.memory": "1Gi", "pods": "5"}}}
    server.api.create(CORE, namespace, "resourcequotas", quota)
    wait_until(lambda: hard_limits(server, namespace), "no controller took up the quota")
    with pytest.raises(ApiError) as caught:
        server.api.create(CORE, namespace, "pods", plain_pod("unlimited"))
    assert (caught.value.code, caught.value.reason) == (403, "Forbidden")
    assert "failed quota: team: must specify limits.cpu" in caught.value.message

    first = server.api.create(CORE, namespace, "pods", plain_pod("first", resources=LIMITS))
    with pytest.raises(ApiError) as caught:
        server.api.create(CORE, namespace, "pods", plain_pod("second", resources=LIMITS))
    assert (caught.value.code, caught.value.reason) == (403, "Forbidden")
    assert "exceeded quota: team, requested: limits.cpu=1,limits.memory=1Gi" in caught.value.message

    server.api.delete(CORE, namespace, "pods", "first", first["metadata"]["uid"], 0)

    def admitted() -> bool:
        path = f"{CORE}/namespaces/{namespace}/pods"
        return server.request("POST", path, plain_pod("second", resources=LIMITS))[0] == 201

    wait_until(admitted, "the quota is full although its pod is gone")


def test_a_limit_range_fills_in_what_a_pod_leaves_out(server: ApiServer, namespace: str) -> None:
    limits = {"limits": [{"type": "Container", "default": {"memory": "1Gi"}, "defaultRequest": {"memory": "512Mi"}}]}
    server.api.create(CORE, namespace, "limitranges", {"metadata": {"name": "team"}, "spec": limits})
    path = f"{CORE}/namespaces/{namespace}/pods?dryRun=All"

    def filled_in() -> Any:  # the API server reads LimitRanges from a cache
        return server.request("POST", path, plain_pod("p"))[1]["spec"]["containers"][0].get("resources")

    expected = {"limits": {"memory": "1Gi"}, "requests": {"memory": "512Mi"}}
    assert wait_until(filled_in, "no LimitRange is obeyed") == expected
    code, answer = server.request("POST", path, plain_pod("p", resources={"requests": {"memory": "2Gi"}}))
    assert code in (403, 422)
    assert "must be less than or equal to memory limit" in answer["message"]


def hard_limits(server: ApiServer, namespace: str) -> Any:
    return server.api.get(CORE, namespace, "resourcequotas", "team").get("status", {}).get("hard")


# --- watches ----------------------------------------------------------------------------------------------------------


def watch(server: ApiServer, namespace: str, version: str, timeout_s: int = 1) -> list[Json]:
    """All events until the API server ends the watch."""
    query = f"watch=true&resourceVersion={version}&timeoutSeconds={timeout_s}"
    url = f"{server.client.configuration.host}/{JOBS}/namespaces/{namespace}/{PLURAL}?{query}"
    pool: urllib3.PoolManager = server.client.rest_client.pool_manager
    answer = pool.request("GET", url, timeout=timeout_s + 30.0, retries=False)
    return [{"code": answer.status}, *(json.loads(line) for line in answer.data.splitlines())]


def test_a_watch_tells_all_since_its_version_and_ends(server: ApiServer, namespace: str) -> None:
    before = server.api.list(JOBS, namespace, PLURAL)["metadata"]["resourceVersion"]
    made = create_job(server, namespace)
    server.api.patch(JOBS, namespace, PLURAL, "mnist", {"spec": {"suspend": True}})
    server.api.delete(JOBS, namespace, PLURAL, "mnist", made["metadata"]["uid"])
    head, *events = watch(server, namespace, before)
    assert head["code"] == 200
    assert [event["type"] for event in events] == ["ADDED", "MODIFIED", "DELETED"]
    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in events]
    assert versions == sorted(set(versions)), "also the last state has a version of its own"
    assert int(before) < versions[0]


def test_a_version_that_is_too_old_is_gone(server: ApiServer, namespace: str) -> None:
    create_job(server, namespace)
    _, event = watch(server, namespace, "1")[:2]
    assert event["type"] == "ERROR"
    assert (event["object"]["code"], event["object"]["reason"]) in [(410, "Expired"), (410, "Gone")]


def test_a_client_outlives_watches_that_end(server: ApiServer, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "SILENCE_S", 1.0)
    made = create_job(server, namespace)
    watching = Client(server.client, namespace)

    def end_later() -> None:
        server.api.replace(JOBS, namespace, PLURAL, "mnist", {**made, "status": {"state": "Succeeded"}}, "status")

    timer = threading.Timer(2.5, end_later)  # two watches have ended by then
    timer.start()
    try:
        assert watching.wait("mnist", timeout_s=20.0)["state"] == "Succeeded"
    finally:
        timer.join()


# --- owners -----------------------------------------------------------------------------------------------------------


def test_what_a_job_owns_goes_with_it(server: ApiServer, namespace: str) -> None:
    made = create_job(server, namespace)
    server.api.create(CORE, namespace, "configmaps", config_map("owned", ownerReferences=owned_by(made)))
    server.api.create(CORE, namespace, "configmaps", config_map("free"))
    server.api.delete(JOBS, namespace, PLURAL, "mnist", made["metadata"]["uid"], propagation="Background")
    path = f"{CORE}/namespaces/{namespace}/configmaps"
    wait_until(lambda: server.request("GET", f"{path}/owned")[0] == 404, "nothing collects what the job owned", 60.0)
    assert server.request("GET", f"{path}/free")[0] == 200


def test_an_owner_that_never_was_is_no_owner(server: ApiServer, namespace: str) -> None:
    """A forged reference: the name of a job that exists, with another uid."""
    made = create_job(server, namespace)
    forged = owned_by({**made, "metadata": {**made["metadata"], "uid": "00000000-0000-0000-0000-000000000000"}})
    server.api.create(CORE, namespace, "configmaps", config_map("forged", ownerReferences=forged))
    path = f"{CORE}/namespaces/{namespace}/configmaps/forged"
    wait_until(lambda: server.request("GET", path)[0] == 404, "nothing collects what no job owns", 60.0)
    assert server.api.get(JOBS, namespace, PLURAL, "mnist")["metadata"]["uid"] == made["metadata"]["uid"]

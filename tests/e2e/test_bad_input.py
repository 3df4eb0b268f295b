"""What is wrong is refused with its reason: by the operator where the API server cannot judge it.

What the API server refuses is a matter of tests/apiserver.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import yaml
from e2e_cluster import END_S, GROUP, PLURAL, VERSION, Cluster, Json, wait_until
from e2e_jobs import Job, has_ended
from e2e_selection import every
from e2e_steps import StartJob, events_of, start_training, updates_go_on
from kubernetes.client.exceptions import ApiException
from spec_cases import job


def try_to_apply(cluster: Cluster, namespace: str, name: str, spec: Json) -> str:
    """What is said against it at once; empty if the API server takes it."""
    document = {
        "apiVersion": "outlast.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }
    try:
        cluster.custom.create_namespaced_custom_object(GROUP, VERSION, namespace, PLURAL, document)
    except ApiException as refused:
        return str(json.loads(refused.body)["message"])
    return ""


def _patch(cluster: Cluster, namespace: str, name: str, spec: Json) -> str:
    """What is said against a change at once; empty if the API server takes it."""
    try:
        cluster.kubectl("patch", "tjob", name, "-n", namespace, "--type=merge", "-p", json.dumps({"spec": spec}))
    except AssertionError as refused:
        return str(refused)
    return ""


def said_later(cluster: Cluster, namespace: str, name: str) -> Callable[[], str]:
    """Why the operator holds the job to be Failed; empty as long as it does not."""

    def said() -> str:
        status = (cluster.job(namespace, name) or {}).get("status") or {}
        return next(
            (c["message"] for c in status.get("conditions", []) if c["type"] == "Failed" and c["status"] == "True"), ""
        )

    return said


def test_a_job_that_only_the_operator_refuses_says_why_and_can_be_mended(
    cluster: Cluster, start_job: StartJob, namespace: str
) -> None:
    made = start_job("Chain", suspend=True)  # for its name and its folders: nothing of it has run
    made.delete()
    spec = {**made.document["spec"], "suspend": False}
    servers = {**spec["servers"], "template": {"spec": {"containers": "none"}}}
    assert try_to_apply(cluster, namespace, made.name, {**spec, "servers": servers}) == "", "templates are opaque to it"
    words = wait_until("its refusal", said_later(cluster, namespace, made.name), 30)
    assert "spec.servers.template" in words
    wait_until("an Event", lambda: "spec.servers.template" in events_of(cluster, namespace, made.name), 30)
    assert not cluster.pods(namespace, job_name=made.name)
    cluster.patch(namespace, made.name, {"servers": {"template": spec["servers"].get("template")}})
    made.wait_whole()
    updates_go_on(made)


@every
def test_a_change_of_what_may_not_change_is_refused_and_training_goes_on(cluster: Cluster, start_job: StartJob) -> None:
    made, _ = start_training(start_job, "Chain")
    epoch = made.view()["epoch"]
    assert "spec.training.seed" in _patch(cluster, made.namespace, made.name, {"training": {"seed": 7}})
    assert _patch(cluster, made.namespace, made.name, {"training": {"args": {"new": 1}}}) == "", "opaque to CEL"
    made.wait_condition("SpecAccepted", "False")
    (message,) = [c["message"] for c in made.status["conditions"] if c["type"] == "SpecAccepted"]
    assert "spec.training.args" in message
    wait_until("an Event", lambda: message.split("\n")[0] in events_of(cluster, made.namespace, made.name), 30)
    updates_go_on(made)
    assert made.view()["epoch"] == epoch


def test_a_name_too_long_for_its_children_is_refused_at_once(cluster: Cluster, namespace: str) -> None:
    name = "long-" + "x" * 58
    spec = yaml.safe_load(job(""))["spec"]
    words = try_to_apply(cluster, namespace, name, spec)
    assert "metadata.name" in words
    assert name in words


@every
def test_a_foreign_pod_with_our_labels_is_left_alone(cluster: Cluster, start_job: StartJob, namespace: str) -> None:
    made, _ = start_training(start_job, "Chain")
    ours = made.pod_of("server-2")
    name = f"{made.name}-stranger"
    stranger = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": ours.metadata.labels},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "securityContext": cluster.core.api_client.sanitize_for_serialization(ours.spec.security_context),
            "containers": [
                {
                    "name": "outlast",
                    "image": ours.spec.containers[0].image,
                    "command": ["sleep", "3600"],
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                }
            ],
        },
    }
    cluster.apply(stranger)
    try:
        wait_until("the stranger to run", lambda: phase(cluster, namespace, name) == "Running", 60)
        epoch = made.view()["epoch"]
        cluster.core.delete_namespaced_pod(ours.metadata.name, namespace, grace_period_seconds=0)
        made.wait_whole(beyond_epoch=epoch)
        updates_go_on(made)
        cluster.patch(namespace, made.name, {"suspend": True})
        made.wait_condition("Suspended", timeout_s=90)
        cluster.kubectl("delete", "tjob", made.name, "-n", namespace, "--wait=true")
        wait_until("the end of its own pods", lambda: len([p for p in made.pods() if not has_ended(p)]) == 1, END_S)
        assert phase(cluster, namespace, name) == "Running"
    finally:
        cluster.kubectl("delete", "pod", name, "-n", namespace, "--ignore-not-found", "--wait=true", timeout_s=END_S)


def phase(cluster: Cluster, namespace: str, pod: str) -> str:
    return cluster.kubectl("get", "pod", pod, "-n", namespace, "-o", "jsonpath={.status.phase}")


@every
def test_what_can_never_start_ends_in_failed(cluster: Cluster, start_job: StartJob) -> None:
    """Three jobs side by side: each of them mostly waits for the kubelet to try again. An image may come yet: what
    waits for one ends by the deadline that the job names."""

    def with_image(image: str) -> Job:
        template = {"spec": {"containers": [{"name": "outlast", "image": image}]}}
        parts = {"servers": {"template": template}, "workers": {"template": template}}
        return start_job("Chain", **parts, runPolicy={"backoffLimit": 0, "startDeadlineSeconds": 30})

    expected = {
        "registry.invalid/no-such-image:0": with_image("registry.invalid/no-such-image:0"),
        "Not An Image": with_image("Not An Image"),
        "no_such_package": start_job("Chain", training={"task": "no_such_package.task"}),
    }
    for said, made in expected.items():
        ends_in_failed(cluster, made, said)


def ends_in_failed(cluster: Cluster, made: Job, said: str) -> None:
    words = wait_until("its failure", said_later(cluster, made.namespace, made.name), 240)
    assert said in words
    assert made.status["state"] == "Failed"
    wait_until("an Event", lambda: said in events_of(cluster, made.namespace, made.name), 30)
    wait_until("the end of its pods", lambda: not made.living("server") and not made.living("worker"), END_S)

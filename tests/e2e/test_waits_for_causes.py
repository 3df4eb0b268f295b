"""What keeps a pod from starting is a wait: said within seconds, in whose words it is, and over within seconds.

Each cause's seconds until said and until cleared go to build/refusals.json.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from e2e_causes import CAUSES, Cause, clear, make_webhook
from e2e_cluster import ROOT, Cluster, Json, wait_until
from e2e_figures import FULL, PATIENCE
from e2e_jobs import Job
from e2e_selection import every, kept
from e2e_steps import StartJob, start_training, updates_go_on
from kubernetes.client.exceptions import ApiException

SAID_S, CLEARED_S = 5.0, 5.0
# In words of each: the API server's quota, a webhook, the scheduler, a claim.
ALWAYS = ("quota full", "webhook without an answer", "too little cpu", "claim missing")
FAILED_S = 10.0 if FULL else 10.0 * PATIENCE
# The kubelet tries again by itself, more and more slowly: up to two minutes for a volume, one sync for a Secret.
KUBELET_S = {"config map of a volume missing": 130.0, "secret of the environment missing": 25.0}
RESTRICTED: Json = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}  # as the operator's pods are
UNPRIVILEGED: Json = {"securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}}
AT_ADMISSION = frozenset(
    {"QuotaExceeded", "QuotaUnmet", "LimitRangeViolated", "PodSecurityViolated", "WebhookFailed", "PolicyDenied"}
)
TABLE = ROOT / "build" / "refusals.json"


@pytest.fixture
def causes(cluster: Cluster, namespace: str) -> Iterator[str]:
    """The namespace; whatever a cause has made in it goes with the test."""
    clear(cluster, namespace)
    yield namespace
    clear(cluster, namespace)


def pods_ready(job: Job) -> Json:
    return next((c for c in job.status.get("conditions") or [] if c["type"] == "PodsReady"), {})


def says(job: Job, reason: str) -> bool:
    return reason in pods_ready(job).get("reason", "").split(",")


def note(cause: str, **facts: Any) -> None:
    known = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write_text(json.dumps(known | {cause: facts}, indent=1) + "\n")


@pytest.mark.parametrize("cause", kept(CAUSES, ALWAYS))
def test_a_wait_is_said_and_cleared(cluster: Cluster, causes: str, start_job: StartJob, cause: Cause) -> None:
    cause.make(cluster, causes)
    if cause.reason in AT_ADMISSION:
        wait_until("the API server to apply it", lambda: not admits(cluster, causes, cause.template()), 30)
    began = time.monotonic()
    job = start_job(
        "Chain",
        servers={"template": cause.template()},
        recovery={"checkpoint": {"volume": {"emptyDir": {}}}},
    )

    def is_said() -> bool:
        return says(job, cause.reason) and cause.words in pods_ready(job)["message"]

    wait_until(f"PodsReady to say {cause.reason}: {cause.words}", is_said, 60)
    said_s = time.monotonic() - began
    status = job.status
    assert cause.reason in status["waiting"].split(",")
    assert cause.reason in cluster.kubectl("get", "tjob", job.name, "-n", causes)
    assert (status["state"], status["failoverCount"]) == ("Pending", 0)
    told = wait_until("its event", lambda: events(cluster, causes, job.name, cause.reason), 30)

    if cause.lift is None:
        others = dict.fromkeys(cause.pod)  # a merge patch keeps what it does not name
        template = Cause("", "", "").template()
        cluster.patch(causes, job.name, {"servers": {"template": {"spec": {**others, **template["spec"]}}}})
    else:
        cause.lift(cluster, causes)
    began = time.monotonic()
    wait_until(f"the end of {cause.reason}", lambda: not says(job, cause.reason), KUBELET_S.get(cause.id, 30.0))
    cleared_s = time.monotonic() - began
    note(
        cause.id, reason=cause.reason, said_s=round(said_s, 2), cleared_s=round(cleared_s, 2), words=told[0]["message"]
    )
    patience = 1.0 if FULL else PATIENCE
    assert said_s <= SAID_S * patience
    assert cleared_s <= KUBELET_S.get(cause.id, CLEARED_S) * patience
    assert job.status["failoverCount"] == 0
    assert len(events(cluster, causes, job.name, cause.reason)) == 1, "one event a cause"


def admits(cluster: Cluster, namespace: str, template: Json) -> bool:
    """Whether a pod of this template would be made: what refuses it is in force some time after it was made."""
    containers = [{"image": "any", **c} for c in template["spec"]["containers"]]
    for container in containers:
        container["securityContext"] = {**RESTRICTED, **container.get("securityContext", {})}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "dry", "namespace": namespace}}
    try:
        cluster.core.create_namespaced_pod(
            namespace, {**pod, "spec": {**UNPRIVILEGED, **template["spec"], "containers": containers}}, dry_run="All"
        )
    except ApiException:
        return False
    return True


def events(cluster: Cluster, namespace: str, name: str, reason: str) -> list[Json]:
    selector = f"involvedObject.kind=TrainingJob,involvedObject.name={name},reason={reason}"
    found = cluster.kubectl("get", "events", "-n", namespace, "--field-selector", selector, "-o", "json")
    told: list[Json] = json.loads(found)["items"]
    return told


def test_a_lost_server_that_a_webhook_refuses_is_said_and_replaced(
    cluster: Cluster, causes: str, start_job: StartJob
) -> None:
    job, _ = start_training(start_job, "Chain")
    make_webhook(cluster, causes)
    template = Cause("", "", "").template()
    wait_until("the API server to ask it", lambda: not admits(cluster, causes, template), 30)
    epoch = job.view()["epoch"]
    cluster.kubectl("delete", "pod", job.head().metadata.name, "-n", causes, "--wait=false")
    wait_until("WebhookFailed", lambda: job.status.get("waiting") == "WebhookFailed", 30)
    updates_go_on(job)
    assert job.condition("PrimaryAvailable") == "True"
    clear(cluster, causes)
    job.wait_whole(beyond_epoch=epoch)
    assert "waiting" not in job.status
    assert job.status["failoverCount"] == 1


@every
def test_a_misspelt_field_of_a_template_ends_a_job_that_never_trained(
    cluster: Cluster, causes: str, start_job: StartJob
) -> None:
    template = Cause("", "", "", pod={"nodeSelectr": {"a": "b"}}).template()
    job = start_job("Chain", servers={"template": template})
    job.wait_condition("Failed", timeout_s=FAILED_S)
    failed = next(c for c in job.status["conditions"] if c["type"] == "Failed")
    assert failed["reason"] == "TemplateInvalid"
    assert 'unknown field "spec.nodeSelectr"' in failed["message"]


@every
def test_a_start_deadline_ends_a_job_that_waits(cluster: Cluster, causes: str, start_job: StartJob) -> None:
    cause = CAUSES[0]
    cause.make(cluster, causes)
    wait_until("the quota", lambda: not admits(cluster, causes, cause.template()), 30)
    job = start_job("Chain", runPolicy={"startDeadlineSeconds": 5})
    job.wait_condition("Failed", timeout_s=5 + FAILED_S)
    failed = next(c for c in job.status["conditions"] if c["type"] == "Failed")
    assert failed["reason"] == "StartDeadlineExceeded"
    assert cause.words in failed["message"]

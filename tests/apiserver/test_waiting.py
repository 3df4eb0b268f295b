"""What a real API server answers where it refuses a pod, and what the operator makes of it: a wait in its own words.

Each cause is made, said by the next turns, taken away, and gone from the status within seconds. No node runs the pods.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from apiserver_process import ApiServer, wait_until
from fake_api import AtOnce

from outlast_operator.kubernetes.cluster.api import CORE, JOBS, PLURAL
from outlast_operator.kubernetes.cluster.cache import Cache
from outlast_operator.kubernetes.cluster.pools import Pools
from outlast_operator.kubernetes.job.loop import JobLoop
from outlast_operator.kubernetes.job.runtime import Tools
from outlast_operator.kubernetes.manifests.pods import Images

Json = dict[str, Any]
CLEARED_S = 5.0
ADMISSION = "apis/admissionregistration.k8s.io/v1"
PODS = [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}]
SMALL: Json = {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}}
BARE: Json = {"requests": {"cpu": "10m", "memory": "256Mi"}}


@dataclass(frozen=True)
class Cause:
    """`objects`: (group, plural, object) that make it, or, with `missing`, whose absence does; of the cluster's scope
    where they carry `cluster`. `labels`: of the namespace."""

    reason: str
    words: str
    objects: tuple[tuple[str, str, Json], ...] = ()
    missing: bool = False
    pod: Json = field(default_factory=dict)
    container: Json = field(default_factory=dict)
    labels: Json = field(default_factory=dict)


def limits(**more: Json) -> tuple[str, str, Json]:
    return CORE, "limitranges", {"spec": {"limits": [{"type": "Container", **more}]}}


def quota(**hard: str) -> tuple[str, str, Json]:
    return CORE, "resourcequotas", {"spec": {"hard": {key.replace("_", "."): value for key, value in hard.items()}}}


WEBHOOK: Json = {
    "name": "pods.outlast.test",
    "admissionReviewVersions": ["v1"],
    "sideEffects": "None",
    "failurePolicy": "Fail",
    "timeoutSeconds": 1,
    "clientConfig": {"url": "https://127.0.0.1:9/nobody"},
    "rules": PODS,
}
POLICY: Json = {
    "failurePolicy": "Fail",
    "matchConstraints": {"resourceRules": PODS},
    "validations": [{"expression": "false", "message": "no pods today"}],
}
CAUSES = {
    "quota full": Cause("QuotaExceeded", "exceeded quota", (quota(pods="0"),)),
    "quota on values that are missing": Cause(
        "QuotaUnmet", "must specify limits.memory", (quota(limits_memory="64Gi"),), container={"resources": BARE}
    ),
    "quota on Secrets": Cause("QuotaExceeded", "exceeded quota", (quota(secrets="0"),)),
    "quota on claims": Cause("QuotaExceeded", "exceeded quota", (quota(persistentvolumeclaims="0"),)),
    "limit range: maximum": Cause(
        "LimitRangeViolated", "maximum memory usage per Container", (limits(max={"memory": "128Mi"}),)
    ),
    "limit range: ratio": Cause(
        "LimitRangeViolated", "max limit to request ratio per Container", (limits(maxLimitRequestRatio={"cpu": "2"}),)
    ),
    "limit range: default below the request": Cause(
        "LimitRangeViolated",
        "must be less than or equal to memory limit",
        (limits(default={"memory": "128Mi"}),),
        container={"resources": BARE},
    ),
    "pod security": Cause(
        "PodSecurityViolated",
        "allowPrivilegeEscalation",
        container={"securityContext": {"allowPrivilegeEscalation": True}},
        labels={"pod-security.kubernetes.io/enforce": "restricted"},
    ),
    "webhook without an answer": Cause(
        "WebhookFailed",
        "failed calling webhook",
        ((ADMISSION, "validatingwebhookconfigurations", {"cluster": True, "webhooks": [WEBHOOK]}),),
    ),
    "policy": Cause(
        "PolicyDenied",
        "no pods today",
        (
            (ADMISSION, "validatingadmissionpolicies", {"cluster": True, "spec": POLICY}),
            (
                ADMISSION,
                "validatingadmissionpolicybindings",
                {"cluster": True, "spec": {"policyName": "cause", "validationActions": ["Deny"], "matchResources": {}}},
            ),
        ),
    ),
    "service account missing": Cause(
        "ServiceAccountMissing",
        'serviceaccount "cause" not found',
        ((CORE, "serviceaccounts", {}),),
        missing=True,
        pod={"serviceAccountName": "cause"},
    ),
    "priority class missing": Cause(
        "PriorityClassMissing",
        "no PriorityClass with name cause",
        (("apis/scheduling.k8s.io/v1", "priorityclasses", {"cluster": True, "value": 1}),),
        missing=True,
        pod={"priorityClassName": "cause"},
    ),
    "runtime class missing": Cause(
        "RuntimeClassMissing",
        'RuntimeClass "cause" not found',
        (("apis/node.k8s.io/v1", "runtimeclasses", {"cluster": True, "handler": "runc"}),),
        missing=True,
        pod={"runtimeClassName": "cause"},
    ),
}


class Team:
    """A namespace with one job, and one operator's loop for it."""

    def __init__(self, server: ApiServer, cause: Cause, template: Json | None = None) -> None:
        self.server, self.cause = server, cause
        self.namespace = server.make_namespace(f"refused-{secrets.token_hex(4)}")
        self.template = template or {"spec": {"containers": [{"resources": SMALL, **cause.container}], **cause.pod}}

    def make(self) -> None:
        if self.cause.labels:
            self._label(self.cause.labels)
        for group, plural, more in self.cause.objects:
            spec = {key: value for key, value in more.items() if key != "cluster"}
            if (matched := spec.get("spec", {}).get("matchResources")) is not None:
                matched["namespaceSelector"] = {"matchLabels": {"kubernetes.io/metadata.name": self.namespace}}
            for webhook in spec.get("webhooks", ()):
                webhook["namespaceSelector"] = {"matchLabels": {"kubernetes.io/metadata.name": self.namespace}}
            place = "" if more.get("cluster") else self.namespace
            self.server.api.create(group, place, plural, {"metadata": {"name": "cause"}, **spec})

    def remove(self) -> None:
        if self.cause.labels:
            self._label(dict.fromkeys(self.cause.labels))
        for group, plural, more in reversed(self.cause.objects):
            place = "" if more.get("cluster") else self.namespace
            where = f"{group}/namespaces/{place}" if place else group
            code, answer = self.server.request("DELETE", f"{where}/{plural}/cause")
            assert code in (200, 404), answer

    def _label(self, labels: Json) -> None:
        self.server.api.patch(CORE, "", "namespaces", self.namespace, {"metadata": {"labels": labels}})

    def operate(self) -> None:
        spec = {
            "training": {"task": "outlast.tasks.synthetic", "stopAfter": {"updates": 10}, "optimizer": {"lr": 0.1}},
            "servers": {"replicas": 2, "template": self.template},
            "workers": {"replicas": 1, "template": self.template},
            "recovery": {"strategy": "Chain"},
        }
        meta = {"name": "mnist", "namespace": self.namespace}
        document = {"apiVersion": "outlast.dev/v1alpha1", "kind": "TrainingJob", "metadata": meta, "spec": spec}
        job = self.server.api.create(JOBS, self.namespace, PLURAL, document)
        cache = Cache(lambda namespace, name: None)
        cache.put_job(job)
        pools = Pools(AtOnce(), AtOnce(), AtOnce())
        self.loop = JobLoop(Tools(self.server.api, cache, Images("t", "r"), pools, time.time, lambda: True), job)

    def turn(self) -> Json:
        """Turns until the loop would sleep; the status then."""
        for _ in range(20):
            if self.loop._turn() is not None:
                status: Json = self.server.api.get(JOBS, self.namespace, PLURAL, "mnist").get("status") or {}
                return status
        pytest.fail("the loop does not come to rest")

    def admits(self) -> bool:
        """Whether a pod would be made."""
        pod = {"metadata": {"name": "dry"}, "spec": {"containers": [{"name": "a", "image": "i", "resources": SMALL}]}}
        return self.server.request("POST", f"{CORE}/namespaces/{self.namespace}/pods?dryRun=All", pod)[0] < 400

    def pods(self) -> int:
        return len(self.server.api.list(CORE, self.namespace, "pods")["items"])

    def said(self) -> str:
        """The condition's words once they are those of the cause; empty before."""
        status = self.turn()
        ready = condition(status, "PodsReady")
        known = self.cause.reason in status.get("waiting", "").split(",")
        return str(ready["message"]) if known and self.cause.words in ready["message"] else ""


def condition(status: Json, type_: str) -> Json:
    return next(c for c in status["conditions"] if c["type"] == type_)


@pytest.fixture(params=CAUSES.values(), ids=list(CAUSES))
def team(server: ApiServer, request: pytest.FixtureRequest) -> Iterator[Team]:
    made = Team(server, request.param)
    yield made
    made.remove()


def test_a_refusal_is_a_wait_in_the_api_servers_words(team: Team) -> None:
    if not team.cause.missing:
        team.make()
        if team.cause.objects and team.cause.objects[0][0] == ADMISSION:
            wait_until(lambda: not team.admits(), "the API server does not apply it", 10)
    team.operate()
    wait_until(team.said, f"{team.cause.reason} is not said", 10)
    for _ in range(3):
        status = team.turn()
        assert (status["state"], status["failoverCount"]) == ("Pending", 0)
    (event,) = (
        e
        for e in team.server.api.list(CORE, team.namespace, "events")["items"]
        if (e["involvedObject"]["kind"], e["reason"]) == ("TrainingJob", team.cause.reason)
    )
    assert team.cause.words in event["message"]

    if team.cause.missing:
        team.make()
    else:
        team.remove()
    began = time.monotonic()
    wait_until(lambda: "waiting" not in team.turn(), f"{team.cause.reason} is not cleared", 20)
    assert time.monotonic() - began <= CLEARED_S + 1.0  # the API server's own caches are up to a second behind
    assert team.pods() == 4


@pytest.mark.parametrize(
    ("pod", "container", "words"),
    [
        ({"nodeSelectr": {"a": "b"}}, {}, 'unknown field "spec.nodeSelectr"'),
        ({}, {"resource": {}}, 'unknown field "spec.containers[0].resource"'),
        ({}, {"imagePullPolicy": "Sometimes"}, "spec.containers[0].imagePullPolicy: Unsupported value"),
        ({}, {"resources": {"requests": {"cpu": "many"}}}, "quantities must match"),
        ({"tolerations": [{"operator": "Same"}]}, {}, "spec.tolerations"),
    ],
    ids=["a misspelt field", "one of a container", "a wrong word", "a wrong quantity", "a wrong part"],
)
def test_a_template_that_is_no_pod_ends_the_job(server: ApiServer, pod: Json, container: Json, words: str) -> None:
    team = Team(server, Cause("TemplateInvalid", words, pod=pod, container=container))
    team.operate()
    team.turn()
    failed = condition(team.turn(), "Failed")
    assert (failed["status"], failed["reason"]) == ("True", "TemplateInvalid")
    assert words in failed["message"]

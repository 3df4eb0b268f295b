"""Refusals of a real API server, as the operator judges them: which are a wait, and which are final."""

from __future__ import annotations

from typing import Any

import pytest
from apiserver_process import ApiServer, wait_until

from outlast_operator.kubernetes.cluster.api import CORE, ApiError
from outlast_operator.kubernetes.job.refusals import judge

Json = dict[str, Any]
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


def pod(**spec: Any) -> Json:
    container = {"name": "c", "image": "i", **spec.pop("container", {})}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [container], **spec}}


def judged(server: ApiServer, namespace: str, body: Json) -> tuple[str, bool]:
    with pytest.raises(ApiError) as caught:
        server.api.create(CORE, namespace, "pods", body)
    found = judge(caught.value, body)
    assert found.message
    return found.reason, found.final


@pytest.mark.parametrize(
    ("body", "reason", "final"),
    [
        (pod(container={"image": ""}), "TemplateInvalid", True),
        (pod(container={"resources": {"requests": {"memory": "2Gi"}, "limits": {"memory": "1Gi"}}}),
         "TemplateInvalid", True),
        (pod(tolerations="none"), "TemplateInvalid", True),
        (pod(restartPolicy="Sometimes"), "TemplateInvalid", True),
        (pod(priorityClassName="absent"), "PriorityClassMissing", False),
        (pod(runtimeClassName="absent"), "RuntimeClassMissing", False),
        (pod(serviceAccountName="absent"), "ServiceAccountMissing", False),
    ],
    ids=["no image", "request above limit", "no list", "no such policy", "priority", "runtime", "account"],
)  # fmt: skip
def test_pods(server: ApiServer, namespace: str, body: Json, reason: str, final: bool) -> None:
    assert judged(server, namespace, body) == (reason, final)


def test_pod_security(server: ApiServer, namespace: str) -> None:
    server.api.patch(CORE, "", "namespaces", namespace, {"metadata": {"labels": RESTRICTED}})
    wait_until(lambda: refuses(server, namespace, pod()), "the namespace admits any pod")
    assert judged(server, namespace, pod()) == ("PodSecurityViolated", False)


def test_quotas(server: ApiServer, namespace: str) -> None:
    quota = {"metadata": {"name": "team"}, "spec": {"hard": {"limits.memory": "1Gi"}}}
    server.api.create(CORE, namespace, "resourcequotas", quota)
    path = f"{CORE}/namespaces/{namespace}/resourcequotas/team"
    wait_until(lambda: server.request("GET", path)[1].get("status", {}).get("hard"), "no controller took up the quota")
    assert judged(server, namespace, pod()) == ("QuotaUnmet", False)
    large = pod(container={"resources": {"limits": {"memory": "2Gi"}}})
    assert judged(server, namespace, large) == ("QuotaExceeded", False)


def test_limit_ranges(server: ApiServer, namespace: str) -> None:
    limits = {"type": "Container", "default": {"memory": "1Gi"}, "max": {"memory": "3Gi"}}
    server.api.create(CORE, namespace, "limitranges", {"metadata": {"name": "team"}, "spec": {"limits": [limits]}})
    above_default = pod(container={"resources": {"requests": {"memory": "2Gi"}}})
    wait_until(lambda: refuses(server, namespace, above_default), "no LimitRange is obeyed")
    assert judged(server, namespace, above_default) == ("LimitRangeViolated", False)
    above_maximum = pod(container={"resources": {"limits": {"memory": "4Gi"}}})
    assert judged(server, namespace, above_maximum) == ("LimitRangeViolated", False)


def test_a_namespace_that_is_being_deleted(server: ApiServer, namespace: str) -> None:
    finalizer = {"metadata": {"name": "c", "finalizers": ["outlast.dev/test"]}}
    server.api.create(CORE, namespace, "configmaps", finalizer)  # so that it takes a while
    found = server.api.get(CORE, "", "namespaces", namespace)
    server.api.delete(CORE, "", "namespaces", namespace, found["metadata"]["uid"])
    try:
        assert judged(server, namespace, pod()) == ("NamespaceTerminating", False)
    finally:
        server.api.patch(CORE, namespace, "configmaps", "c", {"metadata": {"finalizers": None}})


def refuses(server: ApiServer, namespace: str, body: Json) -> bool:
    return server.request("POST", f"{CORE}/namespaces/{namespace}/pods?dryRun=All", body)[0] != 201

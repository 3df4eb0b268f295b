"""Causes for which a pod of a job does not start, made and taken away on a real cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from e2e_cluster import Cluster, Json

Act = Callable[[Cluster, str], Any]
NAME = "e2e-cause"
DISK = "ephemeral-storage"  # of which no namespace of the tests has a default
SMALL: Json = {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}}


def nothing(cluster: Cluster, namespace: str) -> None:
    """The cause is the template alone."""


@dataclass(frozen=True)
class Cause:
    """`pod`, `container`: what the servers' template says for it. `make` is done before the job is applied; `lift`
    takes the cause away (None: by another template)."""

    id: str
    reason: str
    words: str
    pod: Json = field(default_factory=dict)
    container: Json = field(default_factory=dict)
    make: Act = nothing
    lift: Act | None = None

    def template(self) -> Json:
        container = {"name": "outlast", "resources": SMALL, **self.container}
        return {"spec": {"containers": [container], **self.pod}}


def object_of(api: str, kind: str, namespace: str | None = None, **more: Json) -> Json:
    place = {} if namespace is None else {"namespace": namespace}
    return {"apiVersion": api, "kind": kind, "metadata": {"name": NAME, **place}, **more}


def making(api: str, kind: str, namespaced: bool = True, **more: Any) -> Act:
    return lambda cluster, ns: cluster.apply(object_of(api, kind, ns if namespaced else None, **more))


def deleting(kind: str, namespaced: bool = True) -> Act:
    def delete(cluster: Cluster, namespace: str) -> None:
        where = ("-n", namespace) if namespaced else ()
        cluster.kubectl("delete", kind, NAME, *where, "--ignore-not-found", "--wait=false")

    return delete


def make_webhook(cluster: Cluster, namespace: str) -> None:
    """One that nobody answers for, for pods of jobs in this namespace."""
    webhook = {
        "name": "pods.e2e.outlast.dev",
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "failurePolicy": "Fail",
        "timeoutSeconds": 1,
        "clientConfig": {"service": {"name": "nobody", "namespace": namespace}},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
    }
    api = "admissionregistration.k8s.io/v1"
    cluster.apply(object_of(api, "ValidatingWebhookConfiguration", webhooks=[webhook]))


def make_policy(cluster: Cluster, namespace: str) -> None:
    api = "admissionregistration.k8s.io/v1"
    rules = [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}]
    policy = {
        "failurePolicy": "Fail",
        "matchConstraints": {"resourceRules": rules},
        "validations": [{"expression": "false", "message": "no pods today"}],
    }
    here = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}
    binding = {"policyName": NAME, "validationActions": ["Deny"], "matchResources": here}
    cluster.apply(
        object_of(api, "ValidatingAdmissionPolicy", spec=policy),
        object_of(api, "ValidatingAdmissionPolicyBinding", spec=binding),
    )


def lift_policy(cluster: Cluster, namespace: str) -> None:
    for kind in ("validatingadmissionpolicybinding", "validatingadmissionpolicy"):
        deleting(kind, namespaced=False)(cluster, namespace)


def label_nodes(value: str) -> Act:
    return lambda cluster, ns: cluster.kubectl("label", "nodes", "--all", f"{NAME}{value}", "--overwrite")


QUOTA = making("v1", "ResourceQuota", spec={"hard": {"pods": "0"}})
SECRET_VARIABLE = {"name": "DATA", "valueFrom": {"secretKeyRef": {"name": NAME, "key": "data"}}}
CLAIM = {"persistentVolumeClaim": {"claimName": NAME}}
CONFIG_MAP = {"configMap": {"name": NAME}}


def mounting(source: Json) -> dict[str, Json]:
    """`pod` and `container` of a template that mounts a volume of the user's."""
    return {
        "pod": {"volumes": [{"name": "data", **source}]},
        "container": {"volumeMounts": [{"name": "data", "mountPath": "/data"}]},
    }


CAUSES = (
    Cause("quota full", "QuotaExceeded", "exceeded quota", make=QUOTA, lift=deleting("resourcequota")),
    Cause(
        "limit range: maximum", "LimitRangeViolated", "maximum memory usage per Container",
        make=making("v1", "LimitRange", spec={"limits": [{"type": "Container", "max": {"memory": "128Mi"}}]}),
        lift=deleting("limitrange"),
    ),
    Cause(
        "limit range: default below the request", "LimitRangeViolated", f"must be less than or equal to {DISK} limit",
        container={"resources": {"requests": {**SMALL["requests"], DISK: "2Gi"}, "limits": SMALL["limits"]}},
        make=making("v1", "LimitRange", spec={"limits": [{"type": "Container", "default": {DISK: "1Gi"}}]}),
        lift=deleting("limitrange"),
    ),
    Cause(
        "pod security", "PodSecurityViolated", "allowPrivilegeEscalation",
        container={"securityContext": {"allowPrivilegeEscalation": True}},
    ),
    Cause(
        "webhook without an answer", "WebhookFailed", "failed calling webhook",
        make=make_webhook, lift=deleting("validatingwebhookconfiguration", namespaced=False),
    ),
    Cause("policy", "PolicyDenied", "no pods today", make=make_policy, lift=lift_policy),
    Cause(
        "service account missing", "ServiceAccountMissing", f'serviceaccount "{NAME}" not found',
        pod={"serviceAccountName": NAME}, lift=making("v1", "ServiceAccount"),
    ),
    Cause(
        "priority class missing", "PriorityClassMissing", "no PriorityClass with name",
        pod={"priorityClassName": NAME},
        lift=making("scheduling.k8s.io/v1", "PriorityClass", namespaced=False, value=1),
    ),
    Cause(
        "runtime class missing", "RuntimeClassMissing", "RuntimeClass",
        pod={"runtimeClassName": NAME},
        lift=making("node.k8s.io/v1", "RuntimeClass", namespaced=False, handler="runc"),
    ),
    Cause(
        "too little cpu", "Unschedulable", "Insufficient cpu",
        container={"resources": {"requests": {"cpu": "10"}, "limits": {"cpu": "10"}}},
    ),
    Cause(
        "no such node", "Unschedulable", "didn't match Pod's node affinity/selector",
        pod={"nodeSelector": {NAME: "yes"}}, lift=label_nodes("=yes"),
    ),
    Cause(
        "scheduling gate", "SchedulingGated", "scheduling gates",
        pod={"schedulingGates": [{"name": f"outlast.dev/{NAME}"}]},
    ),
    Cause("claim missing", "ClaimUnbound", f'persistentvolumeclaim "{NAME}" not found', **mounting(CLAIM)),
    Cause(
        "claim of a class that is missing", "ClaimUnbound", "not found", **mounting(CLAIM),
        make=making(
            "v1", "PersistentVolumeClaim",
            spec={
                "storageClassName": "e2e-missing",
                "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "1Mi"}},
            },
        ),
    ),
    Cause(
        "image missing", "ImagePullBackOff", "its image cannot be pulled",
        container={"image": "127.0.0.1:1/none:1"},
    ),
    Cause(
        "image never pulled", "ErrImageNeverPull", "imagePullPolicy is Never",
        container={"image": "outlast.invalid/none:1", "imagePullPolicy": "Never"},
    ),
    Cause("image without a name", "InvalidImageName", "no valid name", container={"image": "No:Name:At:All"}),
    Cause(
        "secret of the environment missing", "CreateContainerConfigError", f'secret "{NAME}" not found',
        container={"env": [SECRET_VARIABLE]}, lift=making("v1", "Secret", stringData={"data": "x"}),
    ),
    Cause(
        "config map of a volume missing", "FailedMount", f'configmap "{NAME}" not found', **mounting(CONFIG_MAP),
        lift=making("v1", "ConfigMap", data={"x": "y"}),
    ),
)  # fmt: skip


def clear(cluster: Cluster, namespace: str) -> None:
    """Whatever a cause has made."""
    kinds = ("resourcequota", "limitrange", "serviceaccount", "secret", "configmap", "pvc")
    for kind in kinds:
        deleting(kind)(cluster, namespace)
    for kind in ("validatingwebhookconfiguration", "priorityclass", "runtimeclass"):
        deleting(kind, namespaced=False)(cluster, namespace)
    lift_policy(cluster, namespace)
    label_nodes("-")(cluster, namespace)

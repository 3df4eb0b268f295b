"""Each way of being refused by the API server: what it is called, whether it is final, and when it is tried again.

The answers are those of kube-apiserver 1.30 to 1.37.
"""

from __future__ import annotations

import math
from typing import Any

import pytest

from outlast_operator.kubernetes.cluster.api import ApiError, _error
from outlast_operator.kubernetes.job.refusals import LONGEST_RETRY_S, RELEASED, Refusals, judge, name_taken

Json = dict[str, Any]
POD: Json = {"kind": "Pod", "spec": {"containers": [{"name": "outlast", "resources": {"requests": {"memory": "4Gi"}}}]}}
FORBIDDEN = 'pods "mnist-server-0-x7k2p" is forbidden: '
STRICT = 'Pod in version "v1" cannot be handled as a Pod: strict decoding error: unknown field "spec.nodeSelectr"'
TABLE = [
    (403, FORBIDDEN + "exceeded quota: team, requested: pods=1, used: pods=2, limited: pods=2", "QuotaExceeded"),
    (
        403,
        FORBIDDEN + "failed quota: team: must specify limits.cpu for: outlast; limits.memory for: outlast",
        "QuotaUnmet",
    ),
    (409, 'Operation cannot be fulfilled on resourcequotas "team": the object has been modified', "RequestRefused"),
    (403, FORBIDDEN + "maximum memory usage per Container is 1Gi, but limit is 4Gi", "LimitRangeViolated"),
    (403, FORBIDDEN + "minimum cpu usage per Pod is 1, but request is 100m", "LimitRangeViolated"),
    (
        403,
        FORBIDDEN + "memory max limit to request ratio per Container is 2, but provided ratio is 8",
        "LimitRangeViolated",
    ),
    (403, FORBIDDEN + 'violates PodSecurity "restricted:latest": runAsNonRoot != true', "PodSecurityViolated"),
    (403, 'admission webhook "validate.kyverno.svc" denied the request: no latest', "WebhookDenied"),
    (400, 'admission webhook "a.b" denied the request: no labels', "WebhookDenied"),
    (422, 'admission webhook "a.b" denied the request: spec.containers[0].image: no latest', "WebhookDenied"),
    (500, 'Internal error occurred: failed calling webhook "a.b": failed to call webhook: 503', "WebhookFailed"),
    (500, 'Internal error occurred: failed calling webhook "a.b": context deadline exceeded', "WebhookFailed"),
    (
        422,
        FORBIDDEN + "ValidatingAdmissionPolicy 'images' with binding 'all' denied request: no latest",
        "PolicyDenied",
    ),
    (403, 'pods is forbidden: User "o" cannot create resource "pods" in API group ""', "RightMissing"),
    (
        403,
        FORBIDDEN + 'error looking up service account n/gpu: serviceaccount "gpu" not found',
        "ServiceAccountMissing",
    ),
    (403, FORBIDDEN + "no PriorityClass with name high was found", "PriorityClassMissing"),
    (403, FORBIDDEN + 'pod rejected: RuntimeClass "nvidia" not found', "RuntimeClassMissing"),
    (
        403,
        FORBIDDEN + "unable to create new content in namespace n because it is being terminated",
        "NamespaceTerminating",
    ),
    (403, FORBIDDEN + "something that no release has said yet", "Forbidden"),
    (429, "too many requests, please try again later", "TooManyRequests"),
    (500, "etcdserver: request timed out", "APIServerError"),
    (503, "the server is currently unable to handle the request", "APIServerError"),
    (504, "request did not complete within the allotted timeout", "APIServerError"),
    (0, "POST api/v1/namespaces/n/pods: Read timed out", "APIServerUnreachable"),
]


@pytest.mark.parametrize(("code", "message", "reason"), TABLE, ids=[f"{c} {r}" for c, _, r in TABLE])
def test_all_but_a_wrong_template_is_a_wait_in_the_api_servers_words(code: int, message: str, reason: str) -> None:
    fields = ("spec.containers[0].image",) if code == 422 else ()
    refusal = judge(ApiError(code, "", message, fields), POD)
    assert (refusal.reason, refusal.final) == (reason, False)
    assert refusal.message == message.removeprefix(FORBIDDEN)


@pytest.mark.parametrize(
    ("code", "message", "fields"),
    [
        (400, STRICT, ()),
        (422, 'Pod "x" is invalid: spec.containers[0].image: Required value', ("spec.containers[0].image",)),
        (400, "template.spec.containers is not a list of objects", ("spec",)),
    ],
    ids=["an unknown field", "a wrong value", "no template at all"],
)
def test_a_wrong_template_is_final(code: int, message: str, fields: tuple[str, ...]) -> None:
    refusal = judge(ApiError(code, "", message, fields), POD)
    assert (refusal.reason, refusal.final) == ("TemplateInvalid", True)
    assert refusal.message == message.removeprefix('Pod "x" is invalid: ')


def test_what_is_no_pod_has_no_template_that_could_be_wrong() -> None:
    error = ApiError(422, "Invalid", "spec.storageClassName: Invalid value", ("spec.storageClassName",))
    assert judge(error, {"kind": "PersistentVolumeClaim", "spec": {}}).final is False


@pytest.mark.parametrize(("limits", "final"), [({}, False), ({"cpu": "1"}, False), ({"memory": "1Gi"}, True)])
def test_a_default_limit_below_a_request_is_the_limit_ranges_doing(limits: Json, final: bool) -> None:
    pod: Json = {
        "kind": "Pod",
        "spec": {"containers": [{"resources": {"requests": {"memory": "4Gi"}, "limits": limits}}]},
    }
    path = "spec.containers[0].resources.requests"
    message = f'Pod "x" is invalid: {path}: Invalid value: "4Gi": must be less than or equal to memory limit of 1Gi'
    refusal = judge(ApiError(422, "Invalid", message, (path,)), pod)
    assert (refusal.reason, refusal.final) == (("TemplateInvalid", True) if final else ("LimitRangeViolated", False))


def test_a_name_that_somebody_else_has() -> None:
    refusal = judge(name_taken("pod", "mnist-server-0-x7k2p"), POD)
    assert (refusal.reason, refusal.final) == ("NameTaken", False)


def test_an_answer_says_which_fields_and_for_how_long() -> None:
    body = (
        b'{"reason": "Invalid", "message": "no", "details": {"retryAfterSeconds": 7, '
        b'"causes": [{"field": "spec.a"}, {"message": "of no field"}]}}'
    )
    error = _error(422, body, "POST pods", "3")
    assert (error.fields, error.retry_after_s) == (("spec.a",), 7.0)
    assert _error(429, b"slow down", "POST pods", "9").retry_after_s == 9.0


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def delays(self, count: int, error: ApiError) -> list[float]:
        refusals = Refusals(lambda: self.now, lambda low, high: high)
        found = []
        for _ in range(count):
            refusals.note("server-0", error, POD)
            retry_at = refusals.waits["server-0"].retry_at
            assert retry_at is not None
            found.append(retry_at - self.now)
        return found


def test_it_is_tried_again_ever_more_slowly_and_within_five_seconds() -> None:
    assert Clock().delays(6, ApiError(403, "", "exceeded quota")) == [0.5, 1.0, 2.0, 3.0, 3.0, 3.0]
    assert LONGEST_RETRY_S < 5.0


def test_it_is_tried_again_as_slowly_after_a_day() -> None:
    assert Clock().delays(30_000, ApiError(403, "", "exceeded quota"))[-1] == LONGEST_RETRY_S


def test_retry_after_is_honoured() -> None:
    assert Clock().delays(2, ApiError(429, "", "slow down", retry_after_s=20.0)) == [20.0, 20.0]


def test_what_is_final_is_not_tried_again() -> None:
    assert Clock().delays(1, ApiError(400, "", STRICT)) == [math.inf]


def test_jitter_keeps_jobs_apart() -> None:
    bounds: list[tuple[float, float]] = []
    refusals = Refusals(lambda: 0.0, lambda low, high: bounds.append((low, high)) or low)  # type: ignore[func-returns-value]
    refusals.note("server-0", ApiError(403, "", "exceeded quota"), POD)
    assert bounds == [(0.75, 1.0)]


def test_a_grant_releases_some_that_wait_for_the_same() -> None:
    refusals = Refusals(lambda: 0.0, lambda low, high: high)
    refusals.note("evaluator", ApiError(403, "", 'violates PodSecurity "restricted"'), POD)
    for slot in range(RELEASED + 3):
        refusals.note(f"worker-{slot}", ApiError(403, "", "exceeded quota"), POD)
    refusals.clear("worker-0")
    assert list(refusals.waits) == ["evaluator", f"worker-{RELEASED + 1}", f"worker-{RELEASED + 2}"]


def test_a_grant_begins_the_count_anew() -> None:
    refusals = Refusals(lambda: 0.0, lambda low, high: high)
    for _ in range(5):
        refusals.note("server-0", ApiError(403, "", "exceeded quota"), POD)
    assert refusals.clear("server-0") is True
    assert refusals.clear("server-0") is False
    refusals.note("server-0", ApiError(403, "", "exceeded quota"), POD)
    assert refusals.waits["server-0"].retry_at == 0.5


def test_what_is_not_wanted_any_more_is_forgotten() -> None:
    refusals = Refusals(lambda: 0.0, lambda low, high: high)
    for _ in range(5):
        refusals.note("server-1", ApiError(403, "", "exceeded quota"), POD)
    refusals.drop(["server-1", "server-7"])
    assert refusals.waits == {}
    refusals.note("server-1", ApiError(403, "", "exceeded quota"), POD)
    assert refusals.waits["server-1"].retry_at == 0.5

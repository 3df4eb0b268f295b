"""What an answer of the API server to the creation of an object means, and when the request may be sent again.

Rules. (1) Final is only a 400 or 422 that names fields of the pod's schema and no policy or webhook: sent again, it is
refused again. Everything else is a wait: any 403, 409, 429, 5xx, time-out, and the denial of a policy or a webhook,
whatever its code. (2) A default of a LimitRange below what a template requests is answered with a 422 as well; it is
told apart by what was sent. (3) What is refused is asked for again after 0.5, 1, 2, 3 s with jitter, so that the end of
its cause is noticed within 5 s; later where the answer says Retry-After, or where nothing is held up by it.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from outlast_operator.kubernetes.cluster.api import ApiError
from outlast_operator.planner.status import Wait

Json = dict[str, Any]
FIRST_RETRY_S, LONGEST_RETRY_S = 0.5, 3.0
RELEASED = 8  # requests that follow one that was granted at once; each grant among them releases as many again
JITTER = 0.25  # a delay is shortened by up to this share
TEMPLATE_INVALID = "TemplateInvalid"
NAME_TAKEN = "NameTaken"
_WORDS = (  # of answers that are a wait whatever their code
    ("denied request: ", "PolicyDenied"),
    ("denied the request", "WebhookDenied"),
    ("failed calling webhook", "WebhookFailed"),
    ("exceeded quota", "QuotaExceeded"),
    ("failed quota", "QuotaUnmet"),
    ("violates PodSecurity", "PodSecurityViolated"),
    ("being terminated", "NamespaceTerminating"),
    ("error looking up service account", "ServiceAccountMissing"),
    ("no PriorityClass with name", "PriorityClassMissing"),
    ("pod rejected: RuntimeClass", "RuntimeClassMissing"),
    ("cannot create resource", "RightMissing"),
    ("cannot get resource", "RightMissing"),
)
_LIMIT_RANGE = re.compile(r"(minimum|maximum) \S+ usage per (Container|Pod)|max limit to request ratio per")
_BELOW_REQUEST = re.compile(r"must be less than or equal to (\S+) limit")
_OBJECT = re.compile(r'^\S+ "[^"]*" is (forbidden|invalid): ')  # names the pod; its words are the same for all pods


@dataclass(frozen=True)
class Refusal:
    """An answer, judged."""

    reason: str
    message: str
    final: bool = False


def judge(error: ApiError, sent: Json) -> Refusal:
    """What the refusal of the object `sent` means."""
    message = _OBJECT.sub("", error.message) or str(error)
    if error.reason == NAME_TAKEN:
        return Refusal(NAME_TAKEN, message)
    reason = next((reason for words, reason in _WORDS if words in error.message), None)
    if reason is not None:
        return Refusal(reason, message)
    if error.code == 403:
        return Refusal("LimitRangeViolated" if _LIMIT_RANGE.search(error.message) else "Forbidden", message)
    if error.code in (400, 422) and sent.get("kind") == "Pod":
        if _limited_by_default(error, sent):
            return Refusal("LimitRangeViolated", f"{message} (the limit is the default of a LimitRange)")
        if _names_fields(error):
            return Refusal(TEMPLATE_INVALID, message, final=True)
    return Refusal(_reason_of_code(error.code), message)


def name_taken(kind: str, name: str) -> ApiError:
    """For an object of another owner under a name that the job needs."""
    return ApiError(
        409, NAME_TAKEN, f"a {kind} named {name} exists and has another owner; delete it, or rename this job"
    )


def _reason_of_code(code: int) -> str:
    if code == 429:
        return "TooManyRequests"
    if code >= 500:
        return "APIServerError"
    return "APIServerUnreachable" if code == 0 else "RequestRefused"


def _names_fields(error: ApiError) -> bool:
    return (
        bool(error.fields) or "strict decoding error" in error.message or "cannot be handled as a Pod" in error.message
    )


def _limited_by_default(error: ApiError, sent: Json) -> bool:
    """Whether a request is above a limit that the pod, as it was sent, does not have."""
    resources = _BELOW_REQUEST.findall(error.message)
    containers = [*(sent["spec"].get("containers") or ()), *(sent["spec"].get("initContainers") or ())]
    sent_limits = [(c.get("resources") or {}).get("limits") or {} for c in containers]
    return bool(resources) and all(any(r not in limits for limits in sent_limits) for r in resources)


class Refusals:
    """Requests of one job that were refused, by the name of what they would have made, the oldest first."""

    def __init__(
        self,
        clock: Callable[[], float],
        uniform: Callable[[float, float], float] = random.uniform,
        longest_s: float = LONGEST_RETRY_S,
    ) -> None:
        self._clock, self._uniform, self._longest_s = clock, uniform, longest_s
        self._tries: dict[str, int] = {}
        self.waits: dict[str, Wait] = {}

    def note(self, name: str, error: ApiError, sent: Json, blocks: bool = False) -> None:
        refusal = judge(error, sent)
        self._tries[name] = self._tries.get(name, 0) + 1
        longest_s = min(FIRST_RETRY_S * 2.0 ** min(self._tries[name] - 1, 10), self._longest_s)
        delay_s = max(longest_s * self._uniform(1 - JITTER, 1.0), error.retry_after_s)
        retry_at = math.inf if refusal.final else self._clock() + delay_s
        self.waits[name] = Wait(refusal.reason, refusal.message, retry_at, refusal.final, blocks)

    def clear(self, name: str) -> bool:
        """It was granted; some of those that wait for the same reason are asked for at once. Returns whether it was
        refused before."""
        wait = self.waits.get(name)
        if wait is None:
            return False
        alike = [other for other, w in self.waits.items() if w.reason == wait.reason and other != name]
        for released in (name, *alike[:RELEASED]):
            self._tries.pop(released, None)
            self.waits.pop(released)
        return True

    def drop(self, names: Iterable[str]) -> None:
        """What they would have made is not wanted any more."""
        for name in names:
            self._tries.pop(name, None)
            self.waits.pop(name, None)

    def clear_all(self) -> None:
        """What is asked for next is not what was refused."""
        self._tries.clear()
        self.waits.clear()

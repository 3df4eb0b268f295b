"""What a job's pods need beside them: Secrets, Services and claims for checkpoints, made where they are missing.

Rules. (1) Look first, make what is missing (owned.py). (2) What is refused is a wait, tried again, and holds up nothing
else: a job that runs is planned for without it. (3) A secret keeps its value as long as this operator knows it, also
where its object was deleted: the pods that run were started with it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from secrets import token_hex
from typing import Any

from outlast.api.spec import JobSpec
from outlast_operator.kubernetes.cluster.api import Api, ApiError
from outlast_operator.kubernetes.job.owned import find, find_or_make
from outlast_operator.kubernetes.job.refusals import Refusals
from outlast_operator.kubernetes.job.storage import CLAIMS
from outlast_operator.kubernetes.manifests import children
from outlast_operator.kubernetes.manifests.names import JobRef, redis_secret, token_secret
from outlast_operator.kubernetes.manifests.pods import PASSWORD_KEY, TOKEN_KEY
from outlast_operator.planner.status import Wait

log = logging.getLogger("outlast.kubernetes")

Json = dict[str, Any]
LOOK_AGAIN_S = 10.0  # between two looks at objects that were there, while a pod says that one is missing
_MISSING = frozenset({"CreateContainerConfigError", "FailedMount", "ClaimUnbound"})


@dataclass(frozen=True)
class Secrets:
    """What the operator must know to speak to a job's servers and Redis; None while it does not."""

    token: str | None = None
    redis_password: str | None = None


class Dependents:
    """Those of one job. Used by its loop alone."""

    def __init__(self, api: Api, ref: JobRef, clock: Callable[[], float]) -> None:
        self._api, self._ref, self._clock = api, ref, clock
        self._refusals = Refusals(clock)
        self._there: set[str] = set()
        self._values: dict[str, str] = {}  # of secrets, by their objects' names
        self._t_looked = clock()

    @property
    def waits(self) -> dict[str, Wait]:
        return self._refusals.waits

    @property
    def secrets(self) -> Secrets:
        return Secrets(self._values.get(token_secret(self._ref)), self._values.get(redis_secret(self._ref)))

    def ensure(self, spec: JobSpec, claims: list[Json], ended: bool, waits: dict[str, Wait]) -> None:
        """Look for what is not known to be there; make it, unless the job has `ended`. `waits`: of its pods; `claims`:
        for its checkpoints. What is not wanted any more is no wait."""
        now = self._clock()
        if now - self._t_looked >= LOOK_AGAIN_S and any(wait.reason in _MISSING for wait in waits.values()):
            self._there.clear()
        objects = [*self._wanted(spec), *((CLAIMS, claim) for claim in claims)]
        wanted = {_title(obj): (plural, obj) for plural, obj in objects}
        self._refusals.drop(self.waits.keys() - wanted.keys())
        for name, (plural, obj) in wanted.items():
            wait = self.waits.get(name)
            if name not in self._there and (wait is None or now >= (wait.retry_at or now)):
                self._t_looked = now
                self._ensure(name, plural, obj, ended)

    def ensure_claim(self, claim: Json) -> None:
        """Before the server that mounts it starts. Raises `ApiError` where it is refused, or is another owner's."""
        if _title(claim) not in self._there:
            find_or_make(self._api, self._ref, CLAIMS, claim)
            self._there.add(_title(claim))

    def _wanted(self, spec: JobSpec) -> list[tuple[str, Json]]:
        ref = self._ref
        wanted = [
            ("secrets", children.token(ref, self._value(token_secret(ref)))),
            ("services", children.servers_headless(ref)),
        ]
        if spec.own_redis:
            wanted.append(("secrets", children.redis_password(ref, self._value(redis_secret(ref)))))
            wanted.append(("services", children.redis_endpoint(ref)))
        return wanted

    def _value(self, name: str) -> str:
        return self._values.get(name) or token_hex(16)

    def _ensure(self, name: str, plural: str, obj: Json, ended: bool) -> None:
        try:
            recorded = self._find(plural, obj) if ended else find_or_make(self._api, self._ref, plural, obj)
        except ApiError as error:
            log.info("%s/%s: %s: %s", self._ref.namespace, self._ref.name, name, error)
            self._refusals.note(name, error, obj, blocks=True)
            return
        self._refusals.clear(name)
        self._there.add(name)
        if plural == "secrets" and recorded is not None:
            key = PASSWORD_KEY if PASSWORD_KEY in obj["data"] else TOKEN_KEY
            self._values[obj["metadata"]["name"]] = children.secret_value(recorded, key)

    def _find(self, plural: str, obj: Json) -> Json | None:
        return find(self._api, self._ref, plural, obj["kind"], obj["metadata"]["name"])


def _title(obj: Json) -> str:
    return f"{obj['kind']} {obj['metadata']['name']}"

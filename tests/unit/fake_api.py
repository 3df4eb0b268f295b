"""An API server in memory, for the parts that need no more of it than its rules: versions, uids, preconditions."""

from __future__ import annotations

import copy
import itertools
import json
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from outlast_operator.kubernetes.api import ApiError

Json = dict[str, Any]


class FakeApi:
    """Objects by (namespace, plural, name). `refuse` makes creations fail: it returns an error, or None."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Json] = {}
        self.deletions: list[tuple[str, int | None]] = []
        self.refuse: Callable[[str, Json], ApiError | None] = lambda plural, body: None
        self._count = itertools.count(1)
        self._lock = threading.RLock()

    def names(self, plural: str) -> list[str]:
        return sorted(name for _, kind, name in self.objects if kind == plural)

    def get(self, group: str, namespace: str, plural: str, name: str) -> Json:
        with self._lock:
            if (namespace, plural, name) not in self.objects:
                raise ApiError(404, "NotFound", f"{plural} {name} not found")
            return copy.deepcopy(self.objects[namespace, plural, name])

    def list(self, group: str, namespace: str | None, plural: str, **query: str) -> Json:
        with self._lock:
            found = [o for (ns, kind, _), o in self.objects.items() if kind == plural and namespace in (None, ns)]
            return {"metadata": {"resourceVersion": str(next(self._count))}, "items": copy.deepcopy(found)}

    def create(self, group: str, namespace: str, plural: str, body: Json) -> Json:
        with self._lock:
            error = self.refuse(plural, body)
            if error is not None:
                raise error
            name = body["metadata"]["name"]
            if (namespace, plural, name) in self.objects:
                raise ApiError(409, "AlreadyExists", f"{plural} {name} exists")
            made = copy.deepcopy(body)
            made["metadata"] |= {"namespace": namespace, "uid": f"uid-{next(self._count)}"}
            made["metadata"].setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
            return self._store(namespace, plural, made)

    def replace(self, group: str, namespace: str, plural: str, name: str, body: Json, part: str = "") -> Json:
        with self._lock:
            known = self.get(group, namespace, plural, name)
            if known["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"]:
                raise ApiError(409, "Conflict", "the object has been modified")
            made = {**known, "status": body["status"]} if part == "status" else body
            return self._store(namespace, plural, copy.deepcopy(made))

    def patch(self, group: str, namespace: str, plural: str, name: str, body: Json) -> Json:
        with self._lock:
            return self._store(namespace, plural, _merged(self.get(group, namespace, plural, name), body))

    def delete(
        self, group: str, namespace: str, plural: str, name: str, uid: str, grace_s: int | None = None,
        propagation: str | None = None,
    ) -> Json:  # fmt: skip
        with self._lock:
            known = self.get(group, namespace, plural, name)
            if known["metadata"]["uid"] != uid:
                raise ApiError(409, "Conflict", "the UID in the precondition does not match")
            self.deletions.append((name, grace_s))
            if grace_s == 0 or plural != "pods":
                del self.objects[namespace, plural, name]
                return {"kind": "Status"}
            known["metadata"]["deletionTimestamp"] = "2099-01-01T00:00:00Z"
            return {**self._store(namespace, plural, known), "kind": "Pod"}

    def _store(self, namespace: str, plural: str, obj: Json) -> Json:
        json.dumps(obj, allow_nan=False)  # the API server refuses a request with a NaN as unreadable
        obj["metadata"]["resourceVersion"] = str(next(self._count))
        self.objects[namespace, plural, obj["metadata"]["name"]] = obj
        return copy.deepcopy(obj)


def _merged(old: Any, new: Any) -> Any:
    if not isinstance(new, dict):
        return new
    base = dict(old) if isinstance(old, dict) else {}
    for key, value in new.items():
        base[key] = _merged(base.get(key), value)
        if value is None:
            del base[key]
    return base


class AtOnce(Executor):
    """A pool whose work is done when it is handed in."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(fn(*args, **kwargs))
        return done

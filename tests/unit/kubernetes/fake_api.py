"""An API server in memory, for tests that need its faults at chosen moments, or thousands of it.

tests/apiserver/test_contract.py holds it to a real one's answers. It knows names, uids, versions, generations, the
status apart, labels, grace periods and the default StorageClass; it has no schemas, no other admission, no watches and
no controllers.
"""

from __future__ import annotations

import copy
import itertools
import json
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from outlast_operator.kubernetes.cluster.api import ApiError

Json = dict[str, Any]


class FakeApi:
    """Objects by (namespace, plural, name). `refuse` makes creations fail: it returns an error, or None. `node` is
    where its scheduler puts every pod at once; None: nowhere."""

    def __init__(self, node: str | None = "node-1") -> None:
        self.objects: dict[tuple[str | None, str, str], Json] = {}
        self.deletions: list[tuple[str, int | None]] = []
        self.strict: list[str] = []  # what was created with strict validation of its fields
        self.hidden: Callable[[str, str], ApiError | None] = lambda plural, name: None  # makes lookups fail
        self.refuse: Callable[[str, Json], ApiError | None] = lambda plural, body: None
        self.node = node
        self.default_class: str | None = "standard"  # of storage; what admission writes into a claim that names none
        self._count = itertools.count(1)
        self._lock = threading.RLock()

    def names(self, plural: str) -> list[str]:
        return sorted(name for _, kind, name in self.objects if kind == plural)

    def get(self, group: str, namespace: str | None, plural: str, name: str) -> Json:
        with self._lock:
            if (error := self.hidden(plural, name)) is not None:
                raise error
            if (namespace, plural, name) not in self.objects:
                raise ApiError(404, "NotFound", f'{plural} "{name}" not found')
            return copy.deepcopy(self.objects[namespace, plural, name])

    def list(self, group: str, namespace: str | None, plural: str, **query: str) -> Json:
        selector = query.get("labelSelector", "")
        with self._lock:
            found = [
                obj
                for (its_namespace, its_plural, _), obj in self.objects.items()
                if its_plural == plural and namespace in (None, its_namespace) and _selected(obj, selector)
            ]
            return {"metadata": {"resourceVersion": str(next(self._count))}, "items": copy.deepcopy(found)}

    def create(self, group: str, namespace: str, plural: str, body: Json, strict: bool = False) -> Json:
        with self._lock:
            self.strict += [plural] if strict else []
            error = self.refuse(plural, body)
            if error is not None:
                raise error
            name = body["metadata"]["name"]
            if body["metadata"].get("namespace", namespace) != namespace:
                raise ApiError(400, "BadRequest", "the namespace of the object does not match that of the request")
            if (namespace, plural, name) in self.objects:
                raise ApiError(409, "AlreadyExists", f'{plural} "{name}" already exists')
            made = copy.deepcopy(body)
            made["metadata"] |= {"namespace": namespace, "uid": f"uid-{next(self._count)}"}
            made["metadata"].setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
            if plural in _WITH_STATUS:
                made.pop("status", None)
                made["metadata"]["generation"] = 1
            if plural == "pods" and self.node is not None:
                made.setdefault("spec", {}).setdefault("nodeName", self.node)
            if plural == "persistentvolumeclaims" and self.default_class is not None:
                made["spec"].setdefault("storageClassName", self.default_class)
            return self._store(namespace, plural, made)

    def replace(self, group: str, namespace: str, plural: str, name: str, body: Json, part: str = "") -> Json:
        with self._lock:
            known = self.get(group, namespace, plural, name)
            if "resourceVersion" not in body["metadata"]:
                raise ApiError(422, "Invalid", "metadata.resourceVersion: must be specified for an update")
            _check_version(known, body)
            if part == "status":
                return self._update(namespace, plural, known, _with_status(known, body))
            return self._update(namespace, plural, known, _but_status(plural, known, copy.deepcopy(body)))

    def patch(self, group: str, namespace: str, plural: str, name: str, body: Json) -> Json:
        with self._lock:
            known = self.get(group, namespace, plural, name)
            _check_version(known, body)
            if body.get("metadata", {}).get("uid", known["metadata"]["uid"]) != known["metadata"]["uid"]:
                raise ApiError(422, "Invalid", "metadata.uid: Invalid value: field is immutable")
            return self._update(namespace, plural, known, _but_status(plural, known, _merged(known, body)))

    def report(self, namespace: str, pod: str, status: Json) -> Json:
        """As the kubelet reports a pod's status. Returns the pod."""
        known = self.get("", namespace, "pods", pod)
        return self.replace("", namespace, "pods", pod, {**known, "status": status}, "status")

    def delete(
        self, group: str, namespace: str, plural: str, name: str, uid: str, grace_s: int | None = None,
        propagation: str | None = None,
    ) -> Json:  # fmt: skip
        with self._lock:
            known = self.get(group, namespace, plural, name)
            if known["metadata"]["uid"] != uid:
                raise ApiError(409, "Conflict", "the UID in the precondition does not match")
            self.deletions.append((name, grace_s))
            if grace_s == 0 or not (known.get("spec") or {}).get("nodeName"):
                del self.objects[namespace, plural, name]
                return known if plural == "pods" else {"kind": "Status", "status": "Success"}
            wanted_s = (known["spec"].get("terminationGracePeriodSeconds") or 30) if grace_s is None else grace_s
            grace_s = min(wanted_s, known["metadata"].get("deletionGracePeriodSeconds", wanted_s))
            deletion = {"deletionTimestamp": "2099-01-01T00:00:00Z", "deletionGracePeriodSeconds": grace_s}
            known["metadata"] |= deletion
            return {**self._store(namespace, plural, known), "kind": "Pod"}

    def _update(self, namespace: str, plural: str, known: Json, wanted: Json) -> Json:
        """Store what a replacement or a patch makes of an object, but for what belongs to the API server."""
        owned = ("uid", "creationTimestamp", "generation", "resourceVersion", "deletionTimestamp")
        kept = {key: value for key, value in known["metadata"].items() if key in owned}
        wanted = {**wanted, "metadata": {**wanted["metadata"], **kept}}
        if wanted == known:
            return known
        if plural in _WITH_STATUS and wanted.get("spec") != known.get("spec"):
            wanted["metadata"]["generation"] = known["metadata"].get("generation", 1) + 1
        return self._store(namespace, plural, wanted)

    def _store(self, namespace: str, plural: str, obj: Json) -> Json:
        json.dumps(obj, allow_nan=False)  # the API server refuses a request with a NaN as unreadable
        obj["metadata"]["resourceVersion"] = str(next(self._count))
        self.objects[namespace, plural, obj["metadata"]["name"]] = obj
        return copy.deepcopy(obj)


_WITH_STATUS = ("trainingjobs", "pods")  # kinds whose status is written apart


def _but_status(plural: str, known: Json, wanted: Json) -> Json:
    return _with_status(wanted, known) if plural in _WITH_STATUS else wanted


def _with_status(obj: Json, source: Json) -> Json:
    """The object with the status, or the lack of one, of another."""
    status = {"status": source["status"]} if "status" in source else {}
    return {key: value for key, value in obj.items() if key != "status"} | copy.deepcopy(status)


def _check_version(known: Json, body: Json) -> None:
    expected = body.get("metadata", {}).get("resourceVersion")
    if expected not in (None, known["metadata"]["resourceVersion"]):
        raise ApiError(409, "Conflict", "the object has been modified; please apply your changes to the latest version")


def _selected(obj: Json, selector: str) -> bool:
    """Whether `a=b,c!=d,e` selects the object."""
    labels = obj["metadata"].get("labels") or {}
    for requirement in filter(None, selector.split(",")):
        key, relation, value = requirement.replace("==", "=").partition("=")
        if key.endswith("!"):
            good = labels.get(key[:-1]) != value
        else:
            good = key in labels and relation in ("", "=") and (not relation or labels[key] == value)
        if not good:
            return False
    return True


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

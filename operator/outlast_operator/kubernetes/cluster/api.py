"""Requests to the API server as plain JSON, with their number counted by verb and resource.

The client's generated models are passed over: they double the work of every request and lose fields that they do not
know. Taken from the client are its configuration (kubeconfig, in-cluster, renewed tokens) and its connection pool.
"""

from __future__ import annotations

import collections
import json
import logging
import threading
import urllib.parse
from collections.abc import Mapping
from typing import Any

import urllib3
from kubernetes import client, config

from outlast.api.crd import GROUP, PLURAL, VERSION

log = logging.getLogger("outlast.kubernetes")

Json = dict[str, Any]
TIMEOUT = urllib3.Timeout(connect=3.0, read=10.0)
MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"  # of which JSON is a part
JOBS = f"apis/{GROUP}/{VERSION}"
CORE, LEASES, NETWORKING = "api/v1", "apis/coordination.k8s.io/v1", "apis/networking.k8s.io/v1"
POLICY = "apis/policy/v1"
_CONNECTIONS = 32


class ApiError(Exception):
    """The API server refused, or could not be reached (`code` 0). `fields`: those of the object that it objects to;
    `retry_after_s`: how long it asks to be left alone."""

    def __init__(
        self, code: int, reason: str, message: str, fields: tuple[str, ...] = (), retry_after_s: float = 0.0
    ) -> None:
        super().__init__(f"{code or 'no answer'} {reason}: {message}")
        self.code, self.reason, self.message = code, reason, message
        self.fields, self.retry_after_s = fields, retry_after_s

    @property
    def not_found(self) -> bool:
        return self.code == 404

    @property
    def already_exists(self) -> bool:
        return self.code == 409 and self.reason == "AlreadyExists"

    @property
    def conflict(self) -> bool:
        return self.code == 409 and not self.already_exists

    @property
    def invalid(self) -> bool:
        """The object itself is wrong: sent again, it would be refused again."""
        return self.code in (400, 422)


class Api:
    """One API server. Safe to use from several threads."""

    def __init__(self, api_client: client.ApiClient, timeout: urllib3.Timeout = TIMEOUT) -> None:
        self._client, self._timeout = api_client, timeout
        self._pool = api_client.rest_client.pool_manager
        self._lock = threading.Lock()
        self.requests: collections.Counter[tuple[str, str]] = collections.Counter()

    @staticmethod
    def connect() -> Api:
        """To the cluster we run in, else the one of KUBECONFIG. Raises `RuntimeError` when there is neither."""
        settings = client.Configuration()
        settings.connection_pool_maxsize = _CONNECTIONS
        try:
            try:
                config.load_incluster_config(settings)  # type: ignore[no-untyped-call]
            except config.ConfigException:
                config.load_kube_config(client_configuration=settings)  # type: ignore[no-untyped-call]
        except config.ConfigException as error:
            raise RuntimeError(
                f"no Kubernetes cluster is configured ({error}); run inside one, or set KUBECONFIG"
            ) from error
        return Api(client.ApiClient(settings))

    def within(self, total_s: float) -> Api:
        """The same API server and connections, for requests that must end within so many seconds."""
        other = Api(self._client, urllib3.Timeout(total=total_s))
        other.requests, other._lock = self.requests, self._lock
        return other

    @property
    def host(self) -> str:
        return str(self._client.configuration.host)

    def get(self, group: str, namespace: str | None, plural: str, name: str) -> Json:
        """`namespace` None: of the cluster."""
        return self._request("GET", _path(group, namespace, plural, name), plural)

    def list(self, group: str, namespace: str | None, plural: str, **query: str) -> Json:
        """`namespace` None: of all namespaces. `query`: labelSelector, resourceVersion."""
        return self._request("GET", _path(group, namespace, plural), plural, query=query, verb="LIST")

    def create(self, group: str, namespace: str, plural: str, body: Json, strict: bool = False) -> Json:
        """`strict`: an unknown field is refused instead of dropped."""
        query = {"fieldValidation": "Strict"} if strict else None
        return self._request("POST", _path(group, namespace, plural), plural, body, query)

    def replace(self, group: str, namespace: str, plural: str, name: str, body: Json, part: str = "") -> Json:
        """Fails with `conflict` unless the body's resourceVersion is the recorded one. `part`: "status"."""
        return self._request("PUT", _path(group, namespace, plural, name, part), f"{plural}/{part}".rstrip("/"), body)

    def patch(self, group: str, namespace: str, plural: str, name: str, body: Json) -> Json:
        """A merge patch."""
        return self._request("PATCH", _path(group, namespace, plural, name), plural, body, content=MERGE_PATCH)

    def apply(self, group: str, namespace: str, plural: str, name: str, body: Json, manager: str) -> Json:
        """Apply on the server's side, also over what another manager has set."""
        query = {"fieldManager": manager, "force": "true"}
        path = _path(group, namespace, plural, name)
        return self._request("PATCH", path, plural, body, query=query, content=APPLY_PATCH, verb="APPLY")

    def delete(
        self,
        group: str,
        namespace: str,
        plural: str,
        name: str,
        uid: str,
        grace_s: int | None = None,
        propagation: str | None = None,
    ) -> Json:
        """Delete the object with this uid and no other. `grace_s` None: the object's own."""
        body: Json = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}}
        if grace_s is not None:
            body["gracePeriodSeconds"] = grace_s
        if propagation is not None:
            body["propagationPolicy"] = propagation
        return self._request("DELETE", _path(group, namespace, plural, name), plural, body)

    def _request(
        self,
        method: str,
        path: str,
        resource: str,
        body: Json | None = None,
        query: Mapping[str, str] | None = None,
        content: str = "application/json",
        verb: str | None = None,
    ) -> Json:
        headers = {"Accept": "application/json", "Content-Type": content, "User-Agent": "outlast-operator"}
        for auth in self._client.configuration.auth_settings().values():  # asked each time: tokens are renewed
            if auth["in"] == "header":
                headers[auth["key"]] = auth["value"]
        url = f"{self.host}/{path}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
        with self._lock:
            self.requests[verb or method, resource] += 1
        raw = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        try:
            answer = self._pool.request(method, url, body=raw, headers=headers, timeout=self._timeout, retries=False)
        except urllib3.exceptions.HTTPError as error:
            raise ApiError(0, "Unreachable", f"{method} {path}: {error}") from error
        if answer.status >= 300:
            raise _error(answer.status, answer.data, f"{method} {path}", answer.headers.get("Retry-After"))
        document: Json = json.loads(answer.data) if answer.data else {}
        return document


def _path(group: str, namespace: str | None, plural: str, name: str = "", part: str = "") -> str:
    where = f"/namespaces/{namespace}" if namespace else ""
    return f"{group}{where}/{plural}" + (f"/{name}" if name else "") + (f"/{part}" if part else "")


def _error(code: int, data: bytes, what: str, retry_after: str | None = None) -> ApiError:
    header_s = float(retry_after) if retry_after and retry_after.isdigit() else 0.0
    try:
        status = json.loads(data)
        details = status.get("details") or {}
        fields = tuple(str(cause["field"]) for cause in details.get("causes") or () if cause.get("field"))
        retry_after_s = max(header_s, float(details.get("retryAfterSeconds") or 0))
        message = str(status.get("message", "")) or what
        return ApiError(code, str(status.get("reason", "")), message, fields, retry_after_s)
    except (ValueError, AttributeError, TypeError):
        return ApiError(code, "", f"{what}: {data[:200]!r}", retry_after_s=header_s)


__all__ = ["CORE", "JOBS", "LEASES", "NETWORKING", "PLURAL", "POLICY", "Api", "ApiError", "Json"]

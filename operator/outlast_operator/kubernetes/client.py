"""A small client for people's programs: submit a TrainingJob to a cluster, watch it, read its logs, fetch its report.

    from outlast_operator.kubernetes.client import Client

    client = Client.connect(namespace="research")
    client.submit("job.yaml")
    for status in client.watch("mnist"):
        print(status["state"], status.get("version"))
    print(client.report("mnist")["gradients"])

Rules. (1) It needs no right but its user's own: trainingjobs, and for logs and promotion their pods. (2) A job is
checked before it is sent, with all that is wrong at once. (3) Every wait has a bound that the caller may set.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import urllib3
from kubernetes import client, config

from outlast.api.crd import PLURAL
from outlast.api.job import TrainingJob
from outlast_operator.kubernetes.cluster.api import CORE, JOBS, TIMEOUT, Api, ApiError, Json
from outlast_operator.kubernetes.job.pods import our_container
from outlast_operator.kubernetes.job_report import make_report
from outlast_operator.kubernetes.manifests.names import JOB_LABEL, NAME_ANNOTATION, JobRef, is_owned

SILENCE_S = 60.0  # a watch that has said nothing for so long is begun anew
ENDED = ("Succeeded", "Failed")


class JobError(RuntimeError):
    """What was asked cannot be done with this job; says why, and what can."""


class Client:
    """TrainingJobs of one namespace."""

    def __init__(self, api_client: client.ApiClient, namespace: str) -> None:
        self._client = api_client
        self._api = Api(api_client)
        self.namespace = namespace

    @staticmethod
    def connect(namespace: str | None = None, context: str | None = None, kubeconfig: str | None = None) -> Client:
        """To the cluster and namespace that kubectl would use; inside a pod, to its own.

        Raises `RuntimeError` when there is neither a kubeconfig nor a cluster around.
        """
        settings, kube = client.Configuration(), config.kube_config
        try:
            contexts, current = kube.list_kube_config_contexts(kubeconfig)  # type: ignore[no-untyped-call]
            kube.load_kube_config(kubeconfig, context, settings)  # type: ignore[no-untyped-call]
            chosen = next((c for c in contexts if c["name"] == context), current)
            default = (chosen.get("context") or {}).get("namespace")
        except config.ConfigException as error:
            if context is not None or kubeconfig is not None:
                raise RuntimeError(f"{error}; kubectl config get-contexts lists the contexts") from error
            try:
                config.load_incluster_config(settings)  # type: ignore[no-untyped-call]
            except config.ConfigException:
                raise RuntimeError(
                    f"no Kubernetes cluster is configured ({error}); run inside one, or set KUBECONFIG"
                ) from error
            default = _own_namespace()
        return Client(client.ApiClient(settings), namespace or default or "default")

    # --- jobs ---

    def submit(self, job: TrainingJob | Mapping[str, Any] | str | Path) -> str:
        """Create the job (a file, its text, a document), and return its name.

        Raises `SpecError` with all that is wrong with it, `ApiError` where the API server refuses.
        """
        loaded = job if isinstance(job, TrainingJob) else TrainingJob.load(job)
        document = loaded.to_json()
        document.pop("status", None)
        document["metadata"] = {k: v for k, v in document["metadata"].items() if k in _SENT} | {
            "namespace": self.namespace
        }
        return self.send(document)

    def send(self, document: Json) -> str:
        """Create the job as it stands, unchecked, and return its name. Raises `ApiError`."""
        return str(self._api.create(JOBS, self.namespace, PLURAL, document)["metadata"]["name"])

    def get(self, name: str) -> Json:
        """The job as it is stored. Raises `JobError` when there is none of that name."""
        try:
            return self._api.get(JOBS, self.namespace, PLURAL, name)
        except ApiError as error:
            if error.not_found:
                raise JobError(self._no_job(name, error)) from error
            raise

    def jobs(self) -> list[Json]:
        """All jobs of the namespace."""
        found: list[Json] = self._api.list(JOBS, self.namespace, PLURAL)["items"]
        return found

    def status(self, name: str) -> Json:
        """What the operator says of the job; empty before it has said anything."""
        found: Json = self.get(name).get("status") or {}
        return found

    def delete(self, name: str) -> None:
        """Delete the job and with it all its pods; returns at once."""
        job = self.get(name)
        self._api.delete(JOBS, self.namespace, PLURAL, name, job["metadata"]["uid"], propagation="Background")

    def watch(self, name: str, timeout_s: float | None = None) -> Iterator[Json]:
        """Yield the status now and whenever it changes, until the job has ended or is deleted.

        Raises `TimeoutError` after `timeout_s` seconds, `JobError` when there is no such job.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        job = self.get(name)
        while True:
            status = job.get("status") or {}
            yield status
            if status.get("state") in ENDED:
                return
            changed = self._next_change(job, deadline)
            if changed is None:
                return
            job = changed

    def wait(self, name: str, timeout_s: float | None = None) -> Json:
        """Wait until the job has ended; returns its last status. Raises as `watch`, and `JobError` if it is deleted."""
        status: Json = {}
        for seen in self.watch(name, timeout_s):
            status = seen
        if status.get("state") not in ENDED:
            raise JobError(f"{self.namespace}/{name} was deleted before it ended")
        return status

    def report(self, name: str) -> Json:
        """The job so far in the words of `outlast run`'s report.json, as far as a cluster knows them."""
        return make_report(self.get(name))

    # --- pods ---

    def pods(self, name: str) -> list[Json]:
        """The job's pods, by process and age."""
        job = JobRef(name, self.namespace, self.get(name)["metadata"]["uid"])
        found = self._api.list(CORE, self.namespace, "pods", labelSelector=f"{JOB_LABEL}={name}")["items"]
        found = [pod for pod in found if is_owned(pod, job)]
        return sorted(found, key=lambda pod: (process_of(pod), str(pod["metadata"]["creationTimestamp"])))

    def logs(
        self, name: str, process: str, follow: bool = False, tail: int | None = None, previous: bool = False
    ) -> Iterator[str]:
        """The lines of a process's log (`server-0`, `worker-1`, `redis`), of its newest pod.

        `previous`: of the pod (or of the container) before it. Raises `JobError` when there is no such process.
        """
        pods = [pod for pod in self.pods(name) if process_of(pod) == process]
        if not pods:
            known = sorted({process_of(pod) for pod in self.pods(name)})
            there = f"there are {', '.join(known)}" if known else "it has no pods"
            raise JobError(f"{self.namespace}/{name} has no process {process}; {there}")
        older = previous and len(pods) > 1
        pod = pods[-2] if older else pods[-1]
        query = {"container": our_container(pod, process)}  # a template may have named it
        query |= {"follow": "true"} if follow else {}
        query |= {"tailLines": str(tail)} if tail is not None else {}
        query |= {"previous": "true"} if previous and not older else {}
        path = f"{CORE}/namespaces/{self.namespace}/pods/{pod['metadata']['name']}/log"
        yield from self._lines(path, query, None)

    def promote(self, name: str, shard: int = 0) -> Json:
        """Ask the head of a shard to hand over and leave; its successor is head then. Returns the head's pod.

        A planned switchover: nothing is lost, and a fresh replica joins at the tail. Raises `JobError` when there is
        nobody to hand over to.
        """
        status = self.status(name)
        view = view_of(status, shard)
        if not view:
            raise JobError(f"{self.namespace}/{name} has no view of shard {shard} yet; wait until it runs")
        members = view.get("members") or []
        if len(members) < 2:
            raise JobError(
                f"shard {shard} of {self.namespace}/{name} has no caught-up replica to promote; wait until "
                "ReplicationHealthy is True (strategies Checkpoint and Stateless keep none: delete the pod instead)"
            )
        pod = self._pod_of_head(name, members[0]["name"])
        self._api.delete(CORE, self.namespace, "pods", pod["metadata"]["name"], pod["metadata"]["uid"])
        return pod

    def wait_promoted(self, name: str, shard: int, epoch: int, timeout_s: float = 60.0) -> Json:
        """Wait until a higher epoch than this is recorded and every shard has a head that serves."""
        for status in self.watch(name, timeout_s):
            if view_of(status, shard).get("epoch", 0) > epoch and condition(status, "PrimaryAvailable") == "True":
                return status
        raise JobError(f"{self.namespace}/{name} has ended")

    def _pod_of_head(self, name: str, process: str) -> Json:
        pods = [pod for pod in self.pods(name) if process_of(pod) == process]
        living = [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]
        if not living:
            raise JobError(f"{process}, the head, is already leaving; check again with kubectl outlast status {name}")
        return living[-1]

    # --- requests ---

    def _no_job(self, name: str, error: ApiError) -> str:
        if "could not find the requested resource" in error.message:
            return "this cluster has no resource TrainingJob; install the chart first"
        return f"there is no TrainingJob {name} in namespace {self.namespace}; kubectl get tjob -A lists all"

    def _next_change(self, job: Json, deadline: float | None) -> Json | None:
        """The job's next state, or None once it is deleted. Raises `TimeoutError`."""
        meta = job["metadata"]
        path = f"{JOBS}/namespaces/{self.namespace}/{PLURAL}"
        while True:
            left = SILENCE_S if deadline is None else min(SILENCE_S, deadline - time.monotonic())
            if left <= 0:
                raise TimeoutError(f"{self.namespace}/{meta['name']} has not ended within the timeout")
            query = {
                "watch": "true",
                "fieldSelector": f"metadata.name={meta['name']}",
                "resourceVersion": str(meta["resourceVersion"]),
                "timeoutSeconds": str(max(1, int(left))),
            }
            for line in self._lines(path, query, left + 5.0):
                event = json.loads(line)
                if event["type"] in ("ADDED", "MODIFIED"):
                    changed: Json = event["object"]
                    return changed if changed["metadata"]["uid"] == meta["uid"] else None
                if event["type"] == "DELETED":
                    return None
                break  # the version is too old: look again
            now = self._now(meta["name"], meta["uid"])
            if now is None or now["metadata"]["resourceVersion"] != meta["resourceVersion"]:
                return now

    def _now(self, name: str, uid: str) -> Json | None:
        try:
            job = self.get(name)
        except JobError:
            return None
        return job if job["metadata"]["uid"] == uid else None

    def _lines(self, path: str, query: dict[str, str], silence_s: float | None) -> Iterator[str]:
        """A streamed answer, line by line. Raises `ApiError`."""
        settings = self._client.configuration
        headers = {auth["key"]: auth["value"] for auth in settings.auth_settings().values() if auth["in"] == "header"}
        timeout = urllib3.Timeout(connect=TIMEOUT.connect_timeout, read=silence_s)
        url = f"{settings.host}/{path}?{urlencode(query)}"
        pool = self._client.rest_client.pool_manager
        try:
            answer = pool.request("GET", url, headers=headers, timeout=timeout, retries=False, preload_content=False)
            if answer.status >= 300:
                raise ApiError(answer.status, "", _message(answer.read()))
            rest = b""
            for chunk in answer.stream(1 << 16):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from (line.decode(errors="replace") for line in lines)
            if rest:
                yield rest.decode(errors="replace")
            answer.release_conn()
        except urllib3.exceptions.ReadTimeoutError:
            return  # nothing new: the caller looks again
        except urllib3.exceptions.HTTPError as error:
            raise ApiError(0, "Unreachable", f"GET {path}: {error}") from error


_SENT = ("name", "labels", "annotations")


def view_of(status: Json, shard: int) -> Json:
    """The recorded view of a shard; empty while there is none."""
    views: list[Json] = status.get("views") or []
    return next((view for view in views if view.get("shard") == shard), {})


def process_of(pod: Json) -> str:
    """The stable name of what runs in a pod: `server-0`."""
    return str((pod["metadata"].get("annotations") or {}).get(NAME_ANNOTATION, ""))


def condition(status: Json, type_: str) -> str:
    """`True`, `False` or `Unknown`."""
    return next((str(c["status"]) for c in status.get("conditions") or () if c["type"] == type_), "Unknown")


def _message(raw: bytes) -> str:
    try:
        return str(json.loads(raw)["message"])
    except (ValueError, KeyError, TypeError):
        return raw[:300].decode(errors="replace")


def _own_namespace() -> str | None:
    path = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
    return path.read_text().strip() if path.exists() else None

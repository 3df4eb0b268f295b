"""TrainingJobs under test: documents, and what can be asked of one that runs."""

from __future__ import annotations

import itertools
import re
import secrets
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import kubernetes
from e2e_cluster import END_S, GROUP, PLURAL, VERSION, Cluster, Json, wait_until
from e2e_environment import TASK, template
from e2e_nodes import Ledgers

from outlast.chain.applied import Applied, Identity
from outlast.process.ledger import Fact, LedgerRecord

EVALUATED: Json = {"evaluate": {"everySeconds": 30, "samples": 500}}  # for `training`
# Little: several jobs must find room on a node of two cores. Workers would take all of those; what a server, or its
# replacement, needs goes before.
SERVER_CPU, WORKER_CPU = "100m", "10m"
REPLICAS = {"Chain": 3, "Hybrid": 3, "Checkpoint": 1, "Stateless": 1}


@dataclass
class Job:
    """A job in the cluster. `ledgers`: what its workers noted of each gradient."""

    cluster: Cluster
    namespace: str
    name: str
    document: Json
    ledgers: Ledgers

    # --- commands ---

    def apply(self) -> None:
        self.cluster.apply(self.document)

    def delete(self) -> None:
        self.cluster.kubectl("delete", "tjob", self.name, "-n", self.namespace, "--wait=true")
        wait_until("the end of the job's processes", lambda: not [p for p in self.pods() if not has_ended(p)], END_S)

    # --- questions ---

    def read(self) -> Json:
        found = self.cluster.job(self.namespace, self.name)
        assert found is not None, f"TrainingJob {self.namespace}/{self.name} is gone"
        return found

    @property
    def status(self) -> Json:
        return self.read().get("status") or {}

    def condition(self, type_: str) -> str:
        conditions = self.status.get("conditions") or []
        return next((c["status"] for c in conditions if c["type"] == type_), "Unknown")

    def wait_condition(self, type_: str, value: str = "True", timeout_s: float = 60) -> None:
        wait_until(f"{self.name}: condition {type_}={value}", lambda: self.condition(type_) == value, timeout_s)

    def view(self, shard: int = 0) -> Json:
        views = self.status.get("views") or []
        return next((v for v in views if v["shard"] == shard), {})

    def pods(self, **labels: str) -> list[Any]:
        return self.cluster.pods(self.namespace, job_name=self.name, **labels)

    def pod_of(self, process: str) -> Any:
        """The living pod of a process by its stable name (server-0). Raises `AssertionError` if there is none."""
        found = [p for p in self.pods() if p.spec.hostname == process and p.metadata.deletion_timestamp is None]
        found = [p for p in found if p.status.phase == "Running"]
        assert found, f"{self.name}: no pod runs as {process}; there are {[p.metadata.name for p in self.pods()]}"
        return found[0]

    def living(self, role: str) -> list[Any]:
        """The pods of a role that have not ended. Those that failed stay for whoever wants to read why."""
        return [p for p in self.pods(role=role) if not has_ended(p)]

    def replacement_of(self, lost: Any) -> Any:
        """Another living pod under a lost one's stable name, or None."""
        alike = [
            p for p in self.living(lost.metadata.labels["outlast.dev/role"]) if p.spec.hostname == lost.spec.hostname
        ]
        return next((p for p in alike if p.metadata.uid != lost.metadata.uid), None)

    def head(self, shard: int = 0) -> Any:
        """The pod of that shard's head."""
        return self.pod_of(self.view(shard)["members"][0]["name"])

    def is_whole(self, beyond_epoch: int = 0, shard: int = 0) -> bool:
        """Whether that shard's chain has all its members, in an epoch after that."""
        view = self.view(shard)
        wanted = self.document["spec"]["servers"]["replicas"]
        return (
            view.get("epoch", 0) > beyond_epoch and len(view.get("members", [])) == wanted and not view.get("joining")
        )

    def wait_whole(self, beyond_epoch: int = 0, timeout_s: float = 90, shard: int = 0) -> Json:
        what = f"a whole chain of shard {shard} after epoch {beyond_epoch}"
        wait_until(what, lambda: self.is_whole(beyond_epoch, shard), timeout_s)
        return self.view(shard)

    def writes(self, seconds: int) -> list[float]:
        """time.monotonic() of each change of the job that the API server tells of in so many seconds."""
        options = {"field_selector": f"metadata.name={self.name}", "timeout_seconds": seconds}
        options["resource_version"] = self.read()["metadata"]["resourceVersion"]
        stream = kubernetes.watch.Watch().stream(
            self.cluster.custom.list_namespaced_custom_object, GROUP, VERSION, self.namespace, PLURAL, **options
        )
        return [time.monotonic() for event in stream if event["type"] == "MODIFIED"]

    # --- what the workers saw ---

    def facts(self, *kinds: Fact) -> list[LedgerRecord]:
        return [record for record in self.ledgers.read() if record.fact in kinds]

    def first_fact_after(self, t: float, *kinds: Fact) -> float | None:
        """time.monotonic() of the first such record later than `t`."""
        return min((r.t for r in self.facts(*kinds) if r.t > t), default=None)

    def longest_pause(self, start: float, end: float) -> float:
        """Seconds: the longest time between two acknowledgements to any worker, between two times."""
        times = [r.t for r in self.facts(Fact.ACKNOWLEDGED, Fact.BUFFERED) if start <= r.t <= end]
        return max((b - a for a, b in itertools.pairwise(times)), default=end - start)

    def lost(self) -> int:
        """Gradients that workers saw acknowledged and the newest checkpoint lacks. For a job that stands still."""
        acknowledged = Applied()
        for record in self.facts(Fact.ACKNOWLEDGED, Fact.BUFFERED):
            for step in range(record.first, record.last + 1):
                acknowledged.add(Identity(record.slot, step, step))
        assert acknowledged.count > 0, f"{self.name}: no worker noted an acknowledgement"
        with tempfile.TemporaryDirectory() as folder:
            held = self._held(Path(folder))
        return acknowledged.difference(held).count

    def _held(self, folder: Path) -> Applied:
        """What every shard's part of the newest complete checkpoint holds."""
        store = self.cluster.nodes.checkpoints(self.read()["metadata"]["uid"], folder)
        sets = store.list_complete()
        assert sets, f"{self.name}: no complete checkpoint lies on its claims"
        held: Applied | None = None
        for meta in store.metas(sets[0].name):
            table = Applied.from_json(meta["replica"]["applied"])
            held = table if held is None else held.intersection(table)
        assert held is not None
        return held


def has_ended(pod: Any) -> bool:
    """Whether nothing of it runs any more, nor will. Its phase and its object may stay as they were for as long as the
    kubelet takes to tidy up, up to a minute."""
    if pod.status.phase not in ("Pending", "Running"):
        return True
    states = [c.state for c in pod.status.container_statuses or ()]
    ended = bool(states) and all(state.terminated for state in states) and pod.spec.restart_policy == "Never"
    return ended or (pod.metadata.deletion_timestamp is not None and not any(state.running for state in states))


def is_ready(pod: Any) -> bool:
    """Whether it is there, and ready."""
    return pod is not None and any(c.type == "Ready" and c.status == "True" for c in pod.status.conditions or ())


def seconds_of(text: str) -> float:
    """A time of the status, in seconds since the epoch."""
    return datetime.fromisoformat(re.sub(r"Z$", "+00:00", text)).timestamp()


def make_job(cluster: Cluster, namespace: str, strategy: str, **spec: Json) -> Job:
    """A job that trains until it is stopped. `spec` is merged in, object by object.

    Nobody evaluates it unless `training` says so (`EVALUATED`): each pod imports torch, seconds of a core.
    """
    name = f"{strategy.lower()}-{secrets.token_hex(2)}"
    document: Json = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainingJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "training": {
                **TASK,
                "consistency": "Async",
                "optimizer": {"name": "SGD", "lr": 0.01},
                "stopAfter": {"updates": 1_000_000},
                "evaluate": {"everySeconds": 0},
            },
            "servers": {"replicas": REPLICAS[strategy], "template": template(SERVER_CPU)},
            "workers": {"replicas": 2, "template": template(WORKER_CPU, ledger_of=name)},
            "recovery": {
                "strategy": strategy,
                "checkpoint": {"everyUpdates": 1000},
                "staleness": {"outage": {"mode": "StaleGradients"}},  # every gradient is counted
            },
        },
    }
    if strategy in ("Stateless", "Hybrid"):
        document["spec"]["recovery"]["buffer"] = {"maxBytes": "256Mi"}
    _merge(document["spec"], spec)
    return Job(cluster, namespace, name, document, Ledgers(cluster.nodes, name))


def _merge(into: Json, values: Json) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value

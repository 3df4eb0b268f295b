"""Parts of the operator over a real API server: what it makes is admitted, and what it records is kept.

No node runs the pods: a job stays as it is when everything was asked for and nothing has started.
"""

from __future__ import annotations

import secrets
import time
from typing import Any

import pytest
import yaml
from apiserver_process import ApiServer, wait_until
from fake_api import AtOnce
from spec_cases import job

from outlast_operator.kubernetes.cluster.api import CORE, JOBS, LEASES, PLURAL
from outlast_operator.kubernetes.cluster.cache import Cache
from outlast_operator.kubernetes.cluster.lease import DURATION_S, Leadership
from outlast_operator.kubernetes.cluster.pools import Pools
from outlast_operator.kubernetes.job.events import Events
from outlast_operator.kubernetes.job.loop import JobLoop
from outlast_operator.kubernetes.job.runtime import Tools
from outlast_operator.kubernetes.manifests.names import JobRef
from outlast_operator.kubernetes.manifests.pods import Images

Json = dict[str, Any]
CHILDREN = ("pods", "services", "secrets", "persistentvolumeclaims")


class Operator:
    """One operator's loop for one job, turned by the test."""

    def __init__(self, server: ApiServer, namespace: str) -> None:
        self.server, self.namespace = server, namespace
        cache = Cache(lambda namespace, name: None)
        stored = server.api.get(JOBS, namespace, PLURAL, "mnist")
        cache.put_job(stored)
        for pod in server.api.list(CORE, namespace, "pods")["items"]:
            cache.put_pod({"apiVersion": "v1", "kind": "Pod", **pod})
        pools = Pools(AtOnce(), AtOnce(), AtOnce())
        self.loop = JobLoop(Tools(server.api, cache, Images("t", "r"), pools, time.time, lambda: True), stored)

    def settle(self) -> None:
        """Turns until the loop would sleep."""
        for _ in range(20):
            if self.loop._turn() is not None:
                return
        pytest.fail("the loop does not come to rest")

    def children(self) -> dict[tuple[str, str], Json]:
        """By kind and name, those that Kubernetes itself makes in a namespace aside."""
        listed = {plural: self.server.api.list(CORE, self.namespace, plural)["items"] for plural in CHILDREN}
        return {(plural, obj["metadata"]["name"]): obj for plural, found in listed.items() for obj in found}


@pytest.fixture
def team(server: ApiServer) -> str:
    """A namespace that admits restricted pods only."""
    restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
    return server.make_namespace(f"team-{secrets.token_hex(4)}", **restricted)


@pytest.mark.parametrize(
    ("strategy", "roles"),
    [
        ("Checkpoint", "evaluator server worker worker"),
        ("Chain", "evaluator server server server worker worker"),
        ("Stateless", "evaluator redis server worker worker"),
        ("Hybrid", "evaluator redis server server server worker worker"),
    ],
)
def test_a_job_gets_its_children_once_and_leaves_none(server: ApiServer, team: str, strategy: str, roles: str) -> None:
    made = server.api.create(JOBS, team, PLURAL, yaml.safe_load(job(f"recovery.strategy: {strategy}")))
    operator = Operator(server, team)
    operator.settle()
    children = operator.children()
    pods = [obj for (plural, _), obj in children.items() if plural == "pods"]
    assert " ".join(sorted(pod["metadata"]["labels"]["outlast.dev/role"] for pod in pods)) == roles
    assert all([owner["uid"] for owner in obj["metadata"]["ownerReferences"]] == [made["metadata"]["uid"]]
               for obj in children.values())  # fmt: skip

    stored = server.api.get(JOBS, team, PLURAL, "mnist")
    assert stored["status"]["state"] == "Pending"
    assert stored["status"]["workers"]["replicas"] == 2
    assert stored["status"]["record"], "what the operator remembers is in the schema, and not pruned"

    another = Operator(server, team)
    another.settle()
    assert {key: obj["metadata"]["uid"] for key, obj in another.children().items()} == {
        key: obj["metadata"]["uid"] for key, obj in children.items()
    }

    server.api.delete(JOBS, team, PLURAL, "mnist", made["metadata"]["uid"], propagation="Background")
    wait_until(lambda: not operator.children(), "the job's children are not collected", 60.0)


def test_a_silent_leader_is_followed(server: ApiServer, namespace: str) -> None:
    def member(name: str) -> Leadership:
        return Leadership(server.api, namespace, "outlast-operator", name, lambda leading: None)

    def tries(candidate: Leadership, now: float) -> bool:
        leads = candidate._try(now)
        candidate._set(leads)
        return leads

    one, other = member("one"), member("other")
    assert tries(one, 0.0)
    assert not tries(other, 0.1)
    assert tries(one, 2.0)
    assert not tries(other, 2.1)
    assert tries(other, 2.1 + DURATION_S)
    assert not tries(one, 2.2 + DURATION_S)
    lease = server.api.get(LEASES, namespace, "leases", "outlast-operator")
    assert (lease["spec"]["holderIdentity"], lease["spec"]["leaseTransitions"]) == ("other", 1)
    other._give_back()
    assert tries(one, 3.0 + DURATION_S)


def test_an_event_that_is_told_again_is_counted(server: ApiServer, namespace: str) -> None:
    made = server.api.create(JOBS, namespace, PLURAL, yaml.safe_load(job("")))
    events = Events(server.api, JobRef("mnist", namespace, made["metadata"]["uid"]), AtOnce(), time.time)
    for _ in range(3):
        events.tell("Warning", "PodRefused", "server-0: exceeded quota")
    events.tell("Normal", "Started", "server-0")
    found = server.api.list(CORE, namespace, "events", fieldSelector="involvedObject.name=mnist")["items"]
    assert sorted((e["reason"], e["count"], e["type"]) for e in found) == [
        ("PodRefused", 3, "Warning"),
        ("Started", 1, "Normal"),
    ]

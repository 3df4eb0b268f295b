"""The NetworkPolicies of a job: what they open, what they leave alone, and that they are kept."""

from __future__ import annotations

from typing import Any

import pytest
from fake_api import AtOnce, FakeApi

from outlast.api.job import read_spec
from outlast.api.spec import JobSpec
from outlast_operator.kubernetes.cluster.api import ApiError
from outlast_operator.kubernetes.job.network import LOOK_S, PLURAL, Policies
from outlast_operator.kubernetes.manifests.names import JobRef, owner
from outlast_operator.kubernetes.manifests.network import Peers, closes, network_policies

Json = dict[str, Any]
JOB = JobRef("mnist", "team", "uid-1")
OPERATOR = Peers("outlast-system", {"app.kubernetes.io/name": "outlast-operator"})
OPERATORS = {
    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "outlast-system"}},
    "podSelector": {"matchLabels": {"app.kubernetes.io/name": "outlast-operator"}},
}
OF_THE_JOB = {"matchLabels": {"outlast.dev/job-uid": "uid-1"}}
DEFAULT_DENY = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def spec(strategy: str = "Hybrid", **parts: Any) -> JobSpec:
    raw: Json = {"training": {"task": "a.b", "stopAfter": {"updates": 1}}, "recovery": {"strategy": strategy}}
    return read_spec({**raw, **parts})


def policy(spec: Json, name: str = "theirs") -> Json:
    return {"metadata": {"name": name, "namespace": "team", "uid": "x"}, "spec": spec}


def made(job: JobSpec, *others: Json) -> dict[str, Json]:
    found = network_policies(JOB, job, OPERATOR, [policy(other) for other in others])
    return {p["metadata"]["name"]: p["spec"] for p in found}


def roles(policy: Json) -> list[str]:
    [expression] = policy["podSelector"]["matchExpressions"]
    assert (expression["key"], expression["operator"]) == ("outlast.dev/role", "In")
    return list(expression["values"])


def ports(rule: Json) -> list[int]:
    return [port["port"] for port in rule["ports"]]


def test_in_an_open_namespace_servers_and_redis_alone_are_closed_and_nothing_that_users_code_does() -> None:
    [(name, ingress)] = made(spec()).items()
    assert name == "mnist-ingress"
    assert ingress["policyTypes"] == ["Ingress"]
    assert roles(ingress) == ["redis", "server"]
    data, redis, metrics = ingress["ingress"]
    assert (ports(data), data["from"]) == ([7070], [{"podSelector": OF_THE_JOB}, OPERATORS])
    assert ports(redis) == [6379]
    assert roles(redis["from"][0]) == ["server", "worker"], "the evaluator has no business with Redis"
    assert redis["from"][1] == OPERATORS
    assert metrics == {"ports": [{"port": 9090, "protocol": "TCP"}]}


@pytest.mark.parametrize("strategy", ["Checkpoint", "Chain"])
def test_a_job_without_redis_opens_no_port_for_one(strategy: str) -> None:
    ingress = made(spec(strategy))["mnist-ingress"]
    assert roles(ingress) == ["server"]
    assert [ports(rule) for rule in ingress["ingress"]] == [[7070], [9090]]


def test_who_may_ask_for_metrics_is_the_charts_to_say() -> None:
    monitoring = {"namespaceSelector": {"matchLabels": {"team": "monitoring"}}}
    peers = Peers("outlast-system", {}, [monitoring])
    [ingress] = network_policies(JOB, spec("Chain"), peers, [])
    assert ingress["spec"]["ingress"][-1] == {"ports": [{"port": 9090, "protocol": "TCP"}], "from": [monitoring]}


def test_where_a_namespace_denies_by_default_the_way_out_is_opened_to_the_job_and_to_dns() -> None:
    policies = made(spec(), DEFAULT_DENY)
    assert roles(policies["mnist-ingress"]) == ["redis", "server", "worker"], "the workers' metrics"
    egress = policies["mnist-egress"]
    assert (egress["policyTypes"], egress["podSelector"]) == (["Egress"], OF_THE_JOB)
    job, dns = egress["egress"]
    assert (ports(job), job["to"]) == ([7070, 6379], [{"podSelector": OF_THE_JOB}])
    assert {(port["port"], port["protocol"]) for port in dns["ports"]} == {(53, "UDP"), (53, "TCP")}
    assert "to" not in dns, "DNS may be a node's own, which no selector finds"


@pytest.mark.parametrize(
    ("selector", "selects"),
    [
        ({}, True),
        ({"matchLabels": {"team": "vision"}}, True),
        ({"matchLabels": {"team": "audio"}}, False),
        ({"matchLabels": {"outlast.dev/role": "worker"}}, True),
        ({"matchExpressions": [{"key": "team", "operator": "Exists"}]}, True),
        ({"matchExpressions": [{"key": "team", "operator": "DoesNotExist"}]}, True),
        ({"matchExpressions": [{"key": "outlast.dev/role", "operator": "DoesNotExist"}]}, False),
        ({"matchExpressions": [{"key": "team", "operator": "In", "values": ["audio", "vision"]}]}, True),
        ({"matchExpressions": [{"key": "outlast.dev/job-uid", "operator": "NotIn", "values": ["uid-1"]}]}, False),
        ({"matchLabels": {"team": "vision"}, "matchExpressions": [{"key": "gpu", "operator": "Exists"}]}, False),
    ],
)
def test_another_policy_counts_if_it_selects_a_pod_of_the_job(selector: Json, selects: bool) -> None:
    """Opening a way out for pods that nothing had closed would close all other ways."""
    template = {"metadata": {"labels": {"team": "vision"}}, "spec": {}}
    job = spec("Chain", workers={"template": template})
    assert ("mnist-egress" in made(job, {"podSelector": selector, "policyTypes": ["Egress"]})) is selects


@pytest.mark.parametrize(
    ("spec", "directions"),
    [
        ({"podSelector": {}, "policyTypes": ["Ingress"]}, {"Ingress"}),
        ({"podSelector": {}, "policyTypes": ["Egress"]}, {"Egress"}),
        ({"podSelector": {}}, {"Ingress"}),
        ({"podSelector": {}, "egress": [{}]}, {"Ingress", "Egress"}),
    ],
)
def test_directions_of_a_policy(spec: Json, directions: set[str]) -> None:
    assert {d for d in ("Ingress", "Egress") if closes(policy(spec), d, {})} == directions


def test_none_means_none() -> None:
    assert made(spec(security={"networkPolicy": "None"}), DEFAULT_DENY) == {}


# --- kept -------------------------------------------------------------------------------------------------------------


class Keeper:
    def __init__(self, peers: Peers | None = OPERATOR) -> None:
        self.api, self.now = FakeApi(), 1000.0
        self.policies = Policies(self.api, JOB, peers, AtOnce(), lambda: self.now)  # type: ignore[arg-type]

    def names(self) -> list[str]:
        return self.api.names(PLURAL)

    def later(self, job: JobSpec) -> list[str]:
        self.now += LOOK_S
        self.policies.keep(job)
        return self.names()


def test_policies_follow_the_spec_and_the_namespace() -> None:
    keeper, job = Keeper(), spec()
    keeper.policies.keep(job)
    assert keeper.names() == ["mnist-ingress"]
    assert keeper.api.get("", "team", PLURAL, "mnist-ingress")["metadata"]["ownerReferences"] == [owner(JOB)]
    keeper.api.create("", "team", PLURAL, policy(DEFAULT_DENY, "deny"))
    assert keeper.later(job) == ["deny", "mnist-egress", "mnist-ingress"]
    keeper.policies.keep(spec(security={"networkPolicy": "None"}))
    assert keeper.names() == ["deny"], "at once, and nobody else's"


def test_what_was_changed_or_deleted_by_hand_is_put_back() -> None:
    keeper, job = Keeper(), spec()
    keeper.policies.keep(job)
    before = keeper.api.get("", "team", PLURAL, "mnist-ingress")
    keeper.api.patch("", "team", PLURAL, "mnist-ingress", {"spec": {"ingress": []}})
    keeper.later(job)
    assert keeper.api.get("", "team", PLURAL, "mnist-ingress")["spec"] == before["spec"]
    keeper.api.delete("", "team", PLURAL, "mnist-ingress", before["metadata"]["uid"])
    assert keeper.later(job) == ["mnist-ingress"]


def test_a_policy_of_the_same_name_that_is_not_the_jobs_is_left_alone() -> None:
    keeper = Keeper()
    theirs = keeper.api.create("", "team", PLURAL, policy(DEFAULT_DENY, "mnist-ingress"))
    keeper.policies.keep(spec())
    assert keeper.api.get("", "team", PLURAL, "mnist-ingress") == theirs


def test_without_the_right_nothing_else_fails(caplog: pytest.LogCaptureFixture) -> None:
    keeper = Keeper()
    keeper.api.refuse = lambda plural, body: ApiError(403, "Forbidden", "networkpolicies is forbidden")
    keeper.policies.keep(spec())
    keeper.later(spec())
    assert keeper.names() == []
    assert caplog.text.count("networkpolicies is forbidden") == 1, "said once"


def test_an_operator_outside_of_the_cluster_makes_none() -> None:
    """No policy could let it in."""
    keeper = Keeper(peers=None)
    keeper.policies.keep(spec())
    assert keeper.names() == []

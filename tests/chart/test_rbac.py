"""Who may do what: the operator's rights as one table, the users' as another, and where each holds."""

from __future__ import annotations

import re
from typing import Any

import pytest
from chart_tools import CHART, EVERYTHING, of_kind, only, render

from outlast_operator.kubernetes import rights as rights_module
from outlast_operator.kubernetes.rights import IN_CLUSTER, IN_NAMESPACES, Right

Rights = dict[str, set[str]]

VIEW: Rights = {
    "outlast.dev/trainingjobs": {"get", "list", "watch"},
    "outlast.dev/trainingjobs/status": {"get"},
    "outlast.dev/trainingjobs/scale": {"get"},
}
EDIT: Rights = {
    "outlast.dev/trainingjobs": {"create", "update", "patch", "delete", "deletecollection"},
    "outlast.dev/trainingjobs/scale": {"update", "patch"},
}
PODS_VIEW: Rights = {"pods": {"get", "list", "watch"}, "events": {"get", "list", "watch"}, "pods/log": {"get"}}
PODS_EDIT: Rights = {"pods": {"delete"}}
ALL = "outlast-outlast-system"  # cluster roles: the release's name and namespace


def rights(role: dict[str, Any]) -> Rights:
    """A role as a table: group/resource -> verbs."""
    table: Rights = {}
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                table.setdefault(f"{group}/{resource}".lstrip("/"), set()).update(rule["verbs"])
    return table


def united(*tables: Rights) -> Rights:
    return {key: set().union(*(t.get(key, set()) for t in tables)) for key in {k for t in tables for k in t}}


def granted(*rights: Right) -> Rights:
    """The operator's own table, in the form of a role's."""
    return united(*({right.key: set(right.verbs)} for right in rights))


# A right more is a decision: change the operator's table with its reason, the chart, and the docs.
OPERATOR, CLUSTER, LEASE = granted(*IN_NAMESPACES), granted(*IN_CLUSTER), granted(rights_module.LEASE)


def roles(objects: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """(namespace, name) -> role; the namespace of a ClusterRole is ''."""
    found = of_kind(objects, "Role") + of_kind(objects, "ClusterRole")
    return {(o["metadata"].get("namespace", ""), o["metadata"]["name"]): o for o in found}


def test_operator_everywhere() -> None:
    objects = render()
    found = roles(objects)
    assert set(found) == {
        ("", ALL), ("", f"{ALL}-view"), ("", f"{ALL}-edit"), ("outlast-system", "outlast-lease"),
    }  # fmt: skip
    assert rights(found["", ALL]) == united(OPERATOR, CLUSTER)
    binding = only(objects, "ClusterRoleBinding")
    assert binding["metadata"]["name"] == binding["roleRef"]["name"] == ALL
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "outlast", "namespace": "outlast-system"}]


def test_operator_in_namespaces_has_no_right_elsewhere() -> None:
    objects = render(EVERYTHING)
    assert of_kind(objects, "ClusterRole") == []
    assert of_kind(objects, "ClusterRoleBinding") == []
    found = roles(objects)
    for namespace in ("team-a", "team-b"):
        assert rights(found[namespace, "outlast"]) == OPERATOR
    bound = {(b["metadata"]["namespace"], b["roleRef"]["name"]): b["subjects"] for b in of_kind(objects, "RoleBinding")}
    assert set(bound) == {("team-a", "outlast"), ("team-b", "outlast"), ("outlast-system", "outlast-lease")}
    account = [{"kind": "ServiceAccount", "name": "someone", "namespace": "outlast-system"}]
    assert all(subjects == account for subjects in bound.values()), "users' roles are for the administrator to bind"


def test_lease_is_the_operators_own() -> None:
    lease = roles(render())["outlast-system", "outlast-lease"]
    assert rights(lease) == LEASE
    for rule in lease["rules"]:
        assert rule["verbs"] == ["create"] or rule["resourceNames"] == ["outlast"]
    (container,) = only(render(), "Deployment")["spec"]["template"]["spec"]["containers"]
    assert "--lease-name=outlast" in container["args"]


def test_users_through_kubernetes_own_roles() -> None:
    found = roles(render())
    view, edit = found["", f"{ALL}-view"], found["", f"{ALL}-edit"]
    assert rights(view) == VIEW
    assert rights(edit) == EDIT
    aggregation = "rbac.authorization.k8s.io/aggregate-to-"
    assert {k for k in view["metadata"]["labels"] if k.startswith(aggregation)} == {aggregation + "view"}
    assert {k for k in edit["metadata"]["labels"] if k.startswith(aggregation)} == {aggregation + "edit"}


def test_users_in_one_namespace() -> None:
    found = roles(render(EVERYTHING))
    assert rights(found["team-a", "outlast-view"]) == united(VIEW, PODS_VIEW)
    assert rights(found["team-a", "outlast-edit"]) == united(VIEW, EDIT, PODS_VIEW, PODS_EDIT)
    assert ("outlast-system", "outlast-edit") not in found


def test_users_rights_can_be_left_out() -> None:
    assert set(roles(render({"userRoles": "None"}))) == {("", ALL), ("outlast-system", "outlast-lease")}
    assert set(roles(render({"userRoles": "None", "rbac": {"create": False}}))) == set()


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["everywhere", "namespaces"])
def test_nobody_gets_a_wildcard_or_a_way_up(values: dict[str, Any]) -> None:
    for role in roles(render(values)).values():
        for rule in role["rules"]:
            assert "*" not in rule["apiGroups"] + rule["resources"] + rule["verbs"]
            assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"])
            assert not {"pods/exec", "serviceaccounts/token", "roles", "rolebindings"} & set(rule["resources"])


def test_every_verb_of_the_operator_has_a_reason() -> None:
    text = (CHART / "templates" / "_helpers.tpl").read_text()
    for name, table in (("operatorRules", OPERATOR), ("clusterRules", CLUSTER)):
        section = text.split(f'define "outlast.{name}"')[1].split("{{- end }}")[0]
        verbs = re.findall(r"^    - (\w+)( # .+)?$", section, re.MULTILINE)
        assert len(verbs) == sum(len(v) for v in table.values())
        assert [verb for verb, reason in verbs if len(reason) < 15] == []


def test_releases_of_one_name_in_two_namespaces_do_not_meet() -> None:
    """Nothing without a namespace has the same name, but for the resource itself."""

    def clusterwide(namespace: str) -> set[str]:
        objects = render(namespace=namespace)
        kinds = [o for o in objects if o["kind"].startswith("Cluster")]
        assert kinds
        return {f"{o['kind']}/{o['metadata']['name']}" for o in kinds}

    assert not clusterwide("team-a") & clusterwide("team-b")

"""What the cache believes: the newer of two states, deletions for good, and owners instead of labels."""

from __future__ import annotations

from typing import Any

import pytest

from outlast_operator.kubernetes.cluster.cache import Cache
from outlast_operator.kubernetes.manifests.names import JobId

Json = dict[str, Any]
J1 = JobId("n", "mnist", "j1")


def job(version: int, uid: str = "j1", name: str = "mnist") -> Json:
    return {"metadata": {"name": name, "namespace": "n", "uid": uid, "resourceVersion": str(version)}}


def reference(**other: Any) -> Json:
    named = {"apiVersion": "outlast.dev/v1alpha1", "kind": "TrainingJob", "name": "mnist", "uid": "j1"}
    return {**named, "controller": True, **other}


def pod(version: int, uid: str = "p1", owner: str | None = "j1") -> Json:
    owners = [] if owner is None else [reference(uid=owner)]
    return {
        "metadata": {
            "name": uid, "namespace": "n", "uid": uid, "resourceVersion": str(version), "ownerReferences": owners,
            "labels": {"outlast.dev/job-name": "mnist"},
        }
    }  # fmt: skip


def cache() -> tuple[Cache, list[tuple[str, str]]]:
    woken: list[tuple[str, str]] = []
    return Cache(lambda namespace, name: woken.append((namespace, name))), woken


def test_older_states_are_no_news() -> None:
    c, woken = cache()
    assert c.put_job(job(5))
    assert not c.put_job(job(5))
    assert not c.put_job(job(4))
    assert c.put_job(job(6))
    assert woken == [("n", "mnist")] * 2
    found = c.job("n", "mnist")
    assert found is not None
    assert found["metadata"]["resourceVersion"] == "6"


def test_a_deleted_pod_stays_deleted_and_leaves_its_last_state() -> None:
    c, _ = cache()
    c.put_pod(pod(1))
    c.remove_pod(pod(7))
    assert not c.put_pod(pod(8))
    existing, gone = c.pods(J1)
    assert existing == {}
    assert gone["p1"]["metadata"]["resourceVersion"] == "7"


def test_the_last_state_is_the_newest_whichever_way_it_came() -> None:
    c, _ = cache()
    c.put_pod(pod(9))
    c.remove_pod(pod(3))  # the answer to a deletion of ours, overtaken by the watch
    assert c.pods(J1)[1]["p1"]["metadata"]["resourceVersion"] == "9"
    c.remove_pod(pod(12))
    assert c.pods(J1)[1]["p1"]["metadata"]["resourceVersion"] == "12"


def test_labels_make_no_pod_ours() -> None:
    c, woken = cache()
    assert not c.put_pod(pod(1, owner=None))
    assert c.pods(J1) == ({}, {})
    assert woken == []


def test_pods_of_a_job_of_the_same_name_before_it_are_not_its() -> None:
    c, _ = cache()
    c.put_pod(pod(1, owner="j0"))
    assert c.pods(J1) == ({}, {})


@pytest.mark.parametrize(
    ("namespace", "claims"),
    [
        ("attacker", {}),
        ("n", {"apiVersion": "example.com/v1alpha1"}),
        ("n", {"apiVersion": "v1"}),
        ("n", {"kind": "OtherJob"}),
        ("n", {"name": "other"}),
        ("n", {"uid": "j2"}),
        ("n", {"controller": False}),
    ],
    ids=["namespace", "group", "no group", "kind", "name", "uid", "not its controller"],
)
def test_a_pod_belongs_to_a_job_only_if_everything_agrees(namespace: str, claims: Json) -> None:
    c, _ = cache()
    c.put_job(job(1))
    c.put_pod(pod(2, "real"))
    forged = pod(3, "forged")
    forged["metadata"] |= {"namespace": namespace, "ownerReferences": [reference(**claims)]}
    c.put_pod(forged)
    assert (set(c.pods(J1)[0]), c.pod(J1, "forged")) == ({"real"}, None)
    c.remove_pod(forged)
    assert c.pods(J1)[1] == {}, "neither is it one that the job once had"


def test_another_version_of_the_api_group_is_the_same_owner() -> None:
    c, _ = cache()
    later = pod(2)
    later["metadata"]["ownerReferences"] = [reference(apiVersion="outlast.dev/v1")]
    c.put_pod(later)
    assert set(c.pods(J1)[0]) == {"p1"}


def test_a_deleted_job_does_not_come_back_from_an_old_list() -> None:
    c, _ = cache()
    c.put_job(job(1))
    c.remove_job(job(2))
    assert not c.put_job(job(1))
    assert c.put_job(job(3, uid="j2"))


def test_a_list_tells_what_was_deleted_unheard_of() -> None:
    c, _ = cache()
    c.put_job(job(1))
    c.put_pod(pod(2, "p1"))
    c.put_pod(pod(3, "p2"))
    c.put_pod(pod(30, "p3"))  # made after the list
    assert c.align([job(1)], [pod(2, "p1")], as_of=20, namespaces=["n"]) == 1
    existing, gone = c.pods(J1)
    assert (set(existing), set(gone)) == ({"p1", "p3"}, {"p2"})


def test_a_list_of_other_namespaces_says_nothing_of_ours() -> None:
    c, _ = cache()
    c.put_job(job(1))
    assert c.align([], [], as_of=20, namespaces=["other"]) == 0
    assert c.job("n", "mnist") is not None


def test_what_the_watches_have_not_told() -> None:
    c, _ = cache()
    c.put_job(job(1))
    c.put_pod(pod(2))
    assert c.behind([job(1)], [pod(2)]) == set()
    assert c.behind([job(4)], [pod(5, "p9"), pod(6, "px", owner=None)]) == {("j1", 4), ("p9", 5)}


def test_no_more_is_kept_of_a_pod_than_is_read() -> None:
    c, _ = cache()
    big = {"name": "outlast", "env": [{"name": "OUTLAST_CONFIG", "value": "x" * 1000}]}
    claim = {"name": "data", "persistentVolumeClaim": {"claimName": "mnist"}}
    spec = {"containers": [big, {"name": "proxy"}], "nodeName": "node-1", "volumes": [claim, {"name": "tmp"}]}
    full = {**pod(1), "spec": spec, "status": {"podIP": "10.0.0.1"}}
    full["metadata"]["managedFields"] = [{"manager": "outlast"}]
    c.put_pod(full)
    c.remove_pod({**full, "metadata": {**full["metadata"], "resourceVersion": "2"}})
    [kept] = c.pods(J1)[1].values()
    assert kept["spec"] == {"nodeName": "node-1", "volumes": [claim]}
    assert "managedFields" not in kept["metadata"]
    assert kept["status"] == {"podIP": "10.0.0.1"}
    assert full["spec"]["containers"][0] == big, "it is not ours to change"


def test_of_a_process_that_is_lost_again_and_again_the_newest_pods_are_kept() -> None:
    c, _ = cache()
    for version in range(1, 50):
        for name in ("server-0", "worker-0"):
            its = pod(version, f"{name}-{version}")
            its["metadata"]["annotations"] = {"outlast.dev/process": name}
            c.put_pod(its)
            c.remove_pod(its)
    gone = c.pods(J1)[1]
    assert sorted(gone) == sorted(f"{name}-{v}" for name in ("server-0", "worker-0") for v in (47, 48, 49))
    assert not c.put_pod(pod(99, "server-0-1")), "it stays deleted"
    c.remove_pod(pod(99, "server-0-1"))
    assert "server-0-1" not in c.pods(J1)[1]
    assert c.behind([], [pod(100, "server-0-1")]) == set()


def test_a_pod_that_loses_its_owner_is_no_more_the_jobs() -> None:
    c, woken = cache()
    c.put_pod(pod(1))
    assert c.put_pod(pod(2, owner=None))
    assert c.pods(J1) == ({}, {})
    assert woken == [("n", "mnist")] * 2

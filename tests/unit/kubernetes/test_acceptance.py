"""Which spec is in force: what is written, unless it is refused."""

from __future__ import annotations

from typing import Any

import pytest

from outlast.api.job import read_spec
from outlast.api.spec import JobSpec
from outlast_operator.kubernetes.job.acceptance import Account, accept
from outlast_operator.kubernetes.job.status import invalid_status, shown_refusal

Json = dict[str, Any]
TEMPLATE = {"spec": {"containers": [{"name": "outlast", "image": "mine:1"}]}}


def job(**changes: Any) -> Json:
    """`changes`: dotted paths with __ for the dot."""
    made: Json = {
        "apiVersion": "outlast.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "mnist", "namespace": "n", "generation": 2, "resourceVersion": "7"},
        "spec": {
            "training": {"task": "a.b", "optimizer": {"lr": 0.1}, "stopAfter": {"updates": 10}},
            "servers": {"replicas": 3, "template": TEMPLATE},
            "workers": {"replicas": 2},
            "recovery": {"strategy": "Chain"},
        },
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = made["spec"]
        for part in parents:
            place = place.setdefault(part, {})
        place[last] = value
    return made


def first() -> JobSpec:
    spec = accept(job(), None).spec
    assert spec is not None
    return read_spec(spec.to_json())


def test_a_valid_spec_is_in_force() -> None:
    acceptance = accept(job(), None)
    assert acceptance.spec is not None
    assert acceptance.refused == ()
    assert acceptance.spec.servers.template == TEMPLATE


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"servers__replicas": 1}, "spec.servers.replicas: 1 is too few for recovery.strategy Chain"),
        ({"training__task": None}, "spec.training: needs exactly one of task"),
        ({"security__tls__secretName": "s"}, "spec.security.tls.secretName: encryption of the data path"),
        ({"recovery__buffer__url": "unix:///x"}, "spec.recovery.buffer.url:"),
        ({"workers__template": {"spec": {"containers": 3}}}, "spec.workers.template: is no PodTemplateSpec"),
    ],
    ids=["a rule", "a missing field", "no encryption yet", "a socket of one machine", "no template"],
)
def test_a_spec_that_was_never_valid_is_not_in_force(changes: Json, words: str) -> None:
    acceptance = accept(job(**changes), None)
    assert acceptance.spec is None
    assert words in acceptance.message


def test_what_may_change_is_taken_up() -> None:
    acceptance = accept(job(workers__replicas=4, suspend=True), first())
    assert acceptance.refused == ()
    assert acceptance.spec is not None
    assert (acceptance.spec.workers.replicas, acceptance.spec.suspend) == (4, True)


def test_an_immutable_field_keeps_its_value_and_the_rest_goes_on() -> None:
    acceptance = accept(job(training__optimizer={"lr": 0.5}, workers__replicas=4), first())
    assert acceptance.spec is not None
    assert acceptance.spec.training.optimizer.lr == 0.1
    assert acceptance.spec.workers.replicas == 4
    assert acceptance.spec.servers.template == TEMPLATE
    assert "spec.training.optimizer: cannot be changed in a job that exists" in acceptance.message


def test_a_job_that_trains_outlives_a_spec_that_is_not_valid_any_more() -> None:
    acceptance = accept(job(workers__replicas=0, suspend=True), first())
    assert acceptance.spec is not None
    assert acceptance.spec.workers.replicas == 2
    assert acceptance.spec.suspend is True
    assert acceptance.spec.servers.template == TEMPLATE
    assert "spec.workers.replicas" in acceptance.message


def test_a_template_that_is_none_leaves_the_accepted_one_in_force() -> None:
    acceptance = accept(job(servers__template={"spec": {"containers": 3}}), first())
    assert acceptance.spec is not None
    assert acceptance.spec.servers.template == TEMPLATE
    assert "spec.servers.template: is no PodTemplateSpec" in acceptance.message


def test_a_refused_change_that_fits_nothing_keeps_the_template() -> None:
    """Accuracy is a goal only where somebody evaluates: with the accepted `evaluate` it is none."""
    unseen = {"training__evaluate": {"everySeconds": None}}
    before = accept(job(**unseen), None).spec
    template = {"spec": {"containers": [{"name": "outlast", "image": "mine:2"}]}}
    written = job(training__stopAfter={"accuracy": 0.9}, servers__template=template, workers__replicas=9)
    acceptance = accept(written, before)
    assert acceptance.spec is not None
    assert acceptance.spec.training.stop_after.updates == 10, "as accepted"
    assert acceptance.spec.servers.template == template
    assert acceptance.message


def test_an_invalid_job_says_so_once() -> None:
    shown = invalid_status(job(), "spec.x: is wrong", 1000.0)
    failed = next(c for c in shown["conditions"] if c["type"] == "Failed")
    assert (failed["status"], failed["message"], failed["observedGeneration"]) == ("True", "spec.x: is wrong", 2)
    again = invalid_status({**job(), "status": shown}, "spec.x: is wrong", 2000.0)
    assert again == shown
    assert shown_refusal({**job(), "status": shown}) == "spec.x: is wrong"


SUSPENDED = {"conditions": [{"type": "Suspended", "status": "True"}]}


@pytest.mark.parametrize(
    ("before", "after", "field"),
    [
        ({"updates": 10}, {"updates": 20}, "updates"),
        ({"updates": 10}, {"seconds": 9}, "updates"),
        ({"epochs": 2}, {"epochs": 3}, "epochs"),
        ({"epochs": 2}, {"epochs": 1}, "epochs"),
        ({"updates": 10}, {"updates": 10, "epochs": 1}, "epochs"),
        ({"updates": 10}, {"updates": 5}, ""),
        ({"seconds": 5}, {"seconds": 9, "updates": 10}, ""),
        ({"updates": 10, "seconds": 5}, {"updates": 10, "seconds": 50}, ""),
    ],
)
def test_an_end_that_processes_cannot_follow_takes_a_suspension(before: Json, after: Json, field: str) -> None:
    accepted = accept(job(training__stopAfter=before), None).spec
    running = accept(job(training__stopAfter=after, workers__replicas=4), accepted)
    assert running.spec is not None
    assert running.spec.workers.replicas == 4
    if field:
        assert f"spec.training.stopAfter.{field}: cannot be followed by processes" in running.message
        assert "suspend: true" in running.message
        assert getattr(running.spec.training.stop_after, field) == before.get(field), "in force as it was"
    else:
        assert running.refused == ()
    assert accept(job(training__stopAfter=after, suspend=True), accepted).refused == ()
    assert accept({**job(training__stopAfter=after), "status": SUSPENDED}, accepted).refused == ()


def queued(made: Json, suspended: bool = False) -> Json:
    labels = {"kueue.x-k8s.io/queue-name": "gpus"}
    return {**made, "metadata": {**made["metadata"], "labels": labels}, "status": SUSPENDED if suspended else {}}


def test_workers_of_a_job_in_a_queue_are_its_group_until_it_is_suspended() -> None:
    """Kueue takes no pod whose group has another total count than the pods that live."""
    running = accept(queued(job(workers__replicas=4, training__stopAfter={"updates": 5})), first())
    assert running.spec is not None
    assert running.spec.workers.replicas == 2
    assert running.spec.training.stop_after.updates == 5, "the rest is taken up"
    assert (
        "spec.workers.replicas: the queue admitted the job's pods as one group, made for 2 workers" in running.message
    )
    assert "set suspend: true first" in running.message
    leaving = accept(queued(job(workers__replicas=4, suspend=True)), first())
    assert leaving.spec is not None
    assert (leaving.spec.workers.replicas, leaving.spec.suspend) == (2, True), "pods of the old group still run"
    resumed = accept(queued(job(workers__replicas=4), suspended=True), first())
    assert resumed.refused == ()
    assert resumed.spec is not None
    assert resumed.spec.workers.replicas == 4
    assert accept(queued(job()), first()).refused == ()
    assert accept(queued(job(workers__replicas=4)), None).refused == (), "no pod was made yet"


# --- the operator's own ServiceAccount ---

TOKEN_VOLUME = {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}


@pytest.mark.parametrize("role", ["servers", "workers", "evaluator", "recovery__buffer"])
@pytest.mark.parametrize(
    ("pod_spec", "account", "refused"),
    [
        ({"serviceAccountName": "outlast"}, Account("n", "outlast"), True),
        ({"serviceAccount": "outlast"}, Account("n", "outlast"), True),
        ({"serviceAccountName": "other"}, Account("n", "outlast"), False),
        ({"serviceAccountName": "outlast"}, Account("elsewhere", "outlast"), False),
        ({"serviceAccountName": "outlast"}, None, False),
        ({}, Account("n", "default"), False),
        ({"automountServiceAccountToken": True}, Account("n", "default"), True),
        ({"volumes": [TOKEN_VOLUME]}, Account("n", "default"), True),
    ],
    ids=["named", "by its older field", "another", "of another namespace", "an operator outside of the cluster",
         "the default without a token", "the default with its token", "the default with a projected token"],
)  # fmt: skip
def test_no_template_names_the_operators_own_account(
    role: str, pod_spec: Json, account: Account | None, refused: bool
) -> None:
    acceptance = accept(job(**{f"{role}__template": {"spec": pod_spec}}), None, account)
    assert (acceptance.spec is None) is refused
    path = role.replace("__", ".")
    words = f"spec.{path}.template.spec.serviceAccountName: {account.name if account else ''} is the operator's own"
    assert (words in acceptance.message) is refused


def test_a_job_that_trains_does_not_take_the_operators_account_up() -> None:
    changes = {"workers__template": {"spec": {"serviceAccountName": "outlast"}}, "servers__replicas": 1}
    acceptance = accept(job(**changes), first(), Account("n", "outlast"))
    assert acceptance.spec is not None
    assert acceptance.spec.workers.template == {}


@pytest.mark.parametrize("role", ["servers", "workers", "evaluator", "recovery__buffer"])
@pytest.mark.parametrize(
    ("account", "lends"),
    [
        ("outlast", {"serviceAccountName": "outlast"}),
        ("outlast", {"serviceAccount": "outlast"}),
        ("default", {"automountServiceAccountToken": True}),
        ("default", {"serviceAccountName": "default", "volumes": [TOKEN_VOLUME]}),
    ],
    ids=["named", "by its older field", "the default with its token", "the default with a projected token"],
)
def test_a_template_that_an_older_release_accepted_loses_the_operators_account(
    role: str, account: str, lends: Json
) -> None:
    volume = {"name": "data", "emptyDir": {}}
    template: Json = {"spec": {**lends, "nodeName": "a", "volumes": [volume, *lends.get("volumes", [])]}}
    accepted = accept(job(**{f"{role}__template": template}), None).spec
    assert accepted is not None
    written, operator = job(**{f"{role}__template": template}), Account("n", account)
    acceptance = accept(written, read_spec(accepted.to_json()), operator)
    assert acceptance.spec is not None
    assert "is the operator's own ServiceAccount" in acceptance.message
    assert acceptance.spec.templates[f"{role.replace('__', '.')}.template"] == {
        "spec": {"nodeName": "a", "volumes": [volume]}
    }
    assert accept({**written, "spec": acceptance.spec.to_json()}, None, operator).refused == ()

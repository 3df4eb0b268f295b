"""What people do with the operator: who may do what, kubectl outlast, metrics, helm upgrade under a running job."""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Callable, Iterator

import kubernetes
import pytest
from e2e_cluster import Cluster, Json, wait_until
from e2e_figures import Figures
from e2e_jobs import has_ended
from e2e_release import NAMESPACES, PREFIX, RELEASE, SYSTEM, install, living_operators
from e2e_selection import every
from e2e_steps import StartJob, start_training

from outlast.process import metrics as trainer_metrics
from outlast.process.ledger import Fact
from outlast_operator.cli import kubectl
from outlast_operator.kubernetes import metrics as operator_metrics

HERE, ELSEWHERE = NAMESPACES[0], "default"
WATCHED_S = 25
OPERATOR = f"system:serviceaccount:{SYSTEM}:{RELEASE}"
JOBS, CORE = "outlast.dev", ""

# who, verb, group, resource, subresource, in the namespace that is served
RIGHTS: list[tuple[str, str, str, str, str, bool]] = [
    ("viewer", "get", JOBS, "trainingjobs", "", True),
    ("viewer", "list", JOBS, "trainingjobs", "", True),
    ("viewer", "watch", JOBS, "trainingjobs", "", True),
    ("viewer", "get", CORE, "pods", "log", True),
    ("viewer", "list", CORE, "events", "", True),
    ("viewer", "create", JOBS, "trainingjobs", "", False),
    ("viewer", "delete", JOBS, "trainingjobs", "", False),
    ("viewer", "update", JOBS, "trainingjobs", "scale", False),
    ("viewer", "delete", CORE, "pods", "", False),
    ("viewer", "get", CORE, "secrets", "", False),
    ("editor", "create", JOBS, "trainingjobs", "", True),
    ("editor", "patch", JOBS, "trainingjobs", "", True),
    ("editor", "delete", JOBS, "trainingjobs", "", True),
    ("editor", "update", JOBS, "trainingjobs", "scale", True),
    ("editor", "delete", CORE, "pods", "", True),
    ("editor", "update", JOBS, "trainingjobs", "status", False),
    ("editor", "create", CORE, "pods", "", False),
    ("editor", "get", CORE, "secrets", "", False),
    ("operator", "list", JOBS, "trainingjobs", "", True),
    ("operator", "update", JOBS, "trainingjobs", "status", True),
    ("operator", "delete", JOBS, "trainingjobs", "", True),
    ("operator", "create", CORE, "pods", "", True),
    ("operator", "create", CORE, "secrets", "", True),
    ("operator", "update", JOBS, "trainingjobs", "", False),
    ("operator", "patch", JOBS, "trainingjobs", "", False),
    ("operator", "list", CORE, "secrets", "", False),
    ("operator", "create", CORE, "pods", "exec", False),
    ("operator", "create", "rbac.authorization.k8s.io", "rolebindings", "", False),
    ("stranger", "get", JOBS, "trainingjobs", "", False),
]


@pytest.fixture(scope="module")
def people(cluster: Cluster, release: str) -> Iterator[dict[str, str]]:
    """Who -> user; viewer and editor have the chart's Roles in one namespace, and nothing else."""
    names = {"viewer": "outlast-e2e-vera", "editor": "outlast-e2e-ed", "stranger": "outlast-e2e-sam"}
    bindings = [
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": names[who], "namespace": HERE},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": f"{RELEASE}-{role}"},
            "subjects": [{"kind": "User", "name": names[who], "apiGroup": "rbac.authorization.k8s.io"}],
        }
        for who, role in (("viewer", "view"), ("editor", "edit"))
    ]
    cluster.apply(*bindings)
    yield {**names, "operator": OPERATOR}
    cluster.kubectl("delete", "rolebinding", names["viewer"], names["editor"], "-n", HERE, "--ignore-not-found")


def may(cluster: Cluster, user: str, verb: str, group: str, resource: str, part: str, namespace: str) -> bool:
    """What the API server itself would answer this user."""
    attributes = {"verb": verb, "group": group, "resource": resource, "subresource": part, "namespace": namespace}
    review = {"spec": {"user": user, "resourceAttributes": attributes}}
    authorization = kubernetes.client.AuthorizationV1Api(cluster.core.api_client)
    return bool(authorization.create_subject_access_review(review).status.allowed)


def test_everybody_may_do_what_is_theirs_and_only_there(cluster: Cluster, people: dict[str, str]) -> None:
    def answers(namespace: str) -> dict[str, bool]:
        return {
            f"{who} {verb} {resource}/{part}": may(cluster, people[who], verb, group, resource, part, namespace)
            for who, verb, group, resource, part, _ in RIGHTS
        }

    wanted = {f"{who} {verb} {resource}/{part}": allowed for who, verb, _, resource, part, allowed in RIGHTS}
    wait_until("the bindings to count", lambda: answers(HERE) == wanted, 30)
    assert not any(answers(ELSEWHERE).values()), "a right in a namespace that was not given"


COLUMNS = ["NAME", "STATE", "WAITING", "STRATEGY", "WORKERS", "EPOCH", "VERSION", "ACCURACY", "FAILOVERS", "AGE"]


def test_an_editor_does_all_of_a_jobs_work_with_kubectl(
    cluster: Cluster, people: dict[str, str], start_job: StartJob
) -> None:
    def kubectl_as_editor(*words: str, stdin: str | None = None) -> str:
        return cluster.kubectl("--as", people["editor"], "-n", HERE, *words, stdin=stdin)

    job, _ = start_training(start_job, "Chain")
    kubectl_as_editor("wait", "tjob", job.name, "--for=condition=PrimaryAvailable", "--timeout=30s")
    assert kubectl_as_editor("get", "tjob", job.name).split("\n")[0].split() == COLUMNS
    lost, epoch = job.head(), job.view()["epoch"]
    kubectl_as_editor("delete", "pod", lost.metadata.name, "--force", "--grace-period=0")
    job.wait_whole(beyond_epoch=epoch)
    story = wait_until("the loss to be told", lambda: _lines_with("ServerLost", kubectl_as_editor, job.name), 30)
    assert f"{lost.spec.hostname} (head) is lost" in story[0]
    kubectl_as_editor("scale", "tjob", job.name, "--replicas=1")
    wait_until("one worker", lambda: len(job.living("worker")) == 1, 60)
    assert "listens on" in kubectl_as_editor("logs", job.head().metadata.name)
    kubectl_as_editor("delete", "tjob", job.name, "--wait=true")
    theirs = {
        **job.document,
        "metadata": {"name": f"{job.name}-again"},
        "spec": {**job.document["spec"], "suspend": True},
    }
    kubectl_as_editor("create", "-f", "-", stdin=json.dumps(theirs))
    kubectl_as_editor("delete", "tjob", f"{job.name}-again", "--wait=true")
    with pytest.raises(AssertionError, match="orbidden"):
        cluster.kubectl("--as", people["editor"], "-n", NAMESPACES[1], "get", "tjob")


def _lines_with(word: str, kubectl_as: Callable[..., str], name: str) -> list[str]:
    return [line for line in kubectl_as("describe", "tjob", name).splitlines() if word in line]


def test_kubectl_explains_fields(cluster: Cluster, release: str) -> None:
    text = cluster.kubectl("explain", "trainingjob.spec.recovery.strategy")
    assert "Checkpoint" in text
    assert "Hybrid" in text


@every
def test_a_job_that_only_trains_is_written_every_five_seconds_at_most(
    cluster: Cluster, start_job: StartJob, figures: Figures
) -> None:
    job, _ = start_training(start_job, "Chain")
    for condition in ("PrimaryAvailable", "ReplicationHealthy", "CheckpointAvailable", "Ready"):
        job.wait_condition(condition)  # what changes is written at once
    assert not job.pods(role="evaluator"), "none is wanted"
    writes = job.writes(WATCHED_S)
    assert len(writes) > 2, "progress is shown"
    span_s = writes[-1] - writes[0]
    figures.number("a training job: writes in 5 s", round((len(writes) - 1) / (span_s / 5), 1), "<=", 1)


def test_the_lease_is_the_operators_own(cluster: Cluster, release: str) -> None:
    lease = json.loads(cluster.kubectl("get", "lease", RELEASE, "-n", SYSTEM, "-o", "json"))
    pods = [pod.metadata.name for pod in operator_pods(cluster)]
    assert len(pods) == 2
    assert lease["spec"]["holderIdentity"] in pods
    assert not may(cluster, OPERATOR, "update", "coordination.k8s.io", "leases", "", SYSTEM), (
        "any lease of the namespace"
    )


def operator_pods(cluster: Cluster) -> list[Json]:
    return [pod for pod in living_operators(cluster) if pod.status.phase == "Running"]


def outlast(cluster: Cluster, *words: str) -> str:
    """`kubectl outlast ...`: what it prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = kubectl.main([words[0], "--kubeconfig", cluster.kubeconfig, "-n", HERE, *words[1:]])
    assert code == 0, f"kubectl outlast {' '.join(words)}: exit code {code}"
    return out.getvalue()


def test_plugin_tells_promotes_and_reports(cluster: Cluster, start_job: StartJob) -> None:
    job, _ = start_training(start_job, "Chain")
    view = job.view()
    head, successor = (member["name"] for member in view["members"][:2])
    told = outlast(cluster, "status", job.name)
    assert told.startswith(f"{job.name}: Running, Chain")
    assert f"{head} (head, {job.head().metadata.name})" in told
    assert job.name in outlast(cluster, "status")
    start = time.monotonic()
    promoted = outlast(cluster, "promote", job.name)
    assert f"{successor} is head of shard 0 in epoch" in promoted
    assert job.head().spec.hostname == successor
    job.wait_whole(beyond_epoch=view["epoch"])
    assert job.longest_pause(start, time.monotonic()) < 5, "a planned loss costs (almost) nothing"
    (line,) = [f for f in job.status["failovers"] if f["target"] == head]
    assert line["cause"] == "Planned"
    assert "listens on" in outlast(cluster, "logs", job.name, successor)
    report = json.loads(outlast(cluster, "report", job.name))
    assert report["gradients"]["lost"] == 0
    assert [f["target"] for f in report["failures"]] == [head]
    assert report["failures"][0]["outage_s"] < 5


def scrape(cluster: Cluster, namespace: str, pod: str, port: int) -> list[str]:
    """The lines of /metrics, through the API server's proxy."""
    path = f"/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy/metrics"
    return [line for line in cluster.kubectl("get", "--raw", path).splitlines() if not line.startswith("#")]


def names(lines: list[str]) -> set[str]:
    return {line.partition("{")[0].split(" ")[0] for line in lines}


def test_metrics_of_operator_servers_and_workers(cluster: Cluster, start_job: StartJob) -> None:
    job, _ = start_training(start_job, "Chain")
    server = scrape(cluster, HERE, job.head().metadata.name, 9090)
    worker = scrape(cluster, HERE, job.pod_of("worker-0").metadata.name, 9090)
    known = set(trainer_metrics.sample_names(trainer_metrics.FAMILIES))
    assert names(server) | names(worker) <= known
    assert "outlast_server_applied_gradients_total" in names(server)
    assert "outlast_worker_busy_seconds_total" in names(worker)
    told = [scrape(cluster, SYSTEM, pod.metadata.name, 8080) for pod in operator_pods(cluster)]
    leaders = [lines for lines in told if "outlast_operator_leading 1.0" in lines]
    assert len(told) == 2
    assert len(leaders) == 1
    assert names(leaders[0]) <= set(trainer_metrics.sample_names(operator_metrics.FAMILIES))
    assert any(f'training_job="{job.name}"' in line for line in leaders[0])
    others = [lines for lines in told if lines is not leaders[0]]
    assert not any("training_job" in line for lines in others for line in lines), "each job is told of once"


@pytest.fixture
def unlisted(cluster: Cluster) -> Iterator[str]:
    """A namespace that is none of `NAMESPACES`."""
    name = f"{SYSTEM}-unlisted"
    cluster.make_namespaces([name])
    yield name
    cluster.kubectl("delete", "namespace", name, f"--wait={str(not cluster.passing).lower()}", timeout_s=120)


def test_upgrade_and_uninstall_while_a_job_trains(cluster: Cluster, unlisted: str, start_job: StartJob) -> None:
    """The upgrade is from rights in two namespaces to the chart's default, which is all of them."""
    job, _ = start_training(start_job, "Chain")
    epoch, pods = job.view()["epoch"], {pod.metadata.uid for pod in job.pods()}
    operators = {pod.metadata.uid for pod in operator_pods(cluster)}
    start = time.monotonic()
    alone = cluster.provider != "given" and PREFIX == "outlast-e2e"  # else others may serve a namespace as well
    install(cluster, "--set", "podAnnotations.upgraded=yes", everywhere=alone)
    replaced = wait_until("two new operators", lambda: new_operators(cluster, operators), 60)
    assert not replaced & operators
    if alone:
        serves_everywhere(cluster, unlisted, start_job)
    cluster.helm("uninstall", RELEASE, "-n", SYSTEM)
    try:
        wait_until("the end of the operators", lambda: all(map(has_ended, cluster.pods(SYSTEM))), 60)
        gone = time.monotonic()
        wait_until("an update without an operator", lambda: job.first_fact_after(gone, Fact.ACKNOWLEDGED), 30)
        assert job.longest_pause(start, time.monotonic()) < 5, "the operator's end is no outage"
        assert {pod.metadata.uid for pod in job.pods()} == pods
        assert job.view()["epoch"] == epoch, "a failover that nobody needed"
        job.delete()  # needs no operator
    finally:
        install(cluster)


def serves_everywhere(cluster: Cluster, namespace: str, start_job: StartJob) -> None:
    """A job trains there, through the loss of its head; Kubernetes' own roles `edit` and `view` hold TrainingJobs."""
    other = start_job("Chain", within=namespace, workers={"replicas": 1})
    view = other.wait_whole()
    cluster.kubectl("delete", "pod", other.head().metadata.name, "-n", namespace, "--force", "--grace-period=0")
    other.wait_whole(beyond_epoch=view["epoch"])
    for role, verb, allowed in (("edit", "create", True), ("view", "list", True), ("view", "delete", False)):
        user = f"outlast-e2e-{role}"
        cluster.kubectl(
            "create", "rolebinding", f"{user}-{verb}", f"--clusterrole={role}", f"--user={user}", "-n", namespace
        )
        asked = (cluster, user, verb, JOBS, "trainingjobs", "", namespace)
        wait_until(f"{role} to {verb}: {allowed}", lambda asked=asked, allowed=allowed: may(*asked) == allowed, 30)
    other.delete()


def new_operators(cluster: Cluster, before: set[str]) -> set[str] | None:
    uids = {pod.metadata.uid for pod in operator_pods(cluster)}
    return uids if len(uids) == 2 and not uids & before else None

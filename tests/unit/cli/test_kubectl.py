"""kubectl outlast and the Python client: words for a status, a report from it, and requests to a small HTTP server.

The server speaks as an API server does (watch, logs, errors); that the real one is understood, tests/e2e shows.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from outlast.api.errors import SpecError
from outlast_operator.cli import kubectl
from outlast_operator.kubernetes.client import Client, JobError
from outlast_operator.kubernetes.job_report import make_report
from outlast_operator.kubernetes.manifests.names import JobRef, owner

JOBS = "/apis/outlast.dev/v1alpha1/namespaces/team/trainingjobs"
PODS = "/api/v1/namespaces/team/pods"
VIEW = {
    "shard": 0,
    "epoch": 4,
    "history": 1,
    "members": [{"name": "server-1", "boot": "b1"}, {"name": "server-2", "boot": "b2"}],
    "joining": [{"name": "server-0", "boot": "b3"}],
}
LINE = {
    "target": "server-0",
    "cause": "Killed",
    "role": "head",
    "epoch": 4,
    "detectedTime": "2026-01-02T03:04:10.500000Z",
    "decidedTime": "2026-01-02T03:04:10.510000Z",
    "promotedTime": "2026-01-02T03:04:10.520000Z",
    "firstUpdateTime": "2026-01-02T03:04:10.750000Z",
    "gradients": {"buffered": 3, "lost": 0},
}
STATUS = {
    "state": "Running",
    "conditions": [
        {
            "type": "Ready",
            "status": "True",
            "reason": "Training",
            "message": "heads are serving and workers are running",
        },
        {"type": "PrimaryAvailable", "status": "True", "reason": "HeadsServe", "message": ""},
        {"type": "ReplicationHealthy", "status": "False", "reason": "TooFewMembers", "message": "fewer than 3"},
        {"type": "BufferHealthy", "status": "Unknown", "reason": "NotUsed", "message": ""},
        {"type": "Complete", "status": "False", "reason": "NotEnded", "message": ""},
    ],
    "views": [VIEW],
    "version": 8120,
    "progress": {"accuracy": 0.91, "loss": 0.3, "percent": 40.6, "etaSeconds": 33.1},
    "workers": {"ready": 2},
    "failovers": [LINE],
    "failoverCount": 1,
    "gradients": {"applied": 8120, "lost": 0},
    "cost": {"total": 0.5, "idle": 0.125},
    "startTime": "2026-01-02T03:04:00Z",
    "completionTime": "2026-01-02T03:05:00Z",
}
JOB: dict[str, Any] = {
    "apiVersion": "outlast.dev/v1alpha1",
    "kind": "TrainingJob",
    "metadata": {"name": "mnist", "namespace": "team", "uid": "u1", "resourceVersion": "7"},
    "spec": {
        "training": {"consistency": "Async", "seed": 3},
        "recovery": {"strategy": "Chain"},
        "workers": {"replicas": 2},
        "servers": {"shards": 2},
        "cost": {"currency": "USD"},
    },
    "status": STATUS,
}


def pod(process: str, name: str, created: str = "1", job_uid: str = "u1", **meta: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": name,
            "namespace": "team",
            "uid": f"uid-{name}",
            "ownerReferences": [owner(JobRef("mnist", "team", job_uid))],
            "creationTimestamp": created,
            "annotations": {"outlast.dev/process": process},
            **meta,
        }
    }


PODS_THERE = [
    pod("server-1", "mnist-server-1-aaaaa"),
    pod("server-1", "mnist-server-1-bbbbb", "2"),
    pod("worker-0", "mnist-worker-0-ccccc"),
    pod("redis", "mnist-redis-ddddd"),
]
OF_THE_JOB_BEFORE = pod("server-1", "mnist-server-1-eeeee", "3", job_uid="u0")


# --- words ------------------------------------------------------------------------------------------------------------


def test_status_in_words() -> None:
    assert kubectl.status_lines(JOB, PODS_THERE) == [
        "mnist: Running, Chain, version 8,120, accuracy 0.910, 1 failover",
        "progress   41 %, 33 s left",
        "shard 0    server-1 (head, mnist-server-1-bbbbb) > server-2 (no pod) > joining server-0   epoch 4, 1 rolled "
        "back",
        "workers    2 of 2 run",
        "gradients  8,120 applied, 0 lost",
        "cost       0.50 total, 0.12 idle USD",
        "!          ReplicationHealthy is False: fewer than 3",
        "lost       2026-01-02 03:04:10  server-0 (head): Killed, next update 0.25 s later, 3 buffered",
    ]


def test_what_a_job_waits_for_is_said_in_its_words() -> None:
    words = "server-0, server-1: exceeded quota: team"
    waits = {"type": "PodsReady", "status": "False", "reason": "QuotaExceeded", "message": words}
    status = {"state": "Pending", "waiting": "QuotaExceeded", "conditions": [waits]}
    lines = kubectl.status_lines({**JOB, "status": status}, [])
    assert lines[0] == "mnist: Pending, waits: QuotaExceeded, Chain, version 0, 0 failovers"
    assert lines[-1] == f"!          PodsReady is False: {words}"


def test_a_young_job_and_a_done_one() -> None:
    assert kubectl.status_lines({**JOB, "status": {}}, []) == [
        "mnist: Pending, Chain, version 0, 0 failovers",
        "workers    0 of 2 run",
    ]
    done = {**JOB, "status": {**STATUS, "state": "Succeeded"}}
    assert not any(line.startswith("!") for line in kubectl.status_lines(done, []))


def test_report() -> None:
    report = make_report(JOB)
    assert (report["job"], report["strategy"], report["servers"], report["workers"]) == ("mnist", "Chain", 6, 2)
    assert report["duration_s"] == 60.0
    assert report["final"] == {"accuracy": 0.91, "loss": 0.3, "version": 8120}
    assert report["gradients"] == {"applied": 8120, "lost": 0}
    assert report["cost"] == {"total": 0.5, "idle": 0.125, "currency": "USD"}
    (failure,) = report["failures"]
    assert failure["t_detected_s"] == 10.5
    assert failure["t_first_update_s"] == 10.75
    assert failure["outage_s"] == 0.25
    young = make_report({**JOB, "status": {}})
    assert (young["duration_s"], young["failures"], young["state"]) == (None, [], "Pending")


def test_a_report_says_why_a_job_failed() -> None:
    failed = {"type": "Failed", "status": "True", "reason": "TaskError", "message": "no such module"}
    report = make_report({**JOB, "status": {"state": "Failed", "conditions": [failed]}})
    assert (report["reason"], report["message"]) == ("TaskError", "no such module")


# --- requests ---------------------------------------------------------------------------------------------------------


class ApiServer:
    """Answers by path (`METHOD /path`); what it was asked is kept."""

    def __init__(self) -> None:
        self.answers: dict[str, list[tuple[int, Any]]] = {}
        self.asked: list[tuple[str, str, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                path, _, query = self.path.partition("?")
                outer.asked.append((f"{self.command} {path}", query, body))
                key = f"{self.command} {path}" + ("?watch" if "watch=true" in query else "")
                answers = outer.answers.get(key, [(404, {"reason": "NotFound", "message": f"{path} not found"})])
                code, document = answers.pop(0) if len(answers) > 1 else answers[0]
                raw = document.encode() if isinstance(document, str) else json.dumps(document).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            do_GET = do_POST = do_DELETE = _answer

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def api() -> Iterator[ApiServer]:
    server = ApiServer()
    server.answers = {
        f"GET {JOBS}/mnist": [(200, JOB)],
        f"GET {JOBS}": [(200, {"items": [JOB]})],
        f"GET {PODS}": [(200, {"items": PODS_THERE})],
    }
    yield server
    server.close()


@pytest.fixture
def kubeconfig(api: ApiServer, tmp_path: Path) -> str:
    path = tmp_path / "kubeconfig"
    cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{api.server.server_port}"}}
    contexts = [{"name": n, "context": {"cluster": "c", "user": "u", "namespace": n}} for n in ("team", "other")]
    document = {"apiVersion": "v1", "kind": "Config", "current-context": "team", "clusters": [cluster],
                "contexts": contexts, "users": [{"name": "u", "user": {"token": "t"}}]}  # fmt: skip
    path.write_text(json.dumps(document))
    return str(path)


@pytest.fixture
def client(kubeconfig: str) -> Client:
    return Client.connect(kubeconfig=kubeconfig)


def test_namespace_is_the_contexts(kubeconfig: str, client: Client) -> None:
    assert client.namespace == "team"
    assert Client.connect(context="other", kubeconfig=kubeconfig).namespace == "other"
    assert Client.connect("mine", kubeconfig=kubeconfig).namespace == "mine"
    with pytest.raises(RuntimeError, match="kubectl config get-contexts"):
        Client.connect(context="none", kubeconfig=kubeconfig)


def test_submit_checks_first(api: ApiServer, client: Client) -> None:
    with pytest.raises(SpecError, match=r"spec\.training\.stopAfter"):
        client.submit({**JOB, "metadata": {"name": "mnist"}, "spec": {"training": {"task": "a.b"}}})
    assert api.asked == []
    api.answers[f"POST {JOBS}"] = [(201, JOB)]
    spec = {"training": {"task": "a.b", "stopAfter": {"updates": 1}}}
    assert client.submit({**JOB, "spec": spec}) == "mnist"
    ((what, _, body),) = api.asked
    assert what == f"POST {JOBS}"
    assert body["metadata"] == {"name": "mnist", "namespace": "team"}
    assert "status" not in body


def test_watch_follows_until_the_end(api: ApiServer, client: Client) -> None:
    def event(kind: str, version: str, state: str) -> str:
        job = {**JOB, "metadata": {**JOB["metadata"], "resourceVersion": version}, "status": {"state": state}}
        return json.dumps({"type": kind, "object": job}) + "\n"

    api.answers[f"GET {JOBS}?watch"] = [
        (200, ""),  # the API server ends a watch now and then
        (200, event("MODIFIED", "8", "FailingOver")),
        (200, event("MODIFIED", "9", "Succeeded")),
    ]
    assert [status["state"] for status in client.watch("mnist", 20)] == ["Running", "FailingOver", "Succeeded"]
    watches = [query for what, query, _ in api.asked if "watch=true" in query]
    assert "resourceVersion=7" in watches[0]
    assert "fieldSelector=metadata.name%3Dmnist" in watches[0]


def test_watch_ends_with_the_job_and_wait_says_so(api: ApiServer, client: Client) -> None:
    api.answers[f"GET {JOBS}?watch"] = [(200, json.dumps({"type": "DELETED", "object": JOB}) + "\n")]
    with pytest.raises(JobError, match="team/mnist was deleted before it ended"):
        client.wait("mnist", 20)


def test_watch_is_bounded(api: ApiServer, client: Client) -> None:
    api.answers[f"GET {JOBS}?watch"] = [(200, "")]
    with pytest.raises(TimeoutError, match="has not ended within the timeout"):
        client.wait("mnist", 0.3)


def test_promote_deletes_exactly_the_heads_newest_pod(api: ApiServer, client: Client) -> None:
    api.answers[f"GET {PODS}"] = [(200, {"items": [*PODS_THERE, OF_THE_JOB_BEFORE]})]
    api.answers[f"DELETE {PODS}/mnist-server-1-bbbbb"] = [(200, {})]
    assert client.promote("mnist")["metadata"]["name"] == "mnist-server-1-bbbbb"
    what, _, body = api.asked[-1]
    assert what == f"DELETE {PODS}/mnist-server-1-bbbbb"
    assert body["preconditions"] == {"uid": "uid-mnist-server-1-bbbbb"}
    assert "gracePeriodSeconds" not in body, "the head needs its grace to hand over"


@pytest.mark.parametrize(
    ("views", "words"),
    [
        ([], "has no view of shard 0 yet"),
        ([{**VIEW, "members": VIEW["members"][:1]}], "has no caught-up replica to promote"),
        ([{**VIEW, "members": [{"name": "server-9"}, {"name": "server-2"}]}], "server-9, the head, is already leaving"),
    ],
)
def test_promote_refuses_where_nobody_could_take_over(
    api: ApiServer, client: Client, views: list[Any], words: str
) -> None:
    api.answers[f"GET {JOBS}/mnist"] = [(200, {**JOB, "status": {**STATUS, "views": views}})]
    with pytest.raises(JobError, match=words):
        client.promote("mnist")
    assert not any(what.startswith("DELETE") for what, _, _ in api.asked)


def test_logs(api: ApiServer, client: Client) -> None:
    api.answers[f"GET {PODS}/mnist-server-1-bbbbb/log"] = [(200, "one\ntwo\nthree")]
    api.answers[f"GET {PODS}/mnist-server-1-aaaaa/log"] = [(200, "before\n")]
    api.answers[f"GET {PODS}/mnist-redis-ddddd/log"] = [(200, "ready\n")]
    assert list(client.logs("mnist", "server-1", tail=3)) == ["one", "two", "three"]
    assert api.asked[-1][1] == "container=outlast&tailLines=3"
    assert list(client.logs("mnist", "server-1", previous=True)) == ["before"]
    assert list(client.logs("mnist", "redis")) == ["ready"]
    assert api.asked[-1][1] == "container=redis"
    with pytest.raises(JobError, match="no process server-7; there are redis, server-1, worker-0"):
        list(client.logs("mnist", "server-7"))


def test_logs_of_a_container_that_the_template_named(api: ApiServer, client: Client) -> None:
    named = pod("worker-1", "mnist-worker-1-fffff")
    named["metadata"]["annotations"]["outlast.dev/container"] = "trainer"
    api.answers[f"GET {PODS}"] = [(200, {"items": [named]})]
    api.answers[f"GET {PODS}/mnist-worker-1-fffff/log"] = [(200, "here\n")]
    assert list(client.logs("mnist", "worker-1")) == ["here"]
    assert api.asked[-1][1] == "container=trainer"


def test_errors_are_words(api: ApiServer, client: Client) -> None:
    with pytest.raises(JobError, match="there is no TrainingJob absent in namespace team"):
        client.get("absent")
    api.answers[f"GET {JOBS}/mnist"] = [(404, {"message": "the server could not find the requested resource"})]
    with pytest.raises(JobError, match="has no resource TrainingJob; install the chart first"):
        client.get("mnist")


# --- the program ------------------------------------------------------------------------------------------------------


def run(kubeconfig: str, *words: str) -> int:
    return kubectl.main([words[0], "--kubeconfig", kubeconfig, *words[1:]])


def test_program(kubeconfig: str, api: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(kubeconfig, "status") == 0
    assert capsys.readouterr().out.startswith("mnist: Running, Chain")
    assert run(kubeconfig, "status", "mnist", "--json") == 0
    assert json.loads(capsys.readouterr().out)["version"] == 8120
    recorded = {**JOB, "status": {**STATUS, "record": "1:x"}}
    api.answers[f"GET {JOBS}/mnist"] = [(200, recorded)]
    api.answers[f"GET {JOBS}"] = [(200, {"items": [recorded]})]
    for words in (["mnist"], []):
        assert run(kubeconfig, "status", *words, "--json") == 0
        assert "record" not in capsys.readouterr().out, "the operator's own memory is nobody's interface"
    api.answers[f"GET {PODS}/mnist-server-1-bbbbb/log"] = [(200, "line\n")]
    assert run(kubeconfig, "logs", "mnist") == 0
    assert capsys.readouterr().out == "line\n"
    target = tmp_path / "report.json"
    assert run(kubeconfig, "report", "mnist", "-o", str(target)) == 0
    assert json.loads(target.read_text())["job"] == "mnist"
    capsys.readouterr()
    assert run(kubeconfig, "status", "absent") == 1
    assert "there is no TrainingJob absent" in capsys.readouterr().err


def test_program_promotes_and_waits(kubeconfig: str, api: ApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    api.answers[f"DELETE {PODS}/mnist-server-1-bbbbb"] = [(200, {})]
    next_view = {**VIEW, "epoch": 5, "members": [VIEW["members"][1]]}  # type: ignore[index]
    later = {**JOB, "status": {**STATUS, "views": [next_view]}}
    api.answers[f"GET {JOBS}/mnist"] = [(200, JOB), (200, JOB), (200, later)]
    assert run(kubeconfig, "promote", "mnist") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "server-1 (pod mnist-server-1-bbbbb) hands over and leaves"
    assert out[1].startswith("server-2 is head of shard 0 in epoch 5, ")


def test_bad_arguments() -> None:
    with pytest.raises(SystemExit) as end:
        kubectl.main(["promote"])
    assert end.value.code == 2

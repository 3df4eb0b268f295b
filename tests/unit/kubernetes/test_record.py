"""The operator's memory as one string: it comes back as it was, and what cannot be read is no empty memory."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import fields, replace
from typing import Any

import pytest
from plan_world import World, make_spec

from outlast.api.server_status import CheckpointRef
from outlast.api.view import Member, View
from outlast_operator.kubernetes.job.record import LONGEST_BYTES, Record, UnreadableRecord, read_record
from outlast_operator.planner.checkpoints import ServerClaim
from outlast_operator.planner.status import Attempt, Failover, JobStatus, Progress, Wait

Json = dict[str, Any]


def job(text: str | None, **shown: Any) -> Json:
    record = {} if text is None else {"record": text}
    return {"metadata": {"name": "mnist", "namespace": "n", "resourceVersion": "7"}, "status": {**shown, **record}}


def packed(raw: Any) -> str:
    return "1:" + base64.b64encode(zlib.compress(json.dumps(raw).encode())).decode()


def eventful() -> JobStatus:
    """A status in which nearly everything has happened."""
    world = World(make_spec("Hybrid", servers__shards=2, workers__replicas=2))
    world.run(1.0)
    for name in ("server-0", "worker-1", "redis", "server-3", "server-4"):
        world.kill(name)
        world.run(0.5)
    return replace(world.status, resource_version="7")


@pytest.mark.parametrize("status", [JobStatus(), eventful()], ids=["young", "eventful"])
def test_it_comes_back_as_it_was(status: JobStatus) -> None:
    spec = make_spec("Hybrid", servers__shards=2)
    record = read_record(job(Record(status, spec).to_text()))
    assert record == Record(replace(status, resource_version="7"), spec)


def test_falsy_values_that_are_no_defaults_come_back() -> None:
    line = Failover("server-0", "", 0.0, kind="", signal=0, epoch=0, t_decided=0.0, gradients={"lost": 0})
    status = JobStatus(state="", failovers=(line,), attempts={"a": Attempt(clock=0)}, t_start=0.0, goal="")
    assert read_record(job(Record(status).to_text())).status == replace(status, resource_version="7")


def test_what_was_left_out_keeps_its_meaning() -> None:
    """A record of format 1 as it stands in clusters. Whoever changes one of these defaults makes a new format."""
    line = {"target": "server-0", "cause": "Killed", "t_detected": 1.5}
    lean = {"status": {"failovers": [line], "attempts": {"server-0": {}}, "progress": {}}, "spec": None}
    status = read_record(job(packed(lean))).status
    (read,) = status.failovers
    assert (read.kind, read.shard, read.role, read.version, read.gradients) == ("server", 0, "", 0, {})
    assert read.epoch is None
    assert status.attempts["server-0"] == Attempt(failures=0, exits=0, instance="", t_exited=0.0, until=0.0, clock=-1)
    assert (status.state, status.failover_count, status.trained_s) == ("Pending", 0, 0.0)
    assert {getattr(status, f.name) for f in fields(status) if f.name.startswith("t_")} == {None}


RECORDED: Json = {
    "state": "Running",
    "conditions": [{"type": "Ready", "status": "True", "reason": "Training", "message": "", "t_transition": 3.5}],
    "views": {"1": {"shard": 1, "epoch": 4, "history": 1, "members": [{"name": "s", "boot": "b", "address": "unix:/s"}],
                    "restore": "c"}},
    "boots": {"b": "pid3"},
    "dead": ["pid1"],
    "incarnations": {"0": 2},
    "seen": {"0": "pid8"},
    "adopted": {"1": 0},
    "attempts": {"s": {"exits": 1, "instance": "pid2", "clock": 0}},
    "waits": {"s": {"reason": "QuotaExceeded", "message": "exceeded quota", "retry_at": 9.0}},
    "done": ["worker-0"],
    "since": {"slot:0": 1.5},
    "failovers": [{"target": "s", "cause": "Killed", "t_detected": 1.0, "signal": 9, "gradients": {"lost": 2}}],
    "storage": "PerServer",
    "claims": {"s": {"generation": 2, "used": True}},
    "buffer_runs": {"1": "run"},
    "newest_set": {"name": "c", "history": 1, "version": 30},
    "rejected_checkpoints": ["d"],
    "progress": {"version": 40, "cost": {"total": 1.5}},
    "t_start": 0.5,
}  # fmt: skip


def test_a_record_that_stands_in_clusters_is_read_and_written_as_it_is() -> None:
    status = read_record(job(packed({"status": RECORDED, "spec": None}))).status
    assert status.views == {1: View(1, 4, 1, (Member("s", "b", "unix:/s"),), restore="c")}
    assert (status.incarnations, status.seen, status.adopted) == ({0: 2}, {0: "pid8"}, {1: 0})
    assert (status.dead, status.done, status.rejected_checkpoints) == (("pid1",), ("worker-0",), ("d",))
    assert status.waits == {"s": Wait("QuotaExceeded", "exceeded quota", retry_at=9.0)}
    assert status.failovers == (Failover("s", "Killed", 1.0, signal=9, gradients={"lost": 2}),)
    assert (status.newest_set, status.claims) == (CheckpointRef("c", 1, 30), {"s": ServerClaim(2, used=True)})
    assert (status.buffer_runs, status.progress) == ({1: "run"}, Progress(version=40, cost={"total": 1.5}))
    written = zlib.decompress(base64.b64decode(Record(status).to_text().removeprefix("1:")))
    assert json.loads(written) == {"status": RECORDED, "spec": None}


def test_it_is_compact_and_one_word() -> None:
    status = eventful()
    text, plain = Record(status).to_text(), json.dumps(status.to_json(), separators=(",", ":"))
    assert len(text) < len(plain) / 3
    assert not set(text) & set(' "{}\n')


def test_a_job_without_one_starts_from_nothing() -> None:
    assert read_record(job(None)).status == JobStatus(resource_version="7")
    assert read_record(job(None, state="Failed")).status == JobStatus(resource_version="7")


def test_format_0_is_read() -> None:
    status, spec = eventful(), make_spec("Hybrid")
    plain = json.dumps({"status": status.to_json(), "spec": spec.to_json()})
    assert read_record(job(plain)) == Record(status, spec)


@pytest.mark.parametrize(
    ("since", "stopping", "t_waiting"),
    [({}, False, None), ({"stopping": 7.5}, True, None), ({"waiting": 8.5, "lost:b": 9.0}, False, 8.5)],
)
def test_what_the_release_before_kept_among_its_timers_is_read(
    since: dict[str, float], stopping: bool, t_waiting: float | None
) -> None:
    status = read_record(job(packed({"status": {"since": since}, "spec": None}))).status
    assert (status.stopping, status.t_waiting) == (stopping, t_waiting)
    assert read_record(job(Record(status).to_text())).status == status


def test_a_job_that_the_release_before_suspended_resumes_under_this_one() -> None:
    world = World(make_spec(suspend=True))
    former = {"since": {"stopping": 99.0}, "state": "Suspended", "waited_s": 5.0, "t_start": 50.0}
    status = read_record(job(packed({"status": former, "spec": None}))).status
    world.store = (1, json.dumps(status.to_json()))
    world.turn()
    assert world.status.stopping
    world.spec = make_spec()
    world.turn()
    assert (world.status.stopping, world.status.waited_s, world.status.t_start) == (False, 0.0, world.now)


def test_a_spec_of_another_release_is_passed_over() -> None:
    record = read_record(job(packed({"status": {"state": "Running"}, "spec": {"fromTheFuture": 1}})))
    assert (record.status.state, record.spec) == ("Running", None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("2:abc", "status.record has format '2'; this operator reads formats 0 to 1"),
        ("nonsense", "status.record has format 'nonsense'"),
        ('{"status": ', "status.record has format 0 and is damaged"),
        ("1:", "status.record has format 1 and is damaged"),
        ("1:!!", "status.record has format 1 and is damaged"),
        ("1:bm90IHpsaWI=", "status.record has format 1 and is damaged"),
        (packed({"status": {}})[:-8], "status.record has format 1 and is damaged"),
        (packed([]), "status.record has format 1 and is damaged (a list where an object should be)"),
        (packed({"spec": None}), "status.record has wrong content"),
        (packed({"status": {"conditions": [{"type": "Ready"}]}}), "status.record has wrong content"),
        (packed({"status": {}, "spec": " " * LONGEST_BYTES}), "it is too short or too long"),
    ],
    ids=["newer", "no format", "half", "empty", "no base64", "no zlib", "cut short", "no object", "no status",
         "a condition that is none", "a bomb"],
)  # fmt: skip
def test_what_cannot_be_read_is_no_empty_memory(text: str, words: str) -> None:
    with pytest.raises(UnreadableRecord) as caught:
        read_record(job(text))
    message = str(caught.value)
    assert message.startswith("n/mnist: status.record")
    assert words in message
    assert "Run the release that wrote it or a newer one" in message


def test_a_memory_that_was_removed_from_a_job_that_trains_is_missed() -> None:
    for text in (None, ""):
        with pytest.raises(UnreadableRecord, match="is missing, though the status shows views"):
            read_record(job(text, views=[{"shard": 0, "epoch": 3}]))

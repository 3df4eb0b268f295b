"""Bad input and bad luck: each ends in a plain error that names the remedy, or in a recovery; nothing is lost."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from jobs import Ended, Lab, Running, assert_sound, make_job, outlast, own_task
from redis_fixture import RedisServer

from outlast.wire.connection import Connection
from outlast.wire.dial import connect
from outlast.wire.frames import META_LIMIT, DType, Header, Op, job_tag
from outlast_operator.cli.main import main

pytestmark = pytest.mark.timeout(120)


# --- the job's file and the command line ---


def test_everything_that_is_wrong_in_a_file_is_said_at_once(lab: Lab) -> None:
    job = make_job(
        servers={"shards": 0, "replicas": 1},
        workers={"replicas": "two"},
        recovery={"chain": {"ack": "Tial"}, "buffer": {"maxBytes": "lots"}, "strategie": "Chain"},
        training={"stopAfter": {"updates": -5}, "optimizer": {"lr": None, "learningRate": 0.1}},
    )
    done = outlast("run", str(lab.write(job)), "--json", cwd=lab.path)
    assert done.returncode == 2
    answer = json.loads(done.stdout)
    assert answer["outcome"] == "BadInput"
    for path in (
        "spec.servers.shards", "spec.workers.replicas", "spec.recovery.chain.ack", "spec.recovery.buffer.maxBytes",
        "spec.recovery.strategie", "spec.training.stopAfter.updates", "spec.training.optimizer.learningRate",
    ):  # fmt: skip
        assert f"{path}: " in answer["message"], answer["message"]
    assert "Tail, Successor, Head" in answer["message"]
    assert not list(lab.path.glob("*-report")), "nothing was started"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("spec: [unclosed", "YAML"),
        ("just a word", "TrainingJob"),
        ("", "TrainingJob"),
        (None, "no such file"),
        ("apiVersion: outlast.dev/v1alpha1\nkind: TrainingJob\nmetadata: {name: UPPER}\nspec: 3\n", "metadata.name"),
    ],
)
def test_what_is_no_job_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, words: str
) -> None:
    path = tmp_path / "job.yaml"
    if text is not None:
        path.write_text(text)
    assert main(["run", str(path), "--json"]) == 2
    assert words in json.loads(capsys.readouterr().out)["message"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--kill", "boss@1s"], "'boss' is not a target"),
        (["--kill", "server-3@1s"], "the job has server-0 to server-2"),
        (["--kill", "redis@1s"], "starts no Redis"),
        (["--run-dir", "/tmp/" + "x" * 80], "too long for unix sockets"),
        (["--report", "/dev/null/report"], "name a writable directory"),
    ],
)
def test_options_that_cannot_work_are_bad_input(
    lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, more: list[str], words: str
) -> None:
    monkeypatch.chdir(lab.path)
    assert main(["run", str(lab.write(make_job())), "--json", *more]) == 2
    assert words in json.loads(capsys.readouterr().out)["message"]


# --- the user's code ---

TASK = """
import torch
from torch import nn
from outlast.tasks import Task

class Mine(Task):
    def __init__(self, args, seed):
        super().__init__(args, seed)
        self.steps = 0
    def model(self):
        return nn.Linear(8, {width})
    def batches_per_epoch(self):
        return 100
    def batch(self, index):
        return torch.ones(4, 8), torch.zeros(4, {width})
    def loss(self, model, batch):
        self.steps += 1
        loss = (model(batch[0]) - batch[1]).square().mean()
        {trouble}
        return loss
"""


def assert_failed(ended: Ended, *words: str, within_s: float = 25.0) -> None:
    assert ended.code == 1, ended.err
    assert ended.summary["outcome"] == "Failed"
    assert ended.gradients["lost"] == 0, "what was acknowledged stood in the servers to the end"
    for word in words:
        assert word in ended.message, ended.message
    assert "Traceback" not in ended.err
    assert ended.duration_s < within_s, "a fault that no restart mends ends the job at once"


@pytest.mark.parametrize(
    ("width", "trouble", "words"),
    [
        ("1", "loss = loss * float('nan') if self.steps > 20 else loss", ("not finite", "optimizer.lr")),
        (
            "1",
            "if self.steps > 20: model.weight.data = torch.ones(1, 9); loss = model(torch.ones(4, 9)).sum()",
            ('"weight" has shape [1, 9], was [1, 8]', "must keep its shapes"),
        ),
        (
            "1 + int(__import__('os').environ['OUTLAST_CONFIG'].split('\"slot\":')[1][0])",
            "",
            ("same model", "elements"),
        ),
    ],
    ids=["nan", "shape", "two models"],
)
def test_a_task_that_goes_wrong_ends_the_job_with_the_reason(
    lab: Lab, width: str, trouble: str, words: tuple[str, ...]
) -> None:
    ended = lab.run(own_task(lab.path, TASK.format(width=width, trouble=trouble)))
    assert_failed(ended, "worker-", *words)
    assert ended.events().count("WorkerLost") <= 1


def test_a_task_that_crashes_is_restarted_only_so_often(lab: Lab) -> None:
    source = TASK.format(width="1", trouble="raise RuntimeError('the disk with the data is gone')")
    ended = lab.run(own_task(lab.path, source, runPolicy={"backoffLimit": 1}))
    assert_failed(ended, "backoffLimit", "RuntimeError: the disk with the data is gone")
    assert ended.events().count("WorkerLost") <= 4


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"task": "broken", "args": {}}, ("broken", "ZeroDivisionError", "without side effects")),
        ({"task": None, "args": {}, "script": "nowhere.py"}, ("nowhere.py", "is no file")),
    ],
    ids=["raises", "script"],
)
def test_code_that_cannot_be_loaded_ends_the_job_with_the_reason(
    lab: Lab, training: dict[str, Any], words: tuple[str, ...]
) -> None:
    (lab.path / "broken.py").write_text("1 / 0\n")
    job = make_job()
    job["spec"]["training"] |= training
    assert_failed(lab.run(job), *words)


# --- disks ---


def limit_file_size(megabytes: float) -> Callable[[], None]:
    size = int(megabytes * (1 << 20))
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_disk_without_room_for_the_first_checkpoint_ends_the_job(lab: Lab) -> None:
    job = make_job("Chain", training={"args": {"parameters": 2_000_000}})
    assert_failed(
        lab.run(job, limit=limit_file_size(4)), "initial state cannot be kept", "could not be written", "enlarge"
    )


def test_a_disk_that_fills_up_costs_checkpoints_and_nothing_else(lab: Lab) -> None:
    """The newest whole checkpoint stays, training goes on, and a restore finds it."""
    job = make_job("Checkpoint", updates=900, compute_ms=2.0)
    run = lab.start(job)
    run.wait_version(110)
    run.wait_until(lambda: len(checkpoints(run)) >= 2, "checkpoints")
    record = run.running("server-0")
    assert record is not None
    # Below a checkpoint's size, above the log's.
    psutil.Process(record.pid).rlimit(psutil.RLIMIT_FSIZE, (14_000, 14_000))
    run.wait_until(lambda: "could not be written" in run.log("server-0"), "a checkpoint that fails")
    kept = checkpoints(run)
    said = run.log("server-0")
    assert "older checkpoints are untouched" in said
    assert "enlarge recovery.checkpoint.volume" in said
    version = run.version()
    run.wait_version(version + 60)
    assert checkpoints(run) == kept, "neither a half-written checkpoint nor a lost one"
    run.kill("server-0")
    ended = run.end()
    assert_sound(ended, updates=900, lost_at_most=900)
    assert "RolledBack" in ended.events()
    assert f"restored {kept[-1].name}" in ended.log("server-0")


def checkpoints(run: Running) -> list[Path]:
    """Complete ones, oldest first."""
    return sorted(path.parent for path in (run.directory.root / "checkpoints").glob("*/ckpt-*/MANIFEST.json"))


def test_the_newest_checkpoint_that_verifies_is_used_and_the_others_are_named(lab: Lab) -> None:
    run = lab.start(make_job("Checkpoint", updates=400), kills=("head@update=210+2500ms",))
    run.wait_until(
        lambda: run.running("server-0") is None and run.version() == 0 and died(run), "the death of the head"
    )
    *_, good, truncated, flipped = found = checkpoints(run)
    assert len(found) == 3  # keep: 3
    (part,) = flipped.glob("*.safetensors")
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 4
    part.write_bytes(content)
    (part,) = truncated.glob("*.safetensors")
    os.truncate(part, part.stat().st_size // 2)
    ended = run.end()
    assert_sound(ended, updates=400, lost_at_most=400)
    log = ended.log("server-0")
    assert f"restored {good.name}" in log
    for bad in (truncated, flipped):
        assert f"skipping checkpoint {bad.name}" in log
    assert "the one before is used" in log


def died(run: Running) -> bool:
    return any(r.name == "server-0" and not r.running for r in run.records())


# --- a server's port ---


def raw(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(10.0)
    sock.connect(address.removeprefix("unix:"))
    return sock


def closed_by_peer(sock: socket.socket) -> bool:
    with contextlib.suppress(ConnectionError):
        while sock.recv(1 << 16):
            pass
    return True  # a time-out raises TimeoutError, which is no ConnectionError


def said(run: Running, server: str, line: str) -> None:
    run.wait_until(lambda: line in run.log(server), f"{server} says: {line}")


def test_garbage_on_a_servers_port_closes_that_connection_alone(lab: Lab) -> None:
    run = lab.start(make_job("Chain", updates=4000, compute_ms=2.0))
    run.wait_version(20)
    config, head = run.config(), run.head()
    address = next(s.address for shard in config.servers for s in shard if s.name == head)
    job, mine = job_tag(config.job_uid), {"token": config.token}

    def hello(meta: Mapping[str, Any], **fields: int) -> bytes:
        text = json.dumps(meta).encode()
        return Header(**{"op": Op.HELLO, "job": job, "meta_length": len(text), **fields}).pack() + text

    huge = bytearray(Header(Op.HELLO, job=job, meta_length=META_LIMIT + 1).pack())
    spoiled = bytearray(hello(mine))
    spoiled[20] ^= 1
    for sent, line in {
        os.urandom(200): "does not speak Outlast",
        b"GET / HTTP/1.1\r\nHost: server\r\n\r\n" + b" " * 100: "does not speak Outlast",
        bytes(huge): "bytes of meta, at most",
        hello(mine, length=1 << 40): "bytes of payload, at most 0 are accepted",
        bytes(spoiled): "fails its checksum",
        hello(mine, job=job ^ 1): "belongs to another job",
        hello({"token": "guess", "role": "control"}): "wrong token",
        hello({**mine, "role": "boss"}): 'names the role "boss"',
        hello({**mine, "role": "peer", "epoch": "many"}): "malformed request",
        struct.pack("<4s", b"OLST"): "",  # and then nothing more: closed by us below
    }.items():
        with raw(address) as sock:
            sock.sendall(sent)
            if line:
                assert closed_by_peer(sock)
                said(run, head, line)

    def dial(role: str) -> Connection:
        connection, _ = connect(address, config.job_uid, config.token, {"role": role, "name": "stranger"}, 5.0)
        connection.set_timeout(10.0)
        return connection

    for role, header, meta, line in (
        ("worker", Header(Op.PUSH, DType.FLOAT32), {}, "push has 400 bytes, this shard's gradients have 16000"),
        ("control", Header(Op.INSTALL), {"view": {"epoch": "high"}}, "malformed request"),
        ("control", Header(Op.WELCOME), {}, "is no request"),
    ):
        with contextlib.closing(dial(role)) as connection:
            payload = memoryview(bytes(400)) if role == "worker" else None
            connection.send(header, meta, payload)
            with pytest.raises(ConnectionError):
                connection.receive()
            said(run, head, line)
    assert run.log(head).count("closed a connection: ") >= 12
    before = run.version()
    run.wait_version(before + 50)
    assert run.head() == head, "no failover came of it"
    run.process.send_signal(signal.SIGINT)
    ended = run.end()
    assert ended.gradients["lost"] == 0
    assert ended.report["failures"] == []


@pytest.mark.parametrize("freed", [True, False])
def test_a_port_in_use(lab: Lab, freed: bool) -> None:
    job = make_job(updates=100, runPolicy={"backoffLimit": 20 if freed else 1})
    run = lab.start(job, "--transport", "tcp")
    run.wait_until(lambda: (run.directory.root / "config.json").exists(), "its addresses")
    server = run.config().servers[0][1]
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind(("127.0.0.1", int(server.address.rpartition(":")[2])))
        squatter.listen()
        if freed:
            run.wait_until(lambda: "cannot listen on" in run.log(server.name), "a server that finds its port taken")
        else:
            assert_failed(run.end(), server.name, "cannot listen on", "Address already in use", "free it")
    if freed:
        assert_sound(run.end(), updates=100)


# --- Redis ---


def test_a_redis_that_nobody_runs_is_bad_input(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    job = make_job("Stateless", recovery={"buffer": {"url": "redis://user:secret@127.0.0.1:1/0"}})
    assert main(["run", str(lab.write(job)), "--json"]) == 2
    message = json.loads(capsys.readouterr().out)["message"]
    assert "spec.recovery.buffer.url: no Redis answers at redis://127.0.0.1:1/0" in message
    assert "secret" not in message


def test_a_redis_of_ones_own_that_dies_and_comes_back(lab: Lab, start: Callable[..., RedisServer]) -> None:
    server = start("--appendonly", "yes", "--appendfsync", "always")
    job = make_job("Stateless", updates=400, recovery={"buffer": {"url": server.url}})
    run = lab.start(job)
    run.wait_version(80)
    server.kill()
    computed = ledger_bytes(run)
    run.wait_until(lambda: ledger_bytes(run) > computed + 20 * 21, "workers that compute on")
    server.start()
    assert_sound(run.end(), updates=400)


def ledger_bytes(run: Running) -> int:
    return sum(path.stat().st_size for path in run.directory.ledger.glob("*.bin"))


def test_a_full_log_makes_workers_wait_and_loses_nothing(lab: Lab) -> None:
    """200 kB a gradient: 8 MiB are full long before the server is back, and before a snapshot was due."""
    changes: dict[str, Any] = {
        "training": {"args": {"parameters": 50_000}},
        "recovery": {"buffer": {"maxBytes": "8Mi"}, "checkpoint": {"everyUpdates": 100}},
    }
    ended = lab.run(make_job("Stateless", updates=200, **changes), kills=("servers@update=60+2s",))
    assert_sound(ended, updates=200)
    assert ended.report["bytes"]["buffer_peak"] <= 8 << 20


def test_a_redis_that_others_fill_up_makes_workers_wait_and_loses_nothing(
    lab: Lab, start: Callable[..., RedisServer]
) -> None:
    server = start("--maxmemory", "40mb")
    buffer = {"url": server.url, "maxBytes": "8Mi"}
    run = lab.start(make_job("Stateless", updates=300, recovery={"buffer": buffer}))
    run.wait_version(60)
    wire = redis.Redis(unix_socket_path=server.socket)
    with contextlib.closing(wire):
        for i in range(100):
            with contextlib.suppress(redis.ResponseError):
                wire.set(f"foreign:{i}", bytes(1 << 20))
        for size in (100_000, 10_000, 1000):  # and the rest of it, to the last kilobyte
            with contextlib.suppress(redis.ResponseError):
                for i in range(1000):
                    wire.set(f"foreign:{size}:{i}", bytes(size))
        run.wait_until(lambda: "out of memory" in run.log("worker-0"), "a worker that finds Redis full")
        wire.delete(*(key for key in wire.keys("foreign:*")))
    assert_sound(run.end(), updates=300)


def test_a_redis_too_small_for_a_snapshot_ends_the_job(lab: Lab, start: Callable[..., RedisServer]) -> None:
    server = start("--maxmemory", "3mb")
    job = make_job("Stateless", recovery={"buffer": {"url": server.url, "maxBytes": "1Mi"}})
    job["spec"]["training"]["args"] |= {"parameters": 1_000_000}
    assert_failed(lab.run(job), "3145728 bytes (its maxmemory)", "raise maxmemory")


def test_no_redis_program_is_bad_input(
    lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outlast_operator.local.redis.shutil.which", lambda *_, **__: None)
    monkeypatch.setattr("outlast_operator.local.redis.WHEELS", ())
    assert main(["run", str(lab.write(make_job("Hybrid"))), "--json"]) == 2
    assert "needs a redis-server" in json.loads(capsys.readouterr().out)["message"]

"""The gradient log's Redis: killed, ended, hung, full, reached by each kind of URL, misconfigured."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gradient_log import item_of, open_log, push, snapshot_meta, wait_until
from redis_fixture import RedisServer

from outlast.buffer.log import GradientLog, redis_maxmemory
from outlast.buffer.types import (
    AppendResult,
    BufferFull,
    BufferMisconfigured,
    BufferUnavailable,
    ClaimNeeded,
    LogItem,
    SnapshotNeeded,
    stored_cost,
)
from outlast.chain.events import Kind, Record
from outlast_operator.runtime.redis import pause_appends, shut_down

ALWAYS = ("--appendonly", "yes", "--appendfsync", "always")
MIB = 1 << 20


def test_nothing_acknowledged_is_lost_when_redis_is_killed(start: Callable[..., RedisServer]) -> None:
    """Killed at any moment while four workers append, with `appendfsync always`."""
    server = start(*ALWAYS)
    logs = [open_log(server, claimed=slot == 0) for slot in range(4)]
    acknowledged: list[tuple[int, int]] = []
    stop = threading.Event()

    def work(slot: int) -> None:
        step = 1
        while not stop.is_set():
            try:
                result = push(logs[slot], step, torch.full((60_000,), float(step)), slot=slot)
            except BufferUnavailable:
                time.sleep(0.01)
                continue
            assert result in (AppendResult.OK, AppendResult.DUPLICATE)
            acknowledged.append((slot, step))
            step += 1

    threads = [threading.Thread(target=work, args=(slot,)) for slot in range(4)]
    for thread in threads:
        thread.start()
    for round_ in range(1, 4):
        seen = len(acknowledged)
        wait_until(lambda least=seen + 15: len(acknowledged) >= least)  # type: ignore[misc]
        before = set(acknowledged)
        server.kill()
        server.start()
        wait_until(lambda: _answers(logs[0]))
        held = {(i.slot, i.first) for i in logs[0].unread(0, 0)}
        assert before <= held, f"round {round_}: lost {before - held}"
    stop.set()
    for thread in threads:
        thread.join()
    items = logs[0].read(0, 0, 10_000)
    assert len({i.offset for i in items}) == len(items) == len({i.identity for i in items}), "appended twice"
    for item in items:
        out = torch.zeros(60_000)
        logs[0].fetch_many(0, [item], [out])
        assert (out == item.first).all(), "a gradient is not whole"


def _answers(log: GradientLog) -> bool:
    try:
        log.run_id()
    except BufferUnavailable:
        return False
    return True


def test_a_redis_that_is_to_end_takes_no_gradient_and_gives_what_it_has(start: Callable[..., RedisServer]) -> None:
    server = start(*ALWAYS)
    log, other = open_log(server), open_log(server, job="other")
    assert log.save_snapshot(0, 1, snapshot_meta(1, 0), {"flat": torch.ones(3)})
    assert push(log, 1, torch.ones(3)) == AppendResult.OK
    assert pause_appends(server.url, "job")
    with pytest.raises(BufferUnavailable, match="about to end"):
        push(log, 2, torch.ones(3))
    assert push(log, 1, torch.ones(3)) == AppendResult.DUPLICATE, "it was acknowledged before"
    assert push(other, 1, torch.ones(3)) == AppendResult.OK, "another job's log"
    (item,) = log.read(0, 0)
    out = torch.zeros(3)
    log.fetch_many(0, [item], [out])
    assert (out == 1).all()
    assert log.record(0, 1, Record(2, 3, Kind.UPDATE, 1.0, ((1, 1.0),), (), 1))
    assert log.claim(0, 2), "another server may still rebuild from it"
    assert shut_down(server.url)
    with pytest.raises(BufferUnavailable):
        log.read(0, 0)
    assert not pause_appends(server.url, "job")


def test_after_a_restart_offsets_jump_and_the_server_claims_again(start: Callable[..., RedisServer]) -> None:
    server = start(*ALWAYS)
    log = open_log(server)
    assert log.save_snapshot(0, 1, snapshot_meta(1, 0), {"flat": torch.ones(3)})
    push(log, 1, torch.ones(3))
    before = log.run_id()
    server.kill()
    server.start()
    assert log.run_id() != before
    assert push(log, 2, torch.ones(3)) == AppendResult.OK, "workers need not wait for the server"
    assert push(log, 1, torch.ones(3)) == AppendResult.DUPLICATE
    first, second = log.read(0, 0)
    assert (first.offset, second.offset) == (1, (1 << 32) + 2)
    record = Record(2, 3, Kind.UPDATE, 1.0, ((1, 1.0),), (), 1)
    with pytest.raises(ClaimNeeded):
        log.record(0, 1, record)
    with pytest.raises(ClaimNeeded):
        log.trim(0, 1, 1)
    assert log.claim(0, 1, offset=1)
    with pytest.raises(SnapshotNeeded):
        log.record(0, 1, record)
    assert log.save_snapshot(0, 1, snapshot_meta(1, 0), {"flat": torch.ones(3)})
    assert log.record(0, 1, record)


def test_what_is_said_to_another_run_never_passes_for_the_one_before(start: Callable[..., RedisServer]) -> None:
    """A connection that was open when Redis died is opened anew inside the call whose arguments name the run."""
    server = start(*ALWAYS)
    log = open_log(server)
    push(log, 1, torch.ones(3))
    for _ in range(3):
        server.kill()
        server.start()
        with pytest.raises(ClaimNeeded):
            log.trim(0, 1, 1)
        assert log.claim(0, 1)
        assert log.trim(0, 1, 0)


def test_without_data_workers_wait_for_a_server_and_offsets_go_on(start: Callable[..., RedisServer]) -> None:
    server = start()  # no persistence at all
    log = open_log(server)
    for step in range(1, 6):
        push(log, step, torch.ones(3))
    server.kill()
    server.start()
    with pytest.raises(BufferUnavailable, match="no server yet"):
        push(log, 6, torch.ones(3))
    assert log.claim(0, 1, offset=5)
    assert push(log, 6, torch.ones(3)) == AppendResult.OK
    assert [i.offset for i in log.read(0, 5)] == [6]


def test_redis_is_down(start: Callable[..., RedisServer]) -> None:
    server = start(*ALWAYS)
    log = open_log(server)
    server.kill()
    for call in (lambda: push(log, 1, torch.ones(3)), log.stats, lambda: log.read(0, 0, 1, 50), log.run_id):
        with pytest.raises(BufferUnavailable, match="sent again"):
            call()
    server.start()
    assert push(log, 1, torch.ones(3)) == AppendResult.OK, "the same object goes on when Redis is back"


def test_redis_hangs(start: Callable[..., RedisServer]) -> None:
    server = start()
    log = open_log(server, timeout_s=0.3)
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(BufferUnavailable, match="did not answer"):
            push(log, 1, torch.zeros(3_000_000))
        assert time.monotonic() - began < 30.0
    finally:
        server.process.send_signal(signal.SIGCONT)
    assert push(log, 1, torch.zeros(3_000_000)) in (AppendResult.OK, AppendResult.DUPLICATE)


def test_max_bytes(start: Callable[..., RedisServer]) -> None:
    cost = stored_cost(4 * 300_000)
    log = open_log(start(), max_bytes=3 * cost)
    gradient = torch.ones(300_000)
    assert [push(log, step, gradient) for step in range(1, 6)] == ["ok", "ok", "ok", "full", "full"]
    assert push(log, 2, gradient) == AppendResult.DUPLICATE
    assert log.stats().bytes == log.stats().peak_bytes == 3 * cost
    assert log.trim(0, 1, 1)
    assert [push(log, step, gradient) for step in (4, 5)] == ["ok", "full"]
    assert log.trim(0, 1, 10)
    assert log.stats().bytes == 0
    assert log.stats().entries == 0
    with pytest.raises(BufferMisconfigured, match="cannot hold one gradient"):
        push(log, 9, torch.ones(1_500_000))


def test_uploads_under_way_count_against_max_bytes(start: Callable[..., RedisServer]) -> None:
    cost = stored_cost(4 * 300_000)
    log = open_log(start(), max_bytes=2 * cost, upload_ttl_s=0.4)
    item = LogItem(0, 0, 1, 0, 0, Kind.UPDATE, 1, 1, 1.0, 0, 0, "float32", "", 0)
    assert log._appends.admit(item, cost) == "ok"  # slot 0 has begun, and then dies
    assert push(log, 1, torch.ones(300_000), slot=1) == AppendResult.OK
    assert push(log, 2, torch.ones(300_000), slot=1) == AppendResult.FULL
    wait_until(lambda: push(log, 2, torch.ones(300_000), slot=1) == AppendResult.OK)


def test_the_cost_is_what_redis_allocates(start: Callable[..., RedisServer]) -> None:
    server = start()
    log = open_log(server)
    for elements in (1_000_000, 300_000, 813_258, 150_000):
        log.store.call("FLUSHALL")
        log.claim(0, 1)
        before = int(log.store.info("memory")["used_memory"])
        for step in range(1, 21):
            push(log, step, torch.ones(elements))
        used = int(log.store.info("memory")["used_memory"]) - before
        assert 0.9 < used / log.stats().bytes < 1.1, elements


def test_out_of_memory_is_full_and_making_room_still_works(start: Callable[..., RedisServer]) -> None:
    server = start("--maxmemory", str(16 * MIB))
    log = open_log(server)
    gradient = torch.ones(500_000)
    assert log.save_snapshot(0, 1, snapshot_meta(1, 0), {"flat": torch.ones(10)})
    results = [push(log, step, gradient) for step in range(1, 15)]
    assert results[0] == AppendResult.OK
    assert results[-1] == AppendResult.FULL
    held = results.count(AppendResult.OK)
    assert len(log.store.call("KEYS", "*}:c:*")) == 2 * held, "a refused upload leaves nothing"
    with pytest.raises(BufferFull, match="maxmemory"):
        log.save_snapshot(0, 1, snapshot_meta(2, held), {"flat": torch.ones(3_000_000)})
    assert len(log.store.call("KEYS", "*}:snap:*")) == 1
    filler = 0
    while True:  # to the last byte
        try:
            log.store.call("SET", f"filler{filler}", b"x" * 4096)
        except BufferFull:
            break
        filler += 1
    assert log.record(0, 1, Record(2, 3, Kind.UPDATE, 1.0, ((1, 1.0),), (), 1))
    assert log.claim(0, 2)
    assert log.fence(0, 1) == 1
    assert log.trim(0, 2, 0)
    for n in range(filler):
        log.store.call("UNLINK", f"filler{n}")
    wait_until(lambda: log.save_snapshot(0, 2, snapshot_meta(2, held), {"flat": torch.ones(10)}))
    assert log.trim(0, 2, held)
    assert push(log, held + 1, gradient) == AppendResult.OK


def test_redis_maxmemory_holds_what_it_promises(start: Callable[..., RedisServer]) -> None:
    """The log full to `maxBytes`, and a snapshot replaced by another."""
    max_bytes, snapshot = 40 * MIB, 20 * MIB
    server = start("--maxmemory", str(redis_maxmemory(max_bytes, snapshot)))
    log = open_log(server, max_bytes=max_bytes)
    state = {"flat": torch.ones(snapshot // 4)}
    assert log.save_snapshot(0, 1, snapshot_meta(1, 0), state)
    step = 1
    while push(log, step, torch.ones(250_000)) == AppendResult.OK:
        step += 1
    assert log.stats().bytes > max_bytes - 2 * MIB
    assert log.save_snapshot(0, 1, snapshot_meta(2, 5), state)


def test_passwords_and_urls(start: Callable[..., RedisServer]) -> None:
    server = start("--requirepass", "p@ss/word")
    good = GradientLog(f"unix://:p%40ss%2Fword@{server.socket}?db=1", "job", 1, 1 << 20)
    assert good.claim(0, 1)
    for url in (server.url, f"unix://:wrong@{server.socket}"):
        with pytest.raises(BufferMisconfigured, match="password"):
            GradientLog(url, "job", 1, 1 << 20).stats()
    for url in ("http://x", "redis://", "localhost:6379", "redis://h:99999999", "redis://h?nonsense=1"):
        with pytest.raises(BufferMisconfigured, match=r"recovery\.buffer\.url"):
            GradientLog(url, "job", 1, 1 << 20)
    with pytest.raises(BufferMisconfigured) as caught:
        GradientLog("redis://:secret@", "job", 1, 1 << 20)
    assert "secret" not in str(caught.value)
    with pytest.raises(ValueError, match="float16"):
        GradientLog(server.url, "job", 1, 1 << 20, "float16")


def test_over_tcp(start: Callable[..., RedisServer]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start("--port", str(port), "--requirepass", "secret")
    log = GradientLog(f"redis://:secret@127.0.0.1:{port}/0", "job", 1, 1 << 30)
    assert log.claim(0, 1)
    gradient = torch.randn(1_000_000)
    assert push(log, 1, gradient) == AppendResult.OK
    out = torch.zeros(1_000_000)
    log.fetch_many(0, [item_of(log)], [out])
    assert torch.equal(out, gradient)


def test_over_tls(start: Callable[..., RedisServer], tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate]  # type: ignore[list-item]
    if shutil.which("openssl") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no openssl to make a certificate with")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ("--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key))
    try:
        start(*options, "--tls-ca-cert-file", str(certificate), "--tls-auth-clients", "no")
    except RuntimeError:
        pytest.skip("this redis-server was built without TLS")
    log = GradientLog(f"rediss://localhost:{port}/0?ssl_ca_certs={certificate}", "job", 1, 1 << 30)
    assert log.claim(0, 1)
    gradient, out = torch.randn(1_000_000), torch.zeros(1_000_000)
    assert push(log, 1, gradient) == AppendResult.OK
    log.fetch_many(0, [item_of(log)], [out])
    assert torch.equal(out, gradient)
    with pytest.raises(BufferUnavailable, match="certificate"):
        GradientLog(f"rediss://localhost:{port}/0", "job", 1, 1 << 30).stats()


def test_a_redis_that_evicts_is_refused(start: Callable[..., RedisServer]) -> None:
    server = start("--maxmemory-policy", "allkeys-lru")
    with pytest.raises(BufferMisconfigured, match="noeviction"):
        open_log(server)

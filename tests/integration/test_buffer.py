"""The gradient log against a real Redis: killed, full, paused, misconfigured, and used by many at once."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from outlast.buffer.log import GradientLog, redis_maxmemory
from outlast.buffer.scripts import APPEND
from outlast.buffer.types import (
    CHUNK_BYTES,
    AppendResult,
    BufferFull,
    BufferMisconfigured,
    BufferUnavailable,
    ClaimNeeded,
    EntryMissing,
    LogItem,
    SnapshotCorrupt,
    SnapshotNeeded,
    stored_cost,
)
from outlast.chain.events import Identity, Kind, Record
from outlast_operator.runtime.redis import pause_appends, shut_down
from redis_fixture import RedisServer

ALWAYS = ("--appendonly", "yes", "--appendfsync", "always")
MIB = 1 << 20


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    started: list[RedisServer] = []

    def make(*options: str) -> RedisServer:
        server = RedisServer(tmp_path / f"redis{len(started)}", *options).start()
        started.append(server)
        return server

    yield make
    for server in started:
        server.stop()


def open_log(
    server: RedisServer, job: str = "job", shards: int = 1, claimed: bool = True, **options: object
) -> GradientLog:
    log = GradientLog(server.url, job, shards, **{"max_bytes": 1 << 30, **options})  # type: ignore[arg-type]
    for shard in range(shards if claimed else 0):
        assert log.claim(shard, 1)
    return log


def push(
    log: GradientLog, step: int, *payloads: torch.Tensor, slot: int = 0, incarnation: int = 1, history: int = 0
) -> AppendResult:
    return log.append(slot, incarnation, history, step - 1, Kind.UPDATE, step, step, 1.0, payloads)


def item_of(log: GradientLog, shard: int = 0) -> LogItem:
    return log.read(shard, 0, 1)[0]


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


def snapshot_meta(seq: int, offset: int, history: int = 0) -> dict[str, object]:
    return {"seq": seq, "version": seq, "history": history, "offset": offset}


@pytest.mark.parametrize("elements", [0, 1, CHUNK_BYTES // 4, CHUNK_BYTES // 4 + 1, 813_258])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_payloads_come_back(start: Callable[..., RedisServer], elements: int, dtype: str) -> None:
    log = open_log(start(), shards=2, dtype=dtype)
    payloads = [torch.randn(elements), torch.randn(7)]
    assert push(log, 1, *payloads) == AppendResult.OK
    for shard, payload in enumerate(payloads):
        item = item_of(log, shard)
        out = torch.full_like(payload, -1.0)
        log.fetch_many(shard, [item], [out])
        expected = payload if dtype == "float32" else payload.bfloat16().float()
        assert torch.equal(out, expected)
        assert item.nbytes == payload.numel() * (4 if dtype == "float32" else 2)
        assert item.contribution(out).identity == Identity(0, 1, 1)


def test_a_plain_buffer_is_a_payload(start: Callable[..., RedisServer]) -> None:
    log = open_log(start())
    data = bytearray(torch.arange(5, dtype=torch.float32).numpy().tobytes())
    assert log.append(0, 1, 0, 0, Kind.UPDATE, 1, 1, 1.0, [data]) == AppendResult.OK
    out = torch.zeros(5)
    log.fetch_many(0, [item_of(log)], [out])
    assert out.tolist() == [0, 1, 2, 3, 4]


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


def test_an_append_whose_answer_is_lost_keeps_its_payload(
    start: Callable[..., RedisServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link connects again and tries once more; what the first attempt uploaded is in the log by then."""
    log = open_log(start())
    assert push(log, 1, torch.ones(10)) == AppendResult.OK  # the connection has been used
    upload, calls = log.store.bulk._upload, []

    def upload_and_lose_the_answer(*args: Any) -> Any:
        answer = upload(*args)
        calls.append(answer)
        if len(calls) == 1:
            raise ConnectionResetError("the answer was lost")
        return answer

    monkeypatch.setattr(log.store.bulk, "_upload", upload_and_lose_the_answer)
    assert push(log, 2, torch.full((10,), 2.0)) == AppendResult.DUPLICATE
    assert len(calls) == 2
    out = torch.zeros(10)
    items = log.read(0, 0, 10)
    assert [item.first for item in items] == [1, 2]
    log.fetch_many(0, [items[1]], [out])
    assert out.eq(2.0).all()


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


def test_orphan_chunks_are_reclaimed(start: Callable[..., RedisServer]) -> None:
    log = open_log(start(), upload_ttl_s=0.3)
    view = memoryview(bytearray(100))
    log.store.bulk.upload([(log.store.chunk_key("dead", 0, 0), view)], log._appends._ttl_ms)  # and the worker is gone
    assert len(log.store.call("KEYS", "*}:c:*")) == 1
    wait_until(lambda: log.store.call("KEYS", "*}:c:*") == [])
    assert push(log, 1, torch.ones(3)) == AppendResult.OK
    time.sleep(0.4)
    out = torch.zeros(3)
    log.fetch_many(0, [item_of(log)], [out])
    assert (out == 1).all(), "what is in the log never expires"


def test_an_upload_that_expired_is_sent_again(start: Callable[..., RedisServer]) -> None:
    log = open_log(start(), upload_ttl_s=0.001)
    gradient = torch.ones(3_000_000)
    with pytest.raises(BufferUnavailable, match="longer than"):
        any(push(log, step, gradient) != AppendResult.OK for step in range(1, 50))  # 1 ms is sometimes enough
    wait_until(lambda: len(log.store.call("KEYS", "*}:c:*")) == sum(i.chunks for i in log.read(0, 0)))


def test_a_lost_reply_is_a_duplicate_the_next_time(start: Callable[..., RedisServer]) -> None:
    log = open_log(start())
    assert push(log, 1, torch.ones(3)) == AppendResult.OK
    assert push(log, 1, torch.full((3,), 2.0)) == AppendResult.DUPLICATE
    out = torch.zeros(3)
    log.fetch_many(0, [item_of(log)], [out])
    assert (out == 1).all()
    assert log.trim(0, 1, 1)
    assert push(log, 1, torch.ones(3)) == AppendResult.DUPLICATE, "it was applied"


def test_after_a_rollback_what_was_applied_before_is_no_duplicate(start: Callable[..., RedisServer]) -> None:
    log = open_log(start())
    push(log, 1, torch.ones(3))
    log.trim(0, 1, 1)
    assert log.claim(0, 2, history=1)
    assert push(log, 1, torch.ones(3)) == AppendResult.OK


def test_trimmed_on_both_sides_of_a_rollback_is_not_known_to_be_applied(start: Callable[..., RedisServer]) -> None:
    log = open_log(start(), shards=2)
    push(log, 1, torch.ones(3), torch.ones(3))
    assert log.trim(0, 1, 1)
    assert log.claim(0, 2, history=1)
    assert log.claim(1, 2, history=1)
    assert log.trim(1, 2, 1)
    assert push(log, 1, torch.ones(3), torch.ones(3)) == AppendResult.OK


@pytest.mark.parametrize(("seq", "offset"), [(4, 6), (6, 4)])
def test_a_snapshot_never_goes_back(start: Callable[..., RedisServer], seq: int, offset: int) -> None:
    log = open_log(start())
    assert log.save_snapshot(0, 1, snapshot_meta(5, 5), {"flat": torch.ones(1)})
    assert log.save_snapshot(0, 1, snapshot_meta(seq, offset), {"flat": torch.zeros(1)}), (
        "a later state is safe already"
    )
    assert log.load_snapshot(0)[0] == snapshot_meta(5, 5)  # type: ignore[index]
    assert len(log.store.call("KEYS", "*}:snap:*")) == 1
    assert log.claim(0, 2, history=1)
    assert log.save_snapshot(0, 2, snapshot_meta(4, 4, history=1), {"flat": torch.zeros(1)}), "a rollback does"
    assert log.load_snapshot(0)[0] == snapshot_meta(4, 4, history=1)  # type: ignore[index]


def test_fenced_epochs_and_incarnations(start: Callable[..., RedisServer]) -> None:
    log = open_log(start())
    log.save_snapshot(0, 1, snapshot_meta(1, 0), {"flat": torch.zeros(2)})
    push(log, 1, torch.ones(3))
    assert log.claim(0, 3)
    assert not log.claim(0, 2)
    assert not log.trim(0, 1, 1)
    assert not log.record(0, 1, Record(2, 3, Kind.UPDATE, 1.0, (), (), 1))
    assert not log.save_snapshot(0, 1, snapshot_meta(5, 1), {"flat": torch.ones(2)})
    assert not log.close(1)
    loaded = log.load_snapshot(0)
    assert loaded is not None
    assert (loaded[1]["flat"] == 0).all()
    assert len(log.store.call("KEYS", "*}:snap:*")) == 1, "a fenced server's upload is removed"
    assert log.fence(0, 4) == 4
    assert push(log, 2, torch.ones(3), incarnation=3) == AppendResult.FENCED
    assert push(log, 2, torch.ones(3), incarnation=5) == AppendResult.OK
    assert push(log, 3, torch.ones(3), incarnation=4) == AppendResult.FENCED, "5 is known to live"
    assert push(log, 2, torch.ones(3), incarnation=6) == AppendResult.DUPLICATE
    assert push(log, 3, torch.ones(3), incarnation=5) == AppendResult.FENCED, "a duplicate shows 6 as well"


def test_closing(start: Callable[..., RedisServer]) -> None:
    log = open_log(start())
    push(log, 1, torch.ones(3))
    assert log.close(1)
    assert push(log, 2, torch.ones(3)) == AppendResult.CLOSED
    assert push(log, 1, torch.ones(3)) == AppendResult.DUPLICATE, "that one is in the log: it counts as unread, once"
    assert log.unread(0, 0) == [Identity(0, 1, 1)]
    assert log.claim(0, 2, history=1)
    assert push(log, 2, torch.ones(3), history=1) == AppendResult.OK, "an end that was rolled back was none"


def test_a_blocking_read_wakes_at_once_and_stops_nobody(start: Callable[..., RedisServer]) -> None:
    server = start()
    log, worker = open_log(server), open_log(server, claimed=False)
    got: list[tuple[float, list[LogItem]]] = []
    thread = threading.Thread(target=lambda: got.append((0.0, log.read(0, 0, block_ms=20_000))))
    thread.start()
    wait_until(lambda: b"cmd=xread" in worker.store.call("CLIENT", "LIST"))
    assert log.stats().entries == 0, "other calls go on meanwhile"
    push(worker, 1, torch.ones(3))
    thread.join(10)
    assert not thread.is_alive()
    assert [i.first for i in got[0][1]] == [1]
    began = time.monotonic()
    assert log.read(0, 1, block_ms=200) == []
    assert 0.15 < time.monotonic() - began < 30


def test_many_entries_are_read_trimmed_and_listed_in_pages(start: Callable[..., RedisServer]) -> None:
    log = open_log(start())
    for step in range(1, 1201):
        push(log, step, torch.full((2,), float(step)))
    assert [i.first for i in log.unread(0, 100)] == list(range(101, 1201))
    items = log.read(0, 0, 2000)
    outs = [torch.zeros(2) for _ in items]
    log.fetch_many(0, items, outs)
    assert [int(o[0]) for o in outs] == list(range(1, 1201))
    assert log.trim(0, 1, 1150)
    assert [i.first for i in log.read(0, 0)] == list(range(1151, 1201))
    assert log.highest_step(0) == 1200
    assert log.store.call("ZCARD", log.store.prefix + "gone:0") == 1, "what was applied stays one interval"


def test_fetching_what_was_trimmed(start: Callable[..., RedisServer]) -> None:
    log = open_log(start())
    push(log, 1, torch.ones(3))
    item = item_of(log)
    log.trim(0, 1, 1)
    with pytest.raises(EntryMissing):
        log.fetch_many(0, [item], [torch.zeros(3)])
    assert push(log, 2, torch.ones(3)) == AppendResult.OK, "the connection is still good"


def test_a_trim_stops_at_the_snapshot(start: Callable[..., RedisServer]) -> None:
    log = open_log(start())
    for step in range(1, 5):
        push(log, step, torch.ones(3))
    log.save_snapshot(0, 1, snapshot_meta(2, 2), {"flat": torch.ones(3)})
    log.trim(0, 1, 4)
    assert [i.offset for i in log.read(0, 0)] == [3, 4], "a rebuild needs what comes after the snapshot"


def test_snapshots_replace_each_other_and_drop_records(start: Callable[..., RedisServer]) -> None:
    log = open_log(start())
    tensors = {"flat": torch.randn(700_001), "half": torch.randn(3, 2).bfloat16(), "n": torch.tensor(3)}
    assert log.load_snapshot(0) is None
    assert log.save_snapshot(0, 1, snapshot_meta(0, 0), tensors)
    records = [Record(n, n, Kind.UPDATE, 0.1, ((n, 1 / 3),), (), n) for n in range(1, 6)]
    assert all(log.record(0, 1, r) for r in records)
    assert log.records(0, 0) == records
    tensors["flat"] += 1
    assert log.save_snapshot(0, 1, snapshot_meta(3, 3), tensors)
    assert log.records(0, 0) == records[3:]
    into = {"flat": torch.zeros(700_001)}
    loaded = log.load_snapshot(0, into)
    assert loaded is not None
    assert loaded[0] == snapshot_meta(3, 3)
    assert loaded[1]["flat"] is into["flat"]
    assert all(torch.equal(loaded[1][k], tensors[k]) for k in tensors)
    assert len(log.store.call("KEYS", "*}:snap:*")) == 5
    assert log.save_snapshot(0, 1, snapshot_meta(1, 1), tensors), "a later one is there: nothing to do"
    assert log.load_snapshot(0)[0] == snapshot_meta(3, 3)  # type: ignore[index]


def test_a_damaged_snapshot_is_not_loaded(start: Callable[..., RedisServer]) -> None:
    log = open_log(start())
    log.save_snapshot(0, 1, snapshot_meta(1, 0), {"flat": torch.ones(1000)})
    (key,) = log.store.call("KEYS", "*}:snap:*")
    log.store.call("SETRANGE", key, 2000, b"\x01")
    with pytest.raises(SnapshotCorrupt, match="newest checkpoint"):
        log.load_snapshot(0)
    log.store.call("UNLINK", key)
    with pytest.raises(SnapshotCorrupt, match="missing"):
        log.load_snapshot(0)


def test_jobs_share_a_redis(start: Callable[..., RedisServer]) -> None:
    server = start()
    one, other = open_log(server, "one"), open_log(server, "one*")
    push(one, 1, torch.ones(3))
    assert other.stats().entries == 0
    assert push(other, 1, torch.ones(3)) == AppendResult.OK
    assert other.close(1)
    assert push(other, 2, torch.ones(3)) == AppendResult.CLOSED
    assert push(one, 2, torch.ones(3)) == AppendResult.OK
    assert (one.stats().entries, other.stats().entries) == (2, 1)


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


def test_payloads_are_checked() -> None:
    log = GradientLog("unix:///nowhere", "job", 2, 1 << 20)
    with pytest.raises(ValueError, match="2 shards"):
        push(log, 1, torch.ones(3))
    with pytest.raises(ValueError, match="float32"):
        push(log, 1, torch.ones(3), torch.ones(3).double())
    with pytest.raises(ValueError, match="steps"):
        push(log, 0, torch.ones(3), torch.ones(3))


def test_the_append_script_is_cached(start: Callable[..., RedisServer]) -> None:
    log = open_log(start())
    push(log, 1, torch.ones(3))
    assert log.store.call("SCRIPT", "EXISTS", APPEND.sha) == [1]

"""The gradient log over a real Redis: payloads, duplicates, fences, trims, snapshots, and many users at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gradient_log import item_of, open_log, push, snapshot_meta, wait_until
from redis_fixture import RedisServer

from outlast.buffer.log import GradientLog
from outlast.buffer.scripts import APPEND
from outlast.buffer.types import CHUNK_BYTES, AppendResult, BufferUnavailable, EntryMissing, LogItem, SnapshotCorrupt
from outlast.chain.events import Identity, Kind, Record


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

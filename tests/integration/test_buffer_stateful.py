"""The real Redis and the plain model, side by side: every call has the same answer, whatever came before it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from model_log import ModelLog
from redis_fixture import RedisServer

from outlast.buffer.log import GradientLog
from outlast.buffer.types import BufferStats, GradientLogError, LogItem, stored_cost
from outlast.chain.events import Kind, Record

SHARDS = 2
ELEMENTS = (5, 3)
JOBS = itertools.count()
ROOM = 12 * sum(stored_cost(4 * n) for n in ELEMENTS)

shards = st.integers(0, SHARDS - 1)
epochs = st.integers(1, 4)
slots = st.integers(0, 1)
steps = st.integers(1, 12)
histories = st.integers(0, 2)
offsets = st.integers(0, 30)


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    options = ("--appendonly", "yes", "--appendfsync", "no")
    server = RedisServer(tmp_path_factory.mktemp("redis"), *options).start()
    yield server
    server.stop()


def answer(call: Callable[[], Any]) -> Any:
    """What a call returns, or the type of what it raises."""
    try:
        return call()
    except GradientLogError as error:
        return type(error)


def plain(item: LogItem) -> tuple[Any, ...]:
    """A manifest without what only Redis knows."""
    return (
        item.offset,
        item.identity,
        item.incarnation,
        item.history,
        item.version,
        item.kind,
        item.lr_scale,
        item.nbytes,
    )


class LogMachine(RuleBasedStateMachine):
    server: RedisServer  # set by the test

    def __init__(self) -> None:
        super().__init__()
        self.real = GradientLog(self.server.url, f"job{next(JOBS)}[*]?", SHARDS, ROOM)
        self.model = ModelLog(SHARDS, ROOM)
        self.stamp = 0.0
        self.restarts = 0

    def teardown(self) -> None:
        store = self.real.store
        strays = [key for key in store.call("KEYS", "*") if not key.startswith(store.prefix.encode())]
        assert strays == [], "the log wrote outside its prefix"
        store.call("FLUSHALL")
        self.real.disconnect()

    @initialize(claimed=st.booleans())
    def begin(self, claimed: bool) -> None:
        if claimed:
            self.claim_all()

    def both(self, call: Callable[[Any], Any]) -> Any:
        real, model = answer(lambda: call(self.real)), answer(lambda: call(self.model))
        assert real == model
        return real

    @rule(slot=slots, incarnation=st.integers(1, 3), history=histories, first=steps, width=st.integers(1, 4))
    def append(self, slot: int, incarnation: int, history: int, first: int, width: int) -> None:
        self.stamp += 1.0
        last = first if width < 3 else first + width - 1
        payloads = [torch.full((n,), self.stamp + i) for i, n in enumerate(ELEMENTS)]
        kind = Kind.UPDATE if last == first else Kind.DELTA
        args = (slot, incarnation, history, 7, kind, first, last, 0.1, payloads)
        real = answer(lambda: self.real.append(*args))
        assert real == answer(lambda: self.model.append(*args, nbytes=[4 * n for n in ELEMENTS]))

    @rule(shard=shards, epoch=epochs, history=histories, offset=offsets)
    def claim(self, shard: int, epoch: int, history: int, offset: int) -> None:
        self.both(lambda log: log.claim(shard, epoch, history, offset))

    @rule()
    def claim_all(self) -> None:
        for shard in range(SHARDS):
            self.both(lambda log, n=shard: log.claim(n, max(self.model.epoch(n), 1)))

    @rule(shard=shards, after=offsets, limit=st.integers(1, 20))
    def read(self, shard: int, after: int, limit: int) -> None:
        real, model = self.real.read(shard, after, limit), self.model.read(shard, after, limit)
        assert [plain(i) for i in real] == [plain(i) for i in model]
        outs = [torch.zeros(i.elements) for i in real]
        self.real.fetch_many(shard, real, outs)
        for item, out in zip(model, outs, strict=True):
            assert torch.equal(out, self.model.fetch(shard, item))

    @rule(shard=shards, epoch=epochs, offset=offsets)
    def trim(self, shard: int, epoch: int, offset: int) -> None:
        self.both(lambda log: log.trim(shard, epoch, offset))

    @rule(shard=shards)
    def trim_as_owner(self, shard: int) -> None:
        last = self.model.stats().last_offset
        self.both(lambda log: log.trim(shard, self.model.epoch(shard), last))

    @rule(shard=shards, epoch=epochs, seq=st.integers(1, 8), weight=st.floats(0, 1))
    def record(self, shard: int, epoch: int, seq: int, weight: float) -> None:
        entry = Record(seq, seq + 1, Kind.UPDATE, weight, ((seq, weight),), (seq + 1,), seq + 1)
        self.both(lambda log: log.record(shard, epoch, entry))

    @rule(shard=shards, after=st.integers(0, 8))
    def records(self, shard: int, after: int) -> None:
        self.both(lambda log: log.records(shard, after))

    @rule(shard=shards, epoch=epochs, seq=st.integers(0, 8), offset=offsets, history=histories)
    def save_snapshot(self, shard: int, epoch: int, seq: int, offset: int, history: int) -> None:
        meta = {"seq": seq, "version": seq, "history": history, "offset": offset, "applied": {"0": [[1, seq]]}}
        tensors = {"flat": torch.full((4,), float(seq)), "step": torch.tensor(seq), "none": torch.zeros(0, 3)}
        self.both(lambda log: log.save_snapshot(shard, epoch, meta, tensors))

    @rule(epoch=epochs, shard=shards)
    def close(self, epoch: int, shard: int) -> None:
        self.both(lambda log: log.close(epoch, shard))

    @rule(slot=slots, incarnation=st.integers(1, 3))
    def fence(self, slot: int, incarnation: int) -> None:
        self.both(lambda log: log.fence(slot, incarnation))

    @rule(shard=shards, after=offsets)
    def unread(self, shard: int, after: int) -> None:
        self.both(lambda log: log.unread(shard, after))

    @rule()
    def flush_scripts(self) -> None:
        self.real.store.call("SCRIPT", "FLUSH")

    @rule()
    def restart(self) -> None:
        """Killed, and started with its data: the page cache outlives the process, so nothing is lost."""
        if self.restarts < 2:
            self.restarts += 1
            self.server.kill()
            self.server.start()
            self.model.restart()

    @invariant()
    def same_state(self) -> None:
        real, model = self.real.stats(), self.model.stats()
        assert BufferStats(**{**vars(real), "run_id": ""}) == BufferStats(**{**vars(model), "run_id": ""})
        for slot in range(2):
            assert self.real.highest_step(slot) == self.model.highest_step(slot)
        for shard in range(SHARDS):
            store = self.real.store
            assert int(store.call("HGET", store.shard_key(shard), "epoch") or 0) == self.model.epoch(shard)
            loaded, expected = self.real.load_snapshot(shard), self.model.load_snapshot(shard)
            assert (loaded is None) == (expected is None)
            if loaded is not None and expected is not None:
                assert loaded[0] == expected[0]
                assert loaded[1].keys() == expected[1].keys()
                assert all(torch.equal(loaded[1][k], expected[1][k]) for k in loaded[1])

    @invariant()
    def no_stray_chunks(self) -> None:
        """Chunks in Redis are those that manifests and snapshots name: nothing leaks, nothing is missing."""
        keys = self.real.store.call("KEYS", "*}:c:*")
        held = sum(i.chunks for shard in range(SHARDS) for i in self.real.read(shard, 0, 1000))
        assert len(keys) == held
        assert all(self.real.store.call("TTL", key) == -1 for key in keys)
        snapshots = sum(2 for shard in range(SHARDS) if self.model.load_snapshot(shard))
        assert len(self.real.store.call("KEYS", "*}:snap:*")) == snapshots


@pytest.mark.timeout(300)
def test_redis_agrees_with_the_model(redis_server: RedisServer, tmp_path: Path) -> None:
    class Machine(LogMachine):
        server = redis_server

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )

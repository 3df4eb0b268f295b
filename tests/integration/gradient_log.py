"""The gradient log, opened, filled and read in a line each."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from redis_fixture import RedisServer

from outlast.buffer.log import GradientLog
from outlast.buffer.types import AppendResult, LogItem
from outlast.chain.events import Kind


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

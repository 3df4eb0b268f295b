"""A worker's own record of what it computed and what it saw acknowledged, on disk as it happens.

One fixed-size record a fact, appended with a single write(2): the page cache keeps it when the process is killed, so
the report counts from what workers saw and never from what should have happened.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

_RECORD = struct.Struct("<dBIII")


class Fact(IntEnum):
    COMPUTED = 1
    ACKNOWLEDGED = 2  # by a server
    BUFFERED = 3  # acknowledged by Redis
    UNAPPLIED = 4  # refused at the end: the job had reached its goal
    LOCAL = 5  # a local optimizer step in an outage (LocalSteps)


@dataclass(frozen=True, slots=True)
class LedgerRecord:
    t: float  # time.monotonic() of the worker's host
    fact: Fact
    slot: int
    first: int
    last: int


class LedgerWriter:
    def __init__(self, directory: str, slot: int, incarnation: int) -> None:
        path = Path(directory) / f"worker-{slot}-{incarnation}.bin"
        self._slot = slot
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def write(self, fact: Fact, first: int, last: int) -> None:
        os.write(self._fd, _RECORD.pack(time.monotonic(), fact, self._slot, first, last))

    def close(self) -> None:
        os.close(self._fd)


def read_ledger(path: Path, offset: int = 0) -> Iterator[LedgerRecord]:
    """Yield the complete records from byte `offset` on (a multiple of `record_bytes()`)."""
    with path.open("rb") as file:
        file.seek(offset)
        raw = file.read()
    for t, fact, slot, first, last in _RECORD.iter_unpack(raw[: len(raw) - len(raw) % _RECORD.size]):
        yield LedgerRecord(t, Fact(fact), slot, first, last)


def record_bytes() -> int:
    return _RECORD.size

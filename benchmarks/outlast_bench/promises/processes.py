"""Single processes that a bench starts itself: a real server, a Redis, a helper. They end with the `with` block.

For what no job can show: a server over a log that the bench has prepared, an old head that nobody ends, a transfer
without a training loop. Whoever is started here dies with the bench (PDEATHSIG).
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlast.api.config import ENVIRONMENT_VARIABLE, ProcessConfig, ServerAddress
from outlast.api.view import Member, View
from outlast.wire.control import ServerControl
from outlast_bench.promises.common import BenchError
from outlast_operator.local.redis import find_redis_server, redis_command, redis_url
from outlast_operator.runtime.redis import redis_run_id

START_S = 60.0  # importing torch on a busy machine


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A temporary directory whose path is short enough for unix sockets."""
    with tempfile.TemporaryDirectory(prefix="outlast-bench-", dir="/tmp") as root:
        yield Path(root)


@contextlib.contextmanager
def python(
    target: str, log: Path, env: dict[str, str] | None = None, **pipes: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `module:function` in a new Python; killed at the end of the block."""
    path = os.pathsep.join(folder for folder in sys.path if folder)
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "outlast_bench.promises.child", str(os.getpid()), target],
            env={**os.environ, "PYTHONPATH": path, **(env or {})},
            stderr=file,
            **pipes,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def until(ready: Callable[[], Any], what: str, timeout_s: float) -> Any:
    """Wait until `ready()` gives something true, and return it. Raises `BenchError` after `timeout_s` seconds."""
    end = time.monotonic() + timeout_s
    while True:
        try:
            found = ready()
            if found:
                return found
        except BenchError:
            raise
        except (OSError, RuntimeError):
            pass  # a server that does not listen yet
        if time.monotonic() > end:
            raise BenchError(f"{what} did not happen within {timeout_s:g} s")
        time.sleep(0.01)


@contextlib.contextmanager
def redis(root: Path, max_memory: int = 2 << 30) -> Iterator[str]:
    """A Redis over the append-only file in `root`, if there is one. Yields its url."""
    socket = root / "redis.sock"
    command = redis_command(find_redis_server(), root, socket, "EverySecond", max_memory)
    with (root / "redis.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        url = redis_url(socket)
        until(lambda: redis_run_id(url), f"Redis over {root} answering", START_S)
        yield url
    finally:
        process.kill()
        process.wait()


def serve() -> int:
    """A server, with what a job's forkserver has imported ahead: torch's optimizers import _dynamo when first made."""
    importlib.import_module("torch._dynamo")
    importlib.import_module("outlast.server.main").main()
    return 0


@dataclass
class Standing:
    """A server that runs: its membership and a line to it."""

    member: Member
    control: ServerControl
    process: subprocess.Popen[bytes]
    config: ProcessConfig

    @property
    def pid(self) -> int:
        return self.process.pid


def server_config(
    spec: dict[str, Any], addresses: Sequence[str], redis: str | None = None, job_uid: str | None = None
) -> ProcessConfig:
    """The configuration of a job of one shard that only this bench knows; `server` fills in the rest."""
    servers = tuple(ServerAddress(f"server-{i}", address) for i, address in enumerate(addresses))
    uid = job_uid or secrets.token_hex(8)
    return ProcessConfig(
        "bench", uid, secrets.token_hex(8), "server", "", spec, (servers,), redis_url=redis, shard=0
    )  # fmt: skip


@contextlib.contextmanager
def server(config: ProcessConfig, index: int, root: Path) -> Iterator[Standing]:
    """Start server `index` of the job and wait until it answers."""
    address = config.servers[0][index]
    raw = {**json.loads(config.to_json()), "name": address.name, "listen": address.address}
    own = ProcessConfig.from_json(json.dumps(raw))
    log = root / f"{address.name}.log"
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(
            python(
                "outlast_bench.promises.processes:serve",
                log,
                {ENVIRONMENT_VARIABLE: own.to_json()},
                stdin=subprocess.DEVNULL,
            )
        )
        control = ServerControl(address.address, config.job_uid, config.token, timeout_s=5.0)
        stack.callback(control.close)

        def answers() -> str:
            if process.poll() is not None:
                raise BenchError(f"{address.name} ended: {log.read_text(errors='replace')[-500:]}")
            return control.probe().boot

        boot = until(answers, f"{address.name} answering", START_S)
        yield Standing(Member(address.name, boot, address.address), control, process, own)


def view_of(epoch: int, servers: Sequence[Standing], history: int = 0, restore: str | None = None) -> View:
    return View(0, epoch, history, tuple(s.member for s in servers), restore=restore)

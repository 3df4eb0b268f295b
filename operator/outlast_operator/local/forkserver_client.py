"""How `outlast run` and its operator speak with the forkserver, and how the former starts it.

The protocol is one JSON object a line over a unix socket. A request carries an `id`, its answer repeats it:

    {"id": 1, "op": "spawn", "name", "kind": "fork|exec", "target"|"argv", "env", "log", "cwd", "meta"} -> {"pid"}
    {"id": 2, "op": "list"}                       -> {"processes": [ProcessRecord…]}, in order of their start
    {"id": 3, "op": "signal", "name", "pid", "signal"} -> {"sent": bool}
    {"id": 4, "op": "subscribe"}                  -> {}, and from then on {"event": "spawn|exit", "process": …}
    {"id": 5, "op": "shutdown"}                   -> {}, then every process is killed

A refusal is {"id", "error"}. Times are `time.monotonic()`, comparable between the processes of a host.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SOCKET_NAME = "forkserver.sock"


class ForkServerError(RuntimeError):
    """The forkserver refused a request, or is gone."""


@dataclass(frozen=True)
class ProcessRecord:
    """One start of one process. `code` and `signal` are None while it runs; afterwards one of them tells its end."""

    name: str
    pid: int
    kind: str  # fork | exec
    t_started: float
    meta: dict[str, Any] = field(default_factory=dict)  # whatever the spawn request said: role, slot, incarnation…
    t_exited: float | None = None
    code: int | None = None
    signal: int | None = None

    @property
    def running(self) -> bool:
        return self.t_exited is None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(raw: dict[str, Any]) -> ProcessRecord:
        return ProcessRecord(**raw)


def socket_path(run_dir: Path) -> Path:
    return run_dir / "sockets" / SOCKET_NAME


class ForkServerClient:
    """A connection to the forkserver of a run; safe to use from several threads.

    `on_event(kind, record)` is called from the reader thread with kind "spawn" or "exit", and once with
    ("closed", None) when the forkserver is gone.
    """

    def __init__(
        self, path: Path, on_event: Callable[[str, ProcessRecord | None], None] | None = None, timeout_s: float = 20.0
    ) -> None:
        self._timeout_s = timeout_s
        self._on_event = on_event
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        self._socket.connect(str(path))
        self._socket.settimeout(None)
        self._lock = threading.Lock()
        self._answered = threading.Condition()
        self._answers: dict[int, dict[str, Any]] = {}
        self._next_id = 0
        self._closed = False
        threading.Thread(target=self._read, name="forkserver-reader", daemon=True).start()
        if on_event is not None:
            self._request({"op": "subscribe"})

    def spawn(
        self,
        name: str,
        *,
        target: str | None = None,
        argv: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
        cwd: Path | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> int:
        """Start `module:function` in a fork (target) or a program (argv); returns its pid.

        Raises `ForkServerError` when a process of this name still runs.
        """
        request = {
            "op": "spawn",
            "name": name,
            "kind": "exec" if argv is not None else "fork",
            "target": target,
            "argv": list(argv) if argv is not None else None,
            "env": dict(env or {}),
            "log": str(log) if log is not None else None,
            "cwd": str(cwd) if cwd is not None else None,
            "meta": dict(meta or {}),
        }
        return int(self._request(request)["pid"])

    def list(self) -> tuple[ProcessRecord, ...]:
        """Every process ever started here, dead ones included, in order of start."""
        return tuple(ProcessRecord.from_json(raw) for raw in self._request({"op": "list"})["processes"])

    def signal(self, name: str, number: int, pid: int | None = None) -> bool:
        """Signal the process that runs under a name (only if it is still `pid`, when given). False: none does."""
        return bool(self._request({"op": "signal", "name": name, "signal": int(number), "pid": pid})["sent"])

    def shutdown(self) -> None:
        """Kill every process and end the forkserver."""
        with contextlib.suppress(ForkServerError):  # it is gone, which is what was asked for
            self._request({"op": "shutdown"})

    def close(self) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _request(self, message: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            self._next_id += 1
            number = self._next_id
            try:
                self._socket.sendall(json.dumps({"id": number, **message}).encode() + b"\n")
            except OSError as error:
                raise ForkServerError(f"the forkserver is gone ({error}); the run cannot continue") from error
        with self._answered:
            self._answered.wait_for(lambda: number in self._answers or self._closed, self._timeout_s)
            answer = self._answers.pop(number, None)
        if answer is None:
            why = "is gone" if self._closed else f"did not answer within {self._timeout_s:g} s"
            raise ForkServerError(f"the forkserver {why} ({message['op']}); see logs/forkserver.log")
        if "error" in answer:
            raise ForkServerError(answer["error"])
        return answer

    def _read(self) -> None:
        try:
            with self._socket.makefile("rb") as lines:
                for line in lines:
                    self._receive(json.loads(line))
        except (OSError, ValueError):
            pass  # closed from either side, in the middle of a line or between two
        with self._answered:
            self._closed = True
            self._answered.notify_all()
        if self._on_event is not None:
            self._on_event("closed", None)

    def _receive(self, message: dict[str, Any]) -> None:
        if "event" in message:
            if self._on_event is not None:
                self._on_event(message["event"], ProcessRecord.from_json(message["process"]))
            return
        with self._answered:
            self._answers[message["id"]] = message
            self._answered.notify_all()


def start_forkserver(run_dir: Path, job: str) -> subprocess.Popen[bytes]:
    """Start a forkserver for a run directory and return at once; see `wait_ready`.

    It dies with the calling *thread* (a kernel rule of PDEATHSIG), so call this from the main one. Its own session
    keeps a Ctrl-C in the terminal from reaching the job's processes past the runner.
    """
    path = socket_path(run_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    if len(str(path)) > 100:
        raise ForkServerError(f"{path}: too long for a unix socket (108 bytes); choose a shorter run directory")
    path.unlink(missing_ok=True)
    (run_dir / "logs").mkdir(exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with open(run_dir / "logs" / "forkserver.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "outlast_operator.local.forkserver", str(run_dir), str(os.getpid()), job],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )


def wait_ready(run_dir: Path, process: subprocess.Popen[bytes], timeout_s: float = 60.0) -> None:
    """Return when the forkserver accepts connections. Raises `ForkServerError` if it ended or took too long."""
    deadline = time.monotonic() + timeout_s
    path = socket_path(run_dir)
    while not path.exists():
        if process.poll() is not None:
            log = (run_dir / "logs" / "forkserver.log").read_text(errors="replace").strip().splitlines()
            raise ForkServerError(
                f"the forkserver ended with code {process.returncode}: {log[-1] if log else 'it logged nothing'}"
            )
        if time.monotonic() > deadline:
            raise ForkServerError(f"the forkserver was not ready within {timeout_s:g} s; see {run_dir}/logs")
        time.sleep(0.01)

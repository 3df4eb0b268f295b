"""The process that has imported torch, from which a local job's processes fork.

Rules. A cold import of torch costs seconds of CPU in every process; a fork costs milliseconds. Forking is only safe
from a process with one thread, so this one starts none, and refuses to serve when an import did. It decides nothing:
it starts what it is told to, reaps, and reports (protocol: forkserver_client.py). Because it is the parent of every
process, its list is the truth that an operator adopts after a restart, and "reaped" is the proof of a death.

Nothing outlives it: each child is killed by the kernel when this process dies, as this one is when `outlast run`
dies. What a dead child leaves behind (a script's helper processes) comes to this process and is killed.

Run as `python -m outlast_operator.local.forkserver RUN_DIR PARENT_PID JOB`.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import json
import logging
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from outlast.process.prctl import die_with_parent
from outlast_operator.local import prctl
from outlast_operator.local.forkserver_client import ProcessRecord, socket_path
from outlast_operator.local.titles import name_process

log = logging.getLogger("outlast.forkserver")

# torch._dynamo: the first optimizer of a process imports it (a second of CPU), so it is done once, here.
PRELOAD_REQUIRED = ("torch", "torch._dynamo")
PRELOAD_WISHED = (
    "outlast.server.main",
    "outlast.worker.main",
    "outlast.evaluator",
    "outlast.buffer.bulk",
    "outlast_operator.local.runtime",
)
MAX_UNSENT_BYTES = 8 << 20
KILL_PATIENCE_S = 5.0
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def preload() -> None:
    """Import what the children will need. Raises `RuntimeError` if an import started a thread."""
    for name in PRELOAD_REQUIRED:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    for name in PRELOAD_WISHED:
        try:
            importlib.import_module(name)
        except Exception:  # the child that needs it fails with the same traceback, in its own log
            log.warning("could not import %s ahead of time:\n%s", name, traceback.format_exc())
    threads = prctl.thread_names()
    if len(threads) != 1:
        raise RuntimeError(
            f"imports started threads ({', '.join(threads[1:])}), and forking from a process with threads can "
            "deadlock; import them in the process that needs them"
        )
    gc.collect()
    gc.freeze()  # the collector then leaves the shared pages of the children unwritten


class Connection:
    """One client: lines in, lines out, never blocking."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.inbox = bytearray()
        self.outbox = bytearray()
        self.subscribed = False

    def lines(self) -> list[bytes] | None:
        """Complete lines received; None when the client has gone."""
        try:
            data = self.socket.recv(1 << 16)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not data:
            return None
        self.inbox += data
        *complete, rest = bytes(self.inbox).split(b"\n")
        self.inbox = bytearray(rest)
        return complete

    def send(self, message: dict[str, Any]) -> None:
        self.outbox += json.dumps(message).encode() + b"\n"

    def flush(self) -> bool:
        """Send what the socket takes. False: the client has gone, or does not read."""
        try:
            while self.outbox:
                del self.outbox[: self.socket.send(self.outbox)]
        except BlockingIOError:
            return len(self.outbox) <= MAX_UNSENT_BYTES
        except OSError:
            return False
        return True


class ForkServer:
    """The loop. `serve()` returns when it was told to shut down, with every child dead."""

    def __init__(self, path: Path, job: str) -> None:
        self._job = job
        self._records: list[ProcessRecord] = []
        self._running: dict[str, int] = {}  # name -> index into _records
        self._connections: dict[int, Connection] = {}
        self._stopping = False
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._on_terminate)
        signal.signal(signal.SIGINT, self._on_terminate)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.setblocking(False)
        bound = path.with_suffix(".new")
        bound.unlink(missing_ok=True)
        self._listener.bind(str(bound))
        self._listener.listen(16)
        os.rename(bound, path)  # the path appears only when it answers
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake_read, selectors.EVENT_READ)

    def serve(self) -> None:
        while not self._stopping:
            for key, mask in self._selector.select():
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is self._wake_read:
                    self._drain_wakeups()
                elif key.fd in self._connections:
                    self._serve_connection(self._connections[key.fd], mask)
            self._reap()
        self._kill_all()

    def _on_terminate(self, *_: object) -> None:
        self._stopping = True

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        sock.setblocking(False)
        self._connections[sock.fileno()] = Connection(sock)
        self._selector.register(sock, selectors.EVENT_READ)

    def _drain_wakeups(self) -> None:
        try:
            while self._wake_read.recv(4096):
                pass
        except BlockingIOError:
            pass

    def _serve_connection(self, connection: Connection, mask: int) -> None:
        if mask & selectors.EVENT_READ:
            lines = connection.lines()
            if lines is None:
                self._drop(connection)
                return
            for line in lines:
                self._answer(connection, line)
        self._flush(connection)

    def _flush(self, connection: Connection) -> None:
        if not connection.flush():
            self._drop(connection)
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.outbox else 0)
        self._selector.modify(connection.socket, events)

    def _drop(self, connection: Connection) -> None:
        if connection.socket.fileno() < 0:
            return  # dropped already, while an event was published
        self._connections.pop(connection.socket.fileno(), None)
        self._selector.unregister(connection.socket)
        connection.socket.close()

    def _answer(self, connection: Connection, line: bytes) -> None:
        number: Any = None
        try:
            request = json.loads(line)
            number = request.get("id")
            connection.send({"id": number, **self._execute(connection, request)})
        except Exception as error:  # a bad request is the client's trouble alone
            connection.send({"id": number, "error": f"{error}" or repr(error)})

    def _execute(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        op = request.get("op")
        if op == "spawn":
            return {"pid": self._spawn(request)}
        if op == "list":
            return {"processes": [record.to_json() for record in self._records]}
        if op == "signal":
            return {"sent": self._signal(request["name"], request["signal"], request.get("pid"))}
        if op == "subscribe":
            connection.subscribed = True
            return {}
        if op == "shutdown":
            self._stopping = True
            return {}
        raise ValueError(f"unknown request {op!r}; known: spawn, list, signal, subscribe, shutdown")

    def _spawn(self, request: dict[str, Any]) -> int:
        name = request["name"]
        if name in self._running:
            raise ValueError(f"{name} already runs as pid {self._records[self._running[name]].pid}; end it first")
        parent = os.getpid()
        t_started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            self._become(request, parent)
        record = ProcessRecord(name, pid, request["kind"], t_started, request.get("meta") or {})
        self._running[name] = len(self._records)
        self._records.append(record)
        self._publish("spawn", record)
        return pid

    def _become(self, request: dict[str, Any], parent: int) -> NoReturn:
        """In the child: leave the loop behind and run the target. Never returns into the loop's frames."""
        code = 1
        try:
            die_with_parent(parent)
            self._abandon()
            _redirect(request.get("log"))
            name_process(request["name"], self._job)
            code = _run(request)
        except BaseException:
            traceback.print_exc()
        finally:
            _exit(code)

    def _abandon(self) -> None:
        """Close this copy of the loop's descriptors. Closing, unlike unregistering, leaves the parent's epoll alone."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._selector.close()
        for sock in (self._listener, self._wake_read, self._wake_write):
            sock.close()
        for connection in self._connections.values():
            connection.socket.close()

    def _signal(self, name: str, number: int, pid: int | None) -> bool:
        index = self._running.get(name)
        if index is None or (pid is not None and self._records[index].pid != pid):
            return False
        os.kill(self._records[index].pid, number)  # unreaped, so the pid is still its own
        return True

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            index = next((i for i in self._running.values() if self._records[i].pid == pid), None)
            if index is None:
                continue  # an orphan that came to us
            code = os.waitstatus_to_exitcode(status)
            record = replace(
                self._records[index],
                t_exited=time.monotonic(),
                code=code if code >= 0 else None,
                signal=-code if code < 0 else None,
            )
            self._records[index] = record
            del self._running[record.name]
            self._kill_orphans()
            self._publish("exit", record)

    def _kill_orphans(self) -> None:
        known = {self._records[i].pid for i in self._running.values()}
        for pid in prctl.children(os.getpid()):
            if pid not in known:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _publish(self, event: str, record: ProcessRecord) -> None:
        for connection in list(self._connections.values()):
            if connection.subscribed:
                connection.send({"event": event, "process": record.to_json()})
                self._flush(connection)

    def _kill_all(self) -> None:
        deadline = time.monotonic() + KILL_PATIENCE_S
        while self._running and time.monotonic() < deadline:
            for index in self._running.values():
                os.kill(self._records[index].pid, signal.SIGKILL)
            self._reap()
            time.sleep(0.002)
        self._kill_orphans()


def _redirect(path: str | None) -> None:
    """Standard input from nothing, standard output and error to the log, line by line; nothing else stays open."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644) if path else null
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.closerange(3, 1 << 16)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=LOG_FORMAT, force=True)


def _run(request: dict[str, Any]) -> int:
    env: dict[str, str] = request.get("env") or {}
    os.environ.update(env)
    if request.get("cwd"):
        os.chdir(request["cwd"])
    if request["kind"] == "exec":
        argv = request["argv"]
        try:
            os.execvpe(argv[0], argv, os.environ)
        except OSError as error:
            sys.stderr.write(f"cannot run {argv[0]}: {error.strerror}; check that it is installed and on PATH\n")
            return 127
    for folder in reversed([f for f in env.get("PYTHONPATH", "").split(os.pathsep) if f]):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)  # `kill -USR1 PID` writes the stacks of all threads to the log
    target = request["target"]
    sys.argv = [target]
    module, _, function = target.partition(":")
    try:
        result = getattr(importlib.import_module(module), function)()
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        sys.stderr.write(f"{stop.code}\n")
        return 1
    return result if isinstance(result, int) else 0


def _exit(code: int) -> NoReturn:
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code & 0xFF)


def main(argv: list[str]) -> int:
    run_dir, parent_pid, job = Path(argv[1]), int(argv[2]), argv[3]
    die_with_parent(parent_pid)
    prctl.adopt_orphans()
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    started = time.monotonic()
    name_process("forkserver", job)
    preload()
    server = ForkServer(socket_path(run_dir), job)
    log.info("ready after %.2f s", time.monotonic() - started)
    server.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))

"""One connection to Redis that moves large values without copying them.

Rules
- RESP2, blocking socket, one user at a time (a lock). A reply that does not come whole closes the connection.
- Values leave from the caller's memory and arrive in the caller's memory; at most WINDOW of them are under way, so
  that Redis never holds more than a few MiB of replies for one reader.
- A connection that proves dead when it is used again is opened anew once: every command of the log may be repeated.
- The run id is asked at connecting, so it is always that of the process at the other end.

A general client copies each value twice and takes fresh memory for each reply; this one reaches the socket's speed.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import parse_qs, unquote, urlparse

from outlast.buffer_types import BufferFull, BufferMisconfigured, BufferUnavailable

Arg = bytes | str | int | memoryview
Reply = Any
T = TypeVar("T")

WINDOW = 8  # values under way at a time
SOCKET_BUFFER_BYTES = 256 << 10  # on this host; across a network the kernel tunes it better
READ_BYTES = 16 << 10
MAX_BULK_BYTES = 512 << 20  # Redis's own limit of a value


class ReplyError(Exception):
    """An error reply; `code` is its first word (OOM, NOSCRIPT, LOADING…)."""

    @property
    def code(self) -> str:
        return str(self).split(" ", 1)[0]


@dataclass(frozen=True)
class Target:
    """A parsed url: `unix:///path?db=0`, `redis://user:password@host:6379/0`, `rediss://…` (TLS)."""

    path: str | None
    host: str
    port: int
    user: str | None
    password: str | None = field(repr=False)
    database: int
    tls: bool

    @staticmethod
    def parse(url: str) -> Target:
        """Raises `BufferMisconfigured` for another scheme or a malformed url."""
        parts = urlparse(url)
        query = {k: v[-1] for k, v in parse_qs(parts.query).items()}
        user = unquote(parts.username) if parts.username else query.get("username")
        password = unquote(parts.password) if parts.password else query.get("password")
        try:
            if parts.scheme == "unix" and parts.path:
                return Target(unquote(parts.path), "", 0, user, password, int(query.get("db", "0")), False)
            if parts.scheme in ("redis", "rediss") and parts.hostname:
                database = int(parts.path.strip("/") or query.get("db", "0"))
                return Target(
                    None, parts.hostname, parts.port or 6379, user, password, database, parts.scheme == "rediss"
                )
        except ValueError:
            pass
        shown = url if "@" not in url else parts.scheme + "://…@" + url.rsplit("@", 1)[1]
        raise BufferMisconfigured(
            f"recovery.buffer.url: {shown!r} is no Redis url; use unix:///path/to/socket, "
            "redis://:password@host:6379/0, or rediss://… for TLS"
        )

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path else f"{self.host}:{self.port}"


class Wire:
    """Opened on first use, again after a loss. Errors: `BufferUnavailable`, `BufferMisconfigured`, `ReplyError`."""

    def __init__(self, target: Target, timeout_s: float = 5.0) -> None:
        self.target = target
        self.timeout_s = timeout_s
        self.run_id = ""
        self._lock = threading.RLock()
        self._sock: socket.socket | None = None
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._start = self._end = 0

    # --- commands -----------------------------------------------------------------------------------------------------

    def call(self, *args: Arg, extra_s: float = 0.0) -> Reply:
        """One command. `extra_s` on top of the timeout, for commands that block. Raises `ReplyError`."""
        return self.pipeline([args], extra_s)[0]

    def pipeline(self, commands: Sequence[Sequence[Arg]], extra_s: float = 0.0) -> list[Reply]:
        """Several commands in one go; raises the first error reply, after all replies were read."""
        replies = self.exchange(lambda _: commands, extra_s)
        for reply in replies:
            if isinstance(reply, ReplyError):
                raise reply
        return replies

    def exchange(self, make: Callable[[str], Sequence[Sequence[Arg]]], extra_s: float = 0.0) -> list[Reply]:
        """Send `make(run_id)`, whose arguments may name the run that is connected; error replies are returned."""

        def run(sock: socket.socket) -> list[Reply]:
            commands = make(self.run_id)
            self._set_timeouts(sock, self.timeout_s + extra_s)
            self._send(sock, commands)
            return [self._reply(sock) for _ in commands]

        return self._retrying(run)

    def fetch(self, wanted: Sequence[tuple[bytes, memoryview]]) -> list[int]:
        """Read each value into its memory, pipelined. Returns lengths: -1 for a key that is not there.

        A value of another length than its memory is read past and reported by its length.
        """

        def run(sock: socket.socket) -> list[int]:
            self._set_timeouts(sock, self.timeout_s)
            lengths: list[int] = []
            asked = 0
            for i, (_, out) in enumerate(wanted):
                if asked - i <= WINDOW // 2:  # refilled by halves: a request for each value would cost a call each
                    more = wanted[asked : i + WINDOW]
                    self._send(sock, [(b"GET", key) for key, _ in more])
                    asked += len(more)
                lengths.append(self._bulk_into(sock, out))
            return lengths

        return self._retrying(run)

    def close(self) -> None:
        with self._lock:
            if self._sock is not None:
                with contextlib.suppress(OSError):
                    self._sock.close()
            self._sock = None
            self._start = self._end = 0

    # --- connecting ---------------------------------------------------------------------------------------------------

    def _retrying(self, run: Callable[[socket.socket], T]) -> T:
        with self._lock:
            reused = self._sock is not None
            for attempt in (0, 1):
                try:
                    return run(self._sock or self._connect())
                except (TimeoutError, BlockingIOError) as error:
                    self.close()
                    raise self._unavailable(f"did not answer in {self.timeout_s:g} s") from error
                except OSError as error:
                    self.close()
                    if attempt or not reused:
                        raise self._unavailable(f"cannot be reached ({error})") from error
                except BaseException:
                    self.close()
                    raise
            raise AssertionError("unreachable")

    def _unavailable(self, fact: str) -> BufferUnavailable:
        return BufferUnavailable(
            f"Redis at {self.target} {fact}; gradients are kept and sent again when it is back: "
            "check its process, its network and recovery.buffer.url"
        )

    def _connect(self) -> socket.socket:
        target = self.target
        if target.path is not None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.settimeout(self.timeout_s)
            try:
                sock.connect(target.path)
            except BaseException:
                sock.close()
                raise
        else:
            sock = socket.create_connection((target.host, target.port), self.timeout_s)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if target.tls:
                sock = ssl.create_default_context().wrap_socket(sock, server_hostname=target.host)
        if target.path is not None or target.host in ("localhost", "127.0.0.1", "::1"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
        self._sock, self._start, self._end = sock, 0, 0
        self._greet(sock)
        return sock

    def _greet(self, sock: socket.socket) -> None:
        """Present the password, choose the database, learn the run id."""
        self._set_timeouts(sock, self.timeout_s)
        target = self.target
        commands: list[tuple[Arg, ...]] = []
        if target.password is not None:
            commands.append(("AUTH", target.user, target.password) if target.user else ("AUTH", target.password))
        if target.database:
            commands.append(("SELECT", target.database))
        commands.append(("INFO", "server"))
        self._send(sock, commands)
        replies = [self._reply(sock) for _ in commands]
        for reply in replies:
            if isinstance(reply, ReplyError):
                raise as_buffer_error(reply, target)
        info = bytes(replies[-1]).decode()
        self.run_id = next((x[7:].strip() for x in info.splitlines() if x.startswith("run_id:")), "")

    def _set_timeouts(self, sock: socket.socket, timeout_s: float) -> None:
        if isinstance(sock, ssl.SSLSocket):
            sock.settimeout(timeout_s)
            return
        # The kernel's timeouts, not Python's: those make the socket non-blocking and MSG_WAITALL void.
        sock.settimeout(None)
        value = struct.pack("ll", int(timeout_s), int(timeout_s % 1 * 1e6))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)

    # --- bytes --------------------------------------------------------------------------------------------------------

    def _send(self, sock: socket.socket, commands: Iterable[Sequence[Arg]]) -> None:
        """Small arguments are gathered; large ones leave from where they are."""
        pending = bytearray()
        for command in commands:
            pending += b"*%d\r\n" % len(command)
            for arg in command:
                if isinstance(arg, memoryview):
                    pending += b"$%d\r\n" % arg.nbytes
                    _send_all(sock, pending, more=True)
                    _send_all(sock, arg, more=True)
                    pending = bytearray(b"\r\n")
                else:
                    raw = arg if isinstance(arg, bytes) else str(arg).encode()
                    pending += b"$%d\r\n%b\r\n" % (len(raw), raw)
        _send_all(sock, pending, more=False)

    def _fill(self, sock: socket.socket) -> None:
        if self._start:
            rest = self._end - self._start
            self._buffer[:rest] = bytes(self._buffer[self._start : self._end])
            self._start, self._end = 0, rest
        if self._end == len(self._buffer):
            raise ConnectionError("a reply line is longer than the protocol allows")
        count = sock.recv_into(self._buffer[self._end :])
        if count == 0:
            raise ConnectionError("closed by the other end")
        self._end += count

    def _line(self, sock: socket.socket) -> bytes:
        while True:
            found = bytes(self._buffer[self._start : self._end])
            at = found.find(b"\r\n")
            if at >= 0:
                self._start += at + 2
                return found[:at]
            self._fill(sock)

    def _into(self, sock: socket.socket, out: memoryview) -> None:
        have = min(self._end - self._start, len(out))
        out[:have] = self._buffer[self._start : self._start + have]
        self._start += have
        flags = 0 if isinstance(sock, ssl.SSLSocket) else socket.MSG_WAITALL
        while have < len(out):
            count = sock.recv_into(out[have:], 0, flags)
            if count == 0:
                raise ConnectionError("closed by the other end")
            have += count

    def _expect_end(self, sock: socket.socket) -> None:
        if self._line(sock) != b"":
            raise ConnectionError("a value is longer than announced")

    def _bulk_into(self, sock: socket.socket, out: memoryview) -> int:
        line = self._line(sock)
        if line[:1] != b"$":
            raise as_buffer_error(ReplyError(line[1:].decode(errors="replace")), self.target)
        length = _length(line)
        if length >= 0:
            self._into(sock, out if length == len(out) else memoryview(bytearray(length)))
            self._expect_end(sock)
        return length

    def _reply(self, sock: socket.socket) -> Reply:
        line = self._line(sock)
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return rest
        if kind == b"-":
            return ReplyError(rest.decode(errors="replace"))
        if kind == b":":
            return int(rest)
        if kind == b"$":
            length = _length(line)
            if length < 0:
                return None
            data = bytearray(length)
            self._into(sock, memoryview(data))
            self._expect_end(sock)
            return bytes(data)
        if kind == b"*":
            length = int(rest)
            return None if length < 0 else [self._reply(sock) for _ in range(length)]
        raise ConnectionError(f"not a Redis reply: {line[:40]!r}")


def _length(line: bytes) -> int:
    length = int(line[1:])
    if length > MAX_BULK_BYTES:
        raise ConnectionError(f"a value of {length} bytes is more than Redis allows")
    return length


def _send_all(sock: socket.socket, data: bytearray | memoryview, more: bool) -> None:
    if isinstance(sock, ssl.SSLSocket):
        sock.sendall(data)
    else:
        sock.sendall(data, socket.MSG_MORE if more else 0)


def as_buffer_error(error: ReplyError, target: Target) -> Exception:
    """The typed error for a reply that any command may get; the reply itself when it is of no such kind."""
    if error.code in ("LOADING", "BUSY", "MASTERDOWN", "READONLY", "TRYAGAIN", "MISCONF", "CLUSTERDOWN"):
        return BufferUnavailable(
            f"Redis at {target} refuses for now: {error}; gradients are kept and sent again"
            + ("; free its disk" if error.code == "MISCONF" else "")
        )
    if error.code in ("NOAUTH", "WRONGPASS", "NOPERM", "DENIED") or "without any password" in str(error):
        return BufferMisconfigured(
            f"Redis at {target} does not accept us: {error}; check user and password of recovery.buffer.url"
        )
    if error.code == "OOM":
        return BufferFull(
            f"Redis at {target} is out of memory: its maxmemory must hold recovery.buffer.maxBytes, two snapshots "
            "and slack (outlast.buffer_types.redis_maxmemory); raise it, or lower maxBytes"
        )
    return error

"""Frames over TCP or Unix sockets, blocking, one thread a connection. dial.py and listener.py make connections.

Blocking sockets with SO_RCVTIMEO/SO_SNDTIMEO, not Python's timeouts: those make the descriptor non-blocking, and then
MSG_WAITALL, which keeps throughput when another thread is busy, has no effect. Payloads are sent from and received
into memory that the caller preallocated; the first touch of fresh memory is slower than the network.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import struct
import threading
from dataclasses import replace
from typing import Any

from outlast.wire.frames import HEADER_BYTES, Header, ProtocolError, job_tag

log = logging.getLogger("outlast.transport")

DEFAULT_PAYLOAD_LIMIT = 16 << 30
_LOOPBACK_BUFFER = 256 << 10  # measured: 1.1 to 1.5 times on loopback; elsewhere autotuning does better
_RECEIVE_SLICE = 1 << 20
_DESCRIPTOR_SPACE = socket.CMSG_LEN(4)  # of one
_to_json = json.JSONEncoder(separators=(",", ":")).encode  # json.dumps would make an encoder each time


class PeerTimeout(ConnectionError):
    """The peer was silent for longer than the connection's timeout."""


class PeerUnreachable(ConnectionError):
    """This host could not dial the peer: no route, no descriptor. Of the peer itself that says nothing."""


_ASK_S = 3  # between two questions to a peer that says nothing
NOBODY_LISTENS = (errno.ECONNREFUSED, errno.ECONNRESET, errno.ENOENT)  # ENOENT: of a Unix socket


def set_timeout_option(sock: socket.socket, option: int, seconds: float | None) -> None:
    whole = 0 if seconds is None else int(seconds)
    micros = 0 if seconds is None else max(1, int((seconds - whole) * 1e6)) if seconds > 0 else 1
    sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", whole, micros))


def parse_address(address: str) -> tuple[socket.AddressFamily, Any]:
    scheme, _, rest = address.partition(":")
    if scheme == "unix" and rest:
        return socket.AF_UNIX, rest
    host, _, port = rest.rpartition(":")
    if scheme == "tcp" and host and port.isdigit():
        return socket.AF_INET, (host, int(port))
    raise ValueError(f'address "{address}" is neither "unix:/path" nor "tcp:host:port"')


def tune(sock: socket.socket, address: str) -> None:
    if sock.family == socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LOOPBACK_BUFFER * 4)
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if address.startswith(("tcp:127.", "tcp:localhost:")):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LOOPBACK_BUFFER)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _LOOPBACK_BUFFER)


class Connection:
    """One framed, blocking connection. Sending is serialised by a lock; receiving belongs to one thread."""

    def __init__(self, sock: socket.socket, job_uid: str, payload_limit: int = DEFAULT_PAYLOAD_LIMIT) -> None:
        self.sock = sock
        self.payload_limit = payload_limit
        self.bytes_sent = 0
        self.bytes_received = 0
        self._job = job_tag(job_uid)
        self._local = sock.family == socket.AF_UNIX
        self._descriptors: list[int] = []  # at most one; a list, for popping from it is atomic
        self._send_lock = threading.Lock()
        self._head = bytearray(HEADER_BYTES)
        self._closed = False

    def set_timeout(self, receive_s: float | None, send_s: float | None = None) -> None:
        set_timeout_option(self.sock, socket.SO_RCVTIMEO, receive_s)
        set_timeout_option(self.sock, socket.SO_SNDTIMEO, send_s)

    def end_when_lost(self, lost_s: float) -> None:
        """Let the kernel end this connection so long after its peer's host last answered. A local peer has no host."""
        if self._local:
            return
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # elsewhere the system's own times hold
            for option, value in (
                (socket.TCP_KEEPIDLE, _ASK_S),
                (socket.TCP_KEEPINTVL, _ASK_S),
                (socket.TCP_KEEPCNT, int(lost_s / _ASK_S) - 1),
                (socket.TCP_USER_TIMEOUT, int(lost_s * 1000)),  # while something is unconfirmed
            ):
                self.sock.setsockopt(socket.IPPROTO_TCP, option, value)

    @property
    def local(self) -> bool:
        """Is the peer on this host, where descriptors can be passed to it?"""
        return self._local

    def take_descriptor(self) -> int | None:
        """The descriptor that came with the last frame, now the caller's to close."""
        try:
            return self._descriptors.pop()
        except IndexError:
            return None

    def send(
        self,
        header: Header,
        meta: dict[str, Any] | None = None,
        payload: memoryview | None = None,
        descriptor: int | None = None,
    ) -> None:
        """Send one frame, and a descriptor with it (to a `local` peer).

        Raises `ConnectionError` (closed, reset) or `PeerTimeout`.
        """
        first, body = self._encode(header, meta, payload)
        try:
            with self._send_lock:
                if descriptor is not None:
                    sent = socket.send_fds(self.sock, [first], [descriptor])
                    self.sock.sendall(memoryview(first)[sent:])
                    if body is not None:
                        self.sock.sendall(body)
                elif body is None:
                    self.sock.sendall(first)
                else:
                    sent = self.sock.sendmsg((first, body))
                    if sent < len(first):
                        self.sock.sendall(memoryview(first)[sent:])
                        sent = len(first)
                    if sent - len(first) < len(body):
                        self.sock.sendall(body[sent - len(first) :])
        except BlockingIOError as error:
            raise PeerTimeout("peer did not take a frame in time") from error
        except OSError as error:
            raise _as_connection_error(error) from error
        self.bytes_sent += len(first) + (0 if body is None else len(body))

    def send_now(self, header: Header, meta: dict[str, Any] | None = None) -> None:
        """Send a small frame without ever waiting: a peer that reads nothing must not hold up the sender's lock.

        Raises `PeerTimeout` when the socket's buffer is full; the connection is then of no more use.
        """
        if not self.try_send(header, meta):
            raise PeerTimeout("peer reads nothing: its socket buffer is full")

    def try_send(self, header: Header, meta: dict[str, Any] | None = None) -> bool:
        """As `send_now`; False, and nothing was sent, when the socket's buffer is full already."""
        first, _ = self._encode(header, meta, None)
        with self._send_lock:
            try:
                sent = self.sock.send(first, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            except OSError as error:
                raise _as_connection_error(error) from error
        if sent != len(first):
            raise PeerTimeout("peer reads nothing: its socket buffer is full")
        self.bytes_sent += sent
        return True

    def _encode(
        self, header: Header, meta: dict[str, Any] | None, payload: memoryview | None
    ) -> tuple[bytes, memoryview | None]:
        raw_meta = b"" if meta is None else _to_json(meta).encode()
        body = payload.cast("B") if payload is not None and payload.nbytes else None
        header = replace(header, job=self._job, length=0 if body is None else len(body), meta_length=len(raw_meta))
        return header.pack() + raw_meta, body

    def receive(self) -> tuple[Header, dict[str, Any]]:
        """Receive a header and its meta; the caller then takes `header.length` bytes with `receive_into`.

        Raises `ConnectionError` when the peer is gone, `PeerTimeout`, or `ProtocolError` for garbage.
        """
        if self._local:
            self._receive_descriptor(memoryview(self._head))
        else:
            self._fill(memoryview(self._head))
        header = Header.unpack(self._head, self.payload_limit)
        if header.job != self._job:
            raise ProtocolError("frame belongs to another job")
        if not header.meta_length:
            return header, {}
        raw = bytearray(header.meta_length)
        self._fill(memoryview(raw))
        try:
            meta = json.loads(raw)
        except ValueError as error:
            raise ProtocolError(f"frame's meta is not JSON: {error}") from error
        if not isinstance(meta, dict):
            raise ProtocolError(f"frame's meta is a JSON {type(meta).__name__}, expected an object")
        return header, meta

    def _receive_descriptor(self, head: memoryview) -> None:
        """Fill `head`, the start of a frame, and keep a descriptor that comes with it."""
        try:
            flags = socket.MSG_WAITALL | socket.MSG_CMSG_CLOEXEC
            n, ancillary, told, _ = self.sock.recvmsg_into([head], _DESCRIPTOR_SPACE, flags)
        except BlockingIOError as error:
            raise PeerTimeout("peer was silent for too long") from error
        except OSError as error:
            raise _as_connection_error(error) from error
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS and len(data) >= 4:
                self._drop_descriptor()
                self._descriptors.append(struct.unpack_from("i", data)[0])
        if n == 0:
            raise ConnectionResetError("peer closed the connection")
        if told & socket.MSG_CTRUNC and not ancillary:
            raise ProtocolError("a descriptor could not be received: this process has too many open files")
        self.bytes_received += n
        if n < len(head):
            self._fill(head[n:])

    def _drop_descriptor(self) -> None:
        descriptor = self.take_descriptor()
        if descriptor is not None:
            os.close(descriptor)

    def receive_into(self, view: memoryview) -> None:
        """Fill `view` with payload bytes."""
        self._fill(view.cast("B"))

    def _fill(self, view: memoryview) -> None:
        done, total = 0, len(view)
        while done < total:
            try:
                n = self.sock.recv_into(view[done : done + _RECEIVE_SLICE * 8], 0, socket.MSG_WAITALL)
            except BlockingIOError as error:
                raise PeerTimeout("peer was silent for too long") from error
            except OSError as error:
                raise _as_connection_error(error) from error
            if n == 0:
                raise ConnectionResetError("peer closed the connection")
            done += n
        self.bytes_received += total

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Close at once; a thread blocked in receive wakes up with an error."""
        self._drop_descriptor()  # also when another thread has closed already: one may have come since
        if self._closed:
            return
        self._closed = True
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            if error.errno not in (errno.ENOTCONN, errno.EBADF):
                log.debug("shutdown: %s", error)
        self.sock.close()


def _as_connection_error(error: OSError) -> ConnectionError:
    return error if isinstance(error, ConnectionError) else ConnectionError(str(error))

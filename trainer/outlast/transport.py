"""The only file that knows sockets: frames over TCP or Unix sockets, blocking, one thread a connection.

Blocking sockets with SO_RCVTIMEO/SO_SNDTIMEO, not Python's timeouts: those make the descriptor non-blocking, and then
MSG_WAITALL, which keeps throughput when another thread is busy, has no effect. Payloads are sent from and received
into memory that the caller preallocated; the first touch of fresh memory is slower than the network.
"""

from __future__ import annotations

import errno
import hmac
import json
import logging
import os
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from outlast.api.messages import HEADER_BYTES, Header, Op, ProtocolError, job_tag

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
_NOBODY_LISTENS = (errno.ECONNREFUSED, errno.ECONNRESET, errno.ENOENT)  # ENOENT: of a Unix socket


def _set_timeout(sock: socket.socket, option: int, seconds: float | None) -> None:
    whole = 0 if seconds is None else int(seconds)
    micros = 0 if seconds is None else max(1, int((seconds - whole) * 1e6)) if seconds > 0 else 1
    sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", whole, micros))


def _parse(address: str) -> tuple[socket.AddressFamily, Any]:
    scheme, _, rest = address.partition(":")
    if scheme == "unix" and rest:
        return socket.AF_UNIX, rest
    host, _, port = rest.rpartition(":")
    if scheme == "tcp" and host and port.isdigit():
        return socket.AF_INET, (host, int(port))
    raise ValueError(f'address "{address}" is neither "unix:/path" nor "tcp:host:port"')


def _tune(sock: socket.socket, address: str) -> None:
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
        _set_timeout(self.sock, socket.SO_RCVTIMEO, receive_s)
        _set_timeout(self.sock, socket.SO_SNDTIMEO, send_s)

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


def connect(
    address: str, job_uid: str, token: str, hello: dict[str, Any], timeout_s: float = 2.0
) -> tuple[Connection, dict[str, Any]]:
    """Dial a server and shake hands. Returns the connection and the server's WELCOME (name, boot, …).

    Raises `ConnectionRefusedError` when nobody listens, `ProtocolError` when the handshake is refused, `PeerTimeout`
    after `timeout_s` seconds, `PeerUnreachable` when this host cannot get there: all of them `ConnectionError`s.
    """
    deadline = time.monotonic() + timeout_s
    refused: ConnectionError | None = None
    for sock in _dial(address, timeout_s):
        connection = Connection(sock, job_uid)
        try:
            left_s = max(0.001, deadline - time.monotonic()) if refused is not None else timeout_s
            connection.set_timeout(left_s, left_s)
            return connection, _shake_hands(connection, address, {"token": token, **hello})
        except ConnectionError as error:
            connection.close()
            refused = refused or error
        except BaseException:
            connection.close()
            raise
    raise refused or PeerTimeout(f"{address} does not accept connections")


def _shake_hands(connection: Connection, address: str, hello: dict[str, Any]) -> dict[str, Any]:
    connection.send(Header(Op.HELLO), hello)
    header, meta = connection.receive()
    if header.op != Op.WELCOME:
        raise ProtocolError(f"{address}: {meta.get('error', 'handshake refused')}")
    return meta


def _dial(address: str, timeout_s: float) -> Iterator[socket.socket]:
    """Blocking sockets that are connected to `address`: one, or of a host name each that could be, quickest first.

    A host name may have the addresses of dead processes beside the living one's, for as long as its directory takes
    to notice; an address may even belong to somebody else by now, which only the handshake tells.
    """
    family, where = _parse(address)
    found = [where]
    if family == socket.AF_INET and not _is_numeric(where[0]):
        try:
            found = sorted({info[4] for info in socket.getaddrinfo(where[0], where[1], family, socket.SOCK_STREAM)})
        except OSError as error:
            raise ConnectionRefusedError(f"{address}: {error.strerror or error}") from error
    if len(found) == 1:
        yield _dial_one(family, found[0], address, timeout_s)
    else:
        yield from _race(found, address, timeout_s)


def _is_numeric(host: str) -> bool:
    try:
        socket.inet_aton(host)
    except OSError:
        return False
    return True


def _dial_one(family: socket.AddressFamily, where: Any, address: str, timeout_s: float) -> socket.socket:
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:  # out of descriptors
        raise PeerUnreachable(f"{address}: {error.strerror or error}") from error
    try:
        _tune(sock, address)
        _set_timeout(sock, socket.SO_SNDTIMEO, timeout_s)  # also bounds connect()
        sock.connect(where)
    except BlockingIOError as error:  # a full listen queue of a paused process, or SO_SNDTIMEO
        sock.close()
        raise PeerTimeout(f"{address} does not accept connections") from error
    except OSError as error:
        sock.close()
        kind = ConnectionRefusedError if error.errno in _NOBODY_LISTENS else PeerUnreachable
        raise kind(f"{address}: {error.strerror or error}") from error
    return sock


def _race(found: list[Any], address: str, timeout_s: float) -> Iterator[socket.socket]:
    deadline = time.monotonic() + timeout_s
    why = "no address of it accepts connections"
    with selectors.DefaultSelector() as selector:
        try:
            for where in found:
                sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
                sock.setblocking(False)
                selector.register(sock, selectors.EVENT_WRITE)
                _tune(sock, address)
                sock.connect_ex(where)
            connected = False
            while selector.get_map() and (left_s := deadline - time.monotonic()) > 0:
                for key, _ in selector.select(left_s):
                    sock = selector.unregister(key.fileobj).fileobj  # type: ignore[assignment]
                    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    if code:
                        why = os.strerror(code)
                        sock.close()
                        continue
                    sock.setblocking(True)
                    connected = True
                    yield sock
            if not connected:
                raise ConnectionRefusedError(f"{address}: {why}")
        finally:
            for key in list(selector.get_map().values()):
                key.fileobj.close()  # type: ignore[union-attr]


class Listener:
    """Accepts connections and gives each a thread that runs `serve(connection, hello)` after the handshake."""

    def __init__(
        self,
        address: str,
        job_uid: str,
        token: str,
        welcome: Callable[[], dict[str, Any]],
        serve: Callable[[Connection, dict[str, Any]], None],
        payload_limit: Callable[[], int],
    ) -> None:
        self._job_uid, self._token = job_uid, token
        self._welcome, self._serve, self._payload_limit = welcome, serve, payload_limit
        family, where = _parse(address)
        self._sock = socket.socket(family, socket.SOCK_STREAM)
        if family == socket.AF_UNIX:
            Path(where).unlink(missing_ok=True)  # a predecessor's, whose process is gone or fenced
        else:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _tune(self._sock, address)
        try:
            self._sock.bind(where)
        except OSError as error:
            self._sock.close()
            raise OSError(
                error.errno, f"cannot listen on {address}: {os.strerror(error.errno or 0)}; free it or choose another"
            ) from error
        self._sock.listen(128)
        bound = self._sock.getsockname()
        self.address = address if family == socket.AF_UNIX else f"tcp:{where[0]}:{bound[1]}"
        self._thread = threading.Thread(target=self._accept, name="accept", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._sock.accept()
            except OSError as error:
                if error.errno in (errno.EBADF, errno.EINVAL):
                    return  # closed by close()
                log.warning("accept failed: %s", error)
                time.sleep(0.05)  # out of descriptors: give the others time to close theirs
                continue
            threading.Thread(target=self._handshake, args=(sock,), name="connection", daemon=True).start()

    def _handshake(self, sock: socket.socket) -> None:
        _tune(sock, self.address)
        connection = Connection(sock, self._job_uid, payload_limit=0)
        try:
            connection.set_timeout(5.0, 5.0)
            header, hello = connection.receive()
            if header.op != Op.HELLO:
                raise ProtocolError("first frame is no HELLO")
            if not hmac.compare_digest(str(hello.get("token", "")).encode(), self._token.encode()):
                connection.send(Header(Op.REFUSED), {"error": "wrong token: this is another job's server"})
                raise ProtocolError("wrong token")
            connection.send(Header(Op.WELCOME), self._welcome())
            connection.payload_limit = self._payload_limit()
            connection.set_timeout(None, None)
            self._serve(connection, hello)
        except ProtocolError as error:
            log.warning("closed a connection: %s", error)
        except (KeyError, TypeError, ValueError) as error:
            log.warning("closed a connection: malformed request: %r", error, exc_info=True)
        except ConnectionError as error:
            log.debug("connection ended: %s", error)
        finally:
            connection.close()

    def close(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            log.debug("listener shutdown: %s", error)
        self._sock.close()

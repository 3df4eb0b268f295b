"""The bulk path: large values between the caller's memory and Redis's socket, without a copy between.

redis-py connects, signs in, sends every other command and reads every other reply. It would copy each value twice on
its way out and take fresh memory for each reply: 385 MB/s at 46.8 MB a gradient, where one machine's sockets gave
2000 MB/s to values that leave from the caller's memory and arrive in it. So two things are done by hand here, on the
socket of redis-py's connection: SET from a memoryview, and GET into one.

Rules
- Every reply is read before the next exchange begins, so redis-py's reader holds nothing when the socket is read here.
- At most WINDOW values are under way, so that Redis never holds more than a few MiB of replies for one reader.
- A reply that does not come whole closes the connection.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from collections.abc import Callable, Iterator, Sequence

import redis
from redis.exceptions import NoScriptError

from outlast.buffer.connection import Arg, Link, Reply, Target
from outlast.buffer.scripts import Script

WINDOW = 8  # values under way at a time
SOCKET_BUFFER_BYTES = 256 << 10  # on this host; across a network the kernel tunes it better
READ_BYTES = 16 << 10
MAX_BULK_BYTES = 512 << 20  # Redis's own limit of a value


class Wire(Link):
    """A link that also moves large values."""

    def __init__(self, target: Target, timeout_s: float = 5.0) -> None:
        super().__init__(target, timeout_s)
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._start = self._end = 0

    def upload(self, values: Sequence[tuple[str, memoryview]], ttl_ms: int) -> None:
        """SET each value with an expiry. Raises what the first error reply stands for."""
        self.use(lambda client, run_id: self._upload(values, ttl_ms))

    def upload_and_run(
        self,
        make: Callable[[str], tuple[Sequence[tuple[str, memoryview]], tuple[Arg, ...]]],
        ttl_ms: int,
        script: Script,
        key: str,
    ) -> Reply:
        """`upload`, and in the same round trip the script on `key`. Returns its answer.

        `make(run id)` gives the values and the script's arguments anew for each attempt: when the reply to the first
        was lost, what it uploaded may be in use.
        """

        def run(client: redis.Redis, run_id: str) -> Reply:
            values, args = make(run_id)
            try:
                return self._upload(values, ttl_ms, "EVALSHA", script.sha, 1, key, *args)
            except NoScriptError:  # Redis restarted since it was last asked
                return client.eval(script.text, 1, key, *args)

        return self.use(run)

    def fetch(self, wanted: Sequence[tuple[str, memoryview]]) -> list[int]:
        """Read each value into its memory, pipelined. Returns lengths: -1 for a key that is not there.

        A value of another length than its memory is read past and reported by its length.
        """
        return self.use(lambda client, run_id: self._fetch(wanted))

    # --- out ----------------------------------------------------------------------------------------------------------

    def _upload(self, values: Sequence[tuple[str, memoryview]], ttl_ms: int, *then: Arg) -> Reply:
        """Send the values and the command `then`, read all replies, raise the first error among them."""
        sock = self._socket()
        px = str(ttl_ms).encode()
        end = b"\r\n$2\r\nPX\r\n$%d\r\n%b\r\n" % (len(px), px)
        pending = b""
        with self._kernel_timeouts(sock):
            for key, view in values:
                name = key.encode()
                pending += b"*5\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n" % (len(name), name, view.nbytes)
                _send_all(sock, pending, more=True)
                _send_all(sock, view, more=True)
                pending = end
            if then:
                pending += b"".join(self._connection.pack_command(*then))
            _send_all(sock, pending, more=False)
        answer, failed = None, None
        for _ in range(len(values) + bool(then)):
            try:
                answer = self._connection.read_response()
            except redis.ResponseError as error:
                failed = failed or error
        if failed is not None:
            raise failed
        return answer

    # --- in -----------------------------------------------------------------------------------------------------------

    def _fetch(self, wanted: Sequence[tuple[str, memoryview]]) -> list[int]:
        sock = self._socket()
        self._start = self._end = 0
        lengths: list[int] = []
        asked = 0
        with self._kernel_timeouts(sock):
            for i, (_, out) in enumerate(wanted):
                if asked - i <= WINDOW // 2:  # refilled by halves: a request for each value would cost a call each
                    more = wanted[asked : i + WINDOW]
                    packed = b"".join(part for key, _ in more for part in self._connection.pack_command("GET", key))
                    _send_all(sock, packed, more=False)
                    asked += len(more)
                lengths.append(self._value_into(sock, out))
        return lengths

    def _value_into(self, sock: socket.socket, out: memoryview) -> int:
        line = self._line(sock)
        if line[:1] != b"$":
            self.close()  # replies to the other requests are still under way
            raise redis.ResponseError(line[1:].decode(errors="replace"))
        length = int(line[1:])
        if length > MAX_BULK_BYTES:
            raise ConnectionError(f"a value of {length} bytes is more than Redis allows")
        if length >= 0:
            self._into(sock, out if length == len(out) else memoryview(bytearray(length)))
            if self._line(sock) != b"":
                raise ConnectionError("a value is longer than announced")
        return length

    def _line(self, sock: socket.socket) -> bytes:
        while True:
            found = bytes(self._buffer[self._start : self._end])
            at = found.find(b"\r\n")
            if at >= 0:
                self._start += at + 2
                return found[:at]
            self._buffer[: len(found)] = found
            self._start, self._end = 0, len(found)
            self._end += self._receive(sock, self._buffer[self._end :])

    def _into(self, sock: socket.socket, out: memoryview) -> None:
        have = min(self._end - self._start, len(out))
        out[:have] = self._buffer[self._start : self._start + have]
        self._start += have
        flags = 0 if isinstance(sock, ssl.SSLSocket) else socket.MSG_WAITALL
        while have < len(out):
            have += self._receive(sock, out[have:], flags)

    @staticmethod
    def _receive(sock: socket.socket, into: memoryview, flags: int = 0) -> int:
        count = sock.recv_into(into, 0, flags)
        if count == 0:
            raise ConnectionError("closed by the other end, or a line longer than the protocol allows")
        return count

    # --- the socket ---------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        super()._connect()
        sock = self._socket()
        timeout = struct.pack("ll", int(self.timeout_s), int(self.timeout_s % 1 * 1e6))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
        if self.target.on_this_host:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)

    def _socket(self) -> socket.socket:
        sock: socket.socket | None = self._connection._sock  # the one thing redis-py has no public name for
        if sock is None:
            raise ConnectionError("closed")
        return sock

    @contextlib.contextmanager
    def _kernel_timeouts(self, sock: socket.socket) -> Iterator[None]:
        """Let the kernel end a wait: Python's own timeouts make the socket non-blocking, and MSG_WAITALL void."""
        if isinstance(sock, ssl.SSLSocket):
            yield
            return
        sock.settimeout(None)
        try:
            yield
        finally:
            sock.settimeout(self.timeout_s)


def _send_all(sock: socket.socket, data: bytes | memoryview, more: bool) -> None:
    if isinstance(sock, ssl.SSLSocket):
        sock.sendall(data)
    else:
        sock.sendall(data, socket.MSG_MORE if more else 0)

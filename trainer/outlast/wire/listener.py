"""Accepting connections: a handshake, then one thread a connection."""

from __future__ import annotations

import errno
import hmac
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from outlast.wire.connection import Connection, parse_address, tune
from outlast.wire.frames import Header, Op, ProtocolError

log = logging.getLogger("outlast.transport")


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
        family, where = parse_address(address)
        self._sock = socket.socket(family, socket.SOCK_STREAM)
        if family == socket.AF_UNIX:
            Path(where).unlink(missing_ok=True)  # a predecessor's, whose process is gone or fenced
        else:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tune(self._sock, address)
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
        tune(sock, self.address)
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

"""Dialling a server: every address of its name is tried, then both sides shake hands."""

from __future__ import annotations

import os
import selectors
import socket
import time
from collections.abc import Iterator
from typing import Any

from outlast.wire.connection import (
    NOBODY_LISTENS,
    Connection,
    PeerTimeout,
    PeerUnreachable,
    parse_address,
    set_timeout_option,
    tune,
)
from outlast.wire.frames import Header, Op, ProtocolError


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
    family, where = parse_address(address)
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
        tune(sock, address)
        set_timeout_option(sock, socket.SO_SNDTIMEO, timeout_s)  # also bounds connect()
        sock.connect(where)
    except BlockingIOError as error:  # a full listen queue of a paused process, or SO_SNDTIMEO
        sock.close()
        raise PeerTimeout(f"{address} does not accept connections") from error
    except OSError as error:
        sock.close()
        kind = ConnectionRefusedError if error.errno in NOBODY_LISTENS else PeerUnreachable
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
                tune(sock, address)
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

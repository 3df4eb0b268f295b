"""Dialling a host name that has the addresses of dead or foreign processes beside the living one's."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from outlast.wire.connection import Connection
from outlast.wire.dial import connect
from outlast.wire.listener import Listener

LIVING, FOREIGN, DEAD = "127.0.0.1", "127.0.0.2", "127.0.0.3"


@contextlib.contextmanager
def listening(host: str, port: int, name: str, token: str = "t") -> Iterator[int]:
    def serve(connection: Connection, hello: dict[str, Any]) -> None:
        with contextlib.suppress(ConnectionError):
            connection.receive()

    listener = Listener(f"tcp:{host}:{port}", "job", token, lambda: {"name": name}, serve, lambda: 0)
    listener.start()
    try:
        yield int(listener.address.rsplit(":", 1)[1])
    finally:
        listener.close()


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Host names and their addresses."""
    names: dict[str, list[str]] = {}

    def look_up(host: str, port: int, *_: Any) -> list[Any]:
        if host not in names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in names[host]]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return names


@pytest.mark.parametrize("addresses", [[LIVING], [DEAD, LIVING], [LIVING, DEAD], [FOREIGN, LIVING]])
def test_the_living_process_is_found(directory: dict[str, list[str]], addresses: list[str]) -> None:
    with listening(LIVING, 0, "ours") as port, listening(FOREIGN, port, "theirs", token="another"):
        directory["server-0"] = addresses
        connection, welcome = connect(f"tcp:server-0:{port}", "job", "t", {})
        connection.close()
        assert welcome["name"] == "ours"


def test_nobody_living_is_said_to_refuse(directory: dict[str, list[str]]) -> None:
    with listening(LIVING, 0, "ours") as port:
        pass
    directory["server-0"] = [DEAD, FOREIGN]
    with pytest.raises(ConnectionRefusedError, match=f"tcp:server-0:{port}"):
        connect(f"tcp:server-0:{port}", "job", "t", {})


def test_a_name_that_nobody_has_is_said_to_refuse(directory: dict[str, list[str]]) -> None:
    with pytest.raises(ConnectionRefusedError, match="tcp:server-9:7"):
        connect("tcp:server-9:7", "job", "t", {})

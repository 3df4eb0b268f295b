"""What a watch makes of each way in which a server can fail to answer: only its own host tells of its absence."""

from __future__ import annotations

import errno
import queue
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from outlast.api.server_status import ServerStatus
from outlast.wire import connection as transport
from outlast.wire.connection import Connection, PeerTimeout, PeerUnreachable
from outlast.wire.control import ServerControl
from outlast.wire.dial import connect
from outlast.wire.frames import Header, Op, ProtocolError
from outlast.wire.listener import Listener
from outlast_operator.planner.observed import RedisState
from outlast_operator.runtime import watches
from outlast_operator.runtime.watches import REDIS_RETRY_S, RedisWatch, ServerWatch

PATIENCE_S = 10.0
STATUS = ServerStatus("server-0", "b", t=1.0)


class Control:
    """In place of the line to a server: each connection speaks (or not) and ends as the script says."""

    script: list[tuple[bool, Exception]] = []  # noqa: RUF012
    played = threading.Event()

    def __init__(self, *_: Any, **__: Any) -> None:
        self.closed = threading.Event()

    def watch(self, silence_s: float) -> Iterator[ServerStatus]:
        if not self.script:
            self.played.set()
            self.closed.wait(PATIENCE_S)
            return
        speaks, error = self.script.pop(0)
        if speaks:
            yield STATUS
        raise error

    def close(self) -> None:
        self.closed.set()


def watch(monkeypatch: pytest.MonkeyPatch, *script: tuple[bool, Exception]) -> ServerWatch:
    """A watch that has lived through the script."""
    monkeypatch.setattr(watches, "ServerControl", Control)
    monkeypatch.setattr(watches, "RETRY_S", 0.0)
    Control.script, Control.played = list(script), threading.Event()
    made = ServerWatch("tcp:10.0.0.1:7070", "job", "t", 2.0, lambda: None)
    assert Control.played.wait(PATIENCE_S)
    made.close()
    return made


SPOKE = (True, PeerTimeout("silent"))


@pytest.mark.parametrize(
    ("ends", "refused", "closed"),
    [
        ((False, ConnectionRefusedError("refused")), True, False),
        ((True, ConnectionResetError("peer closed the connection")), True, True),
        ((False, ConnectionResetError("peer closed the connection")), True, False),
        ((False, PeerTimeout("silent")), False, False),
        ((False, PeerUnreachable("No route to host")), False, False),
        ((True, ConnectionError("No route to host")), False, False),
        ((False, OSError(errno.EMFILE, "Too many open files")), False, False),
        ((False, ProtocolError("wrong token: this is another job's server")), False, False),
    ],
    ids=[
        "nobody listens", "it ended a connection on which it spoke", "it ended one on which it had not", "silence",
        "no route", "no route any more", "no descriptor", "somebody else answers",
    ],
)  # fmt: skip
def test_who_says_that_nobody_is_there(
    monkeypatch: pytest.MonkeyPatch, ends: tuple[bool, Exception], refused: bool, closed: bool
) -> None:
    made = watch(monkeypatch, SPOKE, ends)
    assert made.probe is not None
    assert made.probe.refused is refused
    assert (made.t_closed is not None) is closed


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ECONNREFUSED, ConnectionRefusedError),
        (errno.EHOSTUNREACH, PeerUnreachable),
        (errno.ENETUNREACH, PeerUnreachable),
        (errno.EPERM, PeerUnreachable),
        (errno.EAGAIN, PeerTimeout),
    ],
    ids=errno.errorcode.get,
)
def test_how_dialling_can_fail(monkeypatch: pytest.MonkeyPatch, code: int, kind: type[ConnectionError]) -> None:
    class Socket(socket.socket):
        def connect(self, where: Any) -> None:
            raise OSError(code, "as the kernel says")  # of the subclass that belongs to the code

    monkeypatch.setattr(transport.socket, "socket", Socket)
    with pytest.raises(ConnectionError) as caught:
        connect("tcp:127.0.0.1:7", "job", "t", {})
    assert type(caught.value) is kind


def test_a_socket_file_that_is_not_there_is_nobodys(tmp_path: Any) -> None:
    with pytest.raises(ConnectionRefusedError):
        connect(f"unix:{tmp_path}/s", "job", "t", {})


def test_without_descriptors_nothing_is_said_of_the_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: Any) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(transport.socket, "socket", none_left)
    with pytest.raises(PeerUnreachable):
        connect("tcp:127.0.0.1:7", "job", "t", {})


class Server:
    """The transport as it ships; what it says on its one connection, and when that ends, the test tells."""

    def __init__(self) -> None:
        self.says: queue.Queue[ServerStatus | None] = queue.Queue()
        self.handshakes = 0
        self.listener = Listener("tcp:127.0.0.1:0", "job", "t", dict, self._serve, lambda: 0)
        self.listener.start()

    def _serve(self, connection: Connection, _: dict[str, Any]) -> None:
        self.handshakes += 1
        connection.receive()
        while (status := self.says.get(timeout=PATIENCE_S)) is not None:
            connection.send(Header(Op.STATUS), status.to_json())


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.listener.close()


class Owned:
    """Whether the address is still the server's, and how often that was asked."""

    def __init__(self) -> None:
        self.holds, self.asked = True, threading.Semaphore(0)

    def __call__(self) -> bool:
        self.asked.release()
        return self.holds


def test_an_address_that_is_no_more_the_servers_is_not_dialled_again(server: Server) -> None:
    """The connection that stands is kept: its end is what proves the death."""
    owned, news = Owned(), threading.Semaphore(0)
    line = ServerWatch(server.listener.address, "job", "t", 5.0, news.release, may_dial=owned)
    server.says.put(STATUS)
    assert news.acquire(timeout=PATIENCE_S)
    owned.holds = False
    server.says.put(replace(STATUS, epoch=7))
    assert news.acquire(timeout=PATIENCE_S)
    assert line.probe is not None
    assert (line.probe.epoch, line.t_closed) == (7, None)
    server.says.put(None)
    assert news.acquire(timeout=PATIENCE_S)
    assert line.t_closed is not None
    assert line.probe.refused
    for _ in range(5):
        assert owned.asked.acquire(timeout=PATIENCE_S)
    line.close()
    assert server.handshakes == 1


def test_no_order_goes_to_an_address_that_is_no_more_the_servers(server: Server) -> None:
    control = ServerControl(server.listener.address, "job", "t", may_dial=lambda: False)
    for call in (control.finish, control.probe, lambda: next(control.watch(1.0))):
        with pytest.raises(PeerUnreachable, match="not dialled"):
            call()
    assert server.handshakes == 0


def test_a_redis_at_an_address_that_is_no_more_its_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[str]()
    monkeypatch.setattr(watches, "redis_run_id", lambda url, **_: asked.append(url))
    owned = Owned()
    owned.holds = False
    watch = RedisWatch("redis://:secret@10.0.0.1:6379/0", 0.01, lambda: None, owned)
    for _ in range(3):
        assert owned.asked.acquire(timeout=PATIENCE_S)
    watch.close()
    assert (asked, watch.state.up) == ([], False)


class Pauses(threading.Event):
    """Instead of waiting, notes for how long; over after so many."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.noted = number, list[float]()

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.noted.append(timeout)
        if len(self.noted) == self.number:
            self.set()
        return self.is_set()


def test_a_redis_that_is_away_is_asked_ever_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = RedisWatch.__new__(RedisWatch)  # without its thread
    watch.state, watch._url, watch._interval_s, watch._wake = RedisState(), "redis://10.0.0.1:6379/0", 0.5, lambda: None
    watch._may_dial = lambda: True
    answers = [None] * 8 + ["run"]
    monkeypatch.setattr(watches, "redis_run_id", lambda *_, **__: answers.pop(0) if answers else None)
    watch._stopped = pauses = Pauses(11)
    watch._run()
    first, longest = REDIS_RETRY_S
    assert pauses.noted[:4] == [first, 2 * first, 4 * first, 8 * first]
    assert pauses.noted[7:] == [longest, 0.5, first, 2 * first], "back, and away again"

"""What answers at Redis' address is told as one of few things, however it says it."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from redis.exceptions import BusyLoadingError, OutOfMemoryError, ResponseError

from outlast.buffer.connection import Link, Target, as_buffer_error
from outlast.buffer.types import BufferFull, BufferUnavailable, Contact

TARGET = Target.parse("redis://127.0.0.1:6379/0")
WORDS = "command not allowed when used memory > 'maxmemory'."


@pytest.mark.parametrize(
    "error",
    [
        OutOfMemoryError(WORDS),
        ResponseError(f"Error running script (call to f_e9d1): @user_script:79: @user_script: 79: -OOM {WORDS}"),
    ],
    ids=["refused at once", "full at the script's first write"],
)
def test_a_full_redis_is_a_full_buffer(error: Exception) -> None:
    assert isinstance(as_buffer_error(error, TARGET), BufferFull)


def test_what_a_script_meets_is_judged_as_outside_of_one() -> None:
    words = "MISCONF Redis is configured to save RDB snapshots, but it is currently not able to persist on disk."
    for error in (
        ResponseError(words),
        ResponseError(f"Error running script (call to f_e9): @user_script: 7: -{words}"),
    ):
        assert isinstance(as_buffer_error(error, TARGET), BufferUnavailable)


def test_other_replies_stay_what_they_are() -> None:
    error = ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value")
    assert as_buffer_error(error, TARGET) is error


def test_what_speaks_no_redis_is_a_redis_that_is_away() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            link = Link(Target.parse(f"redis://127.0.0.1:{server.server_port}/0"), timeout_s=10)
            with pytest.raises(BufferUnavailable, match="is no Redis"):
                link.call("PING")
        finally:
            server.shutdown()


def test_links_to_one_redis_tell_together_when_it_answered_and_since_when_it_does_not() -> None:
    contact = Contact()
    one, other = (Link(TARGET, contact=contact) for _ in range(2))
    for link in (one, other):
        link._connect = lambda: None  # type: ignore[method-assign]
    assert (contact.answered_t, contact.silent_t) == (None, None)

    def away(client: object, run_id: str) -> None:
        raise TimeoutError

    for link in (one, other, one):
        with pytest.raises(BufferUnavailable):
            link.use(away)
    since = contact.silent_t
    assert since is not None
    with pytest.raises(BufferUnavailable):
        other.use(away)
    assert contact.silent_t == since, "since the first that was not answered"
    other.use(lambda client, run_id: None)
    assert contact.silent_t is None
    assert contact.answered_t is not None
    assert contact.answered_t >= since

    def loading(client: object, run_id: str) -> None:
        raise BusyLoadingError("LOADING Redis is loading the dataset in memory")

    with pytest.raises(BufferUnavailable):
        one.use(away)
    for link in (one, other):
        with pytest.raises(BufferUnavailable, match="LOADING"):
            link.use(loading)
        assert contact.silent_t is None, "a refusal is no silence"


@pytest.mark.parametrize(
    "error",
    [
        BusyLoadingError("LOADING Redis is loading the dataset in memory"),
        ResponseError("BUSY Redis is busy running a script."),
        ResponseError("MISCONF Redis is configured to save RDB snapshots, but it is unable to persist to disk."),
    ],
    ids=["loading", "busy", "no disk"],
)
def test_a_redis_that_refuses_is_neither_silent_nor_an_answer(error: Exception) -> None:
    contact = Contact()
    link = Link(TARGET, contact=contact)
    link._connect = lambda: None  # type: ignore[method-assign]
    link.use(lambda client, run_id: None)
    answered_t = contact.answered_t

    def fail(client: object, run_id: str) -> None:
        raise failure

    for failure in (TimeoutError(), error):
        with pytest.raises(BufferUnavailable):
            link.use(fail)
        assert (contact.silent_t is None) is (failure is error)
    assert contact.answered_t == answered_t

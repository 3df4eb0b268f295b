"""What answers at Redis' address is told as one of few things, however it says it."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from redis.exceptions import OutOfMemoryError, ResponseError

from outlast.buffer_link import Link, Target, as_buffer_error
from outlast.buffer_types import BufferFull, BufferUnavailable

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

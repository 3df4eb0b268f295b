"""Readiness, said by the server itself: a member of the installed view that holds its state."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest

from outlast.api.view import Member, View
from outlast.chain.events import DataPlan, HigherEpoch, Install, Restored
from outlast.chain.replica import Replica, ReplicaSettings
from outlast.process.readiness import serve_readiness

A, B = Member("server-a", "a", "unix:/a"), Member("server-b", "b", "unix:/b")
STATE = Restored(7, 6, 0, {}, DataPlan(slots=1), epoch=1)


def replica(*events: object) -> Replica:
    """Of boot `a`, after these events."""
    made = Replica("server-a", "a", 0, ReplicaSettings())
    for event in events:
        made.step(event)  # type: ignore[arg-type]
    return made


JOINING = Install(View(0, 1, 0, (B,), (A,)))


@pytest.mark.parametrize(
    ("made", "missing"),
    [
        pytest.param(replica(), "no member of a view: empty", id="it has just started"),
        pytest.param(replica(JOINING), "no member of a view: joining", id="it joins"),
        pytest.param(replica(JOINING, STATE), "no member of a view: joining", id="no view counts on it yet"),
        pytest.param(replica(JOINING, STATE, Install(View(0, 2, 0, (B, A)))), "", id="caught up, and a member"),
        pytest.param(replica(Install(View(0, 1, 0, (A,)))), "", id="first member: there is nothing to hold yet"),
        pytest.param(replica(Install(View(0, 1, 0, (A,), (), "buffer"))), "restoring from buffer", id="it restores"),
        pytest.param(
            replica(Install(View(0, 1, 0, (A,))), HigherEpoch(2)),
            "a newer view exists and is not installed yet",
            id="another view is in force",
        ),
        pytest.param(
            replica(Install(View(0, 1, 0, (A, B))), Install(View(0, 2, 0, (B,)))),
            "no member of a view: stopped",
            id="it left",
        ),
    ],
)
def test_why_a_server_is_not_ready(made: Replica, missing: str) -> None:
    assert made.why_not_ready == missing
    assert made.status().why_not_ready == missing


def test_a_kubelet_is_told() -> None:
    missing = ["it starts"]
    server = serve_readiness(0, lambda: missing[0])
    assert server is not None
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(urllib.error.HTTPError, match="503") as refused:
            urllib.request.urlopen(f"{address}/readyz", timeout=5)
        assert refused.value.read() == b"it starts\n"
        missing[0] = ""
        with urllib.request.urlopen(f"{address}/readyz", timeout=5) as answer:
            assert (answer.status, answer.read()) == (200, b"ready\n")
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{address}/metrics", timeout=5)
    finally:
        server.shutdown()
        server.server_close()


def test_a_port_that_is_taken_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    first = serve_readiness(0, lambda: "")
    assert first is not None
    try:
        assert serve_readiness(first.server_port, lambda: "") is None
        assert "cannot be listened on" in caplog.text
    finally:
        first.shutdown()
        first.server_close()

"""What an operator's loop sleeps on, and what is sent beside it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from outlast_operator.runtime.orders import OneAtATime
from outlast_operator.runtime.reconcile import Waker

PATIENCE_S = 30.0


@pytest.mark.parametrize(
    ("late_s", "anew"),
    [(0.0, False), (0.4, False), (0.6, True)],
    ids=["in time", "within a heartbeat", "held up"],
)
def test_silence_proves_nothing_after_a_gap_in_which_nobody_listened(late_s: float, anew: bool) -> None:
    t = [100.0]
    waker = Waker(lambda: t[0])
    waker.heartbeat_s = 0.5
    t[0] = 110.0 + late_s
    waker.wait(110.0)
    assert waker.t_listening == (t[0] if anew else 100.0)


def test_a_loop_that_is_woken_sleeps_no_longer() -> None:
    waker = Waker(lambda: 100.0)
    waker.wake()
    waker.wait(100.0 + 3600.0)


def test_one_call_of_a_kind_is_under_way_at_a_time() -> None:
    calls, released = OneAtATime(), threading.Event()
    with ThreadPoolExecutor(3) as pool:
        first = calls.submit(pool, ("server-0", "finish"), lambda: released.wait(PATIENCE_S))
        assert first is not None
        assert calls.submit(pool, ("server-0", "finish"), released.set) is None
        assert calls.submit(pool, ("server-0", "leave"), released.set) is not None, "another kind is not held up"
        wait([first], PATIENCE_S)
        assert calls.submit(pool, ("server-0", "finish"), released.set) is not None

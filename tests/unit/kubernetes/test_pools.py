"""Each job's share of the operator's threads: what hangs for one job holds up nobody else."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from outlast_operator.kubernetes.cluster.pools import Share

PATIENCE_S = 10.0


def test_calls_of_one_job_that_hang_do_not_hold_up_another() -> None:
    pool, hangs = ThreadPoolExecutor(3), threading.Event()
    stuck, other = Share(pool, 2), Share(pool, 2)
    waiting = [stuck.submit(hangs.wait, PATIENCE_S) for _ in range(10)]
    try:
        done = [other.submit(lambda n=n: n).result(PATIENCE_S / 2) for n in range(5)]
        assert not any(call.done() for call in waiting)
    finally:
        hangs.set()
    assert done == list(range(5))
    assert all(call.result(PATIENCE_S) for call in waiting)
    pool.shutdown()


def test_what_waits_is_done_in_order_and_a_failure_is_its_own() -> None:
    pool, seen = ThreadPoolExecutor(4), list[int]()
    share = Share(pool, 1)
    failed = share.submit(lambda: 1 / 0)
    calls = [share.submit(seen.append, n) for n in range(50)]
    calls[-1].result(PATIENCE_S)
    assert seen == list(range(50))
    with pytest.raises(ZeroDivisionError):
        failed.result(PATIENCE_S)
    pool.shutdown()

"""Threads for what the loops do not wait for, and each job's share of them.

Rules. (1) What may hang is kept apart by what it hangs on: servers' answers, a volume, the API server.
(2) No job has more than its share running: its further tasks wait in the job's own queue, not in the shared one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Pools:
    """Of the whole operator, or one job's shares of them."""

    orders: Executor  # what servers must hear at once; a mute one holds a thread for some seconds
    saving: Executor  # checkpoints: up to a minute each
    api: Executor  # requests to the API server that nothing waits for: events, labels

    @staticmethod
    def make() -> Pools:
        """Threads are started when they are needed, and then kept."""
        return Pools(
            ThreadPoolExecutor(64, thread_name_prefix="to-server"),
            ThreadPoolExecutor(64, thread_name_prefix="saving"),
            ThreadPoolExecutor(8, thread_name_prefix="to-api"),
        )

    def for_one_job(self) -> Pools:
        return Pools(Share(self.orders, 16), Share(self.saving, 8), Share(self.api, 2))


class Share(Executor):
    """At most `at_once` calls of one job under way in a pool; the others wait here, in order."""

    def __init__(self, pool: Executor, at_once: int) -> None:
        self._pool, self._at_once = pool, at_once
        self._lock = threading.Lock()
        self._under_way = 0
        self._line: deque[tuple[Future[Any], Callable[[], Any]]] = deque()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        with self._lock:
            self._line.append((done, lambda: fn(*args, **kwargs)))
            if self._under_way == self._at_once:
                return done
            self._under_way += 1
        self._pool.submit(self._next)
        return done

    def _next(self) -> None:
        """Run the first task of the queue; then let another job run before the next."""
        with self._lock:
            done, call = self._line.popleft()
        try:
            done.set_result(call())
        except BaseException as error:
            done.set_exception(error)
        with self._lock:
            if not self._line:
                self._under_way -= 1
                return
        self._pool.submit(self._next)

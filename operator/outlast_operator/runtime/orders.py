"""What is done without waiting for the answer: calls to servers, and others that hold a thread for a while."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass

from outlast_operator.planner.actions import Control, ServerCall
from outlast_operator.runtime.watches import ServerWatch

log = logging.getLogger("outlast.orders")


@dataclass(frozen=True)
class Leave(ServerCall):
    """What no plan asks for, as the next: to a server that a runtime ends, and that no replacement follows."""

    def call(self, control: Control) -> object:
        return control.leave()


@dataclass(frozen=True)
class Dismiss(ServerCall):
    """To a server of which nothing is wanted any more."""

    def call(self, control: Control) -> object:
        control.finish()
        return control.leave()


class OneAtATime:
    """Calls that nothing waits for, in pools of threads; one that is still under way is not made again."""

    def __init__(self) -> None:
        self._under_way: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def submit(self, pool: Executor, key: tuple[str, str], call: Callable[[], object]) -> Future[None] | None:
        """None: not now. `key`: to whom or what, and which call it is."""
        with self._lock:
            if key in self._under_way:
                return None
            self._under_way.add(key)

        def run() -> None:
            try:
                call()
            finally:
                with self._lock:
                    self._under_way.discard(key)

        return pool.submit(run)

    def send(self, order: ServerCall, watch: ServerWatch | None, pool: Executor) -> Future[None] | None:
        """Through `watch`, which listens to `order.to`; without one the order is planned again."""
        if watch is None:
            return None
        return self.submit(pool, (order.to.boot, order.what), lambda: _send(order, watch.control))


def _send(order: ServerCall, control: Control) -> None:
    try:
        try:
            order.call(control)
        except ConnectionError:  # the connection was left over from an earlier call, or an earlier process
            order.call(control)
    except (OSError, RuntimeError) as error:
        log.info("%s to %s failed: %s (planned again if needed)", order.what, order.to.name, error)

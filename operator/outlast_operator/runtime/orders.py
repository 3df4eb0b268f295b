"""Calls to servers, sent without waiting for the answer."""

from __future__ import annotations

import logging
import threading
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


class Orders:
    """Sends orders from a pool of threads; one that is still under way is not sent again."""

    def __init__(self) -> None:
        self._under_way: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def send(self, order: ServerCall, watch: ServerWatch | None, pool: Executor) -> Future[None] | None:
        """Through `watch`, which listens to `order.to`; without one the order is planned again. None: not sent now."""
        key = (order.to.boot, order.what)
        with self._lock:
            if watch is None or key in self._under_way:
                return None
            self._under_way.add(key)
        return pool.submit(self._carry_out, order, watch, key)

    def _carry_out(self, order: ServerCall, watch: ServerWatch, key: tuple[str, str]) -> None:
        try:
            try:
                order.call(watch.control)
            except ConnectionError:  # the connection was left over from an earlier call, or an earlier process
                order.call(watch.control)
        except (OSError, RuntimeError) as error:
            log.info("%s to %s failed: %s (planned again if needed)", order.what, order.to.name, error)
        finally:
            with self._lock:
                self._under_way.discard(key)

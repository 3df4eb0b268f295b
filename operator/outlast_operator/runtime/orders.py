"""What a plan has to say to servers: which call each action is, and sending it without waiting for the answer."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass

from outlast.api.view import Member
from outlast.wire.control import ServerControl
from outlast_operator.planner.actions import Action, FinishJob, InstallView, RequestCheckpoint, SetSlots
from outlast_operator.runtime.watches import ServerWatch

log = logging.getLogger("outlast.orders")


@dataclass(frozen=True)
class Order:
    """One call to one start of a server. `what` tells it from others to the same server."""

    to: Member
    what: str
    call: Callable[[ServerControl], object]


def order_of(action: Action) -> Order | None:
    """The call that an action is; None for one that concerns no server's own port."""
    match action:
        case InstallView(view, to):
            return Order(to, f"install {view.epoch}", lambda control: control.install(view))
        case SetSlots(_, to, slots):
            return Order(to, f"slots {slots}", lambda control: control.set_slots(slots))
        case FinishJob(_, to):
            return Order(to, "finish", lambda control: control.finish())
        case RequestCheckpoint(_, to, label):
            return Order(to, "checkpoint", lambda control: control.checkpoint_now(label))
    return None


class Orders:
    """Sends orders from a pool of threads; one that is still under way is not sent again."""

    def __init__(self) -> None:
        self._under_way: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def send(self, order: Order, watch: ServerWatch | None, pool: Executor) -> Future[None] | None:
        """Through `watch`, which listens to `order.to`; without one the order is planned again. None: not sent now."""
        key = (order.to.boot, order.what)
        with self._lock:
            if watch is None or key in self._under_way:
                return None
            self._under_way.add(key)
        return pool.submit(self._carry_out, order, watch, key)

    def _carry_out(self, order: Order, watch: ServerWatch, key: tuple[str, str]) -> None:
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

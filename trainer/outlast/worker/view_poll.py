"""Asking the servers of a shard for its view, wherever they may be.

All are asked at once, at the addresses of the last view and by name: a name may not be found for many seconds after a
node is lost (the resolver waits for the DNS server on it), and a server may be in no view that is known here. A server
that still owes an answer is not asked again, and holds up no other's; its answer is taken when it comes.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from dataclasses import dataclass

from outlast.api.config import ProcessConfig
from outlast.api.view import View
from outlast.wire.dial import connect
from outlast.wire.frames import Header, Op

log = logging.getLogger("outlast.client")

_STRAGGLER_S = 0.03  # how long to wait for slower servers once one has told its view


@dataclass(frozen=True)
class _Answer:
    """What a server that was asked at `asked_t` told."""

    asked_t: float
    boot: str
    view: View | None


class ViewPoll:
    """The servers of shard `index`."""

    def __init__(self, config: ProcessConfig, index: int, timeout_s: float) -> None:
        self._config, self._index, self._timeout_s = config, index, timeout_s
        self._asks: dict[str, threading.Thread] = {}  # by address
        self._answers: queue.SimpleQueue[_Answer] = queue.SimpleQueue()

    def ask(self, last: View | None) -> dict[str, View]:
        """The views that servers tell, by the boot of the server; `last` is the newest that is known."""
        began = time.monotonic()
        pending = {address: thread for address, thread in self._asks.items() if thread.is_alive()}
        asked = [address for address in self._addresses(last) if address not in pending]
        for address in asked:
            pending[address] = threading.Thread(target=self._ask_one, args=(address, began), daemon=True)
            pending[address].start()
        self._asks = pending
        told: dict[str, View] = {}
        deadline, outstanding = began + self._timeout_s, len(asked)
        while outstanding or not self._answers.empty():
            try:
                answer = self._answers.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            outstanding -= answer.asked_t == began
            if answer.view is not None:
                told[answer.boot] = max(told.get(answer.boot, answer.view), answer.view, key=lambda v: v.epoch)
                deadline = min(deadline, time.monotonic() + _STRAGGLER_S)
        return told

    def _addresses(self, last: View | None) -> list[str]:
        members = () if last is None else (*last.members, *last.joining)
        names = self._config.servers[self._index]
        return list(dict.fromkeys([*(m.address for m in members), *(s.address for s in names)]))

    def _ask_one(self, address: str, asked_t: float) -> None:
        boot, view = "", None
        try:
            boot, view = self._view_at(address)
        except ConnectionError as error:
            log.debug("asked %s for its view: %s", address, error)
        self._answers.put(_Answer(asked_t, boot, view))

    def _view_at(self, address: str) -> tuple[str, View | None]:
        """(boot, view) of the server at `address`; None for a view of another shard, and where it has none.

        The address of a pod that is gone may be that of another shard's server by now.
        """
        config = self._config
        connection, welcome = connect(address, config.job_uid, config.token, {"role": "control"}, self._timeout_s)
        try:
            connection.send(Header(Op.VIEW))
            _, meta = connection.receive()
        finally:
            connection.close()
        view = None if meta.get("view") is None else View.from_json(meta["view"])
        return str(welcome.get("boot")), view if view is not None and view.shard == self._index else None

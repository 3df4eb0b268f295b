"""What the control plane asks, and what workers ask beside pushes and pulls."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from outlast.api.codec import from_json
from outlast.api.server_status import Evaluation
from outlast.api.view import View
from outlast.chain.events import Finish, SetSlots
from outlast.server.checkpoint_peers import send_part
from outlast.server.core import Core
from outlast.server.durability import Durability
from outlast.server.status import Status
from outlast.wire.connection import Connection
from outlast.wire.frames import Header, Op, ProtocolError

_WATCH_INTERVAL_S = 0.02


class Notices:
    """A count of what happened. Its lock is its own: watchers hear of news while the server's is held."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._count = 0

    def notify(self) -> None:
        """Something has happened that a watcher should hear of."""
        with self._condition:
            self._count += 1
            self._condition.notify_all()

    @property
    def count(self) -> int:
        return self._count

    def wait(self, seen: int, timeout_s: float) -> int:
        """Wait until there was a notice after the one numbered `seen`; returns the newest one's number."""
        with self._condition:
            self._condition.wait_for(lambda: self._count != seen, timeout_s)
            return self._count


class ControlRequests:
    """`leave`: the operator brings no replacement."""

    def __init__(
        self, core: Core, notices: Notices, durability: Durability, status: Status, leave: Callable[[], None]
    ) -> None:
        self._core, self._notices = core, notices
        self._durability, self._status, self._leave = durability, status, leave
        self._heartbeat_s = core.spec.recovery.failover.heartbeat_seconds

    def serve(self, connection: Connection) -> None:
        while True:
            header, meta = connection.receive()
            if header.op == Op.WATCH:
                self._watch(connection)
                return
            self.answer(connection, header, meta)

    def answer(self, connection: Connection, header: Header, meta: dict[str, Any]) -> None:
        core = self._core
        if header.op == Op.PROBE:
            connection.send(Header(Op.STATUS), self._status.now().to_json())
        elif header.op == Op.PART:
            send_part(connection, self._durability.own_parts, meta, core.shard, core.spec.servers.shards)
        else:
            connection.send(Header(Op.DONE), self._do(header, meta))

    def _do(self, header: Header, meta: dict[str, Any]) -> dict[str, Any]:
        """Returns what is answered beside DONE."""
        core = self._core
        if header.op == Op.VIEW:
            view = core.replica.view
            return {"view": None if view is None else view.to_json()}
        if header.op == Op.TABLE:
            return self._status.table()
        if header.op == Op.CHECKPOINT:
            return self._durability.save_and_wait("asked for", meta.get("label"))
        if header.op == Op.INSTALL:
            core.install(View.from_json(meta["view"]))
        elif header.op == Op.FINISH:
            core.step(Finish())
            core.notify()
        elif header.op == Op.SET_SLOTS:
            core.step(SetSlots(int(meta["slots"])))
        elif header.op == Op.LEAVE:
            self._leave()
        elif header.op == Op.EVALUATION:
            self._status.evaluation = from_json(Evaluation, meta)
            core.notify()
        else:
            raise ProtocolError(f"op {header.op} is no request")
        return {}

    def _watch(self, connection: Connection) -> None:
        while not connection.closed:
            noted = self._notices.count
            status = self._status.now()
            connection.send(Header(Op.STATUS), status.to_json())
            shown = status.notable()
            deadline = time.monotonic() + self._heartbeat_s
            time.sleep(_WATCH_INTERVAL_S)  # the promised upper bound on the rate of notices
            while (left := deadline - time.monotonic()) > 0 and self._status.now().notable() == shown:
                noted = self._notices.wait(noted, left)

"""Speak to a server's control side: probe, install views, finish. Torch-free; the control plane's only way in.

One connection a `ServerControl`, opened when needed and dropped on any error; every call is bounded in time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

from outlast.api.server_status import ServerStatus
from outlast.api.view import View
from outlast.wire.connection import Connection, PeerUnreachable
from outlast.wire.dial import connect
from outlast.wire.frames import Header, Op


class ServerControl:
    """A client of one server. Safe to use from several threads (calls are serialised); `watch` has its own line."""

    def __init__(
        self,
        address: str,
        job_uid: str,
        token: str,
        timeout_s: float = 2.0,
        may_dial: Callable[[], bool] = lambda: True,
    ) -> None:
        """`may_dial`: whether the address is still the server's. Asked before each new connection, for that tells the
        token to whatever listens; an established one is kept, whatever it answers."""
        self.address = address
        self.timeout_s = timeout_s
        self._may_dial = may_dial
        self._job_uid, self._token = job_uid, token
        self._connection: Connection | None = None
        self._watching: Connection | None = None
        self._lock = threading.Lock()

    def probe(self, timeout_s: float | None = None) -> ServerStatus:
        """Raises `ConnectionError` when it is gone, `PeerTimeout` when it is silent."""
        return ServerStatus.from_json(self._call(Op.PROBE, timeout_s=timeout_s))

    def view(self, timeout_s: float | None = None) -> View | None:
        """Return the newest view that this server knows, or None before its first."""
        raw = self._call(Op.VIEW, timeout_s=timeout_s).get("view")
        return None if raw is None else View.from_json(raw)

    def install(self, view: View, timeout_s: float | None = None) -> None:
        """Hand the server a recorded view. Confirmed by a later status that shows its epoch."""
        self._call(Op.INSTALL, {"view": view.to_json()}, timeout_s=timeout_s)

    def finish(self) -> None:
        """Take no more pushes; what is in the chain still becomes stable."""
        self._call(Op.FINISH)

    def set_slots(self, slots: int) -> None:
        self._call(Op.SET_SLOTS, {"slots": slots})

    def checkpoint_now(self, label: int | None = None) -> dict[str, Any]:
        """Write a checkpoint and wait until it is complete. Returns its version, or an `error`.

        `label`: the version that names the set, which all shards of a job must agree on; None: this server's own.
        """
        return self._call(Op.CHECKPOINT, {"label": label}, timeout_s=max(self.timeout_s, 60.0))

    def table(self) -> dict[str, Any]:
        """Return what the server holds: `applied` (table of steps), `applied_total`, `version`, `digest`, `unread`."""
        return self._call(Op.TABLE, timeout_s=max(self.timeout_s, 30.0))

    def report_evaluation(self, report: dict[str, Any]) -> None:
        """Give the server an evaluator's result; its status shows it from then on."""
        self._call(Op.EVALUATION, report)

    def leave(self) -> None:
        """End it as SIGTERM does, but without a replacement: what it holds alone is saved at once."""
        self._call(Op.LEAVE)

    def watch(self, silence_s: float) -> Iterator[ServerStatus]:
        """Yield the status at once, at every notable change and each heartbeat.

        Raises `ConnectionError` when the server dies, `PeerTimeout` after `silence_s` seconds without a word.
        """
        connection = self._dial(self.timeout_s)
        self._watching = connection
        try:
            connection.set_timeout(silence_s, self.timeout_s)
            connection.send(Header(Op.WATCH))
            while True:
                _, meta = connection.receive()
                yield ServerStatus.from_json(meta)
        finally:
            self._watching = None
            connection.close()

    def close(self) -> None:
        watching = self._watching
        if watching is not None:
            watching.close()
        with self._lock:
            self._drop()

    def _call(self, op: Op, meta: dict[str, Any] | None = None, timeout_s: float | None = None) -> dict[str, Any]:
        bound = self.timeout_s if timeout_s is None else timeout_s
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = self._dial(bound)
                self._connection.set_timeout(bound, bound)
                self._connection.send(Header(op), meta)
                header, answer = self._connection.receive()
            except BaseException:
                self._drop()
                raise
        if header.op == Op.REFUSED:
            raise RuntimeError(f"{self.address}: {Op(op).name} refused: {answer.get('error')}")
        return answer

    def _dial(self, timeout_s: float) -> Connection:
        if not self._may_dial():
            raise PeerUnreachable(f"{self.address}: not dialled, no living server of this job has the address")
        return connect(self.address, self._job_uid, self._token, {"role": "control"}, timeout_s)[0]

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

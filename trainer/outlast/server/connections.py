"""A server's connections: each has a thread, and goes by the role that its HELLO names."""

from __future__ import annotations

from typing import Any

from outlast.server.control_requests import ControlRequests
from outlast.server.peer_requests import PeerRequests
from outlast.server.presence import LOST_S
from outlast.server.worker_requests import WorkerRequests
from outlast.wire.connection import Connection
from outlast.wire.frames import ProtocolError
from outlast.wire.sharing import Sharing


class Connections:
    """`serve` is run by each connection's thread."""

    def __init__(self, workers: WorkerRequests, peers: PeerRequests, control: ControlRequests) -> None:
        self._workers, self._peers, self._control = workers, peers, control

    def serve(self, connection: Connection, hello: dict[str, Any]) -> None:
        role = hello.get("role")
        if role in ("worker", "evaluator"):
            connection.end_when_lost(LOST_S)
            reader = Sharing(connection, bool(hello.get("shared_memory")))
            self._workers.serve(reader, role == "worker", self._control.answer)
        elif role == "peer":
            self._peers.serve(connection, hello)
        elif role == "control":
            self._control.serve(connection)
        else:
            raise ProtocolError(f'HELLO names the role "{role}"; expected worker, evaluator, peer or control')

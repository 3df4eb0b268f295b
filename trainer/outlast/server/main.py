"""A parameter server: one process that holds a shard, or a replica of it, from its start to SIGTERM.

    connection threads ──▶ core: one lock, the pure replica, its state ──▶ links, log, checkpoints

It holds no model code: a range of a flat vector, its optimizer's state and the table of applied steps. It starts empty
under a fresh boot id and acts only in a view that names that boot id.
"""

from __future__ import annotations

import importlib
import logging
import os
import secrets
import signal
import sys
import threading
import time
from typing import Any

import torch

from outlast.api.config import ProcessConfig
from outlast.api.job import read_spec
from outlast.chain.events import HigherEpoch
from outlast.chain.replica import Replica
from outlast.chain.settings import settings_from
from outlast.process.exit_codes import EXIT_CONFIGURATION
from outlast.process.fail_stop import fail_stop
from outlast.process.metrics import publish
from outlast.process.readiness import PORT_EXTRA, serve_readiness
from outlast.server.connections import Connections
from outlast.server.control_requests import ControlRequests, Notices
from outlast.server.core import Core
from outlast.server.durability import Durability
from outlast.server.leave import GRACE_S, Leave, LeaveStep
from outlast.server.link import Links
from outlast.server.log_reader import LogReader, NoLog, log_of
from outlast.server.peer_requests import PeerRequests
from outlast.server.ports import Ports
from outlast.server.shard_log import ShardLog
from outlast.server.shard_state import ShardState
from outlast.server.status import Status
from outlast.server.worker_requests import WorkerRequests
from outlast.wire.connection import Connection
from outlast.wire.listener import Listener
from outlast.wire.shared_memory import AVAILABLE

log = logging.getLogger("outlast.server")


class Server:
    """One server process: its parts, and its life."""

    def __init__(self, config: ProcessConfig) -> None:
        if config.listen is None:
            raise ValueError("a server's configuration says where it listens")
        self.config, spec = config, read_spec(config.spec)
        self.leaving = threading.Event()
        self.not_replaced = threading.Event()  # no replacement comes: the operator's request to leave said so
        self.left = False
        boot = secrets.token_hex(8)
        self.state = ShardState(spec, shared=config.listen.startswith("unix:"))
        self.notices = Notices()
        replica = Replica(config.name, boot, config.shard, settings_from(spec))
        self.core = Core(spec, replica, self.state, self.notices.notify)
        gradient_log = log_of(self.core, config)
        shard_log = None if gradient_log is None else ShardLog(self.core, self.state, gradient_log)
        self.log: LogReader | NoLog = NoLog() if shard_log is None else LogReader(self.core, self.state, shard_log)
        self.durability = Durability(self.core, config, shard_log)
        self.links = Links(self.core, self.state, config)
        peers = PeerRequests(self.core, self.state)
        self.core.connect(Ports(self.links, peers, shard_log or NoLog(), self.durability))
        self.workers = WorkerRequests(self.core, self.state)
        self.listener = Listener(
            config.listen, config.job_uid, config.token, self._welcome, self._serve, self.state.payload_limit
        )
        address = self.listener.address
        self.status = Status(
            self.core, self.state, self.links, self.workers, self.durability, self.log, address, self._departure
        )
        control = ControlRequests(self.core, self.notices, self.durability, self.status, self._leave_for_good)
        self.connections = Connections(self.workers, peers, control)

    def _welcome(self) -> dict[str, Any]:
        return {"name": self.config.name, "boot": self.core.boot, "shared_memory": AVAILABLE}

    def _departure(self) -> tuple[bool, bool]:
        return self.leaving.is_set(), self.left

    def _serve(self, connection: Connection, hello: dict[str, Any]) -> None:
        self.connections.serve(connection, hello)

    def start(self) -> None:
        self.durability.start()
        self.log.start()
        self.listener.start()
        log.info("%s (boot %s) listens on %s", self.config.name, self.core.boot, self.listener.address)

    def run_until_left(self) -> int:
        """Serve until SIGTERM; then hand over, or save as the last member, and return the exit code."""
        while not self.leaving.is_set():
            # sigtimedwait, not a handler: a handler runs inside whatever the main thread holds at that moment
            if signal.sigtimedwait({signal.SIGTERM}, 0.5) is not None:
                self.leaving.set()
        self.notices.notify()
        leave = Leave(time.monotonic(), float(self.config.extras.get("grace_s", GRACE_S)))
        while (step := self._leave_step(leave)) is LeaveStep.SERVE:
            self.notices.wait(self.notices.count, 0.05)
        if step is LeaveStep.SAVE:
            self._save_before_leaving(leave.left_s(time.monotonic()))
        self.left = True
        self.notices.notify()
        return EXIT_CONFIGURATION if self.core.error else 0

    def _leave_for_good(self) -> None:
        self.not_replaced.set()
        os.kill(os.getpid(), signal.SIGTERM)

    def _save_before_leaving(self, patience_s: float) -> None:
        if self.not_replaced.is_set():
            self.durability.save_and_wait("leaving as the last member", patience_s=patience_s)
        else:
            self.durability.save_last_and_wait(patience_s)

    def _leave_step(self, leave: Leave) -> LeaveStep:
        with self.core.lock:
            step = leave.step(self.core.replica, self.not_replaced.is_set(), time.monotonic())
            if step is LeaveStep.SAVE:
                # What is acknowledged after the last checkpoint would be lost.
                self.core.step(HigherEpoch(self.core.replica.epoch + 1))
        return step


def main() -> None:
    """Run the server that `OUTLAST_CONFIG` describes, until SIGTERM."""
    config = ProcessConfig.from_environment()
    torch.set_num_threads(int(config.extras.get("threads", 1)))
    sys.setswitchinterval(0.001)
    importlib.import_module("torch._dynamo")  # the first optimizer does, for a second, while it holds the server's lock
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # before any thread starts: all inherit it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    fail_stop()
    try:
        server = Server(config)
    except OSError as error:
        log.error("%s", error)
        raise SystemExit(1) from error
    server.start()
    publish(config, server.status.samples)
    if PORT_EXTRA in config.extras:
        serve_readiness(int(config.extras[PORT_EXTRA]), lambda: server.status.now().why_not_ready)
    raise SystemExit(server.run_until_left())

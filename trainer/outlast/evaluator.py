"""The evaluator: a low-priority process that pulls snapshots and measures them, away from the training.

A fixed part of the test data for the series, all of it at the end. What it finds it tells the servers, whose status
carries it on.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from collections.abc import Callable

import torch
from torch import nn

from outlast.api.config import ProcessConfig
from outlast.api.job import read_spec
from outlast.api.server_status import ServerStatus
from outlast.model.flat import FlatModel, byte_view, shard_ranges
from outlast.process.exit_codes import EXIT_CONFIGURATION
from outlast.tasks.base import Evaluation, Task, TaskError, load_task
from outlast.wire.connection import Connection
from outlast.wire.control import ServerControl
from outlast.wire.dial import connect
from outlast.wire.frames import Header, Op
from outlast.worker.main import report_fault
from outlast.worker.optimizer import take_apart

log = logging.getLogger("outlast.evaluate")

_POLL_S = 0.05
NICENESS = 5  # on busy cores some third of a worker's share; at 10 a tenth, and an evaluation takes half a second


def evaluate_weights(
    task: Task, model: nn.Module, load_weights: Callable[[nn.Module], None], samples: int | None
) -> Evaluation:
    """Fill `model` through `load_weights`, parameters and buffers alike, and measure it on the task's test data.

    `samples`: how many fixed test samples, None for all. A loss that is not finite is reported as it is, with accuracy
    0.0 where the task knows none: a run that diverged must show, not stop its evaluator.
    """
    load_weights(model)
    result = task.evaluate(model, samples)
    if math.isnan(result["accuracy"]) and not math.isfinite(result["loss"]):
        return Evaluation(accuracy=0.0, loss=result["loss"], samples=result["samples"])
    return result


class Puller:
    """Weights from whoever has them, tail first: the head has enough to do."""

    def __init__(self, config: ProcessConfig, flat: torch.Tensor) -> None:
        self._config, self._flat = config, flat
        self._ranges = shard_ranges(flat.numel(), len(config.servers))
        self._connections: dict[str, Connection] = {}

    def pull(self) -> int | None:
        """Fill the flat vector; returns the version of the first shard, None while some shard has no weights."""
        versions = [self._pull_shard(i) for i in range(len(self._ranges))]
        return None if any(v is None for v in versions) else versions[0]

    def _pull_shard(self, shard: int) -> int | None:
        start, stop = self._ranges[shard]
        for server in reversed(self._config.servers[shard]):
            try:
                connection = self._connections.get(server.address)
                if connection is None:
                    hello = {"role": "evaluator", "name": self._config.name}
                    connection, _ = connect(server.address, self._config.job_uid, self._config.token, hello)
                    self._connections[server.address] = connection
                connection.send(Header(Op.PULL), {"evaluator": True})
                header, _ = connection.receive()
                if header.op == Op.WEIGHTS:
                    connection.receive_into(byte_view(self._flat[start:stop]))
                    return header.version
            except ConnectionError as error:
                log.debug("%s: %s", server.name, error)
                stale = self._connections.pop(server.address, None)
                if stale is not None:
                    stale.close()
        return None


class Evaluator:
    def __init__(self, config: ProcessConfig) -> None:
        self.config = config
        self.spec = read_spec(config.spec)
        training = self.spec.training
        assert training.task is not None
        self.task = load_task(training.task, training.args, training.seed, list(config.extras.get("path", [])))
        self.model: nn.Module = self.task.model().eval()
        groups, names, buffers = take_apart(self.model)
        self.flat = FlatModel([[(names[id(p)], p) for p in g["params"]] for g in groups], buffers)
        self.weights = torch.zeros(self.flat.manifest.numel)
        self.puller = Puller(config, self.weights)
        failover = self.spec.recovery.failover
        self.servers = [
            ServerControl(s.address, config.job_uid, config.token, failover.timeout_seconds)
            for shard in config.servers
            for s in shard
        ]

    def run(self) -> None:
        """Evaluate until the job has reached its goal; the last time on all of the test data."""
        evaluate = self.spec.training.evaluate
        next_time, next_version = time.monotonic(), 0
        while True:
            status = self._heads()
            if status and all(s.finished for s in status) and self._evaluate(None, final=True):
                return
            due = evaluate.every_seconds is not None and time.monotonic() >= next_time
            if evaluate.every_updates is not None and status:
                due = due or min(s.version for s in status) >= next_version
            if due and self._evaluate(evaluate.samples, final=False):
                next_time = time.monotonic() + (evaluate.every_seconds or 0.0)
                next_version += evaluate.every_updates or 0
            time.sleep(_POLL_S)  # a reader polls: it takes no part in the protocol

    def _heads(self) -> list[ServerStatus]:
        """The status of each shard's newest head; empty while some shard has none."""
        newest: dict[int, ServerStatus] = {}
        for server in self.servers:
            try:
                status = server.probe(0.5)
            except (ConnectionError, RuntimeError):
                continue
            known = newest.get(status.shard)
            if status.initialised and (known is None or (status.is_head and status.epoch >= known.epoch)):
                newest[status.shard] = status
        return list(newest.values()) if len(newest) == len(self.config.servers) else []

    def _evaluate(self, samples: int | None, final: bool) -> bool:
        version = self.puller.pull()
        if version is None:
            return False
        with torch.no_grad():
            result = evaluate_weights(self.task, self.model, lambda _: self.flat.load(self.weights), samples)
        report = {**result, "version": version, "t": time.monotonic()}
        told = 0
        for server in self.servers:
            try:
                server.report_evaluation(report)
                told += 1
            except (ConnectionError, RuntimeError) as error:
                log.debug("%s", error)
        log.info(
            "version %d: accuracy %.4f loss %.4f%s", version, result["accuracy"], result["loss"], " (final)" * final
        )
        return told > 0


def main() -> None:
    """Run the evaluator that `OUTLAST_CONFIG` describes."""
    config = ProcessConfig.from_environment()
    os.nice(NICENESS)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        Evaluator(config).run()
    except TaskError as error:
        report_fault(config, "task", error)
        raise SystemExit(EXIT_CONFIGURATION) from error

"""Metrics of servers and workers, for Prometheus: `/metrics` on the port that OUTLAST_METRICS_PORT names.

Rules. (1) What training does is counted where it happens, as plain numbers; samples are made when somebody asks, and
nobody else pays. (2) No port, no server, no import. (3) A port that is taken is a warning:
training goes on. (4) `FAMILIES` is the list of names; the chart's dashboard and alerts use no other (a test looks).
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from outlast.api.config import ProcessConfig
from outlast.api.server_status import ServerStatus
from outlast.process.ledger import Fact

log = logging.getLogger("outlast.metrics")

PORT_VARIABLE = "OUTLAST_METRICS_PORT"

Labels = dict[str, str]
Sample = tuple[str, Labels, float]  # family, labels beside the process's own, value

FAMILIES: dict[str, tuple[str, str]] = {  # name -> type, help
    "outlast_server_version": ("gauge", "Updates that this server's parameters hold."),
    "outlast_server_epoch": ("gauge", "Epoch of the view that this server has installed."),
    "outlast_server_history": ("gauge", "Rollbacks to a checkpoint so far."),
    "outlast_server_serving": ("gauge", "1 while this server takes pushes: a head that is ready."),
    "outlast_server_role": ("gauge", "1 for the role that this server has in its chain."),
    "outlast_server_parameters": ("gauge", "Elements of the parameter vector that this server holds."),
    "outlast_server_applied_gradients_total": ("counter", "Gradients in this server's state."),
    "outlast_server_replayed_gradients_total": ("counter", "Gradients that this server applied from the buffer."),
    "outlast_server_duplicate_gradients_total": ("counter", "Gradients sent again and recognised."),
    "outlast_server_staleness": ("summary", "Staleness of the gradients that this server put in order, in updates."),
    "outlast_server_received_bytes_total": ("counter", "Bytes of gradients that workers sent."),
    "outlast_server_sent_bytes_total": ("counter", "Bytes of weights that workers were sent."),
    "outlast_server_backlog_gradients": ("gauge", "Gradients in the buffer that are not applied yet."),
    "outlast_server_buffer_bytes": ("gauge", "Bytes that the gradient log takes in Redis."),
    "outlast_server_buffer_max_bytes": ("gauge", "The bound on them: recovery.buffer.maxBytes."),
    "outlast_server_checkpoint_version": ("gauge", "Version of the newest complete checkpoint."),
    "outlast_worker_gradients_total": ("counter", "Gradients of this worker, by what became of them."),
    "outlast_worker_busy_seconds_total": ("counter", "Seconds in which this worker did not wait for servers or Redis."),
    "outlast_worker_waiting_seconds_total": ("counter", "Seconds in which it did."),
    "outlast_worker_sent_bytes_total": ("counter", "Bytes of gradients sent to servers."),
    "outlast_worker_received_bytes_total": ("counter", "Bytes of weights received."),
    "outlast_worker_unanswered_gradients": ("gauge", "Gradients sent or waiting, and not yet safe."),
    "outlast_worker_outage": ("gauge", "1 while a shard has no head that answers this worker."),
    "outlast_worker_buffer_down": ("gauge", "1 while Redis does not answer this worker, or has no room."),
}


@dataclass
class WorkerCounts:
    """What a worker counts as it goes; each field is written by one thread, or under the client's lock."""

    gradients: Counter[Fact] = field(default_factory=Counter)
    waited_s: float = 0.0
    sent_bytes: int = 0
    t_started: float = field(default_factory=time.monotonic)


def server_samples(status: ServerStatus, max_bytes: int) -> Iterator[Sample]:
    """`max_bytes`: recovery.buffer.maxBytes."""
    prefix = "outlast_server_"
    plain = {
        "version": status.version,
        "epoch": status.epoch,
        "history": status.history,
        "serving": status.serving and status.is_head,
        "parameters": status.parameters,
        "applied_gradients_total": status.applied_total,
        "replayed_gradients_total": status.replayed,
        "duplicate_gradients_total": status.duplicates,
        "staleness_sum": status.staleness[0],
        "staleness_count": status.staleness[1],
        "received_bytes_total": status.pushed_bytes,
        "sent_bytes_total": status.pulled_bytes,
        "backlog_gradients": status.backlog,
        "buffer_bytes": status.buffer_bytes,
        "buffer_max_bytes": max_bytes,
    }
    yield from ((prefix + name, {}, float(value)) for name, value in plain.items())
    yield prefix + "role", {"role": status.role}, 1.0
    newest = max(((c.history, c.version) for c in status.checkpoints), default=None)
    if newest is not None:
        yield prefix + "checkpoint_version", {}, float(newest[1])


def worker_samples(
    counts: WorkerCounts, received_bytes: int, unanswered: int, outage: bool, buffer_down: bool, now: float
) -> Iterator[Sample]:
    """`now`: time.monotonic()."""
    prefix = "outlast_worker_"
    for fact in Fact:
        yield prefix + "gradients_total", {"fact": fact.name.lower()}, float(counts.gradients[fact])
    plain = {
        "busy_seconds_total": max(0.0, now - counts.t_started - counts.waited_s),
        "waiting_seconds_total": counts.waited_s,
        "sent_bytes_total": counts.sent_bytes,
        "received_bytes_total": received_bytes,
        "unanswered_gradients": unanswered,
        "outage": outage,
        "buffer_down": buffer_down,
    }
    yield from ((prefix + name, {}, float(value)) for name, value in plain.items())


# --- serving ----------------------------------------------------------------------------------------------------------

_lock = threading.Lock()
_server: tuple[Any, int] | None = None  # the HTTP server of this process, and its port
_read: Callable[[], Iterator[Sample]] | None = None
_labels: Labels = {}


def wanted_port(config: ProcessConfig) -> int | None:
    """The port that was asked for (0: any that is free), or None. What is no port is a warning."""
    text = config.extras.get("metrics_port", os.environ.get(PORT_VARIABLE))
    if text in (None, ""):
        return None
    try:
        port = int(text)
    except (TypeError, ValueError):
        port = -1
    if not 0 <= port <= 65535:
        log.warning("%s=%s is no port: no metrics; use 1 to 65535, or leave it out", PORT_VARIABLE, text)
        return None
    return port


def publish(config: ProcessConfig, read: Callable[[], Iterator[Sample]]) -> int | None:
    """Answer /metrics with what `read` gives from now on; returns the port, None where none is wanted or to be had.

    A process has one endpoint: a second call changes what it tells (a script that makes two optimizers).
    """
    global _server, _read, _labels
    port = wanted_port(config)
    if port is None:
        return None
    with _lock:
        _read = read
        _labels = {"training_job": config.job, "process": config.name}
        if _server is None:
            try:
                _server = _serve(port)
            except OSError as error:
                log.warning("no metrics: port %d cannot be listened on (%s)", port, error)
                return None
            log.info("metrics on port %d", _server[1])
        return _server[1]


def stop() -> None:
    """Close the endpoint."""
    global _server
    with _lock:
        if _server is not None:
            _server[0].shutdown()
            _server[0].server_close()
            _server = None


def _serve(port: int) -> tuple[Any, int]:
    from prometheus_client import start_http_server
    from prometheus_client.core import CollectorRegistry

    registry = CollectorRegistry()
    registry.register(_Collector())
    server, _ = start_http_server(port, registry=registry)
    return server, int(server.server_port)


class _Collector:
    """prometheus_client's interface: asked at every scrape."""

    def describe(self) -> list[Any]:
        return []  # registering must not ask

    def collect(self) -> Iterator[Any]:
        assert _read is not None, "published before anybody can ask"
        return metric_families(FAMILIES, [(name, {**_labels, **labels}, value) for name, labels, value in _read()])


SUFFIXES = {"summary": ("_sum", "_count"), "histogram": ("_bucket", "_sum", "_count")}


def sample_names(families: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """Each name that a sample may have -> its family."""
    return {name + suffix: name for name, (type_, _) in families.items() for suffix in SUFFIXES.get(type_, ("",))}


def metric_families(families: Mapping[str, tuple[str, str]], samples: list[Sample]) -> Iterator[Any]:
    """prometheus_client's objects for these samples; families without a sample are left out."""
    from prometheus_client.core import Metric

    known = sample_names(families)
    grouped: dict[str, list[Sample]] = {}
    for sample in samples:
        grouped.setdefault(known[sample[0]], []).append(sample)
    for family, found in grouped.items():
        type_, text = families[family]
        metric = Metric(family.removesuffix("_total") if type_ == "counter" else family, text, type_)
        for name, labels, value in found:
            metric.add_sample(name, labels, value)
        yield metric

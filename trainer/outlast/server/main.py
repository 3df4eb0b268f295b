"""A parameter server's shell: receive, step the pure replica, obey what it says, in that order, under one lock.

    connection threads ──▶ step(event) ──▶ obey(Ready): restore, record, apply, send, reply, trim
    links (to the successor and to joining replicas), the log reader and the checkpoint writer are threads of their own

The server holds no model code: a range of a flat vector, its optimizer's state and the table of applied steps. It
starts empty under a fresh boot id and acts only in a view that names that boot id.
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
from collections.abc import Iterator
from typing import Any

import torch

from outlast.api.config import ProcessConfig
from outlast.api.job import read_spec
from outlast.api.view import Member, View
from outlast.chain.events import (
    Acknowledged,
    Entry,
    Event,
    Finish,
    HigherEpoch,
    Install,
    Kind,
    Ready,
    Refusal,
    Refused,
    SendAcks,
    SendEntry,
    SendState,
    SetSlots,
    Weights,
)
from outlast.chain.replica import Replica
from outlast.chain.settings import settings_from
from outlast.chain.staleness import inverse, usual_staleness
from outlast.chain.state import restored
from outlast.process.exit_codes import EXIT_CONFIGURATION, EXIT_FAILED
from outlast.process.fail_stop import fail_stop
from outlast.process.metrics import Sample, publish, server_samples
from outlast.process.readiness import PORT_EXTRA, serve_readiness
from outlast.server.connections import Serving, Waiter
from outlast.server.durability import Durability
from outlast.server.leave import GRACE_S, Leave, LeaveStep
from outlast.server.link import ChainLink
from outlast.server.log_reader import LogReader
from outlast.server.parameters import Parameters, Snapshot, parameters_for
from outlast.wire.connection import Connection
from outlast.wire.listener import Listener
from outlast.wire.payloads import InitialState
from outlast.wire.shared_memory import AVAILABLE

log = logging.getLogger("outlast.server")

_SPARE_READERS = 8  # snapshots beyond one a worker: evaluator, joining workers
_COMPARE_EVERY = 500  # entries between two comparisons of replicas


class Server:
    """One server process. `lock` guards the replica and the parameters; nothing slow happens under it."""

    def __init__(self, config: ProcessConfig) -> None:
        self.config = config
        self.spec = read_spec(config.spec)
        self.boot = secrets.token_hex(8)
        self.shard = config.shard
        self.lock = threading.RLock()
        self._notices = threading.Condition()  # not the lock's: watchers hear of us while something slow holds that
        self._noted = 0
        self.replica = Replica(config.name, self.boot, self.shard, settings_from(self.spec))
        self.parameters: Parameters | None = None
        self.initial_meta: dict[str, Any] = {}
        self.pull_copies: dict[int, Snapshot] = {}
        self.links: dict[str, ChainLink] = {}
        self.inbound: dict[str, Connection] = {}
        self.broken: dict[str, float] = {}
        self.epochs: dict[int, dict[str, float | None]] = {}
        self.evaluation: dict[str, Any] | None = None
        self.leaving = threading.Event()
        self.not_replaced = threading.Event()  # no replacement comes: whoever asked us to leave said so
        self.left = False
        self.replayed = 0  # gradients applied from the buffer
        self.error: str | None = None
        self.restore_error: str | None = None
        self.applied_t: float | None = None  # when the newest entry was applied
        self.serving = Serving(self)
        self.durability = Durability(self)
        self.log_reader = LogReader(self)
        self._status: dict[str, Any] = {}
        assert config.listen is not None
        self.listener = Listener(
            config.listen, config.job_uid, config.token, self._welcome, self.serving.serve, self.payload_limit
        )

    # --- life ---

    def start(self) -> None:
        self.durability.start()
        self.log_reader.start()
        self.listener.start()
        log.info("%s (boot %s) listens on %s", self.config.name, self.boot, self.listener.address)

    def run_until_left(self) -> int:
        """Serve until SIGTERM; then hand over, or save as the last member, and return the exit code."""
        while not self.leaving.is_set():
            # sigtimedwait, not a handler: a handler runs inside whatever the main thread holds at that moment
            if signal.sigtimedwait({signal.SIGTERM}, 0.5) is not None:
                self.leaving.set()
        self.notify()
        leave = Leave(time.monotonic(), float(self.config.extras.get("grace_s", GRACE_S)))
        while (step := self._leave_step(leave)) is LeaveStep.SERVE:
            self.wait_for_notice(self._noted, 0.05)
        if step is LeaveStep.SAVE:
            self._save_before_leaving(leave.left_s(time.monotonic()))
        self.left = True
        self.notify()
        return EXIT_CONFIGURATION if self.error else 0

    def _save_before_leaving(self, patience_s: float) -> None:
        if self.not_replaced.is_set():
            self.durability.save_and_wait("leaving as the last member", patience_s=patience_s)
        else:
            self.durability.save_last_and_wait(patience_s)

    def _leave_step(self, leave: Leave) -> LeaveStep:
        with self.lock:
            step = leave.step(self.replica, self.not_replaced.is_set(), time.monotonic())
            if step is LeaveStep.SAVE:
                # What is acknowledged after the last checkpoint would be lost.
                self.step(HigherEpoch(self.replica.epoch + 1))
        return step

    def fail(self, message: str) -> None:
        """A fault that no restart can mend: show it in the status, so that the job ends with it."""
        log.error("%s", message)
        with self.lock:
            self.error = message
            self.notify()

    def _welcome(self) -> dict[str, Any]:
        return {"name": self.config.name, "boot": self.boot, "shared_memory": AVAILABLE}

    def payload_limit(self) -> int:
        parameters = self.parameters
        if parameters is None:
            return 16 << 30
        states = 2 if self.spec.training.optimizer.name == "SGD" else 3
        return parameters.numel * 4 * states + 4096

    # --- the replica ---

    def step(self, event: Event) -> None:
        """Feed the replica one event and do what it asks. Any thread may call this."""
        with self.lock:
            finished = self.replica.finished
            self._obey(self.replica.step(event))
            if self.replica.finished != finished:
                self.notify()

    def _obey(self, ready: Ready) -> None:
        if ready.restore is not None:
            for reply in ready.reply:
                self._reply(reply)
            self.parameters = None
            if ready.restore != "empty":  # empty: the predecessor's state, or a worker's weights, will come
                self.durability.restore_later(ready.restore)
            self.notify()
            return
        recorded = all(self.log_reader.record(record) for record in ready.records)
        for entry in ready.apply if recorded else ():
            self._apply(entry)
        if not (recorded and self.log_reader.publish()):
            self._obey(self.replica.step(HigherEpoch(self.replica.epoch + 1)))  # fenced by Redis
            return
        for send in ready.send:
            self._send(send)
        for reply in ready.reply:
            self._reply(reply)
        if ready.trim is not None:
            self.log_reader.trim_to(ready.trim)
        if ready.stop:
            self._forget_links()
            self.notify()

    def _apply(self, entry: Entry) -> None:
        self.applied_t = time.monotonic()
        payload = entry.payload
        if entry.parts:
            payload = entry.payload = self._combine(entry)
            entry.parts = ()  # the other gradients' memory goes back to its pool
        if entry.kind is Kind.INIT:
            assert isinstance(payload, InitialState)
            self._initialise(payload)
        elif entry.kind is Kind.UPDATE:
            assert self.parameters is not None
            self.parameters.update(payload.tensor, entry.rate, entry.version)
        elif entry.kind is Kind.DELTA:
            assert self.parameters is not None
            self.parameters.add(payload.tensor, entry.version)
        if entry.offset:
            self.replayed += sum(i.last - i.first + 1 for i in entry.identities)
        self._compare(entry)
        self._first_update(entry)
        self.durability.applied(entry)

    def _compare(self, entry: Entry) -> None:
        """Now and then the head sends a checksum along; a replica that differs must never become head."""
        if entry.kind is Kind.INIT or self.parameters is None:
            return
        if self.replica.role == "head":
            entry.checksum = self.parameters.checksum() if entry.seq % _COMPARE_EVERY == 0 else None
        elif entry.checksum is not None and entry.checksum != self.parameters.checksum():
            log.critical(
                "parameters differ from the head's after entry %d (version %d): this replica ends, and a fresh one "
                "joins in its place; look for faulty memory or another torch release", entry.seq, entry.version
            )  # fmt: skip
            os._exit(EXIT_FAILED)

    def _first_update(self, entry: Entry) -> None:
        view = self.replica.view
        if view is None or entry.kind in (Kind.INIT, Kind.CONFIG) or self.log_reader.rebuilding:
            return  # a replay only brings back what was
        times = self.epochs.get(view.epoch)
        if times is not None and times["first_update_t"] is None:
            times["first_update_t"] = time.monotonic()
            self.notify()

    def _combine(self, entry: Entry) -> Any:
        first = entry.parts[0].payload
        if entry.kind is Kind.INIT:
            return first
        if len(entry.parts) == 1 and entry.parts[0].weight == 1.0 and entry.parts[0].compensate_from is None:
            return first
        assert self.parameters is not None
        parts = []
        for part in entry.parts:
            weight, then = part.weight, None
            if part.compensate_from is not None:
                copy = self.pull_copies.get(part.identity.slot)
                if copy is not None and copy.version == part.compensate_from:
                    then = copy.tensor
                else:  # no pull copy (a failover, or buffered): InverseStaleness instead
                    usual = usual_staleness(self.replica.data.slots)
                    weight *= inverse(self.parameters.version, 0, part.compensate_from, usual)
            parts.append((part.payload.tensor, weight, then))
        self.parameters.combine(first.tensor, parts)
        return first

    def _initialise(self, state: InitialState) -> None:
        self.make_parameters(state.meta)
        assert self.parameters is not None
        self.parameters.initialise(state.tensor)

    def make_parameters(self, meta: dict[str, Any]) -> None:
        """Allocate for the model that `meta` describes (manifest, optimizer, range)."""
        self.initial_meta = meta
        keep = self.spec.traits.barrier and self.spec.servers.shards > 1
        shared = self.listener.address.startswith("unix:")
        self.parameters = parameters_for(meta, keep, self.spec.workers.replicas + _SPARE_READERS, shared)
        self.serving.make_pool(self.parameters.numel, self.spec, shared)

    # --- what the replica asks for ---

    def _send(self, send: SendEntry | SendState | SendAcks) -> None:
        if isinstance(send, SendAcks):
            self.serving.send_acks(send)
            return
        link = self.links.get(send.peer)
        if link is None:
            return
        if isinstance(send, SendEntry):
            link.enqueue_entry(send.entry, send.stable)
        else:
            link.enqueue_state(*self.export())

    def _reply(self, reply: Acknowledged | Weights | Refused) -> None:
        waiter = reply.token
        if not isinstance(waiter, Waiter):
            return
        snapshot = None
        if waiter.wants_weights and not isinstance(reply, Refused):
            assert self.parameters is not None
            exact = reply.version if self.spec.traits.barrier else None
            snapshot = self._snapshot(exact)
            if snapshot is None:  # Sync, several shards: v-1 was never here, our state came whole
                gone = Refused(waiter, Refusal.VERSION, self.replica.view, f"version {reply.version} is not here")
                waiter.answer(gone, None, self.replica.view)
                return
            if self.spec.recovery.staleness.policy == "DelayCompensation" and waiter.slot is not None and snapshot:
                self.pull_copies[waiter.slot] = snapshot
        waiter.answer(reply, snapshot, self.replica.view)

    def _snapshot(self, version: int | None) -> Snapshot | None:
        assert self.parameters is not None
        snapshot = self.parameters.snapshot(version)
        if snapshot is not None or version not in (None, self.parameters.version):
            return snapshot  # None: that version is gone
        snapshot = self.serving.snapshot_from_readers(version)
        while snapshot is None and self.pull_copies:
            # DelayCompensation with many slots: the oldest copy's gradient is weighted instead (InverseStaleness).
            self.pull_copies.pop(min(self.pull_copies, key=lambda slot: self.pull_copies[slot].version))
            snapshot = self.parameters.snapshot(version)
        return snapshot

    def export(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """The whole state at this moment: (meta, tensors). Call with the lock held."""
        assert self.parameters is not None
        meta = {"replica": self.replica.export_state(), "initial": self.initial_meta}
        return meta, self.parameters.state_tensors()

    def take_over(
        self,
        meta: dict[str, Any],
        tensors: dict[str, torch.Tensor],
        epoch: int | None = None,
        source: str | None = None,
    ) -> None:
        """Hold this state from now on: from what a view named (`source`), or from the predecessor (with its `epoch`).

        A state that another view has overtaken is not taken.
        """
        event = restored(meta["replica"], epoch, source)
        with self.lock:
            if not self.replica.takes(event):
                log.info("a state of version %d came too late", event.version)
                self._obey(self.replica.step(event))
                return
            if self.parameters is None or self.initial_meta != meta["initial"]:
                self.make_parameters(meta["initial"])
            assert self.parameters is not None
            self.parameters.load_state(tensors, event.version)
            self.durability.took_over(event.version, from_peer=epoch is not None)
            self._obey(self.replica.step(event))
            self.notify()

    # --- views ---

    def install(self, view: View) -> None:
        """Take a recorded view from the operator."""
        with self.lock:
            current = self.replica.view
            if current is None or view.epoch > current.epoch:
                log.info("view %d: %s%s", view.epoch, [m.name for m in view.members], _joining(view))
                self._forget_links()
                self.serving.tell_predecessors_later()
                self.epochs[view.epoch] = {"installed_t": time.monotonic(), "first_update_t": None}
            self._obey(self.replica.step(Install(view)))
            self.relink()
            self.notify()

    def relink(self) -> None:
        """Dial the successor and the joining replicas that the current view gives us."""
        view = self.replica.view
        if view is None:
            return
        wanted: list[Member] = [m for m in (self.replica.successor, *self.replica.joiners) if m is not None]
        for member in wanted:
            if member.boot not in self.links:
                self.links[member.boot] = ChainLink(self, member, view.epoch)

    def _forget_links(self) -> None:
        for link in self.links.values():
            link.close()
        self.links.clear()
        self.broken.clear()

    def finish(self) -> None:
        self.step(Finish())
        self.notify()

    def set_slots(self, slots: int) -> None:
        self.step(SetSlots(slots))

    def notify(self) -> None:
        """Something has happened that a watcher should hear of."""
        with self._notices:
            self._noted += 1
            self._notices.notify_all()

    @property
    def noted(self) -> int:
        return self._noted

    def wait_for_notice(self, seen: int, timeout_s: float) -> int:
        """Wait until there was a notice after the one numbered `seen`; returns the newest one's number."""
        with self._notices:
            self._notices.wait_for(lambda: self._noted != seen, timeout_s)
            return self._noted

    # --- what we say of ourselves ---

    def status(self) -> dict[str, Any]:
        """ServerStatus; the last one known while the lock is held by something slow (Redis away, say)."""
        if self.lock.acquire(timeout=0.05):
            try:
                self._status = self._make_status()
            finally:
                self.lock.release()
        said_without_lock = {"leaving": self.leaving.is_set(), "left": self.left, **self.log_reader.contact()}
        return {**self._status, "t": time.monotonic(), **said_without_lock}

    def _make_status(self) -> dict[str, Any]:
        parameters, replica = self.parameters, self.replica.status()
        return {
            "name": self.config.name,
            "boot": self.boot,
            "shard": self.shard,
            "address": self.listener.address,
            "pid": os.getpid(),
            **replica,
            "serving": self.replica.serving and not self.log_reader.rebuilding,
            "absent": {str(slot): t for slot, t in self.serving.presence.absent().items()},
            "connected": self.serving.presence.connected(),
            "applied_t": self.applied_t,
            "log_end_t": self.log_reader.end_t(),
            "broken": list(self.broken),
            "checkpoints": self.durability.available(),
            "last_states": list(self.durability.last_states),
            "restore_error": self.restore_error,
            "config_error": self.error,
            "views": {str(e): dict(t) for e, t in self.epochs.items()},
            "evaluation": self.evaluation,
            "pushed_bytes": self.serving.pushed_bytes,
            "pulled_bytes": self.serving.pulled_bytes,
            "backlog": self.log_reader.backlog(),
            "buffer_bytes": self.log_reader.buffer_bytes(),
            "buffer_run": self.log_reader.state_run(replica["history"]),
            "parameters": 0 if parameters is None else parameters.numel,
            "replayed": self.replayed,
        }

    def samples(self) -> Iterator[Sample]:
        """For Prometheus."""
        return server_samples(self.status(), self.spec.recovery.buffer.max_bytes)

    def table(self) -> dict[str, Any]:
        """What the surviving state holds, for the report."""
        with self.lock:
            state = self.replica.export_state() if self.parameters is not None else {}
            answer = {
                "applied": self.replica.applied.to_json(),
                "applied_total": self.replica.status()["applied_total"],
                "version": 0 if self.parameters is None else self.parameters.version,
                "history": state.get("history", 0),
                "digest": "" if self.parameters is None else self.parameters.digest(),
            }
        answer["unread"] = self.log_reader.unread()
        return answer


def _joining(view: View) -> str:
    return f", joining {[m.name for m in view.joining]}" if view.joining else ""


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
    publish(config, server.samples)
    if PORT_EXTRA in config.extras:
        serve_readiness(int(config.extras[PORT_EXTRA]), lambda: str(server.status().get("why_not_ready", "it starts")))
    raise SystemExit(server.run_until_left())

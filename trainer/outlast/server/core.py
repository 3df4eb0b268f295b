"""A parameter server's core: step the pure replica and obey what it says, in that order, under one lock.

    requests, links, the log's reader ──▶ step(event) ──▶ Ready: restore, record, apply, publish, send, reply, trim

The rest of the server is behind ports. Nothing slow happens under the lock, with one exception: nothing may be
published before Redis holds what a rebuilt server needs to repeat it. While Redis is away the work stands still, with
the lock held. So `Work` is a generator: it yields where it cannot go on yet, and its driver lets some time pass.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar, cast

from outlast.api.server_status import ViewTimes
from outlast.api.spec import JobSpec
from outlast.api.view import BUFFER, View
from outlast.buffer.types import BufferUnavailable
from outlast.chain.events import (
    Entry,
    Event,
    HigherEpoch,
    Install,
    Kind,
    Ready,
    Refusal,
    Refused,
    Reply,
    Send,
    SendAcks,
    SendEntry,
)
from outlast.chain.replica import Replica
from outlast.chain.state import restored
from outlast.server.ports import Ports, State, Waiter

log = logging.getLogger("outlast.server")

RETRY_S = 0.05  # between two attempts to reach Redis

T = TypeVar("T")
Work = Generator[None, None, T]


class Core:
    """`lock` guards the replica and the state. `connect` it before the first event.

    `step`, `install` and `take_over` may be called by any thread. What returns `Work` is for a driver that holds the
    lock, and does one piece of work at a time.
    """

    ports: Ports

    def __init__(
        self,
        spec: JobSpec,
        replica: Replica,
        state: State,
        notify: Callable[[], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spec, self.replica, self.state = spec, replica, state
        self.notify = notify  # something has happened that watchers should hear of
        self.boot, self.shard = replica.boot, replica.shard
        self.lock = threading.RLock()
        self.views: dict[int, ViewTimes] = {}  # epoch -> times
        self.applied_t: float | None = None  # when the newest entry was applied
        self.replayed = 0  # gradients applied from the buffer
        self.error: str | None = None  # a fault that no restart can fix
        self._rebuilding = 0  # restores from the log asked for and not done yet
        self._sync = spec.traits.barrier
        self._now = now

    def connect(self, ports: Ports) -> None:
        self.ports = ports

    # --- any thread ---

    def step(self, event: Event) -> None:
        """Feed the replica one event and do what it asks."""
        with self.lock:
            self._finish(self.stepping(event))

    def install(self, view: View) -> None:
        """Take a recorded view from the operator."""
        with self.lock:
            self._finish(self.installing(view))

    def take_over(
        self, meta: dict[str, Any], tensors: dict[str, Any], epoch: int | None = None, source: str | None = None
    ) -> None:
        """Hold this state from now on: from what a view named (`source`), or from the predecessor (with its `epoch`).

        A state that another view has overtaken is not taken.
        """
        with self.lock:
            self._finish(self.taking_over(meta, tensors, epoch, source))

    def export(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The whole state at this moment: (meta, tensors), as `take_over` takes it. Call with the lock held."""
        initial, tensors = self.state.export()
        return {"replica": self.replica.export_state(), "initial": initial}, tensors

    def fail(self, message: str) -> None:
        """A fault that no restart can fix: show it in the status, so that the job ends with it."""
        log.error("%s", message)
        with self.lock:
            self.error = message
            self.notify()

    @property
    def history(self) -> int:
        """Of the view."""
        return 0 if self.replica.view is None else self.replica.view.history

    @property
    def rebuilding(self) -> bool:
        """Whether records are still to be replayed: until then no new decision may be taken [record-before-publish]."""
        return self._rebuilding > 0

    def rebuilt(self) -> None:
        """A restore from the log has ended, in success or not."""
        with self.lock:
            self._rebuilding -= 1

    def _finish(self, work: Work[None]) -> None:
        for _ in work:
            time.sleep(RETRY_S)  # Redis is away: nothing tells us when it is back

    # --- with the lock held ---

    def stepping(self, event: Event) -> Work[None]:
        finished = self.replica.finished
        yield from self._obey(self.replica.step(event))
        if self.replica.finished != finished:
            self.notify()

    def installing(self, view: View) -> Work[None]:
        replica, ports = self.replica, self.ports
        if replica.view is None or view.epoch > replica.view.epoch:
            log.info("view %d: %s%s", view.epoch, [m.name for m in view.members], _joining(view))
            ports.links.forget()
            ports.predecessors.tell_later()
            self.views[view.epoch] = ViewTimes(self._now())
        yield from self._obey(replica.step(Install(view)))
        for member in (replica.successor, *replica.joiners):
            if member is not None:
                ports.links.keep(member, replica.epoch)
        self.notify()

    def taking_over(
        self, meta: dict[str, Any], tensors: dict[str, Any], epoch: int | None = None, source: str | None = None
    ) -> Work[None]:
        event = restored(meta["replica"], epoch, source)
        if not self.replica.takes(event):
            log.info("a state of version %d came too late", event.version)
            yield from self._obey(self.replica.step(event))
            return
        self.state.load(meta["initial"], tensors, event.version)
        self.ports.checkpoints.took_over(event.version, from_peer=epoch is not None)
        yield from self._obey(self.replica.step(event))
        self.notify()

    def _obey(self, ready: Ready) -> Work[None]:
        ports = self.ports
        if ready.restore is not None:
            self._restore(ready.restore, ready.reply)
            return
        for record in ready.records:
            if not (yield from _reach(partial(ports.log.record, record))):
                yield from self._fenced()
                return
        for entry in ready.apply:
            self._apply(entry)
        if ready.apply:  # once, after the last: between them the replica says more than the state holds
            yield from _reach(partial(ports.checkpoints.applied, ready.apply[-1]))
        if not (yield from _reach(ports.log.publish)):
            yield from self._fenced()
            return
        for send in ready.send:
            self._send(send)
        for reply in ready.reply:
            self._reply(reply)
        if ready.trim is not None:
            ports.log.trim_to(ready.trim)
        if ready.stop:
            ports.links.forget()
            self.notify()

    def _fenced(self) -> Work[None]:
        """Redis has heard of a higher epoch."""
        yield from self._obey(self.replica.step(HigherEpoch(self.replica.epoch + 1)))

    def _restore(self, source: str, replies: list[Reply]) -> None:
        for reply in replies:
            self._reply(reply)
        self.state.clear()
        if source != "empty":  # empty: the predecessor's state, or a worker's weights, will come
            if source == BUFFER:
                self._rebuilding += 1
            self.ports.checkpoints.restore_later(source)
        self.notify()

    def _apply(self, entry: Entry) -> None:
        self.applied_t = self._now()
        self.state.apply(entry, self.replica)
        if entry.offset:
            self.replayed += sum(i.last - i.first + 1 for i in entry.identities)
        if entry.kind in (Kind.INIT, Kind.CONFIG) or self.rebuilding:
            return  # a replay only brings back what was
        times = self.views.get(self.replica.epoch)
        if times is not None and times.first_update_t is None:
            self.views[self.replica.epoch] = replace(times, first_update_t=self._now())
            self.notify()

    def _send(self, send: Send) -> None:
        if isinstance(send, SendEntry):
            self.ports.links.send_entry(send)
        elif isinstance(send, SendAcks):
            self.ports.predecessors.send_acks(send)
        else:
            self.ports.links.send_state(send.peer)

    def _reply(self, reply: Reply) -> None:
        waiter, weights = cast(Waiter, reply.token), None
        if waiter.wants_weights and not isinstance(reply, Refused):
            weights = self.state.weights(reply.version if self._sync else None, waiter.slot)
            if weights is None:  # Sync, several shards: v-1 was never here, our state came whole
                detail = f"version {reply.version} is not here"
                reply = Refused(reply.token, Refusal.VERSION, self.replica.view, detail)
        waiter.answer(reply, weights, self.replica.view)


def _reach(call: Callable[[], T]) -> Work[T]:
    """Make a call that needs Redis, as often as it takes."""
    while True:
        try:
            return call()
        except BufferUnavailable as error:
            log.info("%s", error)
        yield


def _joining(view: View) -> str:
    return f", joining {[m.name for m in view.joining]}" if view.joining else ""

"""Simulated time, processes and connections. Nothing here knows what is being simulated.

Rules:
1. One heap of events, ordered by (time, number of its making); all chance comes from one `Random`. So a seed is a run.
2. A process runs tasks (generators that yield what they wait for) and handles what its connections bring. A killed one
   does nothing more; a paused one (SIGSTOP) does later what came meanwhile, in order, as its socket buffers hold it.
3. A connection is two in-order streams, as TCP: nothing is lost while it is open. A cut between two names holds
   everything back (end of stream included) until it heals; a connection that is broken loses what is under way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from heapq import heappop, heappush
from random import Random
from typing import Any

Step = Generator["Wait", bool, Any]  # a task; what it yields is waited for, what it gets is whether that came in time


class Disconnected(ConnectionError):
    """Refused, or closed by the other side."""


class Silent(ConnectionError):
    """No answer within the time that was given."""


class Wait:
    """Until `ready()`, at most until the time `until`."""

    __slots__ = ("ready", "until")

    def __init__(self, ready: Callable[[], object] | None, until: float | None = None) -> None:
        self.ready, self.until = ready, until


class Clock:
    """Simulated time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self.count = 0

    def at(self, t: float, what: Callable[[], None]) -> None:
        self.count += 1
        heappush(self._events, (max(t, self.now), self.count, what))

    def step(self) -> bool:
        """Let the next event happen; False when there is none."""
        if not self._events:
            return False
        self.now, _, what = heappop(self._events)
        what()
        return True


class Task:
    """A thread of a process. `locked`: it needs the process's lock, so that it rests while something else holds it."""

    __slots__ = ("done", "locked", "started", "steps", "wait")

    def __init__(self, steps: Step, locked: bool) -> None:
        self.steps, self.locked, self.started, self.done = steps, locked, False, False
        self.wait = Wait(lambda: True)


class Process:
    """Something that can be killed, paused and continued. `busy`: its lock is held by something that waits."""

    def __init__(self, network: Network, name: str) -> None:
        self.network, self.clock, self.rng = network, network.clock, network.rng
        self.name = name
        self.alive, self.paused, self.busy = True, False, False
        self.lost = False  # with its node: it runs on, but the control plane can neither hear nor end it
        self.ends: list[End] = []
        self._tasks: list[Task] = []
        self._mail: deque[tuple[Callable[[], None], bool]] = deque()
        self._woken = False

    @property
    def now(self) -> float:
        return self.clock.now

    def accept(self, end: End, hello: dict[str, Any]) -> None:
        """Somebody dialled us."""
        raise NotImplementedError

    # --- tasks ---

    def spawn(self, steps: Step, locked: bool = True) -> Task:
        task = Task(steps, locked)
        self._tasks.append(task)
        self.wake()
        return task

    def wake(self) -> None:
        """Look, in a moment, which tasks may go on."""
        if not self._woken and self.alive:
            self._woken = True
            self.clock.at(self.now, self._look)

    def _look(self) -> None:
        self._woken = False
        if not self.alive or self.paused:
            return
        ready = [t for t in self._tasks if self._may_go_on(t)]
        if len(ready) > 1:
            self.rng.shuffle(ready)
        for task in ready:
            if self.alive and not self.paused and not task.done and self._may_go_on(task):
                self._resume(task)

    def _may_go_on(self, task: Task) -> bool:
        if task.locked and self.busy:
            return False
        wait = task.wait
        return (wait.until is not None and self.now >= wait.until) or (wait.ready is not None and bool(wait.ready()))

    def _resume(self, task: Task) -> None:
        ready = task.wait.ready
        came = ready is not None and bool(ready())
        try:
            task.wait = task.steps.send(came) if task.started else next(task.steps)
            task.started = True
        except StopIteration:
            task.done = True
            self._tasks = [t for t in self._tasks if t is not task]
            self.wake()
            return
        if task.wait.until is not None:
            self.clock.at(task.wait.until, self.wake)
        if self._may_go_on(task):
            self.wake()

    # --- what comes from outside ---

    def deliver(self, what: Callable[[], None], locked: bool = True) -> None:
        """Handle something now, or as soon as we run again."""
        if not self.alive:
            return
        if self.paused or (self.busy and locked) or (self._mail and locked):
            self._mail.append((what, locked))
            return
        what()
        self.wake()

    def after(self, delay_s: float, what: Callable[[], None], locked: bool = True) -> None:
        """A timer of this process."""
        self.clock.at(self.now + delay_s, lambda: self.deliver(what, locked))

    def free(self) -> None:
        """Handle what was kept, as far as we may."""
        while self._mail and self.alive and not self.paused and not self.busy:
            what, _ = self._mail.popleft()
            what()
        self.wake()

    # --- signals ---

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        if self.paused:
            self.paused = False
            self.clock.at(self.now, self.free)

    def kill(self) -> None:
        """End at once; the kernel closes the connections."""
        self.alive = False
        self._mail.clear()
        self._tasks = []
        for end in list(self.ends):
            end.close()


class End:
    """One side of a connection: what came in stands in `inbox`, unless a `handler` takes it at once."""

    def __init__(self, process: Process, other_name: str) -> None:
        self.process, self.other_name = process, other_name
        self.peer: End = self
        self.inbox: deque[Any] = deque()
        self.handler: Callable[[Any], None] | None = None
        self.on_close: Callable[[], None] | None = None
        self.closed = False  # as far as this side knows
        self.on_way = 0  # sent by us and not yet taken by the peer
        self._arrival = 0.0
        self.held: deque[Any] = deque()  # sent by us, kept back by a cut
        process.ends.append(self)

    def send(self, message: Any) -> None:
        """Raises `Disconnected`."""
        if self.closed:
            raise Disconnected(f"connection to {self.other_name} is closed")
        self.on_way += 1
        self._transmit(message)

    def close(self) -> None:
        """End both streams; the peer hears of it after what was sent before."""
        if self in self.process.ends:
            self.process.ends.remove(self)
        if not self.closed:
            self.closed = True
            self._transmit(None)

    def abort(self) -> None:
        """Break the connection: what is under way is lost, both sides hear of it at once."""
        for side in (self, self.peer):
            if not side.closed:
                side.closed = True
                if side in side.process.ends:
                    side.process.ends.remove(side)
                side.process.deliver(side.on_close or (lambda: None))

    def _transmit(self, message: Any) -> None:
        network = self.process.network
        self._arrival = max(self._arrival, network.clock.now + network.delay_s())
        network.clock.at(self._arrival, lambda: self._arrive(message))

    def _arrive(self, message: Any) -> None:
        if self.held or self.process.network.is_cut(self.process.name, self.peer.process.name):
            self.held.append(message)
            self.process.network.holding.append(self)
        else:
            self.peer.process.deliver(lambda: self.peer._receive(message))

    def flush(self) -> None:
        """The cut has healed."""
        while self.held:
            message = self.held.popleft()
            self.peer.process.deliver(lambda m=message: self.peer._receive(m))  # type: ignore[misc]

    def _receive(self, message: Any) -> None:
        if message is None:
            if not self.closed:
                self.closed = True
                if self in self.process.ends:
                    self.process.ends.remove(self)
                if self.on_close is not None:
                    self.on_close()
            return
        self.peer.on_way -= 1
        self.peer.process.wake()
        if self.closed:
            return
        if self.handler is not None:
            self.handler(message)
        else:
            self.inbox.append(message)

    def receive(self, timeout_s: float | None = None) -> Step:
        """The next message. Raises `Disconnected`, `Silent`."""
        until = None if timeout_s is None else self.process.now + timeout_s
        yield Wait(lambda: self.inbox or self.closed, until)
        if self.inbox:
            return self.inbox.popleft()
        if self.closed:
            raise Disconnected(f"{self.other_name} closed the connection")
        raise Silent(f"{self.other_name} was silent for {timeout_s} s")

    def drained(self, timeout_s: float) -> Step:
        """Wait until the peer has taken what was sent: a large message fills the socket's buffers."""
        yield Wait(lambda: self.on_way <= 1 or self.closed, self.process.now + timeout_s)
        if self.closed:
            raise Disconnected(f"{self.other_name} closed the connection")
        if self.on_way > 1:
            raise Silent(f"{self.other_name} took nothing for {timeout_s} s")


class Network:
    """Names that listen, delays and cuts."""

    def __init__(self, clock: Clock, rng: Random) -> None:
        self.clock, self.rng = clock, rng
        self.listening: dict[str, Process] = {}
        self.cuts: set[frozenset[str]] = set()
        self.holding: deque[End] = deque()
        self.slow = 0.0  # the share of messages that take long
        self.slow_s = 0.3

    def delay_s(self) -> float:
        if self.slow and self.rng.random() < self.slow:
            return self.rng.uniform(0.01, self.slow_s)
        return self.rng.uniform(0.0002, 0.002)

    def is_cut(self, a: str, b: str) -> bool:
        return bool(self.cuts) and frozenset((a, b)) in self.cuts

    def cut(self, a: str, b: str) -> None:
        self.cuts.add(frozenset((a, b)))

    def heal(self, a: str, b: str) -> None:
        self.cuts.discard(frozenset((a, b)))
        ends, self.holding = self.holding, deque()
        for end in ends:
            if self.is_cut(end.process.name, end.peer.process.name):
                self.holding.append(end)
            else:
                end.flush()

    def drop(self, a: str, b: str) -> int:
        """Break every connection between two names; returns how many."""
        broken = 0
        for process in list(self.listening.values()):
            if process.name in (a, b):
                for end in list(process.ends):
                    if end.other_name in (a, b) and not end.closed:
                        end.abort()
                        broken += 1
        return broken

    def dial(self, process: Process, name: str, hello: dict[str, Any], timeout_s: float) -> Step:
        """Connect and say hello. Returns (end, welcome). Raises `Disconnected` when refused, `Silent`."""
        yield Wait(None, process.now + self.delay_s())
        if self.is_cut(process.name, name):
            yield Wait(lambda: not self.is_cut(process.name, name), process.now + timeout_s)
            if self.is_cut(process.name, name):
                raise Silent(f"{name} cannot be reached")
        target = self.listening.get(name)
        if target is None or not target.alive:
            raise Disconnected(f"{name} refused the connection")
        end, there = End(process, name), End(target, process.name)
        end.peer, there.peer = there, end
        end._arrival = there._arrival = self.clock.now
        accept = target.accept
        there.handler = lambda message: accept(there, message)
        try:
            end.send(hello)
            welcome = yield from end.receive(timeout_s)
        except ConnectionError:
            end.close()
            raise
        return end, welcome

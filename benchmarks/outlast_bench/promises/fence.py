"""What a paused head does when it goes on: three real servers, views installed by hand, and nobody who ends anybody.

    slot 0 and slot 1 push to A (head), B, C in epoch 1      A is stopped; slot 1's next push waits in A's socket
    view 2: B, C                                             slot 0 goes on with B
    A is continued                                           slot 1 keeps pushing to A, in its own epoch and in B's

Slot 1 speaks the protocol itself: a client of the SDK would ask for the view and leave A alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import asdict, dataclass
from typing import Any

from outlast.chain.applied import Applied
from outlast.wire.connection import Connection, PeerTimeout
from outlast.wire.dial import connect
from outlast.wire.frames import DType, Flag, Header, Op
from outlast_bench.promises.common import BenchError, make_job
from outlast_bench.promises.processes import Standing, server, server_config, until, view_of, workplace

NUMEL = 10_000  # a push fits into the socket's buffer: it can be sent to a process that is stopped
PUSHES = 5
LINGER_S = 1.0  # how long the continued head is pushed at


@dataclass(frozen=True)
class Fenced:
    """Answers of the old head after SIGCONT. `in_new_chain`: slot 1's steps that came into the model through it."""

    sent: int
    acknowledged: int
    refused: int
    closed: int
    in_new_chain: int
    new_chain_applied: int

    def figures(self) -> dict[str, int]:
        return asdict(self)


class Pusher:
    """One slot's line to one server, without the SDK's care."""

    def __init__(self, to: Standing, slot: int) -> None:
        self.slot, self.to = slot, to
        self.connection: Connection = self._dial()

    def _dial(self) -> Connection:
        hello = {"role": "worker", "name": f"worker-{self.slot}"}
        connection, _ = connect(self.to.member.address, self.to.config.job_uid, self.to.config.token, hello, 10.0)
        return connection

    def send(self, step: int, epoch: int, payload: memoryview, meta: dict[str, Any] | None = None) -> None:
        flags = 0 if meta is None else Flag.INIT
        header = Header(
            Op.PUSH, DType.FLOAT32, flags, slot=self.slot, incarnation=1, epoch=epoch, first_step=step, step=step
        )
        self.connection.send(header, meta, payload)

    def answer(self, timeout_s: float = 10.0) -> int:
        """The next answer's op. Raises `ConnectionError`."""
        self.connection.set_timeout(timeout_s, timeout_s)
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            header, _ = self.connection.receive()
            if header.op != Op.WAITING:
                return header.op
        raise BenchError(f"{self.to.member.name} kept slot {self.slot} waiting for {timeout_s:g} s")

    def push(self, step: int, epoch: int, payload: memoryview, meta: dict[str, Any] | None = None) -> None:
        """Send and insist on an acknowledgement."""
        self.send(step, epoch, payload, meta)
        op = self.answer()
        if op != Op.ACKNOWLEDGED:
            raise BenchError(f"slot {self.slot}, step {step}: {self.to.member.name} answered with op {op}")

    def again(self) -> None:
        self.connection.close()
        self.connection = self._dial()


def old_head_goes_on(seed: int) -> Fenced:
    """Pause a head, give its chain another, continue it, and count what it still acknowledges."""
    spec = make_job("fence", "Chain", updates=1_000_000, seed=seed, args={"parameters": NUMEL}).spec.to_json()
    with workplace() as root, contextlib.ExitStack() as stack:
        config = server_config(spec, [f"unix:{root}/{name}.sock" for name in "abc"])
        a, b, c = (stack.enter_context(server(config, i, root)) for i in range(3))
        for standing in (a, b, c):
            standing.control.install(view_of(1, [a, b, c]))
        until(lambda: all(s.control.probe().epoch == 1 for s in (a, b, c)), "the first view", 20.0)
        payload = memoryview(bytearray(NUMEL * 4))
        ours, cut_off = Pusher(a, 0), Pusher(a, 1)
        ours.push(0, 1, payload, _initial(spec))
        for step in range(1, PUSHES + 1):
            ours.push(step, 1, payload)
            cut_off.push(step, 1, payload)
        before = b.control.probe().applied
        os.kill(a.pid, signal.SIGSTOP)
        try:
            cut_off.send(PUSHES + 1, 1, payload)
            for standing in (b, c):
                standing.control.install(view_of(2, [b, c]))
            until(lambda: b.control.probe().serving, "the successor serving", 20.0)
            ours = Pusher(b, 0)
            for step in range(PUSHES + 1, 2 * PUSHES + 1):
                ours.push(step, 2, payload)
            applied = b.control.probe().applied - before
        finally:
            os.kill(a.pid, signal.SIGCONT)
        return _press(cut_off, b, payload, applied)


def _press(cut_off: Pusher, head: Standing, payload: memoryview, applied: int) -> Fenced:
    """Push at the old head for LINGER_S, beginning with the answer to what it received while it was stopped."""
    sent, acknowledged, refused, closed = 1, 0, 0, 0
    step, waiting = PUSHES + 1, True
    end = 0.0
    while waiting or time.monotonic() < end:
        try:
            if not waiting:
                step += 1
                cut_off.send(step, 1 + step % 2, payload)
                sent += 1
            op = cut_off.answer()
            acknowledged += op == Op.ACKNOWLEDGED
            refused += op == Op.REFUSED
        except PeerTimeout as error:
            raise BenchError("the continued head is silent: it answers neither yes nor no") from error
        except ConnectionError:
            closed += 1
            with contextlib.suppress(ConnectionError):
                cut_off.again()
        if waiting:
            waiting, end = False, time.monotonic() + LINGER_S
        time.sleep(0.01)
    held = head.control.table()["applied"]
    return Fenced(sent, acknowledged, refused, closed, max(0, _steps(held, 1) - PUSHES), applied)


def _steps(table: dict[str, Any], slot: int) -> int:
    return sum(last - first + 1 for first, last in Applied.from_json(table).intervals(slot))


def _initial(spec: dict[str, Any]) -> dict[str, Any]:
    """The meta of initial weights for one tensor of NUMEL parameters."""
    from outlast.api.job import read_spec
    from outlast.model import optimizers

    place = {"name": "w", "shape": [NUMEL], "dtype": "float32", "offset": 0, "numel": NUMEL, "group": 0}
    return {
        "manifest": {"places": [place], "parameters": NUMEL, "numel": NUMEL},
        "optimizer": optimizers.spec_description(read_spec(spec).training.optimizer),
        "start": 0,
        "stop": NUMEL,
    }

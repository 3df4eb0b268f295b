"""Threads that listen: one to each server (status as it changes), one to Redis. They keep the newest report and wake.

A watch decides nothing. It calls `wake` on changes that a plan could act on; a growing version is none (the planner
looks at each heartbeat anyway), but reaching the job's goal is.

Only the peer's own host can report its absence: it refuses (ECONNREFUSED), resets or ends a connection. Every other
error (no route, no descriptor, a refused handshake) is the operator's own, and counts as silence.

An address may become another pod's: before each new connection the watch asks whether the address is still the peer's
(`may_dial`). An established connection is kept until it ends, because its end is the proof of a death.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from outlast.api.server_status import ServerStatus
from outlast.wire.control import ServerControl
from outlast_operator.planner.observed import Probe, RedisState
from outlast_operator.runtime.redis import pause_appends, redis_run_id, shut_down

log = logging.getLogger("outlast.watches")

CLOSED = (ConnectionRefusedError, ConnectionResetError, BrokenPipeError)
RETRY_S = 0.05  # between two attempts to connect: a started server answers within this of being ready
REDIS_RETRY_S = (0.05, 2.0)  # the first, and the longest after ever longer ones


class ServerWatch:
    """Listens to the server behind one name and address, across its restarts. `probe` is the last status heard."""

    def __init__(
        self,
        address: str,
        job_uid: str,
        token: str,
        silence_s: float,
        wake: Callable[[], None],
        goal_version: int | None = None,
        clock: Callable[[], float] | None = None,
        may_dial: Callable[[], bool] = lambda: True,
    ) -> None:
        """`clock` is the runtime's, where it is not the servers' own monotonic one (another host): times are converted
        by the smallest difference seen, that of the status that was under way for the shortest time."""
        self.address = address
        self.control = ServerControl(address, job_uid, token, silence_s, may_dial)
        self.probe: Probe | None = None
        self.t_closed: float | None = None  # when the peer last ended a connection on which it had spoken
        self._speaks = False  # on the connection of now
        self._silence_s = silence_s
        self._wake = wake
        self._goal_version = goal_version
        self._clock = clock
        self._offsets: dict[str, float] = {}  # boot -> seconds to add to its times
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watch-{address}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stopped.set()
        self.control.close()

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._speaks = False
            try:
                for status in self.control.watch(self._silence_s):
                    self._heard(self._probe(status))
            except CLOSED:
                self._refused()
            except OSError as error:  # it may be slow or stopped: `t_heard` tells the planner for how long
                log.debug("watch of %s: %s", self.address, error)
            except Exception:
                log.exception("watch of %s: unreadable status", self.address)
            self._stopped.wait(RETRY_S)

    def _probe(self, status: ServerStatus) -> Probe:
        if self._clock is None:
            return Probe.of(status, time.monotonic())
        now = self._clock()
        offset_s = min(self._offsets.get(status.boot, math.inf), now - status.t)
        self._offsets = {status.boot: offset_s}
        return Probe.of(status, now, offset_s)

    def _heard(self, probe: Probe) -> None:
        before, self.probe, self._speaks = self.probe, probe, True
        if before is None or self._notable(before) != self._notable(probe):
            self._wake()

    def _refused(self) -> None:
        if self._speaks:
            self.t_closed = time.monotonic() if self._clock is None else self._clock()
        if self.probe is not None and not self.probe.refused:
            self.probe = replace(self.probe, refused=True)
            self._wake()

    def _notable(self, probe: Probe) -> tuple[Any, ...]:
        reached = self._goal_version is not None and probe.version >= self._goal_version
        return probe.notable(), probe.refused, reached


class RedisWatch:
    """Asks Redis each `interval_s` who it is. `state.run_id` changes when Redis restarts."""

    _paused: str | None = None  # the run that takes no gradients any more

    def __init__(
        self, url: str, interval_s: float, wake: Callable[[], None], may_dial: Callable[[], bool] = lambda: True
    ) -> None:
        """Each question is a connection of its own, and tells the password."""
        self.state = RedisState()
        self._url, self._may_dial = url, may_dial
        self._interval_s = interval_s
        self._wake = wake
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="watch-redis", daemon=True).start()

    def close(self) -> None:
        self._stopped.set()

    def pause_appends(self, job_uid: str) -> None:
        if self._may_dial() and pause_appends(self._url, job_uid):
            self._paused = self.state.run_id
            self._wake()

    def shut_down(self) -> None:
        if self._may_dial():
            shut_down(self._url)

    def _run(self) -> None:
        retry_s, longest_s = REDIS_RETRY_S
        while not self._stopped.is_set():
            answer = redis_run_id(self._url, timeout_s=self._interval_s * 2) if self._may_dial() else None
            run_id = answer or self.state.run_id
            paused = run_id is not None and run_id == self._paused
            state = RedisState(up=answer is not None, run_id=run_id, paused=paused)
            if state != self.state:
                self.state = state
                self._wake()
            self._stopped.wait(self._interval_s if state.up else retry_s)
            retry_s = REDIS_RETRY_S[0] if state.up else min(2 * retry_s, longest_s)

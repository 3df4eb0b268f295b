"""The operator's clock: wall time, but never set back or forward while it runs.

Recorded times must mean the same to the next operator; intervals measured within one must survive a change of the
system clock. So this clock starts at wall time and advances monotonically.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

_START = time.time() - time.monotonic()


def now() -> float:
    """Seconds since the epoch."""
    return _START + time.monotonic()


class Pulse:
    """Notices when this whole process was held up (stopped, starved): silence meanwhile proves nothing.

    The first caller after a stop sees the gap, whether or not the pulse has beaten again.
    """

    PERIOD_S, HELD_UP_S = 0.1, 0.5

    def __init__(self, clock: Callable[[], float] = now) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._beat, self._resumed = clock(), -math.inf

    def start(self) -> None:
        threading.Thread(target=self._beat_for_ever, name="pulse", daemon=True).start()

    def t_resumed(self) -> float:
        """When this process last went on after it had been held up; minus infinity if it never was."""
        with self._lock:
            t = self._clock()
            if t - self._beat > self.HELD_UP_S:
                self._resumed = t
            self._beat = t
            return self._resumed

    def _beat_for_ever(self) -> None:
        while True:
            time.sleep(self.PERIOD_S)
            self.t_resumed()

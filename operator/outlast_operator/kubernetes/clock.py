"""The operator's clock: wall time, but never set back or forward while it runs.

Times that are recorded must mean the same to the next operator; intervals measured within one must survive that
somebody sets the clock. So it starts at wall time and goes on monotonically.
"""

from __future__ import annotations

import time

_START = time.time() - time.monotonic()


def now() -> float:
    """Seconds since the epoch."""
    return _START + time.monotonic()

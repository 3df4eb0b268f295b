"""Memory that the machine has at hand, before a bench that will want much of it.

A virtual machine's host often backs a page only when it is first touched, which takes several times as long as using
one that was touched before: a log that grows by 200 MB/s is then measured at the speed of the host's memory management.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable

import psutil

_PIECE = 256 << 20
_SHARE = 0.7  # of what is available


def touch(want_bytes: int, told: Callable[[str], None]) -> dict[str, float]:
    """Touch as much memory once, as far as it is available, and give it back. Tells the progress now and then.

    Returns how much it was, in MB, and the slowest and fastest speed of a 256 MiB piece, in MB/s.
    """
    size = min(want_bytes, int(psutil.virtual_memory().available * _SHARE)) // _PIECE * _PIECE
    speeds = []
    if size:
        with mmap.mmap(-1, size) as memory:
            for start in range(0, size, _PIECE):
                begin = time.monotonic()
                for page in range(start, start + _PIECE, mmap.PAGESIZE):
                    memory[page] = 1
                speeds.append(_PIECE / 1e6 / (time.monotonic() - begin))
                told(f"memory is touched once: {(start + _PIECE) / 1e9:.1f} of {size / 1e9:.1f} GB")
    return {
        "touched_mb": round(size / 1e6),
        "slowest_mb_per_s": round(min(speeds, default=0.0)),
        "fastest_mb_per_s": round(max(speeds, default=0.0)),
    }

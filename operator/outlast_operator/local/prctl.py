"""Two Linux process attributes that the standard library does not reach.

`die_with_parent` makes a chain of processes in which nobody outlives the one above; `adopt_orphans` lets the top of
that chain reap (and end) what a dead link left behind.
"""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)  # at import: a freshly forked child should do as little as possible


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl({option}) failed: {os.strerror(error)}")


def die_with_parent(parent_pid: int) -> None:
    """Ask the kernel to SIGKILL this process when the thread that started it ends.

    `parent_pid` is the parent as it was before this process started: had it died before the request was placed, no
    signal would ever come, so this process ends itself then.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies (instead of init)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def children(pid: int) -> list[int]:
    """Pids of the direct children of a process; empty when it is gone."""
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    found: list[int] = []
    for task in tasks:
        try:
            with open(f"/proc/{pid}/task/{task}/children") as file:
                found += [int(word) for word in file.read().split()]
        except OSError:
            continue
    return found


def thread_names(pid: int | None = None) -> list[str]:
    """Names of the threads of a process (this one by default), the main thread first."""
    base = f"/proc/{pid or os.getpid()}/task"
    names = []
    for task in sorted(os.listdir(base), key=int):
        with open(f"{base}/{task}/comm") as file:
            names.append(file.read().strip())
    return names

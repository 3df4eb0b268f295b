"""What Linux tells of processes and the standard library does not.

`die_with_parent` (outlast.process.prctl) makes a chain of processes in which none outlives the one above;
`adopt_orphans` lets the top of that chain reap (and end) what a dead link left behind.
"""

from __future__ import annotations

import os

from outlast.process.prctl import prctl

_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies (instead of init)."""
    prctl(_PR_SET_CHILD_SUBREAPER, 1)


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

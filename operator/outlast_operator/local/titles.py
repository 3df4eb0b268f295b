"""The name under which `ps` and `top` show a process of a local run."""

from __future__ import annotations

import os


def name_process(name: str, job: str) -> None:
    """Show this process as `outlast NAME (JOB)`, and its main thread, which `top` lists, as NAME (15 characters)."""
    # Read by setproctitle when it is imported: the title then stays out of what /proc/PID/environ shows.
    os.environ["SPT_NOENV"] = "1"
    try:
        import setproctitle
    except ImportError:
        return  # a run does without names

    setproctitle.setproctitle(f"outlast {name} ({job})")
    setproctitle.setthreadtitle(name)

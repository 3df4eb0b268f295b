"""Rules for every test.

- Directories give markers: tests/integration is `integration`, tests/apiserver and tests/e2e are `cluster`.
- Nobody leaves processes behind: when the session ends, no child and no orphan of a test may live. Whoever does is
  named, with the test during which it first appeared, and ended; the session fails.
- Where OUTLAST_TEST_COUNTS names a file, a session adds its counts to it: `make test` has two sessions.
- hypothesis has no deadline (two shared cores stall now and then); on CI its examples are the same in every run.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import settings

MARK_OF = {"integration": "integration", "apiserver": "cluster", "e2e": "cluster"}
SESSION_VARIABLE = "OUTLAST_TEST_SESSION"  # inherited by what tests start: finds orphans whose parent is gone
COUNTS_VARIABLE = "OUTLAST_TEST_COUNTS"
GRACE_S = 5.0  # what is on its way out may still go
# Belong to the interpreter, not to a test: multiprocessing's helper lives until its parent exits.
HELPERS = ("multiprocessing.resource_tracker",)

settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")

_first_seen: dict[int, str] = {}  # pid of a direct child -> the test during which it appeared


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        layer = item.path.relative_to(here).parts[0] if item.path.is_relative_to(here) else ""
        if layer in MARK_OF:
            item.add_marker(MARK_OF[layer])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    path = os.environ.get(COUNTS_VARIABLE)
    if path is None or hasattr(config, "workerinput"):  # what xdist's workers counted, their controller counts again
        return
    count = {outcome: len(reports) for outcome, reports in terminalreporter.stats.items()}
    failed = count.get("failed", 0) + count.get("error", 0)
    with open(path, "a") as file:
        file.write(f"{count.get('passed', 0)} {failed} {count.get('skipped', 0)}\n")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    result = yield
    for children in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that ended meanwhile
            for pid in children.read_text().split():
                _first_seen.setdefault(int(pid), item.nodeid)
    return result


@pytest.fixture(scope="session", autouse=True)
def no_leftovers() -> Iterator[None]:
    """Fail the session if processes that a test started outlive it (after `GRACE_S`), and end them."""
    token = secrets.token_hex(8)
    os.environ[SESSION_VARIABLE] = token
    yield
    deadline = time.monotonic() + GRACE_S
    while (left := leftovers(token)) and time.monotonic() < deadline:
        psutil.wait_procs(left, timeout=0.1)
    if not left:
        return
    named = [f"pid {p.pid} ({_first_seen.get(p.pid, 'by a process of a test')}): {_command(p)}" for p in left]
    for process in left:
        process.kill()
    psutil.wait_procs(left, timeout=GRACE_S)
    pytest.fail(
        "tests left processes behind; each test must end what it starts:\n  " + "\n  ".join(named), pytrace=False
    )


def leftovers(token: str) -> list[psutil.Process]:
    """Living descendants of this process, and any other process whose environment carries `token`."""
    found = {p.pid: p for p in psutil.Process().children(recursive=True)}
    for process in psutil.process_iter():
        if process.pid != os.getpid() and process.pid not in found and _session_of(process) == token:
            found[process.pid] = process
    return [p for p in found.values() if _lives(p)]


def _session_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(SESSION_VARIABLE)
    except psutil.Error:
        return None


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and not any(h in _command(process) for h in HELPERS)
    except psutil.NoSuchProcess:
        return False


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()) or process.name()
    except psutil.Error:
        return "?"

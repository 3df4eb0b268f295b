"""The operator's process around kopf: a signal ends it."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from outlast_operator.kubernetes import handlers


@pytest.mark.timeout(30)
def test_what_kopf_waits_for_in_a_thread_does_not_outlive_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else asyncio waits for that thread for ever: the process goes on leading, and its watches have ended."""

    async def ends_by_a_signal(*, stop_flag: threading.Event, **_: Any) -> None:
        asyncio.get_running_loop().run_in_executor(None, stop_flag.wait)  # as kopf waits for a flag of another thread

    monkeypatch.setattr(handlers.kopf, "operator", ends_by_a_signal)
    monkeypatch.setattr(handlers, "make_registry", lambda controller, end: None)
    stop = threading.Event()
    asyncio.run(handlers._watch(None, None, threading.Event(), stop))  # type: ignore[arg-type]
    assert stop.is_set()

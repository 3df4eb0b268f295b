"""One rule for every process of the data plane: a thread that fails takes its process with it.

A server or worker that lost one of its threads would go on half: it answers probes, and never again what that thread
was for. Dead, it is noticed at once, and replaced.
"""

from __future__ import annotations

import logging
import os
import threading

from outlast.process.exit_codes import EXIT_FAILED

log = logging.getLogger("outlast.process")


def fail_stop() -> None:
    """From now on an exception that escapes from any thread but the main one ends the process, with its trace."""
    threading.excepthook = _end


def _end(escaped: threading.ExceptHookArgs) -> None:
    name = escaped.thread.name if escaped.thread is not None else "a thread"
    error = escaped.exc_value
    trace = None if error is None else (escaped.exc_type, error, escaped.exc_traceback)
    log.critical("%s failed; this process ends, to be replaced: %r", name, error, exc_info=trace)
    logging.shutdown()
    os._exit(EXIT_FAILED)

"""The worker's thread that appends gradients to the log in Redis.

Redis itself may die: what it has not acknowledged stays in the worker's memory, bounded, and is tried again.
"""

from __future__ import annotations

import logging
import threading

from outlast.api.config import ProcessConfig
from outlast.api.spec import JobSpec
from outlast.buffer.log import GradientLog
from outlast.buffer.types import AppendResult, BufferFull, BufferMisconfigured, BufferUnavailable
from outlast.worker.events import Outgoing
from outlast.worker.outbox import Outbox

log = logging.getLogger("outlast.client")

_RETRY_S = 0.1


class Appender:
    """Appends what the session hands to the buffer, in order. `ranges[shard]`: its part of the flat vector."""

    def __init__(self, config: ProcessConfig, spec: JobSpec, outbox: Outbox, ranges: list[tuple[int, int]]) -> None:
        self._outbox, self._session, self._ranges = outbox, outbox.session, ranges
        self._slot, self._incarnation = config.slot, config.incarnation
        self._drops = spec.recovery.buffer.when_full == "Drop"
        url = spec.recovery.buffer.url or config.redis_url
        assert url is not None
        self.log = GradientLog(
            url, config.job_uid, len(config.servers), max_bytes=spec.recovery.buffer.max_bytes,
            dtype=spec.recovery.buffer.dtype,
        )  # fmt: skip
        self._thread = threading.Thread(target=self._run, name="append", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def take_over(self) -> int:
        """Fence the slot's older processes in the log, then return the highest step that it has seen of them (invariant
        incarnation-fences: one that lives on, cut off from the control plane alone, appends nothing afterwards).

        Waits while Redis does not answer: without that step the slot would take steps that the log holds already.
        """
        outbox = self._outbox
        while True:
            try:
                newest = self.log.fence(self._slot, self._incarnation)
                with outbox.condition:
                    outbox.fenced = outbox.fenced or newest > self._incarnation
                return self.log.highest_step(self._slot)
            except BufferUnavailable as error:
                log.warning("%s", error)
                with outbox.condition:
                    outbox.condition.wait(_RETRY_S)

    def _run(self) -> None:
        outbox, session = self._outbox, self._session
        while True:
            with outbox.condition:
                outbox.condition.wait_for(lambda: outbox.closed or session.next_for_buffer() is not None)
                item = session.next_for_buffer()
                if outbox.closed or item is None:
                    return
            self._append(item)

    def _append(self, item: Outgoing) -> None:
        outbox, session = self._outbox, self._session
        result: AppendResult | None
        try:
            result = self.log.append(
                self._slot,
                self._incarnation,
                item.history,
                max(item.versions),
                item.kind,
                item.first,
                item.last,
                item.lr_scale,
                [item.payload.tensor[a:b] for a, b in self._ranges],
            )
        except BufferUnavailable as error:
            log.warning("%s", error)
            result = None
        except BufferFull as error:
            log.warning("%s", error)
            result = AppendResult.FULL
        except BufferMisconfigured as error:
            outbox.fail(str(error))
            return
        with outbox.condition:
            if result in (AppendResult.OK, AppendResult.DUPLICATE):
                session.buffered(item)
            elif result is AppendResult.CLOSED:
                session.buffered(item, closed=True)
            elif result is AppendResult.FENCED:
                outbox.fenced = True
            elif result is AppendResult.FULL and self._drops:
                session.dropped(item)
            else:  # full, or Redis away: keep it, and give the heads a chance
                session.take_back()
                outbox.condition.wait(_RETRY_S)
            outbox.settle()

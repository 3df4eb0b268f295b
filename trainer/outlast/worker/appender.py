"""The worker's thread that appends gradients to the log in Redis.

Redis itself may die: what it has not acknowledged stays in the worker's memory, bounded, and is tried again.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from outlast.buffer.log import GradientLog
from outlast.buffer.types import AppendResult, BufferFull, BufferMisconfigured, BufferUnavailable
from outlast.worker.events import Outgoing

if TYPE_CHECKING:
    from outlast.worker.client import Client

log = logging.getLogger("outlast.client")

_RETRY_S = 0.1


class Appender:
    """Appends what the session hands to the buffer, in order."""

    def __init__(self, client: Client) -> None:
        self._client = client
        spec, config = client.spec, client.config
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
        client = self._client
        slot, incarnation = client.config.slot, client.config.incarnation
        while True:
            try:
                newest = self.log.fence(slot, incarnation)
                with client.condition:
                    client.fenced = client.fenced or newest > incarnation
                return self.log.highest_step(slot)
            except BufferUnavailable as error:
                log.warning("%s", error)
                with client.condition:
                    client.condition.wait(_RETRY_S)

    def _run(self) -> None:
        client = self._client
        while True:
            with client.condition:
                client.condition.wait_for(lambda: client.closed or client.session.next_for_buffer() is not None)
                item = client.session.next_for_buffer()
                if client.closed or item is None:
                    return
            self._append(item)

    def _append(self, item: Outgoing) -> None:
        client = self._client
        result: AppendResult | None
        try:
            result = self.log.append(
                client.config.slot,
                client.config.incarnation,
                item.history,
                max(item.versions),
                item.kind,
                item.first,
                item.last,
                item.lr_scale,
                [item.payload.tensor[a:b] for a, b in client.ranges],
            )
        except BufferUnavailable as error:
            log.warning("%s", error)
            result = None
        except BufferFull as error:
            log.warning("%s", error)
            result = AppendResult.FULL
        except BufferMisconfigured as error:
            with client.condition:
                client.failure = str(error)
                client.settle()
            return
        full = result is AppendResult.FULL
        with client.condition:
            if result in (AppendResult.OK, AppendResult.DUPLICATE):
                client.session.buffered(item)
            elif result is AppendResult.CLOSED:
                client.session.buffered(item, closed=True)
            elif result is AppendResult.FENCED:
                client.fenced = True
            elif full and client.spec.recovery.buffer.when_full == "Drop":
                client.session.dropped(item)
            else:  # full, or Redis away: keep it, and give the heads a chance
                client.session.take_back()
                client.condition.wait(_RETRY_S)
            client.settle()

"""What a worker has on its way: its session, the gradients without an outcome, and the lock that guards both.

Every thread of a worker that moves gradients (the training loop, one thread a shard, the appender) takes `condition`
to speak to the session; one that may have settled gradients calls `settle()` before it lets go.
"""

from __future__ import annotations

import threading

from outlast.process.ledger import Fact, LedgerWriter
from outlast.process.metrics import WorkerCounts
from outlast.worker.events import Notice, Outcome, Outgoing
from outlast.worker.session import Session

FACTS = {Outcome.SERVER: Fact.ACKNOWLEDGED, Outcome.BUFFER: Fact.BUFFERED, Outcome.UNAPPLIED: Fact.UNAPPLIED}


class Outbox:
    """Gradients from `submit` to their outcome, and why there may be no more of them."""

    def __init__(self, session: Session, ledger: LedgerWriter | None) -> None:
        self.session = session
        self.condition = threading.Condition()
        self.counts = WorkerCounts()
        self.fenced = False  # a newer process has this slot
        self.failure: str | None = None  # what no other connection would mend
        self.closed = False
        self.resync = False  # Sync: the servers said that this worker must pull again
        self._open: list[Outgoing] = []
        self._ledger = ledger

    @property
    def stopped(self) -> bool:
        """Whether nothing more will be acknowledged."""
        return self.session.finished or self.fenced or self.failure is not None or self.closed

    def submit(self, item: Outgoing) -> None:
        with self.condition:
            self.session.submit(item)
            self._open.append(item)
            self._write_outcomes()
            self.condition.notify_all()

    def record(self, fact: Fact, first: int, last: int) -> None:
        """Count steps `first` to `last`, and write them to the ledger, if there is one."""
        self.counts.gradients[fact] += last - first + 1
        if self._ledger is not None:
            self._ledger.write(fact, first, last)

    def fail(self, reason: str) -> None:
        with self.condition:
            self.failure = reason
            self.condition.notify_all()

    def close(self) -> None:
        with self.condition:
            self.closed = True
            self.condition.notify_all()
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None

    # --- with the lock held ---

    def settle(self) -> None:
        """Take the session's notices, write down what has become of gradients, wake the other threads."""
        for notice in self.session.take_notices():
            if notice is Notice.FENCED:
                self.fenced = True
            elif notice is Notice.RESYNC:
                self.resync = True
        self._write_outcomes()
        self.condition.notify_all()

    def _write_outcomes(self) -> None:
        """Write down what has become of gradients, and release their memory."""
        still = []
        for item in self._open:
            if item.outcome is None:
                still.append(item)
                continue
            fact = FACTS.get(item.outcome)
            if fact is not None:
                self.record(fact, item.first, item.last)
        self._open = still

"""What the log's parts share: keys, connections to Redis, the codec, and scripts guarded by an epoch.

Three connections: small commands, large values, and the blocking read. Any thread may use any of them.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

from outlast.buffer.codec import Codec
from outlast.buffer.scripts import Script
from outlast.buffer.types import ClaimNeeded, Contact, GradientLogError, SnapshotNeeded, log_prefix

if TYPE_CHECKING:
    from outlast.buffer.connection import Arg, Reply

logger = logging.getLogger("outlast.buffer")

_PAGE = 512  # entries a reply, where all are wanted


class Store:
    """One job's part of one Redis, which may serve other jobs too. Connects on first use.

    Raises `BufferMisconfigured` for a bad url or dtype; every method may raise `BufferUnavailable`.
    """

    def __init__(self, url: str, job_uid: str, dtype: str, timeout_s: float) -> None:
        # Only here: redis takes 0.05 s of CPU to import, which a server of a job without a log need not spend.
        from outlast.buffer.bulk import Wire
        from outlast.buffer.connection import Link, Target

        self.target = Target.parse(url)
        self.prefix = log_prefix(job_uid)
        self.contact = Contact()
        self.control = Link(self.target, timeout_s, self.contact)
        self.bulk = Wire(self.target, timeout_s)
        self.blocking = Link(self.target, timeout_s, self.contact)
        self.codec = Codec(dtype)
        self.codec_lock = threading.Lock()  # appends and fetches convert in the codec's memory

    def shard_key(self, shard: int) -> str:
        return f"{self.prefix}shard:{shard}"

    def chunk_key(self, push: str, shard: int, i: int) -> str:
        return f"{self.prefix}c:{push}:{shard}:{i}"

    def call(self, *args: Arg) -> Reply:
        return self.control.call(*args)

    def entries(self, key: str, after: int) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """All entries of a stream above `after`, in order."""
        found: list[tuple[bytes, dict[bytes, bytes]]] = []
        while True:
            page = self.call("XRANGE", key, f"{after + 1}-0", "+", "COUNT", _PAGE)
            found += page
            if len(page) < _PAGE:
                return found
            after = int(page[-1][0].split(b"-")[0])

    def info(self, section: str) -> dict[str, Any]:
        return self.control.use(lambda client, _: client.info(section))

    def script(self, script: Script, *args: Arg) -> Reply:
        return self.control.script(script, self.prefix, lambda run_id: args)

    def guarded(self, script: Script, shard: int, epoch: int, *args: Arg) -> list[bytes] | None:
        """A server's script: its answer, or None when a higher epoch holds the shard.

        Raises `ClaimNeeded`, `SnapshotNeeded`.
        """
        answer: list[bytes] = self.control.script(script, self.prefix, lambda run_id: (shard, epoch, run_id, *args))
        result = answer[0].decode()
        if result == "fenced":
            logger.info("shard %d: epoch %d is fenced by epoch %s in Redis", shard, epoch, answer[1].decode())
            return None
        if result == "unclaimed":
            raise ClaimNeeded(
                f"shard {shard}: epoch {epoch} was not claimed in this run of Redis ({self.control.run_id[:8]}); "
                "claim it with the offset consumed so far, then save a snapshot"
            )
        if result == "unbased":
            raise SnapshotNeeded(
                f"shard {shard}: Redis holds no snapshot of this run and history for records to count from; "
                "save one, then record"
            )
        if result == "disorder":
            raise GradientLogError(
                f"shard {shard}: record {args[0]!s} is not above the last one, {answer[1].decode()}, and differs from "
                "what was recorded there: replay the records before making new ones"
            )
        return answer

    def disconnect(self) -> None:
        for link in (self.control, self.bulk, self.blocking):
            link.close()

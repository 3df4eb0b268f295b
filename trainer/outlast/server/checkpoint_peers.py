"""What other servers hold of the job's checkpoints, where each keeps its own, and the copying of parts between them.

A copy is asked for once, by a server that has joined a chain: its directory lacks what was written before, and the
others' directories may be lost one after the other. It goes in chunks, and is checked against the checksum in its name
before it gets that name.

    PART  meta: name, epoch, crc   ──▶
                                   ◀──  PART with a chunk as payload, any number of times
                                   ◀──  DONE, with an `error` if the part is not (whole) there
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from outlast.api.config import ProcessConfig
from outlast.api.server_status import CheckpointRef
from outlast.checkpoint.own import OwnParts
from outlast.checkpoint.set import NAME
from outlast.wire.connection import Connection
from outlast.wire.control import ServerControl
from outlast.wire.dial import connect
from outlast.wire.frames import Header, Op, ProtocolError

log = logging.getLogger("outlast.durability")

CHUNK_BYTES = 1 << 20
_SILENCE_S = 10.0  # of a peer that reads a part from its disk


class CheckpointPeers:
    """The other servers of a job, as far as checkpoints go. For one thread; every call is bounded in time."""

    def __init__(self, config: ProcessConfig, timeout_s: float) -> None:
        self._config, self._timeout_s = config, timeout_s

    def sets_elsewhere(self) -> list[set[str]]:
        """For each other shard, the sets of which its servers hold a part."""
        others = [shard for number, shard in enumerate(self._config.servers) if number != self._config.shard]
        return [{part.name for server in shard for part in self._held_by(server.address)} for shard in others]

    def fill(self, store: OwnParts, keep: int) -> bool:
        """Copy the newest `keep` parts of this shard that other servers have and `store` lacks.

        False: none of them answered, or a copy failed; to be tried again.
        """
        config = self._config
        fellows = [s.address for s in config.servers[config.shard] if s.name != config.name]
        offered = {part: address for address in fellows for part in self._held_by(address)}
        best: dict[str, CheckpointRef] = {}
        for part in offered:
            best[part.name] = max(best.get(part.name, part), part, key=lambda p: (p.epoch, p.crc))
        mine = {part.name: part.epoch for part in store.held(config.shard)}
        complete = bool(offered)
        for part in sorted(best.values(), key=lambda p: p.order, reverse=True)[:keep]:
            if mine.get(part.name, -1) < part.epoch:
                complete = self._copy(store, part, offered[part]) and complete
        return complete

    def _copy(self, store: OwnParts, part: CheckpointRef, address: str) -> bool:
        config = self._config
        try:
            store.adopt(part, config.shard, len(config.servers), self._receive(part, address))
        except (ConnectionError, OSError, ValueError) as error:
            log.warning("part %s was not copied from %s: %s", part.name, address, error)
            return False
        log.info("copied part %s from %s", part.name, address)
        return True

    def _held_by(self, address: str) -> tuple[CheckpointRef, ...]:
        with contextlib.closing(ServerControl(address, self._config.job_uid, self._config.token, self._timeout_s)) as c:
            try:
                return c.probe().checkpoints
            except ConnectionError as error:
                log.debug("checkpoints of %s: %s", address, error)
                return ()

    def _receive(self, part: CheckpointRef, address: str) -> Iterator[memoryview]:
        """Raises `ConnectionError`."""
        config = self._config
        connection, _ = connect(address, config.job_uid, config.token, {"role": "control"}, self._timeout_s)
        with contextlib.closing(connection):
            connection.set_timeout(_SILENCE_S, self._timeout_s)
            connection.payload_limit = CHUNK_BYTES
            connection.send(Header(Op.PART), {"name": part.name, "epoch": part.epoch, "crc": part.crc})
            buffer = memoryview(bytearray(CHUNK_BYTES))
            while True:
                header, meta = connection.receive()
                if header.op == Op.DONE:
                    if "error" in meta:
                        raise ConnectionError(str(meta["error"]))
                    return
                if header.op != Op.PART:
                    raise ProtocolError(f"op {header.op} amid a part")
                connection.receive_into(buffer[: header.length])
                yield buffer[: header.length]


def send_part(connection: Connection, store: OwnParts | None, meta: dict[str, Any], shard: int, shards: int) -> None:
    """Answer a PART request. Raises `ConnectionError`, `ProtocolError`."""
    name = str(meta.get("name"))
    if NAME.fullmatch(name) is None:
        raise ProtocolError(f"{name!r} names no checkpoint")
    part = CheckpointRef(name, 0, 0, int(meta["epoch"]), int(meta["crc"]))
    answer: dict[str, Any] = {}
    try:
        if store is None:
            raise FileNotFoundError("this server keeps no checkpoints of its own")
        with store.path_of(part, shard, shards).open("rb", buffering=0) as file:
            buffer = memoryview(bytearray(CHUNK_BYTES))
            while count := file.readinto(buffer):
                connection.send(Header(Op.PART), None, buffer[:count])
    except ConnectionError:
        raise
    except OSError as error:
        answer = {"error": f"{name}: {error.strerror or error}"}
    connection.send(Header(Op.DONE), answer)

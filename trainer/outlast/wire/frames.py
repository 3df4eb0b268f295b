"""The wire format: one frame = fixed header + JSON meta + raw payload. No pickle anywhere.

    header   HEADER_BYTES, little endian, closed by its own crc32
    meta     `meta_length` bytes of JSON (control messages, decisions); at most META_LIMIT
    payload  `length` bytes of tensor data (float32 or bfloat16); its limit is set by the receiver

Every length is checked against its limit before anything is allocated. A malformed frame closes the connection it
came on, and that one alone.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum

MAGIC = b"OLST"
PROTOCOL_VERSION = 1
META_LIMIT = 8 << 20  # bytes; a table of applied steps with many gaps is the largest meta

_LAYOUT = struct.Struct("<4sBBBBIIIIIIIQQQQI")
HEADER_BYTES = _LAYOUT.size + 4  # and the crc


class Op(IntEnum):
    """What a frame asks or answers. A request is answered by exactly one frame, WAITING ones before it aside."""

    HELLO = 1  # meta: token, job, role, name, boot; first frame on every connection
    WELCOME = 2
    PUSH = 3  # a gradient, a delta or the initial weights (flags)
    PULL = 4
    ACKNOWLEDGED = 5  # payload: weights, when they were wanted
    WEIGHTS = 6
    REFUSED = 7  # meta: reason, view
    WAITING = 8  # "I live, your answer takes time": sent each heartbeat
    FORWARD = 9  # an entry, from a predecessor
    STATE = 10  # a whole state, from a predecessor
    ACKS = 11
    PEER_STATE = 12  # answer to a peer's HELLO: what I hold
    PROBE = 20
    WATCH = 21
    STATUS = 22
    INSTALL = 23
    FINISH = 24
    SET_SLOTS = 25
    CHECKPOINT = 26
    TABLE = 27
    LEAVE = 28
    VIEW = 29  # "which view do you know?"
    EVALUATION = 30
    DONE = 31  # the plain answer to a control request; meta may carry a result
    PART = 32  # a part of a checkpoint: asked for by meta (name, epoch, crc), sent in chunks, ended by DONE


class DType(IntEnum):
    NONE = 0
    FLOAT32 = 1
    BFLOAT16 = 2


class Flag(IntEnum):
    WANT_WEIGHTS = 1
    INIT = 2
    DELTA = 4
    EXACT = 8  # PULL: exactly `version`
    DUPLICATE = 16
    SHARED = 32  # the payload lies in shared memory, at meta's `shared`; a descriptor comes with the first such frame


class ProtocolError(ConnectionError):
    """The peer sent what no Outlast process sends; the connection is closed."""


@dataclass(frozen=True, slots=True)
class Header:
    """The fixed part of a frame. `length` counts payload bytes, `meta_length` bytes of JSON before it."""

    op: int
    dtype: int = 0
    flags: int = 0
    job: int = 0  # crc32 of the job's uid: a frame that strayed from another job is refused
    slot: int = 0
    incarnation: int = 0
    epoch: int = 0
    history: int = 0
    first_step: int = 0
    step: int = 0
    version: int = 0
    seq: int = 0
    offset: int = 0
    length: int = 0
    meta_length: int = 0

    def pack(self) -> bytes:
        body = _LAYOUT.pack(
            MAGIC,
            PROTOCOL_VERSION,
            self.op,
            self.dtype,
            self.flags,
            self.job,
            self.slot,
            self.incarnation,
            self.epoch,
            self.history,
            self.first_step,
            self.step,
            self.version,
            self.seq,
            self.offset,
            self.length,
            self.meta_length,
        )
        return body + zlib.crc32(body).to_bytes(4, "little")

    @staticmethod
    def unpack(raw: bytes | bytearray | memoryview, payload_limit: int) -> Header:
        """Raises `ProtocolError` for another magic, protocol version, crc, or a length beyond its limit."""
        body = bytes(raw[: _LAYOUT.size])
        magic, protocol, op, dtype, flags, job, slot, incarnation, epoch, history, first, step, *rest = _LAYOUT.unpack(
            body
        )
        if magic != MAGIC:
            raise ProtocolError(f"frame starts with {magic!r}, expected {MAGIC!r}: the peer does not speak Outlast")
        if protocol != PROTOCOL_VERSION:
            raise ProtocolError(
                f"peer speaks protocol {protocol}, this process {PROTOCOL_VERSION}; run the same release on both"
            )
        if zlib.crc32(body) != int.from_bytes(raw[_LAYOUT.size : HEADER_BYTES], "little"):
            raise ProtocolError("frame header fails its checksum")
        version, seq, offset, length, meta_length = rest
        if meta_length > META_LIMIT:
            raise ProtocolError(f"frame announces {meta_length} bytes of meta, at most {META_LIMIT} are accepted")
        if length > payload_limit:
            raise ProtocolError(f"frame announces {length} bytes of payload, at most {payload_limit} are accepted")
        return Header(
            op, dtype, flags, job, slot, incarnation, epoch, history, first, step, version, seq, offset, length,
            meta_length,
        )  # fmt: skip


def job_tag(job_uid: str) -> int:
    return zlib.crc32(job_uid.encode())

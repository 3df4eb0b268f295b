"""Tensors as bytes, without copies: views of their memory, bfloat16 in preallocated memory, chunks, checksums.

Rules: what leaves is a view of the caller's tensor or of a scratch that is reused; what arrives is written to the
caller's tensor, or to a scratch and decoded from there. Memory is touched once, when the scratch is made.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import torch

from outlast.buffer.types import CHUNK_BYTES

Payload = Any  # a float32 contiguous torch.Tensor, or any object with a contiguous buffer of float32

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def byte_view(tensor: torch.Tensor) -> memoryview:
    """The tensor's own memory as bytes `[nbytes]`. Raises `ValueError` unless it is contiguous and on the CPU."""
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise ValueError(f"a contiguous tensor on the CPU is needed, got one on {tensor.device}; call .cpu() first")
    if tensor.numel() == 0:
        return memoryview(bytearray())
    array: Any = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


def as_float32(payload: Payload) -> torch.Tensor:
    """The payload as a flat float32 tensor `[elements]` that shares its memory. Raises `ValueError` if it cannot."""
    if not isinstance(payload, torch.Tensor):
        raw = memoryview(payload).cast("B")
        return torch.frombuffer(raw, dtype=torch.float32) if raw.nbytes else torch.empty(0)
    if payload.dtype != torch.float32 or not payload.is_contiguous():
        raise ValueError(f"a gradient must be contiguous float32, got {payload.dtype}; call .float().contiguous()")
    return payload.detach().reshape(-1)


def chunks(view: memoryview) -> Iterator[memoryview]:
    for start in range(0, len(view), CHUNK_BYTES):
        yield view[start : start + CHUNK_BYTES]


def checksum(view: memoryview) -> int:
    return zlib.crc32(view)


class Scratch:
    """Reused memory to convert through: one tensor for each key, as large as the largest request so far."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._held: dict[int, torch.Tensor] = {}

    def get(self, key: int, elements: int) -> torch.Tensor:
        held = self._held.get(key)
        if held is None or held.numel() < elements:
            held = self._held[key] = torch.zeros(elements, dtype=self._dtype)
        return held[:elements]


class Codec:
    """Encodes float32 payloads as the log stores them, and back. Not for two threads at once."""

    def __init__(self, dtype: str) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"recovery.buffer.dtype: {dtype!r} is not one of {', '.join(DTYPES)}")
        self.dtype = dtype
        self._out, self._in = Scratch(torch.bfloat16), Scratch(torch.bfloat16)

    def encode(self, shard: int, payload: Payload) -> tuple[int, memoryview]:
        """(elements, bytes to store): a view of the payload, or of a scratch that the next encode overwrites."""
        flat = as_float32(payload)
        if self.dtype == "float32":
            flat = flat if flat.device.type == "cpu" else flat.cpu()
            return flat.numel(), byte_view(flat)
        scratch = self._out.get(shard, flat.numel())
        scratch.copy_(flat)
        return flat.numel(), byte_view(scratch)

    def landing(self, key: int, dtype: str, out: torch.Tensor) -> torch.Tensor:
        """Where the stored bytes of `out` must land: `out` itself, or a scratch to hand to `decode`."""
        if dtype == "float32" and out.device.type == "cpu":
            return out
        if dtype == "float32":
            return torch.empty(out.numel())
        return self._in.get(key, out.numel())

    @staticmethod
    def decode(landed: torch.Tensor, out: torch.Tensor) -> None:
        if landed is not out:
            out.copy_(landed.view(out.shape))

"""Numbers as a reader wants them: units chosen by size, plurals, lists. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

UNIT = re.compile(r"(?<=\d) (?=(?:ms|s|min|%|B|kB|MB|GB)\b|%)")


def duration(seconds: float) -> str:
    """340 ms, 2.41 s, 38.2 s, 3 min 05 s."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 119.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def count(value: float, noun: str) -> str:
    """1 server, 8,000 updates."""
    return f"{value:,.0f} {noun}" if value == 1 else f"{value:,.0f} {noun}s"


def percent(value: float, digits: int = 1) -> str:
    """0.8651 -> 86.5 %."""
    return f"{100 * value:.{digits}f} %"


def size(value: float) -> str:
    """Bytes in powers of ten: 51.2 GB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= factor:
            return f"{value / factor:,.1f} {unit}"
    return f"{value:,.0f} B"


def money(value: float) -> str:
    """Two decimals, or four where two would hide it."""
    return f"{value:,.2f}" if value >= 0.995 or value == 0 else f"{value:.4f}"


def listing(items: Sequence[str]) -> str:
    """a, b and c."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def sentence(text: str) -> str:
    """With a capital first letter, and the rest as it is."""
    return text[:1].upper() + text[1:]


def unbroken(text: str) -> str:
    """With no-break spaces between numbers and their units, for text that wraps."""
    return UNIT.sub("\u00a0", text)

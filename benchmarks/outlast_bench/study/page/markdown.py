"""Markdown's parts: tables, grids, pictures, and the anchors of headings. Pure, but for where files lie."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from outlast_bench.study.page.cells import Grid
from outlast_bench.study.page.page import Picture


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |"


def grid(found: Grid) -> Iterator[str]:
    """A table under its title, if it has one. The title is no heading: the same stand in several parts of a page."""
    yield from (f"**{found.title}**", "") if found.title else ()
    rows = [(line.label, *(" ".join(cell).strip() for cell in line.cells)) for line in found.lines]
    yield from table(found.columns, rows)


def picture(found: Picture, page: Path) -> Iterator[str]:
    """Its title is no heading either."""
    yield from (f"**{found.title}**", "", f"![{found.alt}]({relative(found.files[0], page)})", "")
    yield from (f"{found.caption} Made again by: `{found.command}`", "")


def anchor(title: str) -> str:
    """The fragment that a heading answers to, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")


def as_text(text: str) -> str:
    """So that nothing in it is taken for HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;")


def relative(path: Path, page: Path) -> str:
    return Path(os.path.relpath(path, page.parent)).as_posix()

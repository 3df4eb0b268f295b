"""What somebody wrote about the results: DIR/notes.md, shown on the page as long as it is about the study there.

The first line names the study by its start, as study.json has it, and by how many runs it held; a text about another
one is left out, and the page says so: numbers change when runs are made, and words do not.

    <!-- of the study begun 2026-11-23T05:05:35+00:00, 145 runs -->
    **A title.** A paragraph; paragraphs are divided by empty lines, and nothing else is marked up.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

NAME = "notes.md"
FIRST_LINE = "<!-- of the study begun {started}, {runs} runs -->"
TITLED = re.compile(r"\*\*(.+?)\*\*\s*(.*)", re.DOTALL)


@dataclass(frozen=True)
class Paragraph:
    title: str  # empty: none
    text: str


@dataclass(frozen=True)
class Notes:
    """`left_out`: why what is there is not shown; empty where it is, or where there is nothing."""

    paragraphs: tuple[Paragraph, ...] = ()
    left_out: str = ""


def read_notes(directory: Path, started: str | None, runs: int) -> Notes:
    """`started`: the study's start; None: without a study.json nothing can be said of it. `runs`: that were made."""
    try:
        text = (directory / NAME).read_text(encoding="utf-8")
    except FileNotFoundError:
        return Notes()
    except (OSError, UnicodeDecodeError) as error:
        return Notes(left_out=f"{NAME}: {error}")
    first, _, rest = text.partition("\n")
    if started is None:
        return Notes(left_out=f"{NAME}: there is no study.json to say which study it is about")
    wanted = FIRST_LINE.format(started=started, runs=runs)
    if first.strip() != wanted:
        return Notes(left_out=f"{NAME}: it is not about this study; its first line must be {wanted}")
    return Notes(tuple(_paragraph(block) for block in re.split(r"\n\s*\n", rest) if block.strip()))


def _paragraph(block: str) -> Paragraph:
    text = " ".join(block.split())
    found = TITLED.fullmatch(text)
    return Paragraph(found[1], found[2]) if found else Paragraph("", text)

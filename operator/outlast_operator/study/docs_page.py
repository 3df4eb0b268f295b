"""The study as a page of the documentation: Markdown with its figures, from a kept study. Same words as index.html."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from outlast_operator.study import story, story_machines, story_texts
from outlast_operator.study.page import Picture, Section, Study
from outlast_operator.study.verdicts import Verdict

GENERATED = "<!-- Generated from a kept study by docs/render_study.py. Do not edit. -->"
MARK = {True: "✓", False: "✗", None: "·"}


def markdown(study: Study, page: Path) -> str:
    """The whole page; figures and tables are linked relative to where `page` lies."""
    lines = [
        "# The study: what the loss of a parameter server costs",
        "",
        GENERATED,
        "",
        f"**{story.headline(study.verdicts)}.** {story.counts(study.data)}",
        "",
        story_texts.ASKED,
        "",
        "## The answer",
        "",
    ]
    for verdict in study.verdicts:
        lines += _verdict(verdict)
    for section in study.sections:
        lines += _section(study, section, page)
    if study.backlog:
        lines += ["## How to apply a backlog", ""]
        lines += [line for picture in study.backlog for line in _picture(picture, page)]
    if study.models:
        lines += ["## Beyond the paper's network: with and without normalisation", ""]
        lines += _verdict(study.models_answer) if study.models_answer is not None else []
        lines += [line for picture in study.models for line in _picture(picture, page)]
    lines += _cost(study)
    lines += ["## What was done differently from the paper, and why", ""]
    lines += [f"- **{name}.** {text}" for name, text in story_texts.DIFFERENT]
    lines += ["", "## What the figures mean", ""]
    lines += [f"- **{name}**: {text}" for name, text in story_texts.DEFINITIONS]
    lines += ["", "## Limits", "", *(f"- {text}" for text in story_texts.LIMITS), ""]
    lines += _failures(study)
    lines += ["## Machine and data", "", *_table(("", ""), story_machines.machine(study.data))]
    folder = _relative(study.data.directory, page)
    lines += [
        "",
        f"The runs' reports lie under [`{study.data.directory.name}/`]({folder}), each with the command that, from the "
        f"repository's root, makes it again, and the tables as CSV under [`tables/`]({folder}/tables). This page and "
        "its figures come from them by `python docs/render_study.py`; `outlast study` makes a study of your own "
        "([how](../how-to/run-a-study.md)).",
        "",
    ]
    return "\n".join(lines)


def _verdict(verdict: Verdict) -> Iterator[str]:
    yield from (f"### {verdict.question.rstrip('.')}", "")
    yield from (f"**{verdict.word.capitalize()}.** {' '.join((verdict.answer, *verdict.notes))}", "")
    if verdict.rows:
        rows = [(MARK[row.met], row.label, row.figure) for row in verdict.rows]
        yield from _table(("", "", verdict.measure), rows)
        yield ""


def _section(study: Study, section: Section, page: Path) -> Iterator[str]:
    yield from (f"## {section.title}", "")
    yield from (" ".join(section.set_up), "") if section.set_up else ()
    columns = ("configuration", "kills", *story.RESULT_COLUMNS, "failed")
    rows = [
        (line.label, str(line.kills), *(" ".join(cell).strip() for cell in line.cells), str(line.failed or ""))
        for line in section.results
    ]
    yield from _table(columns, rows)
    yield ""
    for picture in section.pictures:
        yield from _picture(picture, page)


def _picture(picture: Picture, page: Path) -> Iterator[str]:
    yield from (f"### {picture.title}", "", f"![{picture.alt}]({_relative(picture.files[0], page)})", "")
    yield from (f"{picture.caption} Made again by: `{picture.command}`", "")


def _cost(study: Study) -> Iterator[str]:
    prices = study.prices
    yield from ("## Cost", "")
    yield from ("Prices are input: list prices of an order that public lists showed, to be replaced by your own "
                "(`outlast study --render DIR --prices FILE`).", "")  # fmt: skip
    columns = ("machine", "what it is", f"{prices.currency} an hour", "source")
    yield from _table(columns, story.prices_in_words(prices))
    yield ""
    for section in study.sections:
        if section.costs:
            target = study.data.target(section.name)
            setup = next(iter(prices.setups))
            yield from (f"{section.title}: {prices.currency} cents to reach {target:.2f}, {setup}.", "")
            yield from _table(("configuration", "kills", *prices.terms), section.costs)
            yield ""


def _failures(study: Study) -> Iterator[str]:
    yield from ("## Runs that failed", "")
    failures = study.summary.failures
    rows = [(f"{r.experiment}, {r.configuration}, kills {r.kills}, seed {r.seed}", r.error) for r in failures]
    yield from _table(("run", "reason"), rows) if rows else ("None.",)
    yield ""
    if study.data.uncalibrated:
        yield from ("## Experiments that could not be calibrated", "")
        yield from _table(("experiment", "reason"), study.data.uncalibrated.items())
        yield ""


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |"


def _relative(path: Path, page: Path) -> str:
    return Path(os.path.relpath(path, page.parent)).as_posix()

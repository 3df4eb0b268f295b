"""The study as a page of the documentation: Markdown with its figures, from a kept study. Same words as index.html."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from outlast_bench.study.page import story, story_backlog, story_machines, texts
from outlast_bench.study.page.markdown import anchor, as_text, grid, picture, relative, table
from outlast_bench.study.page.notes import NAME as NOTES
from outlast_bench.study.page.page import Section, Study, contents
from outlast_bench.study.page.texts import HEADINGS
from outlast_bench.study.verdicts.verdict import Verdict

GENERATED = "<!-- Generated from a kept study by docs/render_study.py. Do not edit. -->"
HOW_TO_CHOOSE = "../how-to/choose-a-strategy.md"


def markdown(study: Study, page: Path) -> str:
    """The whole page; figures and tables are linked relative to where `page` lies."""
    lines = [
        "# The study: what the loss of a parameter server costs",
        "",
        GENERATED,
        "",
        f"**{story.headline(study.verdicts)}.** {story.counts(study.data)}",
        "",
        texts.ASKED,
        "",
        *(f"- [{title}](#{anchor(title)})" for _, title in contents(study)),
        "",
        *_which(study),
        *_words(),
        *_answer(study, page),
    ]
    if study.first is not None:
        lines += _section(study.first, page, costs=False)
    lines += [*_backlog(study, page), *_cost(study), *_models(study, page)]
    for section in study.beside:
        lines += _section(section, page)
    lines += [*_explained(), *_failures(study, page), *_machine(study, page)]
    if study.appendix:
        lines += _heading("appendix")
    for section in study.appendix:
        lines += _section(section, page)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip("\n") + "\n"


def _heading(key: str) -> Iterator[str]:
    yield from (f"## {HEADINGS[key]}", "")


def _which(study: Study) -> Iterator[str]:
    if study.choice is None:
        return
    yield from _heading("which")
    yield from (*(f"- {sentence}" for sentence in study.choice.sentences), "")
    yield from grid(study.choice.grid)
    title = study.first.title if study.first is not None else study.main
    yield from ("", f"{title}, as recommended. [Choose a strategy]({HOW_TO_CHOOSE}) has the questions to ask.", "")


def _words() -> Iterator[str]:
    yield from _heading("words")
    yield from (f"- **{name}**: {text}" for name, text in texts.WORDS)
    title = HEADINGS["definitions"]
    yield from ("", f"How each is measured stands under [{title}](#{anchor(title)}).", "")


def _answer(study: Study, page: Path) -> Iterator[str]:
    yield from _heading("answer")
    for verdict in study.verdicts:
        yield from _verdict(verdict)
    if study.notes:
        yield from _heading("reading")
        for paragraph in study.notes:
            title = f"**{as_text(paragraph.title)}** " if paragraph.title else ""
            yield from (f"{title}{as_text(paragraph.text)}", "")
        yield from (f"Written by hand: [{NOTES}]({relative(study.data.directory / NOTES, page)}).", "")


def _verdict(verdict: Verdict) -> Iterator[str]:
    yield from (f"### {verdict.question.rstrip('.')}", "")
    yield from (f"**{verdict.word.capitalize()}.** {' '.join((verdict.answer, *verdict.notes))}", "")
    if verdict.rows:
        rows = [(row.mark, row.label, row.figure) for row in verdict.rows]
        yield from table(("", "", verdict.measure), rows)
        yield ""


def _section(section: Section, page: Path, costs: bool = True) -> Iterator[str]:
    """`costs`: with what it cost; that of the first experiment has a place of its own."""
    yield from (f"## {section.title}", "")
    yield from (" ".join(section.set_up), "") if section.set_up else ()
    for found in (*section.results, *(section.costs if costs else ())):
        yield from grid(found)
        yield ""
    for drawn in section.pictures:
        yield from picture(drawn, page)


def _backlog(study: Study, page: Path) -> Iterator[str]:
    if not study.backlog:
        return
    yield from _heading("backlog")
    yield from (texts.BACKLOG, "", story_backlog.in_words(study.data.backlog), "")
    if study.backlog_limits is not None:
        yield from grid(study.backlog_limits)
        yield ""
    for drawn in study.backlog:
        yield from picture(drawn, page)


def _models(study: Study, page: Path) -> Iterator[str]:
    if not study.models:
        return
    yield from _heading("models")
    yield from _verdict(study.models_answer) if study.models_answer is not None else ()
    for drawn in study.models:
        yield from picture(drawn, page)


def _cost(study: Study) -> Iterator[str]:
    prices = study.prices
    yield from _heading("cost")
    yield from (f"{texts.PRICES} (`outlast study --render DIR --prices FILE`).", "")
    columns = ("machine", "what it is", f"{prices.currency} an hour", "source")
    yield from table(columns, story.prices_in_words(prices))
    yield ""
    if study.first is None:
        return
    yield from (f"{study.first.title}:", "")
    for found in study.first.costs:
        yield from grid(found)
        yield ""


def _explained() -> Iterator[str]:
    yield from _heading("different")
    yield from (f"- **{name}.** {text}" for name, text in texts.DIFFERENT)
    yield ""
    yield from _heading("definitions")
    yield from (f"- **{name}**: {text}" for name, text in texts.DEFINITIONS)
    yield ""
    yield from _heading("limits")
    yield from (f"- {text}" for text in texts.LIMITS)
    yield ""


def _failures(study: Study, page: Path) -> Iterator[str]:
    yield from _heading("tables")
    yield from (f"All figures' numbers as CSV: [`tables/`]({relative(study.data.directory / 'tables', page)}).", "")
    failures = study.summary.failures
    rows = [(f"{r.experiment}, {r.configuration}, kills {r.kills}, seed {r.seed}", r.error) for r in failures]
    yield from table(("run", "reason"), rows) if rows else ("No run failed.",)
    yield ""
    yield from _told("Could not be calibrated", study.data.uncalibrated.items())
    yield from (f"Left out: {as_text(problem)}\n" for problem in study.data.problems)


def _told(title: str, rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    rows = list(rows)
    if rows:
        yield from (f"**{title}**", "")
        yield from table(("experiment", "reason"), rows)
        yield ""


def _machine(study: Study, page: Path) -> Iterator[str]:
    folder = relative(study.data.directory, page)
    yield from _heading("machine")
    yield from table(("", ""), [*story_machines.machine(study.data), *story_machines.speeds(study.summary)])
    yield from (
        "",
        f"The runs' reports lie under [`{study.data.directory.name}/`]({folder}), each with the command that, from the "
        "repository's root, makes it again. This page and its figures come from them by `python "
        "docs/render_study.py`; `outlast study` makes a study of your own ([how](../how-to/run-a-study.md)).",
        "",
    )

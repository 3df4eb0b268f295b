"""From a study's directory to its figures, tables and page: `render(DIR)`; nothing is run, everything is made again.

index.html is one file with its pictures inside. figures.py draws, story.py has the words, templates/study.html.j2 sets
both; nothing from the study's files reaches the page unescaped.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from outlast_operator import report_words as words
from outlast_operator.study import figure_style, figures, story, story_machines, story_texts, tables
from outlast_operator.study.cost import PriceTable, load_prices
from outlast_operator.study.experiments import BACKLOG, STEEP
from outlast_operator.study.figure_style import Drawn
from outlast_operator.study.load import StudyData, load_study
from outlast_operator.study.summary import Summary, summarise
from outlast_operator.study.verdict_cost import verdicts
from outlast_operator.study.verdict_models import normalisation
from outlast_operator.study.verdicts import Verdict

HTML_NAME = "index.html"
MODELS = "models-resnet --only models-resnet-plain --only models-language --only models-language-plain"


@dataclass(frozen=True)
class Picture:
    """A figure once it is written. `files`: PNG and SVG."""

    name: str
    title: str
    caption: str
    alt: str
    command: str
    files: tuple[Path, ...]

    @property
    def uri(self) -> str:
        """The SVG as a data URI."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.files[1].read_bytes()).decode("ascii")


@dataclass(frozen=True)
class Section:
    """One experiment on the page."""

    name: str
    title: str
    set_up: tuple[str, ...]
    results: tuple[story.Line, ...]
    pictures: tuple[Picture, ...]
    costs: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Study:
    """Everything the page and the documentation show."""

    summary: Summary
    prices: PriceTable
    verdicts: tuple[Verdict, ...]
    sections: tuple[Section, ...]
    backlog: tuple[Picture, ...]
    models: tuple[Picture, ...]
    models_answer: Verdict | None
    tables: tuple[tables.Table, ...]
    main: str  # the experiment the verdicts are about

    @property
    def data(self) -> StudyData:
        return self.summary.data


def render(directory: Path, prices: Path | None = None) -> list[Path]:
    """Write DIR/figures, DIR/tables and DIR/index.html; returns what was written.

    `prices`: a price table in place of the one that comes along. Raises `StudyError` when DIR holds no study or the
    price table is wrong, `OSError` where it cannot write, `ImportError` without matplotlib.
    """
    study = assemble(directory, load_prices(prices))
    written = [path for section in study.sections for p in section.pictures for path in p.files]
    written += [path for p in (*study.backlog, *study.models) for path in p.files]
    written += [tables.write(table, directory / "tables") for table in study.tables]
    page = directory / HTML_NAME
    page.write_text(html(study), encoding="utf-8")
    return [*written, page]


def assemble(directory: Path, prices: PriceTable) -> Study:
    """Measure everything and draw every figure (into DIR/figures). Raises as `render`."""
    summary = summarise(load_study(directory))
    main = STEEP if STEEP in summary.experiments or not summary.experiments else summary.experiments[0]
    out = directory / "figures"
    sections = [_section(summary, experiment, prices, out) for experiment in summary.experiments]
    return Study(
        summary=summary,
        prices=prices,
        verdicts=tuple(verdicts(summary, prices, main)),
        sections=tuple(sections),
        backlog=tuple(_saved(summary.data, figures.of_backlog(summary), BACKLOG, out)),
        models=tuple(_saved(summary.data, figures.of_models(summary), MODELS, out)),
        models_answer=normalisation(summary),
        tables=tuple(tables.all_tables(summary, prices)),
        main=main,
    )


def _section(summary: Summary, experiment: str, prices: PriceTable, out: Path) -> Section:
    data = summary.data
    most = figures.most_kills(summary, experiment)
    groups = [g for g in summary.of(experiment) if g.kills in (0, most)]
    return Section(
        name=experiment,
        title=data.title(experiment),
        set_up=tuple(story.set_up(data, experiment)),
        results=tuple(story.results(summary, experiment)),
        pictures=tuple(_saved(data, figures.of_experiment(summary, experiment, prices), experiment, out)),
        costs=tuple(story.cost_lines(summary, experiment, prices, [g for g in groups if g.kills == most or not most])),
    )


def _saved(data: StudyData, drawn: Iterable[Drawn], experiment: str, out: Path) -> list[Picture]:
    return [
        Picture(d.name, d.title, d.caption, d.alt, story.command_of(data, experiment), tuple(figure_style.save(d, out)))
        for d in drawn
    ]


def html(study: Study) -> str:
    from jinja2 import Environment, StrictUndefined

    template = resources.files("outlast_operator").joinpath("templates", "study.html.j2").read_text("utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["unbroken"] = words.unbroken
    return environment.from_string(template).render(
        study=study,
        data=study.data,
        story=story,
        texts=story_texts,
        headline=story.headline(study.verdicts),
        counts=story.counts(study.data),
        machine=story_machines.machine(study.data),
        prices=story.prices_in_words(study.prices),
        failures=study.summary.failures,
        first_setup=next(iter(study.prices.setups)),
    )

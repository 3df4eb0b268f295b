"""From a study's directory to its figures, tables and page: `render(DIR)`; nothing is run, everything is made again.

index.html is one file with its pictures inside. figures/ draws, the story files have the words and tables,
study.html.j2 sets both; nothing from the study's files reaches the page unescaped. What answers the question
comes first; experiments that repeat it at other times or on other models come last, in an appendix.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from outlast_bench.study.analysis import target
from outlast_bench.study.analysis.cost import PriceTable, load_prices
from outlast_bench.study.analysis.load import StudyData, load_study
from outlast_bench.study.analysis.summary import Summary, summarise
from outlast_bench.study.design.experiments import BACKLOG, PAPER_TIMES, STEEP
from outlast_bench.study.figures import all as figures
from outlast_bench.study.figures import style
from outlast_bench.study.figures.style import Drawn
from outlast_bench.study.page import story, story_backlog, story_costs, story_machines, story_results, tables, texts
from outlast_bench.study.page.cells import Grid
from outlast_bench.study.page.choice import Choice, which
from outlast_bench.study.page.notes import Paragraph, read_notes
from outlast_bench.study.verdicts.cost import verdicts
from outlast_bench.study.verdicts.models import normalisation
from outlast_bench.study.verdicts.verdict import Verdict
from outlast_operator.reporting import words

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
    results: tuple[Grid, ...]
    pictures: tuple[Picture, ...]
    costs: tuple[Grid, ...] = ()


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
    choice: Choice | None = None
    notes: tuple[Paragraph, ...] = ()
    backlog_limits: Grid | None = None

    @property
    def data(self) -> StudyData:
        return self.summary.data

    @property
    def first(self) -> Section | None:
        """The experiment the verdicts are about; None without any."""
        return next((s for s in self.sections if s.name == self.main), None)

    @property
    def appendix(self) -> tuple[Section, ...]:
        """What repeats the question at the paper's own times, and each model by itself."""
        return tuple(s for s in self.sections if s is not self.first and _repeats(s.name))

    @property
    def beside(self) -> tuple[Section, ...]:
        return tuple(s for s in self.sections if s is not self.first and not _repeats(s.name))

    @property
    def pictures(self) -> tuple[Picture, ...]:
        return (*(p for section in self.sections for p in section.pictures), *self.backlog, *self.models)


def _repeats(experiment: str) -> bool:
    return experiment == PAPER_TIMES or experiment.startswith(figures.MODELS)


def contents(study: Study) -> list[tuple[str, str]]:
    """(what a link to it is called, heading) of every part, in the page's order."""
    absent = {
        "which": study.choice is None,
        "reading": not study.notes,
        "backlog": not study.backlog,
        "models": not study.models,
        "appendix": not study.appendix,
    }
    first = (study.first,) if study.first is not None else ()
    after: dict[str, tuple[Section, ...]] = {"reading": first, "models": study.beside, "appendix": study.appendix}
    found: list[tuple[str, str]] = []
    for key, title in texts.HEADINGS.items():
        found += [] if absent.get(key) else [(key, title)]
        found += [(section.name, section.title) for section in after.get(key, ())]
    return found


def render(directory: Path, prices: Path | None = None) -> list[Path]:
    """Write DIR/figures, DIR/tables and DIR/index.html; returns what was written.

    `prices`: a price table in place of the one that comes along. What could not be read or shown is said on stderr.
    Raises `StudyError` when DIR holds no study or the price table is wrong, `OSError` where it cannot write,
    `ImportError` without matplotlib.
    """
    study = assemble(directory, load_prices(prices))
    for problem in study.data.problems:
        sys.stderr.write(f"left out: {problem}\n")
    written = [path for picture in study.pictures for path in picture.files]
    written += [tables.write(table, directory / "tables") for table in study.tables]
    page = directory / HTML_NAME
    page.write_text(html(study), encoding="utf-8")
    return [*written, page]


def assemble(directory: Path, prices: PriceTable) -> Study:
    """Measure everything and draw every figure (into DIR/figures). Raises as `render`."""
    data = load_study(directory)
    notes = read_notes(directory, data.about.started if data.about is not None else None, len(data.runs))
    if notes.left_out:
        data = replace(data, problems=(*data.problems, notes.left_out))
    summary = summarise(data)
    main = STEEP if STEEP in summary.experiments or not summary.experiments else summary.experiments[0]
    out = directory / "figures"
    sections = [_section(summary, experiment, prices, out) for experiment in summary.experiments]
    return Study(
        summary=summary,
        prices=prices,
        verdicts=tuple(verdicts(summary, prices, main)),
        sections=tuple(sections),
        backlog=tuple(_saved(data, figures.of_backlog(summary), BACKLOG, out)),
        models=tuple(_saved(data, figures.of_models(summary), MODELS, out)),
        models_answer=normalisation(summary),
        tables=tuple(tables.all_tables(summary, prices)),
        main=main,
        choice=which(summary, prices, main),
        notes=notes.paragraphs,
        backlog_limits=story_backlog.limits(data.backlog),
    )


def _section(summary: Summary, experiment: str, prices: PriceTable, out: Path) -> Section:
    data = summary.data
    untold = target.why_not(summary, experiment)
    drawn = [
        d
        for d in figures.of_experiment(summary, experiment, prices)
        if not (untold and d.name == f"{experiment}-time-to-target")
    ]
    return Section(
        name=experiment,
        title=data.title(experiment),
        set_up=(*story.set_up(data, experiment), *([untold] if untold else [])),
        results=tuple(story_results.results(summary, experiment)),
        pictures=tuple(_saved(data, drawn, experiment, out)),
        costs=tuple(story_costs.costs(summary, experiment, prices)),
    )


def _saved(data: StudyData, drawn: Iterable[Drawn], experiment: str, out: Path) -> list[Picture]:
    return [
        Picture(d.name, d.title, d.caption, d.alt, story.command_of(data, experiment), tuple(style.save(d, out)))
        for d in drawn
    ]


def html(study: Study) -> str:
    from jinja2 import Environment, StrictUndefined

    template = resources.files("outlast_bench.study.page").joinpath("study.html.j2").read_text("utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["unbroken"] = words.unbroken
    return environment.from_string(template).render(
        study=study,
        data=study.data,
        texts=texts,
        headings=texts.HEADINGS,
        contents=contents(study),
        headline=story.headline(study.verdicts),
        counts=story.counts(study.data),
        machine=[*story_machines.machine(study.data), *story_machines.speeds(study.summary)],
        prices=story.prices_in_words(study.prices),
        backlog_words=story_backlog.in_words(study.data.backlog),
        failures=study.summary.failures,
    )

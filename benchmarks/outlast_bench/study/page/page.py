"""From a study's directory to its figures, tables and page: `render(DIR)`; nothing is run, everything is made again.

index.html is one file with its pictures inside. Programs make its tables, marks and figures; study.html.j2 has the
labels; sentences are the user's own (notes.md). What answers the question comes first; experiments that repeat it at
other times or on other models come last, in an appendix.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from outlast_bench.study.analysis.cells import Grid
from outlast_bench.study.analysis.cost import PriceTable, load_prices
from outlast_bench.study.analysis.load import StudyData, load_study
from outlast_bench.study.analysis.summary import Summary, summarise
from outlast_bench.study.design.experiments import PAPER_TIMES, STEEP
from outlast_bench.study.figures import all as figures
from outlast_bench.study.figures import style
from outlast_bench.study.figures.style import Drawn
from outlast_bench.study.page import grids, machines, tables
from outlast_bench.study.page.notes import Paragraph, read_notes
from outlast_bench.study.verdicts.choice import which
from outlast_bench.study.verdicts.cost import verdicts
from outlast_bench.study.verdicts.models import normalisation
from outlast_bench.study.verdicts.verdict import Verdict
from outlast_operator.reporting import words

HTML_NAME = "index.html"
HEADINGS = {  # by what a link to it is called
    "which": "Which strategy",
    "words": "Words",
    "answer": "What was expected, and what was found",
    "reading": "Reading the results",
    "experiments": "The experiments",
    "backlog": "How to apply a backlog",
    "cost": "Cost",
    "models": "With and without normalisation",
    "tables": "Tables, and runs that failed",
    "machine": "Machine and data",
    "appendix": "Appendix: other experiments in full",
}


@dataclass(frozen=True)
class Picture:
    """A figure once it is written. `files`: PNG and SVG."""

    drawn: Drawn
    files: tuple[Path, ...]

    @property
    def uri(self) -> str:
        """The SVG as a data URI."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.files[1].read_bytes()).decode("ascii")


Pictures = Mapping[str, tuple[Picture, ...]]  # by the part of the page that shows them


@dataclass(frozen=True)
class Section:
    """One experiment on the page."""

    name: str
    title: str
    results: tuple[Grid, ...]
    costs: tuple[Grid, ...] = ()


@dataclass(frozen=True)
class Study:
    """Everything that is computed for the page and the documentation."""

    summary: Summary
    prices: PriceTable
    main: str  # the experiment the verdicts are about
    verdicts: tuple[Verdict, ...] = ()
    sections: tuple[Section, ...] = ()
    models_answer: Verdict | None = None
    tables: tuple[tables.Table, ...] = ()
    choice: Grid | None = None
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


def _repeats(experiment: str) -> bool:
    return experiment == PAPER_TIMES or experiment.startswith(figures.MODELS)


def contents(study: Study) -> list[tuple[str, str]]:
    """(what a link to it is called, heading) of every part, in the page's order."""
    absent = {
        "which": study.choice is None,
        "reading": not study.notes,
        "experiments": not study.sections,
        "backlog": study.backlog_limits is None,
        "models": study.models_answer is None,
        "appendix": not study.appendix,
    }
    first = (study.first,) if study.first is not None else ()
    after: dict[str, tuple[Section, ...]] = {"experiments": first, "models": study.beside, "appendix": study.appendix}
    found: list[tuple[str, str]] = []
    for key, title in HEADINGS.items():
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
    drawn = figures.of_study(study.summary, study.main, study.prices)
    pictures = {part: _saved(some, directory / "figures") for part, some in drawn}
    written = [path for some in pictures.values() for picture in some for path in picture.files]
    written += [tables.write(table, directory / "tables") for table in study.tables]
    page = directory / HTML_NAME
    page.write_text(html(study, pictures), encoding="utf-8")
    return [*written, page]


def assemble(directory: Path, prices: PriceTable) -> Study:
    """Measure everything. Raises `StudyError` when DIR holds no study."""
    data = load_study(directory)
    notes = read_notes(directory, data.about.started if data.about is not None else None, len(data.runs))
    if notes.left_out:
        data = replace(data, problems=(*data.problems, notes.left_out))
    summary = summarise(data)
    main = STEEP if STEEP in summary.experiments or not summary.experiments else summary.experiments[0]
    return Study(
        summary=summary,
        prices=prices,
        main=main,
        verdicts=tuple(verdicts(summary, prices, main)),
        sections=tuple(_section(summary, experiment, prices) for experiment in summary.experiments),
        models_answer=normalisation(summary),
        tables=tuple(tables.all_tables(summary, prices)),
        choice=which(summary, prices, main),
        notes=notes.paragraphs,
        backlog_limits=grids.limits(data.backlog),
    )


def _section(summary: Summary, experiment: str, prices: PriceTable) -> Section:
    return Section(
        name=experiment,
        title=summary.data.title(experiment),
        results=tuple(grids.results(summary, experiment)),
        costs=tuple(grids.costs(summary, experiment, prices)),
    )


def _saved(drawn: Iterable[Drawn], out: Path) -> tuple[Picture, ...]:
    return tuple(Picture(each, tuple(style.save(each, out))) for each in drawn)


def html(study: Study, pictures: Pictures) -> str:
    from jinja2 import Environment, StrictUndefined

    template = resources.files("outlast_bench.study.page").joinpath("study.html.j2").read_text("utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["unbroken"] = words.unbroken
    return environment.from_string(template).render(
        study=study,
        data=study.data,
        pictures=pictures,
        headings=HEADINGS,
        contents=contents(study),
        expected=grids.expected(study.verdicts),
        counts=grids.counts(study.data),
        machine=[*machines.machine(study.data), *machines.speeds(study.summary)],
        experiments=grids.experiments(study.summary),
        prices=grids.hourly(study.prices),
        failures=study.summary.failures,
    )

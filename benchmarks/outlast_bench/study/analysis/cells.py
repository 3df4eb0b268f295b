"""What a study's tables are made of: cells, lines and grids, the same for HTML and Markdown. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from outlast_bench.study.analysis.load import is_control
from outlast_bench.study.analysis.statistics import Estimate
from outlast_bench.study.analysis.summary import Group, Summary

Cell = tuple[str, str]  # the mean, and in brackets what surrounds it
NOTHING: Cell = ("", "")


@dataclass(frozen=True)
class Line:
    """A row; its cells are empty where nothing was measured."""

    label: str
    cells: tuple[Cell, ...]
    failed: bool = False


@dataclass(frozen=True)
class Grid:
    """A table. `columns`: the first is that of the labels."""

    title: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]

    @property
    def filled(self) -> Grid:
        """Without the columns in which no line has anything."""
        kept = [i for i in range(len(self.columns) - 1) if any(line.cells[i] != NOTHING for line in self.lines)]
        lines = tuple(replace(line, cells=tuple(line.cells[i] for i in kept)) for line in self.lines)
        return Grid(self.title, (self.columns[0], *(self.columns[i + 1] for i in kept)), lines)


def cell(found: Estimate | None, digits: int, scale: float = 1.0, signed: bool = False, of: int = 0) -> Cell:
    """(`+1.2`, `(+0.4 to +2.0)`), with `≥` where some runs did not get there; empty for what was not measured.

    `of`: how many runs should be in it; where some could not be measured, the cell says of how many it is.
    """
    if found is None:
        return NOTHING
    form = f"{{:{'+' if signed else ''},.{digits}f}}"
    mean, low, high = (typed(form.format(round(scale * v, digits) + 0.0)) for v in (found.mean, found.low, found.high))
    around = [f"{low} to {high}"] if found.n > 1 else []
    around += [f"{found.n} of {of} runs"] if found.n < of else []
    return ("≥ " if found.censored else "") + mean, f"({'; '.join(around)})" if around else ""


def points(found: Estimate | None) -> Cell:
    """A difference of accuracies in points."""
    return cell(found, 1, 100.0, signed=True)


def seeds_of(group: Group) -> Cell:
    """How many runs the line's means are of; of how many, where some failed or are not made yet."""
    return str(group.n), f"(of {group.wanted})" if group.wanted > group.n else ""


def seeds_in(found: Estimate | None, groups: Sequence[Group], measured: int | None = None) -> Cell:
    """How many seeds an estimate is of, and which planned runs of the groups are not in it.

    `measured`: how many runs the estimate is of, where that is not the number of its seeds.
    """
    n = 0 if found is None else found.n
    diverged = sum(g.diverged for g in groups)
    parts = (
        (sum(g.failed for g in groups), "failed" + (f", {diverged} diverged" if diverged else "")),
        (sum(g.missing for g in groups), "not made yet"),
        (sum(g.n for g in groups) - (n if measured is None else measured), "not measured"),
    )
    planned = sum(g.wanted for g in groups)
    lacking = "; ".join(f"{count} of {planned} {what}" for count, what in parts if count > 0)
    return str(n), f"({lacking})" if lacking else ""


def typed(number: str) -> str:
    """With a minus sign and a sign for what nothing bounds."""
    return number.replace("-", "−").replace("inf", "∞")


def kills_title(kills: int) -> str:
    return {0: "Without a kill", 1: "One kill", 2: "Two kills"}.get(kills, f"{kills} kills")


def by_kills(summary: Summary, experiment: str) -> Iterator[tuple[int, list[Group]]]:
    """The groups with as many kills each, the control's on top of all; those that failed as a whole as well."""
    mine = [g for g in summary.groups if g.experiment == experiment]
    controls = [g for g in mine if is_control(g.configuration)]
    others = [g for g in mine if not is_control(g.configuration)]
    for kills in sorted({g.kills for g in others}) or ([0] if controls else []):
        yield kills, [*controls, *(g for g in others if g.kills == kills)]

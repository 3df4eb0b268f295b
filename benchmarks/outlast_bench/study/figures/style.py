"""How every figure of a study looks: one colour a strategy everywhere, one dash a variant, units, size, files.

Colours are Okabe and Ito's, which the colour-blind can tell apart; who cannot tell them apart at all has dashes,
markers and panels. Figures are 11 inches wide with 9-point text: at the width of the page that is 12 pixels. matplotlib
is imported when something is drawn, never with this module.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outlast_bench.study.analysis.backlog import Cell
from outlast_bench.study.analysis.load import is_control
from outlast_bench.study.analysis.run_curves import interpolated
from outlast_bench.study.analysis.statistics import Estimate
from outlast_bench.study.analysis.summary import Group
from outlast_operator.reporting.curves import Curve

WIDTH_IN = 11.0
PNG_DPI = 150
GRID_POINTS = 240
TITLE_CHARACTERS = 24  # of a panel a fifth as wide as the figure
PATH = re.compile(r' d="[^"]+"')
DECIMALS = re.compile(r"(\.\d\d)\d+")

INK, MUTED, GRID = "#1c2128", "#5b6470", "#e3e6ea"
CONTROL_COLOUR = "#4d5560"
OUTAGE_COLOUR = "#8a94a0"
STRATEGY_COLOURS = {"checkpoint": "#d55e00", "chain": "#0072b2", "stateless": "#00845f", "hybrid": "#b5578f"}
OTHER_COLOUR = "#8a5a00"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h", "p")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Drawn:
    """A figure with its legend in words. `name`: its files' stem."""

    name: str
    title: str
    caption: str
    figure: Any
    alt: str = ""


def strategy_of(configuration: str, strategy: str = "") -> str:
    """The strategy behind a configuration's name, else behind its report's; `` for the control and the unknown."""
    if is_control(configuration):
        return ""
    words = configuration.lower().split("-")
    named = next((s for s in STRATEGY_COLOURS if s in words), None)
    return named or (strategy.lower() if strategy.lower() in STRATEGY_COLOURS else "")


def colour_of(group: Group) -> str:
    if is_control(group.configuration):
        return CONTROL_COLOUR
    strategy = str(group.runs[0].run.report.get("strategy") or "") if group.runs else ""
    return STRATEGY_COLOURS.get(strategy_of(group.configuration, strategy), OTHER_COLOUR)


def dash_of(configuration: str) -> Any:
    """Solid: recommended; dashed: the paper's async; dotted: the paper's sync; dash-dotted: the extra one."""
    if "none-yet" in configuration:
        return (0, (6, 2, 1, 2))
    if not configuration.startswith("paper-"):
        return "-"
    return (0, (1.2, 1.4)) if "-sync-" in configuration else (0, (5, 1.8))


def marker_of(configuration: str) -> str:
    if "none-yet" in configuration:
        return "X"
    if is_control(configuration):
        return "D"
    if not configuration.startswith("paper-"):
        return "o"
    return "^" if "-sync-" in configuration else "s"


@contextmanager
def styled() -> Iterator[None]:
    import matplotlib

    style: Any = {
        "font.family": "DejaVu Sans",
        "font.size": 9.0,
        "text.color": INK,
        "axes.edgecolor": "#b8c0c9",
        "axes.labelcolor": MUTED,
        "axes.titlecolor": INK,
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "xtick.color": "#b8c0c9",
        "ytick.color": "#b8c0c9",
        "xtick.labelcolor": MUTED,
        "ytick.labelcolor": MUTED,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "text.parse_math": False,
        "svg.hashsalt": "outlast",
    }
    with matplotlib.rc_context(style):
        yield


def new_figure(height_in: float, width_in: float = WIDTH_IN) -> Any:
    """A figure without pyplot's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(drawn: Drawn, directory: Path) -> list[Path]:
    """Write NAME.png and NAME.svg; the same bytes for the same data."""
    directory.mkdir(parents=True, exist_ok=True)
    png, svg = directory / f"{drawn.name}.png", directory / f"{drawn.name}.svg"
    with styled():
        drawn.figure.savefig(png, dpi=PNG_DPI, facecolor="white", metadata={"Software": "outlast"})
        text = io.StringIO()
        drawn.figure.savefig(text, format="svg", facecolor="white", metadata={"Date": None, "Creator": "outlast"})
    svg.write_text(lighter(text.getvalue()), encoding="utf-8")
    return [png, svg]


def lighter(svg: str) -> str:
    """The same drawing with its paths to a hundredth of a point: a page carries dozens of them."""
    return PATH.sub(lambda path: DECIMALS.sub(r"\1", path[0]), svg)


# --- over seeds ---


@dataclass(frozen=True)
class Band:
    """Mean, least and greatest over seeds, on one grid of times."""

    t: Floats
    mean: Floats
    low: Floats
    high: Floats


def band(curves: Sequence[Curve], end: float, start: float = 0.0) -> Band | None:
    """Curves of several seeds as one; None without any. A curve is drawn only as far as all of them reach."""
    known = [c for c in curves if c]
    if not known:
        return None
    first = max(start, max(c[0][0] for c in known))
    last = min(end, min(c[-1][0] for c in known))
    if last <= first:
        return None
    t = np.linspace(first, last, GRID_POINTS)
    table = np.array([[interpolated(c, float(x)) for x in t] for c in known], dtype=np.float64)
    return Band(t, table.mean(axis=0), table.min(axis=0), table.max(axis=0))


def draw_band(
    ax: Any,
    found: Band,
    colour: str,
    dash: Any = "-",
    label: str | None = None,
    width: float = 1.9,
    alpha: float = 0.16,
) -> None:
    """The mean as a line; the range over seeds as strongly as `alpha`, 0: not at all."""
    if alpha > 0 and (found.high - found.low).max() > 0:
        ax.fill_between(found.t, found.low, found.high, color=colour, alpha=alpha, linewidth=0)
    ax.plot(found.t, found.mean, color=colour, linestyle=dash, linewidth=width, label=label)


def in_the_corner(ax: Any, group: Group, text: str) -> None:
    at, colour = (0.98, 0.06), colour_of(group)
    ax.annotate(text, at, xycoords="axes fraction", ha="right", color=colour, fontweight="bold")


def legend_below(ax: Any) -> None:
    """What the lines are, under the axis: inside, one line or another would run through it."""
    ax.legend(loc="upper left", bbox_to_anchor=(0.0, -0.13), ncols=2, handlelength=3.0, borderaxespad=0.0)


def legend_of_two(figure: Any, filled: str, hollow: str, place: str) -> None:
    from matplotlib.lines import Line2D

    marks = [
        Line2D([], [], marker="o", linestyle="none", color=MUTED, markerfacecolor=face, markeredgewidth=1.6)
        for face in (MUTED, "white")
    ]
    figure.legend(marks, [filled, hollow], loc=place, ncols=2)


def whisker(ax: Any, around: Estimate, y: float, colour: str, scale: float = 1.0) -> None:
    """A horizontal line from low to high: solid for an interval, dotted for a range."""
    ax.plot(
        [around.low * scale, around.high * scale],
        [y, y],
        color=colour,
        linewidth=2.2,
        linestyle="-" if around.kind == "interval" else ":",
        solid_capstyle="butt",
        zorder=2,
    )


Part = tuple[str, float, Callable[[Group], float]]  # name, how strongly it is drawn, its length


def stacked(
    groups: Sequence[Group], parts: Sequence[Part], hatched: str, text: Callable[[Group], str], axis: str
) -> Any:
    """A figure of a bar a group, its parts one after another, with a text at its end."""
    figure = new_figure(0.36 * len(groups) + 1.0)
    ax = figure.subplots()
    longest = 0.0
    for y, group in enumerate(groups):
        left = 0.0
        for name, alpha, length in parts:
            value, hatch = length(group), "////" if name == hatched else None
            ax.barh(
                y, value, left=left, height=0.62, color=colour_of(group), alpha=alpha, hatch=hatch, edgecolor="white",
                linewidth=0,
            )  # fmt: skip
            left += value
        longest = max(longest, left)
        ax.annotate(f"  {text(group)}", (left, y), va="center", fontsize=8.5)
    ax.set_yticks(range(len(groups)), [g.label for g in groups])
    ax.tick_params(axis="y", length=0)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.28 * longest or 1.0)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(axis)
    return figure


def wrapped(label: str, width: int = TITLE_CHARACTERS) -> str:
    """A label over as many lines as a small panel's title needs."""
    return textwrap.fill(label, width, break_long_words=False)


def grid_of_panels(count: int, columns: int = 5, height_in: float = 2.15) -> tuple[Any, list[Any]]:
    """A figure of `count` small panels with shared axes, row by row; empty places stay empty.

    Five in a row: the paper's five configurations, then ours below them.
    """
    columns = min(columns, max(1, count))
    rows = -(-count // columns)
    figure = new_figure(height_in * rows + 0.5)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    flat = [ax for row in grid for ax in row]
    for ax in flat[count:]:
        ax.set_visible(False)
    for i, ax in enumerate(flat[:count]):
        if i + columns >= count:
            ax.tick_params(labelbottom=True)
    return figure, flat[:count]


def seeds_label(found: Sequence[Group | Cell]) -> str:
    """`n = 5`, or `n = 3 to 5`."""
    sizes = sorted({each.n for each in found}) or [0]
    return f"n = {sizes[0]}" if len(sizes) == 1 else f"n = {sizes[0]} to {sizes[-1]}"

"""The curves of a run: accuracy, gradients per second, version, CPU and memory over one time axis.

One drawing, two palettes: `LIGHT` for the PNG, and one of CSS variables for the page, in which the same SVG follows
the reader's light or dark theme. Colours tell roles apart (Okabe and Ito's, safe for the colour-blind), dashes the
processes of a role; what was not recorded is said so.

matplotlib is imported when a figure is drawn, never with this module.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlast_operator.reporting.curves import (
    ROLES,
    Curve,
    curve,
    mean_of,
    number,
    pieces,
    processes,
    rates,
    thinned,
    versions,
)

MAX_LINES = 4  # a role with more processes is drawn as their mean
LABEL_ROWS = 5  # where these do not do, a failure has its cross and no name: the page lists them all
ROW_PT, TITLE_PT, HEADING_PT = 19.0, 24.0, 34.0  # above the first panel: a row of failures, its title, the heading
SIZE_IN = (11.0, 12.6)
CROSS = "\u2716"
DASHES = ("-", "--", ":", "-.")
LIGHT = {
    "ink": "#1c2128",
    "muted": "#5b6470",
    "grid": "#e3e6ea",
    "outage": "#d55e00",
    "accuracy": "#0072b2",
    "server": "#0072b2",
    "worker": "#d55e00",
    "redis": "#b5578f",
    "evaluator": "#00845f",
    "operator": "#5b6470",
}
# Hex colours that stand for CSS variables: matplotlib knows only colours, the page replaces them.
MARKERS = {name: f"#0a0b{i:02x}" for i, name in enumerate(LIGHT, start=0x10)}


@dataclass(frozen=True)
class Interruption:
    """A failure as the figure shows it; `end_s` None: to the end of the run, or not to be shaded (`shaded` False)."""

    label: str
    start_s: float
    end_s: float | None
    shaded: bool


def write_png(report: dict[str, Any], interruptions: Sequence[Interruption], path: Path) -> None:
    """The figure as a PNG of some 1,500 × 1,700 pixels, on white, with the run's name above it."""
    title = f"{report.get('job') or 'run'}: {report.get('strategy', '')}, {report.get('consistency', '')}"
    figure = _draw(report, interruptions, LIGHT, title)
    figure.savefig(path, dpi=140, facecolor="white", metadata={"Software": "outlast"})


def svg(report: dict[str, Any], interruptions: Sequence[Interruption]) -> str:
    """The figure as an inline `<svg>` whose colours are `var(--ink)`, `var(--server)` and so on, with text as text."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "outlast"}):
        figure = _draw(report, interruptions, MARKERS, None)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for name, marker in MARKERS.items():
        text = text.replace(marker, f"var(--{name})")
    opening, rest = text.split(">", 1)
    view_box = opening[opening.index("viewBox=") :].split('"')[1]
    label = "Curves over time: test accuracy, gradients per second, version, CPU and memory of each process"
    return f'<svg viewBox="{view_box}" role="img" aria-label="{label}">{_without_metadata(rest)}'


def _draw(
    report: dict[str, Any], interruptions: Sequence[Interruption], colours: dict[str, str], title: str | None
) -> Any:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {
        "font.family": "DejaVu Sans",
        "font.size": 10.0,
        "text.color": colours["ink"],
        "axes.edgecolor": colours["grid"],
        "axes.labelcolor": colours["muted"],
        "axes.titlecolor": colours["ink"],
        "xtick.color": colours["grid"],
        "ytick.color": colours["grid"],
        "xtick.labelcolor": colours["muted"],
        "ytick.labelcolor": colours["muted"],
        "grid.color": colours["grid"],
        "axes.facecolor": "none",
        "text.parse_math": False,  # a $ in a name is a $
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=SIZE_IN)
        FigureCanvasAgg(figure)
        axes = figure.subplots(
            5, 1, sharex=True, gridspec_kw={"height_ratios": [1.7, 1.2, 1.0, 1.2, 1.2], "hspace": 0.42}
        )
        end = _end(report)
        rows = _rows(interruptions, end)
        labels_pt = ROW_PT * (1 + max((row or 0 for row in rows), default=-1))
        above_pt = labels_pt + TITLE_PT + (HEADING_PT if title else 0.0)
        figure.subplots_adjust(left=0.075, right=0.86, top=1.0 - above_pt / (72.0 * SIZE_IN[1]), bottom=0.045)
        for ax in axes:
            _prepare(ax, end)
            _shade(ax, interruptions, end, colours)
        _label_failures(axes[0], interruptions, rows, end, colours)
        _accuracy(axes[0], report, colours, end)
        _title(axes[0], "Test accuracy (%)", above_pt=labels_pt + 8.0)
        _gradients(axes[1], report, colours)
        _version(axes[2], report, colours)
        resources = report.get("resources") or []
        _processes(axes[3], processes(resources, "cpu_s"), "CPU in use (cores)", colours)
        _processes(axes[4], processes(resources, "rss_bytes"), "Resident memory (MiB)", colours)
        axes[4].set_xlabel("Time since the start of the run (s)")
        if title:
            figure.text(0.075, 0.98, title, fontsize=15, fontweight="bold", va="center", color=colours["ink"])
    return figure


def _end(report: dict[str, Any]) -> float:
    times = [number(s.get("t_s")) for name in ("series", "resources") for s in report.get(name) or []]
    known = [t for t in (*times, number(report.get("duration_s"))) if t is not None]
    return max(known, default=0.0) or 1.0


def _prepare(ax: Any, end: float) -> None:
    ax.set_xlim(0.0, end)
    ax.grid(axis="y", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(length=0, pad=5, labelbottom=True)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)


def _shade(ax: Any, interruptions: Sequence[Interruption], end: float, colours: dict[str, str]) -> None:
    for one in interruptions:
        if one.shaded:
            ax.axvspan(one.start_s, end if one.end_s is None else one.end_s, color=colours["outage"], alpha=0.16, lw=0)
        ax.axvline(one.start_s, color=colours["outage"], linewidth=1.1, linestyle=(0, (3, 2)))


def _rows(interruptions: Sequence[Interruption], end: float) -> list[int | None]:
    """In which row above the panel each failure's name stands, None: nowhere. Earlier ones stand higher, so that no
    stem crosses a name."""
    rows: list[int | None] = []
    row_starts = [math.inf] * LABEL_ROWS
    for one in reversed(interruptions):
        width = end * (0.03 + 0.0095 * len(one.label))
        left = one.start_s - width if _leftwards(one, end) else one.start_s
        free = (row for row in range(LABEL_ROWS) if left + width <= min(row_starts[row:]))
        row = next(free, None)
        if row is not None:
            row_starts[row] = left
        rows.append(row)
    return rows[::-1]


def _leftwards(one: Interruption, end: float) -> bool:
    """Whether its name must stand left of its cross, to stay within the figure."""
    return one.start_s + end * 0.0095 * len(one.label) > end * 1.1


def _label_failures(
    ax: Any, interruptions: Sequence[Interruption], rows: Sequence[int | None], end: float, colours: dict[str, str]
) -> None:
    """A cross and the target's name above the panel."""
    for one, row in zip(interruptions, rows, strict=True):
        left = _leftwards(one, end)
        above_pt = 9.0 + ROW_PT * (LABEL_ROWS - 1 if row is None else row)
        base = {"xy": (one.start_s, 1.0), "xycoords": ax.get_xaxis_transform(), "textcoords": "offset points"}
        ax.annotate(
            "", xytext=(0, above_pt), arrowprops={"arrowstyle": "-", "color": colours["outage"], "lw": 1.1}, **base
        )
        ax.annotate(CROSS, xytext=(0, above_pt), va="center", ha="center", fontsize=12, color=colours["outage"], **base)
        if row is not None:
            side: Any = {"xytext": (-9, above_pt), "ha": "right"} if left else {"xytext": (9, above_pt), "ha": "left"}
            ax.annotate(one.label, va="center", fontsize=9.5, color=colours["ink"], **side, **base)


def _title(ax: Any, text: str, above_pt: float = 8.0) -> None:
    ax.set_title(text, loc="left", fontsize=11.5, fontweight="bold", pad=above_pt)


def _at_end(ax: Any, text: str, y: float, colour: str) -> None:
    """What a curve came to, beside its end. `y` in data units."""
    ax.annotate(
        text, (1.0, y), xycoords=("axes fraction", "data"), xytext=(9, 0), textcoords="offset points",
        va="center", color=colour, fontweight="bold",
    )  # fmt: skip


def _nothing(ax: Any, text: str, colours: dict[str, str]) -> None:
    ax.set_yticks([])
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color=colours["muted"])


def _accuracy(ax: Any, report: dict[str, Any], colours: dict[str, str], end: float) -> None:
    points = curve(report.get("series") or [], "accuracy", 100.0)
    final = number((report.get("final") or {}).get("accuracy"))
    if not points and final is None:
        _nothing(ax, "no evaluation in this run", colours)
        return
    values = [v for _, v in points] + ([] if final is None else [100.0 * final])
    if points:
        shown = thinned(points)
        markers = {"marker": "o", "markersize": 3.5} if len(shown) <= 80 else {}
        ax.plot(*zip(*shown, strict=True), color=colours["accuracy"], linewidth=2.0, **markers)
    if final is not None:  # on all test data, while the curve is on some of it: a mark of its own
        ax.plot(
            [end], values[-1:], marker="D", markersize=7, color=colours["accuracy"], clip_on=False, linestyle="none"
        )
    ax.set_ylim(max(0.0, min(values) - 5.0), min(102.0, max(values) + 5.0))
    _at_end(ax, f"{values[-1]:.1f} %" + (" final" if final is not None else ""), values[-1], colours["accuracy"])


def _gradients(ax: Any, report: dict[str, Any], colours: dict[str, str]) -> None:
    _title(ax, "Gradients computed (per second)")
    stretches = rates(curve(report.get("series") or [], "gradients"))
    if not stretches:
        _nothing(ax, "not recorded", colours)
        return
    times = [t for a, b, _ in stretches for t in (a, b)]
    values = [rate for _, _, rate in stretches for _ in range(2)]
    ax.plot(times, values, color=colours["worker"], linewidth=1.8)
    ax.fill_between(times, values, color=colours["worker"], alpha=0.10, linewidth=0)
    ax.set_ylim(0.0, max(values) * 1.15 or 1.0)
    spent = sum(b - a for a, b, _ in stretches)
    mean = sum((b - a) * rate for a, b, rate in stretches) / spent
    _at_end(ax, f"mean {mean:,.1f}" if mean < 100 else f"mean {mean:,.0f}", mean, colours["worker"])


def _version(ax: Any, report: dict[str, Any], colours: dict[str, str]) -> None:
    _title(ax, "Version (updates the parameters hold)")
    points = thinned(versions(report))
    if not points:
        _nothing(ax, "not recorded", colours)
        return
    times, values = zip(*points, strict=True)
    ax.plot(times, values, color=colours["server"], linewidth=2.0)
    ax.set_ylim(0.0, max(values) * 1.12 or 1.0)
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    _at_end(ax, f"{values[-1]:,.0f}", values[-1], colours["server"])


def _processes(ax: Any, found: dict[str, list[Curve]], title: str, colours: dict[str, str]) -> None:
    _title(ax, title)
    if not any(points for curves in found.values() for points in curves):
        _nothing(ax, "not recorded", colours)
        return
    highest = 0.0
    for role in ROLES:
        curves = [c for c in found.get(role, []) if c]
        shown = curves if len(curves) <= MAX_LINES else [mean_of(curves)]
        for index, points in enumerate(shown):
            label = f"{role} {index}" if len(curves) > 1 else role
            if len(curves) > MAX_LINES:
                label = f"{role}s (mean of {len(curves)})"
            parts = pieces(points)
            times = [t for piece in parts for t in (*(t for t, _ in piece), math.nan)]
            values = [v for piece in parts for v in (*(v for _, v in piece), math.nan)]
            ax.plot(
                times, values, color=colours[role], linestyle=DASHES[index % len(DASHES)], linewidth=1.5, label=label
            )
            highest = max(highest, *(v for _, v in points))
    ax.set_ylim(0.0, highest * 1.12 or 1.0)
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if highest >= 10 else f"{value:.3g}")
    ax.legend(
        loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9, handlelength=2.4, borderaxespad=0
    )


def _without_metadata(svg_text: str) -> str:
    start, end = svg_text.find("<metadata>"), svg_text.find("</metadata>")
    return svg_text if start < 0 else svg_text[:start] + svg_text[end + len("</metadata>") :]

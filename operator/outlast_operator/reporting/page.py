"""From report.json to something to read: report.html, one file that needs nothing else, and report.png.

story.py has the words, figure.py draws, report.html.j2 sets both. Nothing from the report
reaches the page unescaped; matplotlib and jinja2 are imported when a report is rendered, not before.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from outlast_operator.reporting import figure as report_figure
from outlast_operator.reporting import words
from outlast_operator.reporting.story import interruptions, story

HTML_NAME = "report.html"
PNG_NAME = "report.png"


def render(report: dict[str, Any], outdir: Path) -> tuple[Path, Path]:
    """Write report.html and report.png into `outdir`, which is made if need be; returns their paths.

    `report` is report.json, whole or in parts: what is missing is left out. Raises `OSError` where it cannot write.
    """
    from jinja2 import Environment, StrictUndefined

    outdir.mkdir(parents=True, exist_ok=True)
    shown = interruptions(report)
    template = resources.files("outlast_operator.reporting").joinpath("report.html.j2").read_text("utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["unbroken"] = words.unbroken
    page = environment.from_string(template).render(
        story=story(report), figure=report_figure.svg(report, shown), colours=report_figure.LIGHT
    )
    html, png = outdir / HTML_NAME, outdir / PNG_NAME
    html.write_text(page, encoding="utf-8")
    report_figure.write_png(report, shown, png)
    return html, png

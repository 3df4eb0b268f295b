"""Draw report.png and report.html again from the report.json in DIR, and say in three lines what happened."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from outlast.process.exit_codes import EXIT_BAD_INPUT, EXIT_OK
from outlast_operator.reporting.data import in_words


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "directory", metavar="DIR", type=Path, help="the directory that `outlast run --report DIR` wrote"
    )
    parser.add_argument("--json", action="store_true", help="print the report without its series, draw nothing")


def run(arguments: argparse.Namespace) -> int:
    path = arguments.directory / "report.json" if arguments.directory.is_dir() else arguments.directory
    try:
        report: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        print(f"{path}: no such file; give the directory that `outlast run --report` wrote", file=sys.stderr)
        return EXIT_BAD_INPUT
    except ValueError as error:
        print(f"{path}: not a report ({error})", file=sys.stderr)
        return EXIT_BAD_INPUT
    if arguments.json:
        print(json.dumps(without_series(report)))
        return EXIT_OK
    print("\n".join(in_words(report)))
    print("\n".join(str(written) for written in draw(report, path.parent)))
    return EXIT_OK


def without_series(report: dict[str, Any]) -> dict[str, Any]:
    """The report less its two long lists."""
    return {key: value for key, value in report.items() if key not in ("series", "resources")}


def draw(report: dict[str, Any], directory: Path) -> list[Path]:
    """Write report.png and report.html; returns what was written (nothing without matplotlib, which it says)."""
    try:
        from outlast_operator.reporting.page import render

        return list(render(report, directory))
    except ImportError as error:
        print(f"no report.png and report.html: {error}; in the repository: pip install '.[local]'", file=sys.stderr)
        return []

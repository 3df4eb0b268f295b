"""A study small enough to keep in a repository: its records whole, its reports thinned to what figures and tables need.

A report of half a minute is some 50 kB, most of it `resources`. Kept is one sample of them a second and process
(figures are drawn second by second) and each process at its largest; the rest stays as it is, less its spaces. What a
study needs to be gone on with is kept: copied out of the repository, a kept study is one that was interrupted. What was
written about it (notes.md) goes with it.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from outlast_bench.study.analysis.load import load_study
from outlast_bench.study.design.records import write_json
from outlast_bench.study.page.notes import NAME as NOTES
from outlast_bench.study.run import execute
from outlast_operator.reporting.curves import number

RECORDS = ("study.json", "calibration.json")


def keep(study: Path, target: Path, root: Path | None = None) -> int:
    """Copy a study into `target` (which is emptied first), thinned. Returns the bytes kept.

    `root`: from where the kept runs' commands are to be started (the repository's root); they name what is kept.

    Raises `StudyError` where there is no study, `ValueError` where `target` is the study itself or holds other things.
    """
    load_study(study)
    if study.resolve().is_relative_to(target.resolve()):
        raise ValueError(f"{target} is the study itself, or holds it, and is emptied first; give another directory")
    if target.exists() and any(target.iterdir()) and not (target / RECORDS[0]).exists():
        raise ValueError(
            f"{target} holds something else than a study; give an empty directory, or one with a kept study"
        )
    shutil.rmtree(target, ignore_errors=True)
    for name in (*RECORDS, NOTES):
        if (study / name).exists():
            _copy(study / name, target / name)
    _name_no_place(target / RECORDS[0])
    for record in sorted(study.glob("runs/*/*/kills-*/seed-*/run.json")):
        folder = target / record.parent.relative_to(study)
        _keep_run(record.parent, folder, folder.resolve().relative_to(root.resolve()) if root else folder)
    for path in sorted(study.glob("backlog/*/*/*.json")):
        _write(target / path.relative_to(study), json.loads(path.read_text(encoding="utf-8")))
    return sum(path.stat().st_size for path in target.rglob("*") if path.is_file())


def _name_no_place(record: Path) -> None:
    """Where a study was made is nothing to anybody who reads it later: its command says DIR."""
    if record.exists():
        about = json.loads(record.read_text(encoding="utf-8"))
        about["command"] = re.sub(r"(--out[ =])(\S+)", r"\1DIR", str(about.get("command") or ""))
        write_json(record, about)


def _keep_run(source: Path, target: Path, shown: Path) -> None:
    """`shown`: `target` as a reader of the command names it."""
    record = json.loads((source / "run.json").read_text(encoding="utf-8"))
    record["command"] = execute.shown(shown, record.get("kill_arguments") or [])
    write_json(target / "run.json", record)
    if (source / execute.JOB).exists():
        _copy(source / execute.JOB, target / execute.JOB)
    report = source / "report.json"
    if report.exists():
        _write(target / "report.json", thinned(json.loads(report.read_text(encoding="utf-8"))))


def thinned(report: dict[str, Any]) -> dict[str, Any]:
    """The report with one sample of each process a second."""
    return report | {"resources": list(_one_a_second(report.get("resources") or []))}


def _one_a_second(rows: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """The first of each second, the largest of each process, and the first of each new life."""
    rows = list(rows)
    peaks: dict[str, dict[str, Any]] = {}
    for row in rows:
        largest = peaks.setdefault(str(row.get("process")), row)
        if (number(row.get("rss_bytes")) or 0.0) > (number(largest.get("rss_bytes")) or 0.0):
            peaks[str(row.get("process"))] = row
    last: dict[str, tuple[int, float]] = {}
    for row in rows:
        t, used = number(row.get("t_s")), number(row.get("cpu_s"))
        if t is None:
            continue
        name, second = str(row.get("process")), math.floor(t)
        before = last.get(name)
        if row is peaks[name] or before is None or second > before[0] or (used is not None and used < before[1]):
            yield row
            last[name] = (second, used if used is not None else 0.0)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _write(path: Path, raw: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(raw, separators=(",", ":")) + "\n", encoding="utf-8")

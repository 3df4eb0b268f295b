"""Writes what the documentation shows of the kept study: tables into pages, figures, and tables as CSV.

python docs/render_study.py            from docs/study/runs.tar.xz, which is kept in the repository
python docs/render_study.py --check    only say which tables and pages are stale
python docs/render_study.py DIR        keep the study of `outlast study --out DIR` in its place, then write all

Prose is written by a person. In every page below docs/ the lines between `<!-- study: NAME -->` and `<!-- end -->` are
a table that is made from the recorded runs (`blocks` has the names). A figure that a page shows is a file of its own;
the others of an experiment stand one below the other in all-EXPERIMENT.png.

The archive has a study's records whole and its reports thinned. A report of half a minute is some 50 kB, most of it
`resources`: one sample a second and process stays, and each process at its largest. An archive that is unpacked is a
study that was interrupted, and can be gone on with.
"""

from __future__ import annotations

import io
import json
import lzma
import math
import re
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import image

from outlast_bench.study.analysis import backlog
from outlast_bench.study.analysis.cells import Grid, Line, cell
from outlast_bench.study.analysis.cost import load_prices
from outlast_bench.study.analysis.load import load_study
from outlast_bench.study.design import configurations
from outlast_bench.study.design.records import json_text
from outlast_bench.study.figures import all as figures
from outlast_bench.study.figures import style
from outlast_bench.study.figures.style import Drawn
from outlast_bench.study.page import grids, machines, tables
from outlast_bench.study.page.notes import NAME as NOTES
from outlast_bench.study.page.page import Study, assemble
from outlast_bench.study.run import execute
from outlast_bench.study.verdicts.backlog import WORKERS, best_policies
from outlast_operator.reporting.curves import number

RECORDS = ("study.json", "calibration.json", NOTES)
PRESET = 9 | lzma.PRESET_EXTREME
DOCS = Path(__file__).resolve().parent
ARCHIVE = Path("study") / "runs.tar.xz"
FIGURES = Path("study") / "figures"
TABLES = Path("study") / "tables"
MARK = re.compile(r"^<!-- study: ", re.MULTILINE)
MARKED = re.compile(r"^(<!-- study: ([\w-]+) -->\n).*?(?=^<!-- end -->)", re.DOTALL | re.MULTILINE)
VERDICTS = ("ordering", "control", "backlog", "ahead", "cost")  # as they are called in a page, in their order


def blocks(study: Study) -> dict[str, str]:
    """Name -> what stands between the marks."""
    summary = study.summary
    found: dict[str, Iterable[str]] = {
        "which": grid(study.choice) if study.choice is not None else (),
        "expected": grid(grids.expected([*study.verdicts, *([study.models_answer] if study.models_answer else [])])),
        "configurations": grid(_configurations(study)),
        "experiments": grid(grids.experiments(summary)),
        "limits": grid(study.backlog_limits) if study.backlog_limits is not None else (),
        "policies": grid(_policies(study)),
        "kept": grid(_progress(study)),
        "prices": grid(grids.hourly(study.prices)),
        "counts": table(("what there is", "how many"), [(what, f"{n:,}") for what, n in grids.counts(study.data)]),
        "failed": table(("run", "reason"), _failed(study)),
        "machine": table(("", ""), [*machines.machine(study.data), *machines.speeds(summary)]),
    }
    for name, verdict in zip(VERDICTS, study.verdicts, strict=True):
        found[f"verdict-{name}"] = grid(verdict.grid)
    if study.models_answer is not None:
        found["verdict-models"] = grid(study.models_answer.grid)
    for section in study.sections:
        found[f"results-{section.name}"] = _all(section.results)
        found[f"costs-{section.name}"] = _all(section.costs)
    return {name: "\n".join(lines) for name, lines in found.items()}


def texts(docs: Path, study: Study) -> dict[Path, str]:
    """Every page with marks and every table, as it should be. Raises `ValueError` for a mark of no block."""
    found = {docs / TABLES / f"{each.name}.csv": tables.text(each) for each in study.tables}
    made = blocks(study)
    for page in sorted(docs.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        names = [name for _, name in MARKED.findall(text)]
        if len(names) != len(MARK.findall(text)):
            raise ValueError(f"{page.name}: a mark `<!-- study: NAME -->` lacks its `<!-- end -->`")
        if unknown := sorted(set(names) - made.keys()):
            raise ValueError(f"{page.name}: no block is called {unknown[0]}; use one of {', '.join(sorted(made))}")
        if names:
            found[page] = MARKED.sub(lambda match: f"{match[1]}{made[match[2]]}\n", text)
    return found


def write(docs: Path) -> list[Path]:
    """Pages, tables and figures from the archive. Raises `StudyError` where there is no study."""
    with unpacked(docs / ARCHIVE) as directory:
        study = assemble(directory, load_prices())
        for problem in study.data.problems:
            print(f"left out: {problem}", file=sys.stderr)
        made = texts(docs, study)
        for folder in (FIGURES, TABLES):
            shutil.rmtree(docs / folder, ignore_errors=True)
            (docs / folder).mkdir()
        for path, text in made.items():
            path.write_text(text, encoding="utf-8")
        return [*made, *_figures(study, docs)]


def stale(docs: Path) -> list[Path]:
    """Pages and tables that are not what the archive gives."""
    with unpacked(docs / ARCHIVE) as directory:
        wanted = texts(docs, assemble(directory, load_prices()))
    unwanted = [path for path in (docs / TABLES).iterdir() if path not in wanted]
    return unwanted + [p for p, text in wanted.items() if not p.exists() or p.read_text(encoding="utf-8") != text]


# --- the archive ---


def pack(study: Path, archive: Path) -> int:
    """Write a study, thinned, as a tar.xz: the same bytes for the same study. Returns how many.

    The commands in it name runs as they lie in the unpacked archive. Raises `StudyError` where there is no study.
    """
    load_study(study)
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, text in sorted(_kept(study).items()):
            data = text.encode("utf-8")
            entry = tarfile.TarInfo(name)  # without an owner or a time
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    packed = lzma.compress(raw.getvalue(), preset=PRESET)
    archive.parent.mkdir(parents=True, exist_ok=True)
    archive.write_bytes(packed)
    return len(packed)


@contextmanager
def unpacked(archive: Path) -> Iterator[Path]:
    """The study of an archive in a directory that is there for as long as the context."""
    with tempfile.TemporaryDirectory(prefix="outlast-study-") as directory:
        with tarfile.open(archive, "r:xz") as tar:
            tar.extractall(directory, filter="data")
        yield Path(directory)


def _kept(study: Path) -> dict[str, str]:
    """Name in the archive -> text."""
    found = {name: (study / name).read_text(encoding="utf-8") for name in RECORDS if (study / name).exists()}
    if "study.json" in found:
        found["study.json"] = _without_a_place(json.loads(found["study.json"]))
    for record in study.glob("runs/*/*/kills-*/seed-*/run.json"):
        folder = record.parent.relative_to(study)
        found |= {(folder / name).as_posix(): text for name, text in _run(record.parent, folder).items()}
    for path in study.glob("backlog/*/*/*.json"):
        found[path.relative_to(study).as_posix()] = _dense(json.loads(path.read_text(encoding="utf-8")))
    return found


def _without_a_place(about: dict[str, Any]) -> str:
    """Where a study was made means nothing elsewhere: its command says DIR."""
    return json_text(about | {"command": re.sub(r"(--out[ =])(\S+)", r"\1DIR", str(about.get("command") or ""))})


def _run(source: Path, folder: Path) -> dict[str, str]:
    record = json.loads((source / "run.json").read_text(encoding="utf-8"))
    command = execute.shown(folder, record.get("kill_arguments") or [])
    found = {"run.json": json_text(record | {"command": command})}
    if (source / execute.JOB).exists():
        found[execute.JOB] = (source / execute.JOB).read_text(encoding="utf-8")
    report = source / "report.json"
    if report.exists():
        found["report.json"] = _dense(thinned(json.loads(report.read_text(encoding="utf-8"))))
    return found


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


def _dense(raw: Any) -> str:
    return json.dumps(raw, separators=(",", ":")) + "\n"


# --- figures ---


def _figures(study: Study, docs: Path) -> list[Path]:
    pages = "".join(page.read_text(encoding="utf-8") for page in docs.rglob("*.md"))
    written, rest = [], dict[str, list[Drawn]]()
    for part, drawn in figures.of_study(study.summary, study.main, study.prices):
        for each in drawn:
            if f"/{FIGURES.name}/{each.name}.png" in pages:
                png, svg = style.save(each, docs / FIGURES)
                svg.unlink()  # a repository needs one of the two
                written.append(png)
            else:
                rest.setdefault("models" if part.startswith(figures.MODELS) else part, []).append(each)
    return written + [sheet(drawn, docs / FIGURES / f"all-{part}.png") for part, drawn in rest.items()]


def sheet(drawn: Sequence[Drawn], path: Path) -> Path:
    """Figures one below the other as one PNG, each under its title."""
    pictures = []
    with style.styled():
        for each in drawn:
            each.figure.suptitle(each.title, fontsize=12, fontweight="bold", x=0.01, ha="left")
            each.figure.set_dpi(style.PNG_DPI)
            each.figure.canvas.draw()
            pictures.append(np.asarray(each.figure.canvas.buffer_rgba())[:, :, :3])
    image.imsave(path, np.ascontiguousarray(np.concatenate(pictures)), metadata={"Software": "outlast"})
    return path


# --- Markdown ---


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield "| " + " | ".join(text.replace("|", "\\|").replace("\n", " ") for text in row) + " |"


def grid(found: Grid) -> Iterator[str]:
    """A table under its title, if it has one. The title is no heading: the same stand in several parts of a page."""
    yield from (f"**{found.title}**", "") if found.title else ()
    yield from table(found.columns, [(line.label, *(" ".join(c).strip() for c in line.cells)) for line in found.lines])


def _all(found: Sequence[Grid]) -> Iterator[str]:
    for i, each in enumerate(found):
        yield from ("",) if i else ()
        yield from grid(each)


# --- blocks of their own ---


def _configurations(study: Study) -> Grid:
    made = {run.configuration for run in study.data.runs}
    lines = tuple(Line(c.title, ((c.about, ""),)) for c in configurations.ALL if c.name in made)
    return Grid("", ("configuration", "what it is"), lines)


def _policies(study: Study) -> Grid:
    """What the product's policies keep after an outage as long as the paper's, the best first."""
    accuracy = best_policies(backlog.cells(study.data.backlog), WORKERS)
    loss = {(c.policy, c.outage): c.kept for c in best_policies(backlog.cells(study.data.backlog, "loss"), WORKERS)}
    lines = tuple(
        Line(
            c.label,
            (
                cell(c.kept, 2),
                cell(loss.get((c.policy, c.outage)), 2),
                (f"{c.diverged} of {c.n}" if c.diverged else "", ""),
            ),
        )
        for c in accuracy
    )
    return Grid("", ("policy", "kept, in accuracy", "kept, in loss", "seeds ruined"), lines)


def _progress(study: Study) -> Grid:
    """What whole runs of the strategies with a buffer keep, drain included."""
    groups = [study.summary.group(study.main, name, kills) for name in ("stateless", "hybrid") for kills in (1, 2)]
    lines = tuple(
        Line(g.label, ((str(g.kills), ""), cell(g.kept, 2, of=g.n), (str(g.n), ""))) for g in groups if g is not None
    )
    return Grid("", ("strategy", "kills", "progress kept", "n"), lines)


def _failed(study: Study) -> list[tuple[str, str]]:
    runs = study.summary.failures
    return [(f"{r.experiment}, {r.configuration}, kills {r.kills}, seed {r.seed}", r.error) for r in runs]


def main() -> int:
    if "--check" in sys.argv[1:]:
        found = stale(DOCS)
        for path in found:
            print(f"{path.relative_to(DOCS.parent)} is stale; run python docs/render_study.py")
        return 1 if found else 0
    if sys.argv[1:]:
        size = pack(Path(sys.argv[1]), DOCS / ARCHIVE)
        print(f"kept {sys.argv[1]} in {DOCS / ARCHIVE}: {size / 1e6:.1f} MB")
    print(f"wrote {len(write(DOCS))} files")
    return 0


if __name__ == "__main__":
    sys.exit(main())

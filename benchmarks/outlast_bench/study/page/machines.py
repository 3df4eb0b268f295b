"""What a study was made on, as rows of a name and a value: the machine, or every machine, and by which code. Pure.

Rules. (1) A machine is told from others of its kind by its boot: one that was started anew counts as another, for the
host below it may be another. (2) Nothing is said of what was not recorded, but that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from statistics import fmean

from outlast_bench.study.analysis.load import StudyData, StudyRun
from outlast_bench.study.analysis.summary import Summary
from outlast_bench.study.design.records import Machine
from outlast_operator.reporting import words

Key = tuple[Machine | None, str]  # facts without the code, boot id


def machine(data: StudyData) -> list[tuple[str, str]]:
    """(name, value) rows: what it was measured on and how; empty without a study.json."""
    about = data.about
    if about is None:
        return []
    m = about.machine
    rows = [
        ("Processor", f"{m.cpu}, {words.count(m.cores, 'core')}"),
        ("Memory", words.size(m.memory_bytes)),
        ("System", m.os),
        ("Python, PyTorch", f"{m.python}, {m.torch}"),
        ("Outlast", m.outlast + (f" ({m.commit})" if m.commit else "")),
        ("Started", about.started),
        ("Task", about.task),
        ("Begun by", about.command),
        ("Cores busy during the runs", _share([run.busy_share for run in data.runs])),
        ("Taken by other guests of the host", _share([run.stolen_share for run in data.runs])),
        ("CPU beside a run (s)", _range([beside_training_s(run) for run in data.runs])),
    ]
    if len(data.commits) > 1:
        made = [f"{words.count(n, 'record')} by {commit}" for commit, n in sorted(data.commits.items())]
        rows.append(("Different code", words.listing(made)))
    return [(name, value) for name, value in [*rows, *_machines(data)] if value]


def _share(found: Sequence[float | None]) -> str:
    """Mean, and the range of the runs that recorded it; empty where none did."""
    return _range([None if share is None else 100.0 * share for share in found], " %")


def _range(found: Sequence[float | None], unit: str = "") -> str:
    known = [value for value in found if value is not None]
    return f"{fmean(known):.1f}{unit} ({min(known):.1f} to {max(known):.1f})" if known else ""


def beside_training_s(run: StudyRun) -> float | None:
    """CPU seconds of all cores while a run was made, less those that its report counts; None where not recorded."""
    if run.busy_share is None or run.wall_s is None or run.machine is None:
        return None
    by_process: dict[str, list[tuple[float, float]]] = {}
    for row in run.report.get("resources") or []:
        by_process.setdefault(str(row.get("process")), []).append((row["t_s"], row["cpu_s"]))
    counted = sum(_grown([s for _, s in sorted(rows)]) for rows in by_process.values())
    return run.busy_share * run.machine.cores * run.wall_s - counted if counted else None


def _grown(counter: list[float]) -> float:
    """Of a counter that begins anew, at 0, with every start of its process."""
    return counter[0] + sum(b - a if b >= a else b for a, b in pairwise(counter))


def speeds(summary: Summary) -> list[tuple[str, str]]:
    """(name, value) rows: the CPU time of an evaluation in each experiment, which is the same work in all its runs."""
    rows = []
    for experiment in summary.experiments:
        found = [s for g in summary.of(experiment) for run in g.runs if (s := run.evaluation_cpu_s) is not None]
        if found:
            text = f"{1000 * min(found):.0f} to {1000 * max(found):.0f} ({words.count(len(found), 'run')})"
            rows.append((f"CPU an evaluation in {experiment} (ms)", text))
    return rows


def _machines(data: StudyData) -> Iterator[tuple[str, str]]:
    """Every machine and what of each experiment was made on it, where there is more than one."""
    names = {key: str(i) for i, key in enumerate(dict.fromkeys(_key(run) for run in data.runs), start=1)}
    if len(names) < 2:
        return
    for key, name in names.items():
        yield f"Machine {name}", _facts(key)
    split = []
    for experiment in data.experiments:
        mine = data.of(experiment)
        parts = []
        for key, name in names.items():
            here = [run for run in mine if _key(run) == key]
            if here:
                parts.append(f"{words.count(len(here), 'run')} on {name} ({_seeds(here)})")
        yield f"Runs of {experiment}", words.listing(parts)
        divided = [run for run in mine if len({_key(other) for other in mine if other.seed == run.seed}) > 1]
        split += [f"{_seeds(divided)} of {experiment}"] if divided else []
    if split:
        yield "Seeds made on two machines", words.listing(split)


def _key(run: StudyRun) -> Key:
    m = run.machine
    facts = None if m is None else Machine(m.cpu, m.cores, m.memory_bytes, m.os, m.python, m.torch, outlast="")
    return facts, run.boot_id


def _facts(key: Key) -> str:
    m, boot = key
    if m is None:
        return "not recorded"
    facts = f"{m.cpu}, {words.count(m.cores, 'core')}, {words.size(m.memory_bytes)}, {m.os}"
    return f"{facts}, Python {m.python}, PyTorch {m.torch}" + (f", boot {boot[:8]}" if boot else "")


def _seeds(runs: list[StudyRun]) -> str:
    seeds = sorted({run.seed for run in runs})
    return f"seed{'s' if len(seeds) > 1 else ''} {words.listing([str(seed) for seed in seeds])}"

"""The words of a study's page about what it was made on: the machine, or every machine, and by which code. Pure.

Rules. (1) A machine is told from others of its kind by its boot: one that was started anew counts as another, for the
host below it may be another. (2) Nothing is said of what was not recorded, but that.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from statistics import fmean
from string import ascii_uppercase

from outlast_bench.study.analysis.load import StudyData, StudyRun
from outlast_bench.study.analysis.machine_speed import range_of
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
        ("Cores during the runs", _cores(data)),
        ("Besides", _others(data)),
    ]
    if len(data.commits) > 1:
        made = words.listing([f"{words.count(n, 'record')} by {commit}" for commit, n in sorted(data.commits.items())])
        rows.append(("Different code", f"{made}: what differs between them may be the code's doing"))
    return [(name, value) for name, value in [*rows, *_machines(data)] if value]


def _cores(data: StudyData) -> str:
    """How busy they were, and what other guests of the host took: empty where no run recorded it."""
    known = [run for run in data.runs if run.busy_share is not None and run.stolen_share is not None]
    if not known:
        return ""
    busy = [run.busy_share for run in known if run.busy_share is not None]
    stolen = [run.stolen_share for run in known if run.stolen_share is not None]
    return (
        f"busy for {100 * sum(busy) / len(busy):.0f} % of the time; other guests of the host took "
        f"{100 * sum(stolen) / len(stolen):.1f} % ({100 * max(stolen):.1f} % in the run that it hit hardest)"
    )


def _others(data: StudyData) -> str:
    """CPU seconds beside the training itself: whatever else was started meanwhile shows in a run that sticks out."""
    found = [s for run in data.runs if (s := beside_training_s(run)) is not None]
    if not found:
        return ""
    return (
        f"{fmean(found):.1f} s of CPU a run ({min(found):.1f} to {max(found):.1f}) went into its start and last "
        "evaluation, the system and whatever else ran"
    )


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
    """(name, value) rows: how fast the machine itself was, by the CPU seconds of an evaluation, in each experiment."""
    rows = []
    for experiment in summary.experiments:
        found = range_of(summary, experiment)
        if found is not None:
            least, most, runs = found
            text = f"{1000 * least:.0f} to {1000 * most:.0f} ms of CPU an evaluation, over {words.count(runs, 'run')}"
            rows.append((f"Speed in {experiment}", text))
    return rows


def _machines(data: StudyData) -> Iterator[tuple[str, str]]:
    """Every machine and what of each experiment was made on it, where there is more than one."""
    names = {key: _letters(i) for i, key in enumerate(dict.fromkeys(_key(run) for run in data.runs))}
    if len(names) < 2:
        return
    for key, name in names.items():
        yield f"Machine {name}", _in_words(key)
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
        yield (
            "Compared with care",
            f"{words.listing(split)}: made in part on one machine and in part on another; what differs between runs "
            "of such a seed may be the machines' doing",
        )


def _key(run: StudyRun) -> Key:
    m = run.machine
    facts = None if m is None else Machine(m.cpu, m.cores, m.memory_bytes, m.os, m.python, m.torch, outlast="")
    return facts, run.boot_id


def _in_words(key: Key) -> str:
    m, boot = key
    if m is None:
        return "not recorded"
    facts = f"{m.cpu}, {words.count(m.cores, 'core')}, {words.size(m.memory_bytes)}, {m.os}"
    return f"{facts}, Python {m.python}, PyTorch {m.torch}" + (f", boot {boot[:8]}" if boot else "")


def _seeds(runs: list[StudyRun]) -> str:
    seeds = sorted({run.seed for run in runs})
    return f"seed{'s' if len(seeds) > 1 else ''} {words.listing([str(seed) for seed in seeds])}"


def _letters(index: int) -> str:
    """A to Z, then A1 to Z1."""
    more, at = divmod(index, len(ascii_uppercase))
    return ascii_uppercase[at] + (str(more) if more else "")

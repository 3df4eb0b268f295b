"""How a backlog should be applied: every policy on the same outages, from 10 to 10,000 gradients, 1, 2 and 8 workers.

A deterministic simulation in one process a unit: it asks about arithmetic, not about processes. Real gradients of the
paper's CNN on FashionMNIST from weights of accuracy 0.5 or so, weighed by the product's replica and applied by the
product's parameters. What it leaves out: a drain takes no time, and the one or two gradients that are on their way when
the server is lost. tests/integration/test_backlog_real.py compares it with a real outage.

Runs two processes (one a core), resumes where it was interrupted: a unit is all outages of one (workers, seed). A
record that was made otherwise (other images, another start, another way to measure) is made again: a mean over both
would be of neither.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from outlast_bench.study.backlog.records import path_of, read, write
from outlast_bench.study.run.machine import commit_of_code

if TYPE_CHECKING:
    from outlast_bench.study.backlog.unit import Unit

WORKERS = (1, 2, 8)
OUTAGES = (10, 100, 375, 1000, 3000, 10_000)  # gradients; 375: the paper's 15 s at its 25 a second
LONG = 3000
LONG_SEEDS = {1: 1, 2: 2, 8: 1}  # the longest outage takes as long as all others together; 3,000 lie on the way to it
SEEDS = 5
# Updates, by workers: from there on the evaluations of seeds 1000 to 1003, which no unit has, first come to 0.5 on
# average. 8 workers' gradients are 15 updates old: their accuracy swings by 10 points and more about every 150 updates.
START = {1: 110, 2: 125, 8: 320}
LATER = 35  # gradients, over which everything is evaluated
SAMPLES, QUICK_SAMPLES = 1000, 500  # test images
GRADIENT_S, IMAGE_S, START_S = 0.0085, 0.14e-3, 6.0  # of one core; IMAGE_S: to evaluate one; START_S: to begin
QUICK_WORKERS = (2,)
QUICK_OUTAGES = (100, 375)
QUICK_SEEDS = 2


def units(quick: bool, seeds: int | None = None) -> list[Unit]:
    """What a study computes, the longest first."""
    if quick:
        count = QUICK_SEEDS if seeds is None else seeds
        return [_unit(w, s, QUICK_OUTAGES, quick) for w in QUICK_WORKERS for s in range(count)]
    count = SEEDS if seeds is None else seeds
    made = []
    for seed in range(count):
        for workers in reversed(WORKERS):
            outages = tuple(n for n in OUTAGES if n < LONG or seed < LONG_SEEDS[workers])
            made.append(_unit(workers, seed, outages, quick))
    return made


def _unit(workers: int, seed: int, outages: tuple[int, ...], quick: bool) -> Unit:
    from outlast_bench.study.backlog.unit import Unit

    return Unit(workers, seed, outages, START[workers], LATER, QUICK_SAMPLES if quick else SAMPLES, quick)


def missing(out: Path, wanted: Iterable[Unit]) -> list[Unit]:
    """Units without those outages that are there already, made in the same way."""
    left = []
    for unit in wanted:
        outages = tuple(n for n in unit.outages if not _made(out, replace(unit, outages=(n,))))
        if outages:
            left.append(replace(unit, outages=outages))
    return left


def _made(out: Path, one: Unit) -> bool:
    """Whether the record of this unit's only outage is there. One that cannot be read is none."""
    from outlast_bench.study.backlog.unit import unit_of

    try:
        return unit_of(read(path_of(out, one.workers, one.outages[0], one.seed))) == one
    except (OSError, ValueError, KeyError):
        return False


def estimate_s(out: Path, quick: bool, seeds: int | None = None) -> float:
    """How long what is missing below `out` takes on two quiet cores; 0 when all is there."""
    return sum(_work_s(unit) for unit in missing(out, units(quick, seeds))) / 2


def _work_s(unit: Unit) -> float:
    """Of one core."""
    passes = 4 if unit.workers > 1 else 3  # the control, frozen gradients, local steps (for several workers two kinds)
    drained = len(unit.outages) * (len(unit.policies) - 1) + 1  # of workers that wait all outages are the same
    measured = drained + len(unit.outages) + 1  # and the control
    gradients = unit.start_version + passes * max(unit.outages) + measured * unit.later
    return gradients * GRADIENT_S + measured * len(unit.after) * unit.samples * IMAGE_S + START_S


def run(out: Path, quick: bool, console: Console, seeds: int | None = None) -> None:
    """Compute what is missing below `out`. An exception of a unit ends it; what was computed is kept."""
    wanted = units(quick, seeds)
    left = missing(out, wanted)
    if len(left) < len(wanted):
        console.print(f"backlog: {len(wanted) - len(left)} of {len(wanted)} units are there already", highlight=False)
    if left:
        compute(out, left, console)


def compute(out: Path, left: Sequence[Unit], console: Console) -> None:
    """Each as soon as a core is free. Interrupted, it ends its processes at once, and what they were about is lost."""
    from outlast_bench.study.backlog.unit import run_unit

    commit = commit_of_code()
    # spawn: torch's threads of this process, if it has any, must not be copied
    processes = min(len(left), os.cpu_count() or 1)
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(run_unit, unit): unit for unit in left}
        try:
            for done, future in enumerate(as_completed(running), start=1):
                for record in future.result():
                    write(out, replace(record, commit=commit))
                unit = running[future]
                label = f"workers {unit.workers}, seed {unit.seed}, outages {', '.join(map(str, unit.outages))}"
                console.print(f"backlog {done}/{len(left)}: {label}", highlight=False)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()  # else the interpreter waits at its end for units that take minutes
            raise

"""How a backlog should be applied: every policy on the same outages, from 10 to 10,000 gradients, 1, 2 and 8 workers.

A deterministic simulation in one process a unit: it asks about arithmetic, not about processes. Real gradients of the
paper's CNN on FashionMNIST from weights of accuracy 0.5, weighed by the product's replica and applied by the product's
parameters. What it leaves out: a drain takes no time, and the one or two gradients that are on their way when the
server is lost. tests/integration/test_backlog_real.py compares it with a real outage.

Runs two processes (one a core), resumes where it was interrupted: a unit is all outages of one (workers, seed).
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from outlast_operator.study.backlog_records import path_of, write
from outlast_operator.study.machine import commit_of_code

if TYPE_CHECKING:
    from outlast_operator.study.backlog_unit import Unit

WORKERS = (1, 2, 8)
OUTAGES = (10, 100, 375, 1000, 10_000)  # gradients; 375: the paper's 15 s at its 25 a second
LONG = 10_000
LONG_SEEDS = {1: 1, 2: 2, 8: 1}  # the longest outage takes as long as all others together
SEEDS = 5
LATER = 100
SAMPLES = 2000
GRADIENT_S, EVALUATION_S, START_S = 0.0085, 0.28, 6.0  # of one core; what a process needs to begin
QUICK_WORKERS = (2,)
QUICK_OUTAGES = (100, 375)
QUICK_SEEDS = 2
QUICK_LATER = 50


def units(quick: bool, seeds: int | None = None) -> list[Unit]:
    """What a study computes, the longest first."""
    from outlast_operator.study.backlog_unit import Unit

    if quick:
        count = QUICK_SEEDS if seeds is None else seeds
        return [Unit(w, s, QUICK_OUTAGES, QUICK_LATER, SAMPLES, quick) for w in QUICK_WORKERS for s in range(count)]
    count = SEEDS if seeds is None else seeds
    made = []
    for seed in range(count):
        for workers in reversed(WORKERS):
            outages = tuple(n for n in OUTAGES if n < LONG or seed < LONG_SEEDS[workers])
            made.append(Unit(workers, seed, outages, LATER, SAMPLES, quick))
    return made


def missing(out: Path, wanted: Iterable[Unit]) -> list[Unit]:
    """Units without those outages that are there already."""
    left = []
    for unit in wanted:
        outages = tuple(n for n in unit.outages if not path_of(out, unit.workers, n, unit.seed).is_file())
        if outages:
            left.append(replace(unit, outages=outages))
    return left


def estimate_s(out: Path, quick: bool, seeds: int | None = None) -> float:
    """How long what is missing below `out` takes on two quiet cores; 0 when all is there."""
    return sum(_work_s(unit) for unit in missing(out, units(quick, seeds))) / 2


def _work_s(unit: Unit) -> float:
    """Of one core."""
    passes = 4 if unit.workers > 1 else 3  # the control, frozen gradients, local steps (for several workers two kinds)
    later = len(unit.outages) * (len(unit.policies) + 1) * unit.later
    evaluations = 2 * len(unit.outages) * (len(unit.policies) + 1) + 15
    return (150 + passes * max(unit.outages) + later) * GRADIENT_S + evaluations * EVALUATION_S + START_S


def run(out: Path, quick: bool, console: Console, seeds: int | None = None) -> None:
    """Compute what is missing below `out`. An exception of a unit ends it; what was computed is kept."""
    from outlast_operator.study.backlog_unit import run_unit

    wanted, commit = units(quick, seeds), commit_of_code()
    left = missing(out, wanted)
    if len(left) < len(wanted):
        console.print(f"backlog: {len(wanted) - len(left)} of {len(wanted)} units are there already", highlight=False)
    if not left:
        return
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
            raise

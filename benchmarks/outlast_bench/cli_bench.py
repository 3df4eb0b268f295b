"""Measure what Outlast promises, on this machine: every figure printed is measured now.

  trace     Sync: after kills the parameters are bit-identical to those of an undisturbed run
  lost      Async: no acknowledged gradient is lost, none is applied twice
  busy      workers keep computing through an outage of all servers
  recovery  from the loss of a head to the next update: SIGKILL, SIGSTOP, SIGTERM
  speed     gradients per second against plain PyTorch; a push and a pull against a bare socket

examples:
  outlast bench trace
  outlast bench lost --runs 3
  outlast bench recovery --json
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from typing import Any

from outlast.process.exit_codes import EXIT_FAILED, EXIT_OK

NAMES = ("trace", "lost", "busy", "recovery", "speed")
PIPE_WIDTH = 120


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", choices=NAMES, help=f"one of {', '.join(NAMES)}")
    parser.add_argument("--runs", metavar="N", type=_positive, help="repetitions (default: the bench's own number)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the jobs and of when kills happen")
    parser.add_argument("--short", action="store_true", help="small jobs and short outages: a trial, no measurement")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON; the rest goes to stderr")


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of runs; use 1 or more")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from outlast_bench.promises.common import BenchError, Outcome, Settings

    bench: Any = importlib.import_module(f"outlast_bench.promises.{arguments.name}")
    console = Console(stderr=arguments.json)
    if not console.is_terminal:
        console.width = max(console.width, PIPE_WIDTH)
    console.print(f"[bold]{bench.NAME}[/bold]: {bench.HELP}")
    started = time.monotonic()
    try:
        outcome = bench.measure(Settings(console, arguments.runs, arguments.seed, arguments.short))
    except BenchError as error:
        outcome = Outcome({}, [str(error)])
    console.print(f"must: {bench.MUST}", highlight=False)
    for problem in outcome.problems:
        console.print(f"[red]does not hold:[/red] {problem}", highlight=False)
    if outcome.holds:
        console.print("[green]holds[/green]")
    if arguments.json:
        figures = {**outcome.figures, "seconds": round(time.monotonic() - started, 1)}
        if outcome.problems:
            figures["problems"] = list(outcome.problems)
        print(json.dumps({"name": bench.NAME, "figures": figures, "must": bench.MUST, "holds": outcome.holds}))
        sys.stdout.flush()
    return EXIT_OK if outcome.holds else EXIT_FAILED

"""Run the paper's experiments and ours, one run after another, and make one page of them; or study your own model.

examples:
  outlast study --quick --out study                        a small, honest version: a few minutes
  outlast study --out study                                everything; the same command goes on after an interruption
  outlast study --task my.module --out mine                our strategies and the control on your own task
  outlast study --out study --only steep --seeds 3         one experiment, fewer seeds
  outlast study --render study                             the page again from what is there
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import yaml

from outlast.process.exit_codes import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK

if TYPE_CHECKING:
    from rich.console import Console

    from outlast_bench.study.run.conduct import Asked, Made

PIPE_WIDTH = 120


def add_arguments(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--out", metavar="DIR", type=Path, help="where the study is made, or gone on with")
    where.add_argument(
        "--render", metavar="DIR", type=Path, help="make tables, figures and page of DIR again, run nothing"
    )
    parser.add_argument("--quick", action="store_true", help="five strategies, two seeds, one kill: some minutes")
    parser.add_argument("--task", metavar="MODULE", help="study this task instead, with our strategies and the control")
    parser.add_argument("--args", metavar="YAML", help="with --task: its arguments, as {name: value}")
    parser.add_argument("--optimizer", metavar="YAML", help="with --task: as in a job (default: {name: SGD, lr: 0.01})")
    parser.add_argument("--seconds", metavar="S", type=float, help="with --task: how long each run trains")
    parser.add_argument(
        "--only", metavar="EXPERIMENT", action="append", help="this experiment; may be given repeatedly"
    )
    parser.add_argument(
        "--seeds", metavar="N", type=_positive, help="seeds of each experiment (default: its own number)"
    )
    parser.add_argument("--retry-failed", action="store_true", help="make runs that failed once more")
    parser.add_argument("--plan", action="store_true", help="say what would be done and how long it takes, run nothing")
    parser.add_argument("--prices", metavar="FILE", type=Path, help="prices to compute costs from (default: our table)")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON; the rest goes to stderr")


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seeds; use 1 or more")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from outlast.api.errors import SpecError
    from outlast_bench.study.design.records import StudyError
    from outlast_operator.local.redis import RedisMissing

    console = Console(stderr=arguments.json)
    if not console.is_terminal:
        console.width = max(console.width, PIPE_WIDTH)
    out = arguments.out or arguments.render
    answer: dict[str, Any] = {"out": None if out is None else str(out)}
    try:
        code = _render(arguments, console, answer) if arguments.render else _study(arguments, console, answer)
    except (StudyError, SpecError, RedisMissing) as error:
        answer["error"] = str(error)
        print(f"outlast study: {error}", file=sys.stderr)
        code = EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        code = EXIT_INTERRUPTED
    if arguments.json:
        print(json.dumps(answer))
    return code


def _plan_of_a_new_one(arguments: argparse.Namespace, console: Console, answer: dict[str, Any]) -> int:
    from outlast_bench.study.design.records import StudyError
    from outlast_bench.study.run.conduct import Conductor

    if not arguments.plan:
        raise StudyError("where to? --out DIR makes a study or goes on with one, --render DIR makes its page again")
    with tempfile.TemporaryDirectory() as empty:
        asked = _asked(argparse.Namespace(**{**vars(arguments), "out": Path(empty)}))
        table, total_s = Conductor(asked, console).estimate(_backlog_s(asked))
    table.title = "What is to be done"
    console.print(table)
    answer["estimate_s"] = round(total_s)
    return EXIT_OK


def _study(arguments: argparse.Namespace, console: Console, answer: dict[str, Any]) -> int:
    from outlast_bench.study.run.conduct import Conductor
    from outlast_bench.study.run.machine import busy
    from outlast_bench.study.run.progress import rough

    if arguments.out is None:
        return _plan_of_a_new_one(arguments, console, answer)
    asked = _asked(arguments)
    conductor = Conductor(asked, console)
    backlog_s = _backlog_s(asked)
    table, total_s = conductor.estimate(backlog_s)
    console.print(table)
    answer["estimate_s"] = round(total_s)
    if arguments.plan:
        return EXIT_OK
    _check_tools(asked, arguments.prices)
    console.print(f"this takes about {rough(total_s)}; an interrupted study is gone on with by the same command")
    if warning := busy(os.getloadavg()[0], conductor.study.machine.cores):
        console.print(f"note: {warning}", style="yellow", highlight=False)
    with _terminated_as_interrupted():
        made = conductor.conduct(backlog_s)
        if asked.backlog:
            _run_backlog(asked, console)
    answer |= {"runs": made.runs, "failed": [str(record.planned) for record in made.failed]}
    answer |= {"uncalibrated": sorted(made.uncalibrated)}
    _render(arguments, console, answer)
    return _tell(made, console)


def _tell(made: Made, console: Console) -> int:
    for record in made.failed:
        console.print(f"failed: {record.planned}: {record.error}", style="red", highlight=False, markup=False)
    if made.failed:
        console.print("failed runs stand in every table as failed; --retry-failed makes them once more")
    for name, why in made.uncalibrated.items():
        text = f"left out: {name} could not be calibrated, the same command tries again: {why}"
        console.print(text, style="red", highlight=False, markup=False)
    return EXIT_FAILED if made.failed or made.uncalibrated else EXIT_OK


# --- what was asked ---


def _asked(arguments: argparse.Namespace) -> Asked:
    """Raises `StudyError` for what does not go together, `SpecError` for a job that would be refused."""
    from dataclasses import replace

    from outlast_bench.study.design.experiments import BACKLOG, FASHION_MNIST, full, models, own_task, quick
    from outlast_bench.study.design.records import StudyError
    from outlast_bench.study.run.conduct import Asked, as_typed

    backlog = arguments.task is None
    if arguments.task is not None:
        task_args = _yaml(arguments.args, "--args")
        optimizer = _yaml(arguments.optimizer, "--optimizer")
        experiments = own_task(arguments.task, task_args, optimizer, arguments.quick, arguments.seconds)
    elif arguments.args or arguments.optimizer or arguments.seconds:
        raise StudyError("--args, --optimizer and --seconds describe a task of your own; name it with --task MODULE")
    else:
        experiments = quick() if arguments.quick else [*full(), *models()]
    if arguments.only:
        known = [e.name for e in experiments] + ([BACKLOG] if backlog else [])
        for name in arguments.only:
            if name not in known:
                raise StudyError(f"--only {name}: there is no such experiment here; use {', '.join(known)}")
        experiments = [e for e in experiments if e.name in arguments.only]
        backlog = backlog and BACKLOG in arguments.only
    if arguments.seeds:
        experiments = [replace(e, seeds=arguments.seeds) for e in experiments]
    return Asked(
        out=arguments.out,
        experiments=experiments,
        task=arguments.task or FASHION_MNIST,
        quick=arguments.quick,
        command=as_typed(sys.argv[2:]),
        retry_failed=arguments.retry_failed,
        backlog=backlog,
        seeds=arguments.seeds,
    )


def _yaml(text: str | None, option: str) -> dict[str, Any]:
    from outlast_bench.study.design.records import StudyError

    try:
        raw = yaml.safe_load(text or "{}")
    except yaml.YAMLError as error:
        raise StudyError(f"{option} {text}: no YAML ({error}); write it like {{name: value}}") from error
    if not isinstance(raw, dict):
        raise StudyError(f"{option} {text}: not an object; write it like {{name: value}}")
    return raw


def _check_tools(asked: Asked, prices: Path | None) -> None:
    """Raise `RedisMissing` or `StudyError` now rather than after hours, when the page is to be made."""
    from outlast_bench.study.analysis.cost import load_prices
    from outlast_bench.study.design.configurations import BY_NAME
    from outlast_bench.study.design.records import StudyError
    from outlast_operator.local.redis import find_redis_server

    load_prices(prices)
    if importlib.util.find_spec("matplotlib") is None:
        raise StudyError(
            "figures need matplotlib, which is not installed; in the repository: pip install -e '.[local]'"
        )

    names = {name for experiment in asked.experiments for name in experiment.kills}
    if any(BY_NAME[name].buffered for name in names):
        find_redis_server()


def _backlog_s(asked: Asked) -> float:
    if not asked.backlog:
        return 0.0
    from outlast_bench.study.backlog import experiment as backlog

    return backlog.estimate_s(asked.out, asked.quick, asked.seeds)


def _run_backlog(asked: Asked, console: Console) -> None:
    from outlast_bench.study.backlog import experiment as backlog

    backlog.run(asked.out, asked.quick, console, asked.seeds)


def _render(arguments: argparse.Namespace, console: Console, answer: dict[str, Any]) -> int:
    from outlast_bench.study.design.records import StudyError

    try:
        from outlast_bench.study.page.page import render
    except ImportError as error:
        remedy = "in the repository: pip install -e '.[local]', then --render"
        raise StudyError(f"figures need matplotlib ({error}); {remedy}") from error
    directory: Path = arguments.out or arguments.render
    written = render(directory, arguments.prices)
    answer["written"] = [str(path) for path in written]
    console.print(f"{len(written)} files were written; the page: {directory / 'index.html'}", highlight=False)
    return EXIT_OK


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM and SIGHUP end a study as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""One run of a study: `outlast run` in a process of its own, judged by what it left.

Rules. (1) The command that is recorded is the command that ran. (2) Whatever happens, a run.json says so: a run that
fails, hangs, misses a kill or loses a process that nobody killed has failed, with its reason and the end of its logs.
(3) An interrupted run leaves nothing: it is made again. (4) Nothing that a run started outlives it, or this process.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from outlast.api.job import TrainingJob
from outlast.process.prctl import die_with_parent
from outlast_bench.study.design.records import read_json
from outlast_bench.study.run import machine

PATIENCE_S = 120.0  # beyond the training, for start, outages, drain, the last evaluation and the end
END_PATIENCE_S = 30.0
POLL_S = 0.5
TAIL_LINES = 8  # of each log
LONGEST_LINE = 300
JOB = "job.yaml"
REPORT = "report.json"


@dataclass(frozen=True)
class Outcome:
    """How a run ended; `error` is empty if it is what was wanted."""

    error: str
    log_tail: list[str]
    started: str
    wall_s: float
    load_before: float  # how many processes wanted a core when it began, in the minute before
    busy_share: float | None = None  # of the cores' time meanwhile, whoever it was
    stolen_share: float | None = None  # of the same, by other guests of the host


def command_line(folder: Path, kills: Sequence[str]) -> list[str]:
    """The words after `outlast`."""
    orders = [word for kill in kills for word in ("--kill", kill)]
    return ["run", str(folder / JOB), *orders, "--no-figures", "--report", str(folder)]


def shown(folder: Path, kills: Sequence[str]) -> str:
    """The command for a reader, who starts it where this one was started."""
    return "outlast " + shlex.join(command_line(folder, kills))


def execute(job: TrainingJob, kills: Sequence[str], folder: Path, tick: Callable[[], None]) -> Outcome:
    """Run `job` and leave job.yaml and report.json in `folder`. Calls `tick` now and then. Raises KeyboardInterrupt."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / JOB).write_text(yaml.safe_dump(job.to_json(), sort_keys=False))
    run_dir = Path(tempfile.mkdtemp(prefix="outlast-study-", dir=_short_temporary()))
    started, begin, load = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic(), os.getloadavg()[0]
    cores = machine.core_times()
    limit_s = (job.spec.training.stop_after.seconds or 0.0) + PATIENCE_S
    try:
        code, output = _run([*command_line(folder, kills), "--json", "--run-dir", str(run_dir)], limit_s, run_dir, tick)
        error = _judge(code, output, len(kills), folder)
        tail = [] if not error else log_tail(run_dir)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(run_dir, ignore_errors=True)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    wall_s = round(time.monotonic() - begin, 2)
    return Outcome(error, tail, started, wall_s, round(load, 2), *machine.shares(cores, machine.core_times()))


def _short_temporary() -> str | None:
    return None if len(tempfile.gettempdir()) < 30 else "/tmp"  # unix sockets lie below it


def _run(words: list[str], limit_s: float, run_dir: Path, tick: Callable[[], None]) -> tuple[int | None, str]:
    """(exit code, or None for a run that had to be ended; its standard output)."""
    me = os.getpid()
    path = os.pathsep.join([os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])])
    output = run_dir / "stdout"
    with open(output, "w") as out, open(run_dir / "stderr.log", "w") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "outlast_operator.cli.main", *words],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env={**os.environ, "PYTHONPATH": path},
            preexec_fn=lambda: die_with_parent(me),
        )
        deadline = time.monotonic() + limit_s
        try:
            while process.poll() is None and time.monotonic() < deadline:
                tick()
                try:
                    process.wait(POLL_S)
                except subprocess.TimeoutExpired:
                    continue
            late = process.poll() is None
        finally:
            _end(process)
    return None if late else process.returncode, output.read_text()


def _end(process: subprocess.Popen[bytes]) -> None:
    """TERM lets `outlast run` end what it started; KILL leaves that to the kernel, link by link."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        process.send_signal(number)
        try:
            process.wait(END_PATIENCE_S)
        except subprocess.TimeoutExpired:
            continue


def _judge(code: int | None, output: str, kills: int, folder: Path) -> str:
    """Why the run does not count, in words; empty if it does."""
    if code is None:
        return f"it was not over {PATIENCE_S:g} s after its training should have been, and was ended"
    try:
        answer: dict[str, Any] = json.loads(output.splitlines()[-1])
    except (IndexError, ValueError):
        return f"`outlast run` ended with exit code {code} and said nothing"
    if code != 0:
        return f"{answer.get('outcome', 'failed')}: {answer.get('message') or f'exit code {code}'}"
    report = read_json(folder / REPORT)
    failures = report["failures"]
    if len(failures) < kills:
        return f"{len(failures)} of {kills} kills were carried out before its end"
    if len(failures) > kills:
        found = ", ".join(f"{f['target']} ({f['signal']}, {f['t_killed_s']:.1f} s)" for f in failures)
        return f"{kills} kills were ordered, but these were lost: {found}"
    dead = [f["target"] for f in failures if f["t_first_update_s"] is None]
    if dead:
        return f"no update followed the loss of {', '.join(dead)}: it did not recover before its end"
    if report["final"]["accuracy"] is None and report["final"]["loss"] is None:
        return "its parameters were not evaluated at the end"
    return ""


def log_tail(run_dir: Path) -> list[str]:
    """The last lines of every log of a run, each behind its file's name."""
    lines = []
    for path in sorted([*run_dir.glob("logs/*.log"), run_dir / "stderr.log"]):
        if path.exists():
            text = path.read_text(errors="replace").strip().splitlines()[-TAIL_LINES:]
            lines += [f"{path.stem}: {line[:LONGEST_LINE]}" for line in text]
    return lines

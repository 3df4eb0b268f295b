"""Train a TrainingJob on this machine: the operator's planner over local processes, no cluster needed.

examples:
  outlast run job.yaml
  outlast run job.yaml --kill head@15s                  kill the head 15 s after the first update
  outlast run job.yaml --kill servers@15s+15s           all servers of a shard, back 15 s later
  outlast run job.yaml --kill worker-0@update=500:STOP  a worker that hangs
  outlast run job.yaml --kill operator@accuracy=0.5     the operator itself
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from outlast.api.errors import SpecError
from outlast.api.job import TrainingJob
from outlast.process.exit_codes import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK
from outlast_operator.cli.report import draw, without_series
from outlast_operator.local.kills import FORM, Kill, KillError, parse_kill
from outlast_operator.local.redis import RedisMissing

EXIT = {"Succeeded": EXIT_OK, "Failed": EXIT_FAILED, "Interrupted": EXIT_INTERRUPTED}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB.yaml", type=Path, help="a file with a TrainingJob")
    parser.add_argument("--kill", metavar="TARGET@WHEN[+DOWN][:SIGNAL]", action="append", default=[], help=FORM)
    parser.add_argument("--report", metavar="DIR", type=Path, help="where the report goes (default: ./NAME-report)")
    parser.add_argument("--transport", choices=("unix", "tcp"), default="unix", help="sockets between the processes")
    parser.add_argument("--run-dir", metavar="DIR", type=Path, help="sockets, logs and ledgers (default: temporary)")
    parser.add_argument("--keep-run-dir", action="store_true", help="do not remove the run directory at the end")
    parser.add_argument("--checkpoint-on-interrupt", action="store_true", help="Ctrl-C writes a checkpoint first")
    parser.add_argument("--no-figures", action="store_true", help="write report.json alone, draw nothing")
    parser.add_argument("--quiet", action="store_true", help="show nothing until the end")
    parser.add_argument("--json", action="store_true", help="show nothing, then print one line of JSON")


def run(arguments: argparse.Namespace) -> int:
    from outlast_operator.local.setup import check, ignored_fields

    try:
        job = TrainingJob.load(arguments.job)
        kills = [parse_kill(text) for text in arguments.kill]
        check(job, kills)
    except (SpecError, KillError, RedisMissing) as error:
        return _bad_input(arguments, str(error))
    notes = [str(w) for w in job.warnings]
    notes += [f"{path} is ignored: a local run has processes, not pods" for path in ignored_fields(job.spec)]
    if not arguments.json:
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
    return _run(arguments, job, kills)


def _run(arguments: argparse.Namespace, job: TrainingJob, kills: list[Kill]) -> int:
    from outlast_operator.local import runner  # psutil, rich: not for --help
    from outlast_operator.local.display import choose_display
    from outlast_operator.local.setup import Options
    from outlast_operator.reporting.data import build_report, in_words

    target = arguments.report or Path(f"{job.name}-report")
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return _bad_input(arguments, f"--report {target}: {error.strerror}; name a writable directory")
    options = Options(kills, arguments.transport, arguments.run_dir, arguments.checkpoint_on_interrupt)
    try:
        display = choose_display(arguments.quiet or arguments.json)
        result = runner.Runner(job, arguments.job.resolve().parent, options, display).execute()
    except ValueError as error:
        return _bad_input(arguments, str(error))
    report = build_report(result.run)
    (target / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    checkpoints = runner.keep_checkpoints(result, target / "checkpoints")
    drawn = [] if arguments.no_figures else draw(report, target)
    kept = arguments.keep_run_dir or arguments.run_dir is not None or result.outcome == "Failed"
    if not kept:
        shutil.rmtree(result.directory.root, ignore_errors=True)
    summary = {
        "outcome": result.outcome,
        "message": result.message,
        **without_series(report),
        "report": str(target / "report.json"),
        "checkpoints": str(checkpoints) if checkpoints else None,
        "runDirectory": str(result.directory.root) if kept else None,
    }
    if arguments.json:
        print(json.dumps(summary))
    else:
        _tell(summary, in_words(report), [target / "report.json", *drawn])
    return EXIT[result.outcome]


def _tell(summary: dict[str, Any], words: list[str], written: list[Path]) -> None:
    final = summary["final"]
    accuracy = f", accuracy {final['accuracy']:.4f}" if final["accuracy"] is not None else ""
    print(f"{summary['job']} {summary['outcome'].lower()}: {summary['message'] or 'no reason recorded'}")
    print(f"Version {final['version']:,}{accuracy} after {summary['duration_s']:.1f} s")
    print("\n".join(words))
    print("Report:            " + ", ".join(str(path) for path in written))
    if summary["checkpoints"]:
        print(f"Checkpoints:       {summary['checkpoints']}")
    if summary["runDirectory"]:
        print(f"Logs:              {summary['runDirectory']}/logs")


def _bad_input(arguments: argparse.Namespace, text: str) -> int:
    if arguments.json:
        print(json.dumps({"outcome": "BadInput", "message": text}))
    else:
        print(
            f"{arguments.job}: cannot be run\n" + "\n".join(f"  {line}" for line in text.splitlines()), file=sys.stderr
        )
    return EXIT_BAD_INPUT

"""Check a TrainingJob: fields, limits and the rules between fields. All mistakes in fields are shown at once, each with
its path; the rules between fields are checked once every field is valid."""

from __future__ import annotations

import argparse
import json
import sys

from outlast.api.errors import SpecError
from outlast.api.job import TrainingJob
from outlast.process.exit_codes import EXIT_BAD_INPUT, EXIT_OK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB.yaml", help="a file with a TrainingJob; - for standard input")
    parser.add_argument("--json", action="store_true", help="print one JSON object: errors, warnings, normalised spec")


def run(arguments: argparse.Namespace) -> int:
    source = sys.stdin.read() + "\n" if arguments.job == "-" else arguments.job
    try:
        job = TrainingJob.load(source)
    except SpecError as error:
        if arguments.json:
            errors = [{"path": e.path, "message": e.message} for e in error.errors]
            print(json.dumps({"valid": False, "errors": errors, "warnings": []}))
        else:
            print(f"{arguments.job}:\n" + "\n".join(f"  {e}" for e in error.errors), file=sys.stderr)
        return EXIT_BAD_INPUT
    warnings = [{"path": w.path, "message": w.message} for w in job.warnings]
    if arguments.json:
        print(json.dumps({"valid": True, "errors": [], "warnings": warnings, "job": job.to_json()}))
        return EXIT_OK
    for warning in job.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    spec = job.spec
    servers = f"{spec.servers.shards} x {spec.servers.replicas} servers"
    what = f"{spec.recovery.strategy}, {servers}, {spec.workers.replicas} workers"
    print(f"{arguments.job}: {job.name} is valid ({what})")
    return EXIT_OK

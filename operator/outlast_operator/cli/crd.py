"""Print the CustomResourceDefinition of TrainingJob, or apply one to the cluster.

--apply updates an existing resource: labels and annotations do not change, the schema becomes that of FILE. The cluster
is the one that this program runs in, else that of KUBECONFIG.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml

from outlast.api import crd
from outlast.process.exit_codes import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_OK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--apply", type=Path, metavar="FILE", help="apply this file, and wait until it is served")
    parser.add_argument(
        "--timeout", type=float, default=60.0, metavar="SECONDS", help="seconds to wait for that (default 60)"
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.apply is None:
        sys.stdout.write(crd.render())
        return EXIT_OK
    try:
        from outlast_operator.kubernetes.cluster.api import Api, ApiError
        from outlast_operator.kubernetes.crd_update import NotEstablished, update
    except ModuleNotFoundError as error:
        print(f"outlast crd: {error}; in the repository: pip install '.[operator]'", file=sys.stderr)
        return EXIT_BAD_INPUT
    try:
        update(Api.connect(), yaml.safe_load(arguments.apply.read_text()), arguments.timeout)
    except (ApiError, NotEstablished, RuntimeError, OSError) as error:
        print(f"outlast crd: {arguments.apply}: {error}", file=sys.stderr)
        return EXIT_FAILED
    print(f"{arguments.apply} was applied and is served")
    return EXIT_OK

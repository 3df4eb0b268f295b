"""Run the operator: it turns TrainingJobs into pods and keeps them training. Namespaces and images may come
from the environment: OUTLAST_NAMESPACES (separated by commas), OUTLAST_LEASE_NAMESPACE, OUTLAST_TRAINER_IMAGE,
OUTLAST_REDIS_IMAGE, POD_NAMESPACE (the operator's own, the default of both), POD_NAME (the holder's
name in the Lease), POD_SERVICE_ACCOUNT (the operator's own, which no job may name)."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from typing import TYPE_CHECKING

import outlast
from outlast.process.exit_codes import EXIT_BAD_INPUT

if TYPE_CHECKING:
    from outlast_operator.kubernetes.job.acceptance import Account
    from outlast_operator.kubernetes.manifests.network import Peers

TEXT_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    env = os.environ.get
    version = outlast.__version__
    parser.add_argument(
        "--namespace",
        action="append",
        metavar="NS",
        help="serve this namespace; may be repeated (default: the operator's own)",
    )
    parser.add_argument(
        "--all-namespaces", action="store_true", help="serve every namespace (needs cluster-wide rights)"
    )
    parser.add_argument("--lease-namespace", metavar="NS", default=env("OUTLAST_LEASE_NAMESPACE"))
    parser.add_argument("--lease-name", metavar="NAME", default="outlast-operator")
    parser.add_argument("--health-port", type=int, default=8081, metavar="PORT")
    parser.add_argument("--metrics-port", type=int, default=8080, metavar="PORT")
    parser.add_argument(
        "--trainer-image", metavar="IMAGE", default=env("OUTLAST_TRAINER_IMAGE") or f"outlast/trainer:{version}",
        help="image of servers and workers whose template names no image",
    )  # fmt: skip
    parser.add_argument(
        "--redis-image", metavar="IMAGE", default=env("OUTLAST_REDIS_IMAGE") or f"outlast/redis:{version}",
        help="image of the Redis that is started for a job",
    )  # fmt: skip
    parser.add_argument(
        "--metrics-from", type=json.loads, default=[], metavar="JSON",
        help="peers that may scrape a job's pods: the `from` of a NetworkPolicy's rule (default: all)",
    )  # fmt: skip
    parser.add_argument("--log-format", choices=("text", "json"), default="text")


def run(arguments: argparse.Namespace) -> int:
    _log(arguments.log_format)
    try:
        from outlast_operator.kubernetes.handlers import Settings
        from outlast_operator.kubernetes.handlers import run as run_operator
        from outlast_operator.kubernetes.manifests.pods import Images
    except ModuleNotFoundError as error:
        print(f"outlast operator: {error}; in the repository: pip install '.[operator]'", file=sys.stderr)
        return EXIT_BAD_INPUT
    namespaces = _namespaces(arguments)
    lease_namespace = arguments.lease_namespace or os.environ.get("POD_NAMESPACE")
    lease_namespace = lease_namespace or (namespaces[0] if namespaces else "default")
    settings = Settings(
        namespaces=namespaces,
        lease_namespace=lease_namespace,
        lease_name=arguments.lease_name,
        health_port=arguments.health_port,
        metrics_port=arguments.metrics_port,
        images=Images(arguments.trainer_image, arguments.redis_image),
        peers=_peers(arguments),
        account=_account(),
    )
    try:
        return run_operator(settings)
    except (RuntimeError, OSError) as error:
        print(f"outlast operator: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT


def _peers(arguments: argparse.Namespace) -> Peers | None:
    """As the chart labels the operator's pods; None outside of a pod."""
    from outlast_operator.kubernetes.manifests.network import Peers

    namespace = os.environ.get("POD_NAMESPACE")
    labels = {"app.kubernetes.io/name": "outlast-operator"}
    return None if namespace is None else Peers(namespace, labels, arguments.metrics_from)


def _account() -> Account | None:
    """None where the environment does not tell: outside of a pod, or without the chart."""
    from outlast_operator.kubernetes.job.acceptance import Account

    namespace, name = os.environ.get("POD_NAMESPACE"), os.environ.get("POD_SERVICE_ACCOUNT")
    return Account(namespace, name) if namespace and name else None


def _namespaces(arguments: argparse.Namespace) -> list[str] | None:
    """None: all of them."""
    if arguments.all_namespaces:
        return None
    named = arguments.namespace or [n.strip() for n in os.environ.get("OUTLAST_NAMESPACES", "").split(",")]
    return [n for n in named if n] or [os.environ.get("POD_NAMESPACE") or "default"]


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _log(kind: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if kind == "json" else logging.Formatter(TEXT_FORMAT))
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    for chatty in ("kopf", "urllib3", "aiohttp", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)

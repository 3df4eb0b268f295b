"""The entry point of pods: `python -m outlast.pod` runs the server, worker or evaluator that OUTLAST_CONFIG describes.

Rules. (1) Secrets come in variables of their own (OUTLAST_TOKEN, OUTLAST_REDIS_PASSWORD) and join the configuration
here, so that no document anybody may read holds them. (2) Why a process ends goes to the container's termination
message, where the control plane reads it; a crash leaves that empty, and the kubelet takes the log's last lines. (3) A
container's first process ignores signals that it has no handler for: each role must have one for SIGTERM.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

from outlast.api.config import ENVIRONMENT_VARIABLE, ProcessConfig
from outlast.process.exit_codes import EXIT_CONFIGURATION

log = logging.getLogger("outlast.pod")

TOKEN_VARIABLE, REDIS_VARIABLE = "OUTLAST_TOKEN", "OUTLAST_REDIS_PASSWORD"
LEDGER_VARIABLE = "OUTLAST_LEDGER_DIR"  # where workers note what they computed and saw acknowledged, for audits
TERMINATION_VARIABLE, TERMINATION_LOG = "OUTLAST_TERMINATION_LOG", "/dev/termination-log"
TERMINATION_BYTES = 4096  # the kubelet reads no more
TARGETS = {"server": "outlast.server.main", "worker": "outlast.worker.main", "evaluator": "outlast.evaluator"}
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class PodError(RuntimeError):
    """The pod was made wrongly: no restart would help."""


def pod_config(environment: Mapping[str, str], errors_dir: str) -> ProcessConfig:
    """The configuration with its secrets. Raises `PodError` that names what is missing."""
    text, token = environment.get(ENVIRONMENT_VARIABLE, ""), environment.get(TOKEN_VARIABLE, "")
    for name, value in ((ENVIRONMENT_VARIABLE, text), (TOKEN_VARIABLE, token)):
        if not value:
            raise PodError(f"{name} is not set; `python -m outlast.pod` runs in pods that the Outlast operator makes")
    try:
        config = ProcessConfig.from_json(text)
    except (ValueError, KeyError, TypeError) as error:
        raise PodError(
            f"{ENVIRONMENT_VARIABLE} cannot be read ({error!r}); run one release in pods and operator"
        ) from None
    if config.role not in TARGETS:
        raise PodError(f"{ENVIRONMENT_VARIABLE}: role {config.role!r} is none of {', '.join(TARGETS)}")
    return replace(
        config,
        token=token,
        redis_url=with_password(config.redis_url, environment.get(REDIS_VARIABLE)),
        ledger_dir=environment.get(LEDGER_VARIABLE) or config.ledger_dir,
        extras={**config.extras, "errors_dir": errors_dir},
    )


def with_password(url: str | None, password: str | None) -> str | None:
    """`redis://host:6379/0` with a password in it; a url that has one keeps its own."""
    if url is None or not password:
        return url
    parts = urlsplit(url)
    if not parts.netloc or "@" in parts.netloc:
        return url
    return urlunsplit(parts._replace(netloc=f":{quote(password, safe='')}@{parts.netloc}"))


def write_termination(message: str, path: str) -> None:
    """Leave the last words; where that cannot be done, the log has them too."""
    try:
        Path(path).write_bytes(message.encode()[:TERMINATION_BYTES])
    except OSError as error:
        log.warning("the reason could not be left in %s: %s", path, error)


def reported_error(errors_dir: str, name: str) -> str:
    """What the process itself reported before it gave up; empty if nothing."""
    try:
        raw = json.loads((Path(errors_dir) / f"{name}.json").read_text())
    except (OSError, ValueError):
        return ""
    return str(raw.get("error", "")) if isinstance(raw, dict) else ""


def _run(config: ProcessConfig, last_words: str) -> int:
    os.environ[ENVIRONMENT_VARIABLE] = config.to_json()  # this process's own memory, and a script's
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))  # until the role has its own
    target: Callable[[], object] = importlib.import_module(TARGETS[config.role]).main
    try:
        target()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        log.error("%s", end.code)
        return 1
    except Exception as error:
        log.critical("%s failed: %s", config.name, error, exc_info=True)
        write_termination(f"{type(error).__name__}: {error}", last_words)
        return 1
    return 0


def main() -> int:
    """Run the pod's process; returns its exit code."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=LOG_FORMAT)
    faulthandler.enable()
    last_words = os.environ.get(TERMINATION_VARIABLE, TERMINATION_LOG)
    errors_dir = tempfile.mkdtemp(prefix="outlast-errors-")
    try:
        config = pod_config(os.environ, errors_dir)
    except PodError as error:
        log.error("%s", error)
        write_termination(str(error), last_words)
        return EXIT_CONFIGURATION
    for folder in reversed(config.extras.get("path", [])):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    code = _run(config, last_words)
    reason = reported_error(errors_dir, config.name)
    if code and reason:
        write_termination(reason, last_words)
    return code


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)  # threads of libraries must not hold up the end: the control plane waits for it

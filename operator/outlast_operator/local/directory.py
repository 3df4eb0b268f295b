"""The directory of one local run: where everything lies, and the recorded status with its compare-and-swap.

    config.json   what the run is (written once)      sockets/   short paths: the kernel allows 108 bytes
    status.json   the recorded status, its version    ledger/    what workers computed and saw acknowledged
    holds.json    names not to be started yet         logs/NAME.log   errors/NAME.json: why a process gave up
    events.jsonl  what the operator told users        slots/     slots that a worker fills besides its own
    checkpoints/  redis/                              final/     the servers' tables at the end

The files need to survive the death of processes, not of the host (nothing of a local run does), so they are renamed
into place and never fsynced. Times in them are `time.monotonic()`.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from outlast.api.config import ServerAddress
from outlast_operator.planner.status import JobStatus
from outlast_operator.runtime.reconcile import Conflict

FOLDERS = ("sockets", "ledger", "checkpoints", "logs", "redis", "errors", "slots", "final", "ready")
LOG_PREFIX = re.compile(r"^\S+ \S+ [A-Z]+ [\w.]+: ")  # forkserver.LOG_FORMAT
LAST_LINE_BYTES = 4096
LONGEST_ROOT = 70  # bytes: leaves room for sockets/NAME.sock within the 108 of a unix socket's path


@dataclass(frozen=True)
class RunConfig:
    """Everything that the parts of a run share and that never changes during it."""

    job: str
    job_uid: str
    token: str
    spec: dict[str, Any]  # normalised: JobSpec.to_json()
    servers: tuple[tuple[ServerAddress, ...], ...]  # [shard][index]
    job_dir: str  # where the job's file lies: relative paths in it start here
    t_start: float  # time.monotonic() at which the run began: its t_s is 0
    redis_url: str | None = None
    redis_started_here: bool = False
    checkpoint_dir: str | None = None
    own_checkpoint_dirs: bool = False  # one for each server, as claims are in a cluster
    exec_workers: bool = False  # CUDA does not survive a fork
    templates: dict[str, dict[str, Any]] = field(default_factory=dict)  # role -> LocalTemplate as JSON

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(raw: dict[str, Any]) -> RunConfig:
        servers = tuple(tuple(ServerAddress(**s) for s in shard) for shard in raw["servers"])
        return RunConfig(**{**raw, "servers": servers})


def write_json(path: Path, value: Any) -> None:
    """Replace a file's content in one step: a reader sees the old or the new one."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(descriptor, "w") as file:
        json.dump(value, file)
    os.replace(temporary, path)


def read_json(path: Path) -> Any:
    """The content, or None when there is no such file."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None


class RunDirectory:
    """Paths and shared files of a run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._status_replaced = 0

    @staticmethod
    def create(root: Path | None = None) -> RunDirectory:
        """Make a new one: at `root`, or in the temporary directory. Raises `ValueError` for a path too long."""
        if root is None:
            base = tempfile.gettempdir()
            root = Path(tempfile.mkdtemp(prefix="outlast-", dir=base if len(base) < LONGEST_ROOT - 20 else "/tmp"))
        root = root.resolve()
        if len(os.fsencode(root)) > LONGEST_ROOT:
            raise ValueError(f"{root}: too long for unix sockets below it; use a path of at most {LONGEST_ROOT} bytes")
        for folder in FOLDERS:
            (root / folder).mkdir(parents=True, exist_ok=True)
        return RunDirectory(root)

    def socket(self, name: str) -> Path:
        return self.root / "sockets" / f"{name}.sock"

    def log(self, name: str) -> Path:
        return self.root / "logs" / f"{name}.log"

    @property
    def ledger(self) -> Path:
        return self.root / "ledger"

    # --- config, holds, events, errors, slots ---

    def write_config(self, config: RunConfig) -> None:
        write_json(self.root / "config.json", config.to_json())

    def config(self) -> RunConfig:
        return RunConfig.from_json(read_json(self.root / "config.json"))

    def write_holds(self, holds: dict[str, float]) -> None:
        write_json(self.root / "holds.json", holds)

    def holds(self) -> dict[str, float]:
        return {str(name): float(until) for name, until in (read_json(self.root / "holds.json") or {}).items()}

    def add_event(self, event: dict[str, Any]) -> None:
        with open(self.root / "events.jsonl", "a") as file:
            file.write(json.dumps(event) + "\n")

    def events(self) -> list[dict[str, Any]]:
        try:
            lines = (self.root / "events.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines]

    def error(self, name: str) -> str:
        """Why the process of this name gave up, in its own words; empty when it said nothing."""
        raw = read_json(self.root / "errors" / f"{name}.json")
        return str(raw.get("error", "")) if isinstance(raw, dict) else ""

    def last_line(self, name: str) -> str:
        """The last line that the process logged, without the time and place before its message."""
        try:
            with open(self.log(name), "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_LINE_BYTES))
                lines = file.read().decode(errors="replace").strip().splitlines()
        except FileNotFoundError:
            return ""
        return LOG_PREFIX.sub("", lines[-1]) if lines else ""

    def forget_error(self, name: str) -> None:
        (self.root / "errors" / f"{name}.json").unlink(missing_ok=True)

    def slots_file(self, worker: str) -> Path:
        """{slot: incarnation} of the slots that a worker fills besides its own."""
        return self.root / "slots" / f"{worker}.json"

    def read_slots(self, worker: str) -> dict[str, int]:
        return dict(read_json(self.slots_file(worker)) or {})

    # --- the recorded status ---

    def read_status(self) -> JobStatus:
        """The recorded status with its `resource_version` (an empty one without, before the first write)."""
        raw = read_json(self.root / "status.json")
        return JobStatus() if raw is None else JobStatus.from_json(raw["status"], raw["resource_version"])

    def read_status_if_newer(self, known: JobStatus) -> JobStatus:
        """`known` itself when the file has not been replaced since this was last asked: cheap to call often."""
        try:
            replaced = (self.root / "status.json").stat().st_mtime_ns
        except FileNotFoundError:
            return known
        if replaced == self._status_replaced:
            return known
        self._status_replaced = replaced
        return self.read_status()

    def write_status(self, status: JobStatus, expected_version: str | None) -> str:
        """Compare-and-swap. Returns the new version; raises `Conflict` when another one is recorded."""
        with self._locked():
            raw = read_json(self.root / "status.json")
            recorded = None if raw is None else raw["resource_version"]
            if recorded != expected_version:
                raise Conflict(f"status.json has version {recorded}, expected {expected_version}; observe again")
            version = str(int(recorded or 0) + 1)
            write_json(self.root / "status.json", {"resource_version": version, "status": status.to_json()})
        return version

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with open(self.root / "status.lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released by close, or by the kernel when the holder is killed
            yield

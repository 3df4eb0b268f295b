"""Whole jobs for tests: a small synthetic TrainingJob, run through the command line in a process of its own.

Rules. (1) Every wait has a bound and a condition, and says what it waited for, with the ends of the logs. (2) What a
run starts carries a mark in its environment, so that anything that outlives it is found, named and ended by its id.
(3) Sockets have short paths (a unix socket's has room for 108 characters), so run directories lie in the temporary
directory; every other file lies below `tmp_path`.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import yaml

from outlast.api.server_status import ServerStatus
from outlast.process.ledger import LedgerRecord, read_ledger
from outlast.wire.control import ServerControl
from outlast_operator.local.directory import RunConfig, RunDirectory
from outlast_operator.local.forkserver_client import ForkServerClient, ForkServerError, ProcessRecord, socket_path
from outlast_operator.planner.status import JobStatus

ROOT = Path(__file__).parents[2]
MARK = "OUTLAST_TEST_RUN"
BOUND_S = 100.0  # for anything that a loaded machine does in seconds
POLL_S = 0.02
OUTLAST = [sys.executable, "-m", "outlast_operator.cli.main"]


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, objects into objects."""
    out = copy.deepcopy(dict(base))
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = merged(out[key], value) if both else copy.deepcopy(value)
    return out


def make_job(
    strategy: str = "Chain",
    consistency: str = "Async",
    *,
    updates: int = 200,
    compute_ms: float = 4.0,
    name: str = "small",
    **changes: Any,
) -> dict[str, Any]:
    """A job of 4,000 parameters in three tensors; `changes` are laid over its spec."""
    spec: dict[str, Any] = {
        "training": {
            "task": "outlast.tasks.synthetic",
            "args": {"parameters": 4000, "tensors": 3, "computeMs": compute_ms},
            "consistency": consistency,
            "optimizer": {"name": "SGD", "lr": 0.01},
            "stopAfter": {"updates": updates},
            "evaluate": {"everySeconds": None},
        },
        "servers": {"replicas": 3 if strategy in ("Chain", "Hybrid") else 1},
        "workers": {"replicas": 2},
        "recovery": {
            "strategy": strategy,
            "checkpoint": {"everyUpdates": 50},
            # What the buffer does is what most tests ask; local steps have tests of their own.
            "staleness": {"policy": "Sum", "outage": {"mode": "StaleGradients"}},
            "failover": {"heartbeatSeconds": 0.2, "timeoutSeconds": 1.5, "assumeDeadSeconds": 4},
        },
    }
    metadata = {"name": name}
    return {
        "apiVersion": "outlast.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": metadata,
        "spec": merged(spec, changes),
    }


def own_task(tmp_path: Path, source: str, **changes: Any) -> dict[str, Any]:
    """A job whose task is this source, in a file beside the job's."""
    (tmp_path / "own_task.py").write_text(source)
    job = make_job(**changes)
    job["spec"]["training"] |= {"task": "own_task", "args": {}}
    return job


@dataclass(frozen=True)
class Ended:
    """How a run ended: exit code, what it printed, the line of JSON and the whole report."""

    code: int
    out: str
    err: str
    summary: dict[str, Any]
    report: dict[str, Any]
    directory: RunDirectory
    report_dir: Path
    duration_s: float

    @property
    def message(self) -> str:
        return str(self.summary.get("message", ""))

    @property
    def gradients(self) -> dict[str, int]:
        return dict(self.report["gradients"])

    @property
    def checkpoints(self) -> list[Path]:
        """The directories of the run's checkpoints, oldest first."""
        return sorted((self.report_dir / "checkpoints").glob("*/ckpt-*"))

    @property
    def status(self) -> JobStatus:
        """As it was last recorded."""
        return self.directory.read_status()

    @property
    def table(self) -> dict[str, Any]:
        """The newest table that a server of shard 0 told at its end."""
        tables = [json.loads(path.read_text()) for path in (self.directory.root / "final").glob("*.json")]
        return dict(max(tables, key=lambda table: (table["history"], table["version"])))

    def log(self, name: str) -> str:
        path = self.directory.log(name)
        return path.read_text(errors="replace") if path.exists() else ""

    def events(self) -> list[str]:
        return [str(event["reason"]) for event in self.directory.events()]


class Running:
    """`outlast run` under way."""

    def __init__(self, process: subprocess.Popen[str], mark: str, directory: RunDirectory, report_dir: Path) -> None:
        self.process, self.mark, self.directory, self.report_dir = process, mark, directory, report_dir
        self.t_started = time.monotonic()
        self._client: ForkServerClient | None = None

    # --- looking ---

    def status(self) -> JobStatus:
        return self.directory.read_status()

    def config(self) -> RunConfig:
        return self.directory.config()

    def records(self) -> list[ProcessRecord]:
        """Every process that the run has started; empty before there is one."""
        if self._client is None:
            try:
                self._client = ForkServerClient(socket_path(self.directory.root))
            except OSError:
                return []
        return list(self._client.list())

    def running(self, name: str) -> ProcessRecord | None:
        return next((r for r in self.records() if r.name == name and r.running), None)

    def control(self, name: str) -> ServerControl:
        config = self.config()
        address = next(s.address for shard in config.servers for s in shard if s.name == name)
        return ServerControl(address, config.job_uid, config.token, timeout_s=2.0)

    def probe(self, name: str) -> ServerStatus | None:
        """What the server says of itself; None while it does not answer."""
        with contextlib.suppress(OSError), contextlib.closing(self.control(name)) as control:
            return control.probe()
        return None

    def operator_runs(self) -> bool:
        """False as well when the run is over."""
        try:
            return self.running("operator") is not None
        except ForkServerError:
            return False

    def head(self, shard: int = 0) -> str:
        """The head of the recorded view; empty before there is one."""
        view = self.status().views.get(shard)
        return view.head.name if view is not None and view.head is not None else ""

    def version(self, shard: int = 0) -> int:
        head = self.head(shard)
        status = self.probe(head) if head else None
        return 0 if status is None else status.version

    def log(self, name: str) -> str:
        path = self.directory.log(name)
        return path.read_text(errors="replace") if path.exists() else ""

    def living(self) -> list[psutil.Process]:
        """Processes of this run (the command itself too) that still live, wherever they are in the tree."""
        return [p for p in psutil.process_iter() if _mark_of(p) == self.mark]

    # --- acting ---

    def wait_until(self, condition: Callable[[], object], what: str, bound_s: float = BOUND_S) -> None:
        """Poll until `condition()`; fails when the run ends before, or after `bound_s` seconds."""
        deadline = time.monotonic() + bound_s
        while not condition():
            assert self.process.poll() is None, f"the run ended before: {what}\n{self.tails()}"
            assert time.monotonic() < deadline, f"in {bound_s:g} s it did not come to: {what}\n{self.tails()}"
            time.sleep(POLL_S)

    def wait_version(self, version: int) -> None:
        self.wait_until(lambda: self.version() >= version, f"version {version}")

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> ProcessRecord:
        """Signal whoever runs under a name now; returns the record of who that was."""
        record = self.running(name)
        assert record is not None, f"{name} does not run"
        os.kill(record.pid, number)
        return record

    def end(self, bound_s: float = BOUND_S) -> Ended:
        """Wait for the end; fails when it takes longer, or when anything outlives it."""
        try:
            out, err = self.process.communicate(timeout=bound_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the run did not end within {bound_s:g} s\n{self.tails()}") from None
        self._drop_client()
        left = [f"{p.pid} {_command(p)}" for p in self.living()]
        assert not left, f"the run left processes behind: {left}"
        path = self.report_dir / "report.json"
        lines = [line for line in out.splitlines() if line.startswith("{")]
        return Ended(
            code=self.process.returncode,
            out=out,
            err=err,
            summary=json.loads(lines[-1]) if lines else {},
            report=json.loads(path.read_text()) if path.exists() else {},
            directory=self.directory,
            report_dir=self.report_dir,
            duration_s=time.monotonic() - self.t_started,
        )

    def tails(self, lines: int = 12) -> str:
        """The ends of all logs, for whoever must find out why a test failed."""
        parts = []
        for path in sorted((self.directory.root / "logs").glob("*.log")):
            text = path.read_text(errors="replace").splitlines()[-lines:]
            parts.append("\n    ".join([f"--- {path.name}", *text]))
        return "\n".join(parts)

    def close(self) -> None:
        """End whatever is left, by process id."""
        self._drop_client()
        left = self.living()
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=10)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def _drop_client(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


class Lab:
    """Starts runs and cleans up after them; one a test (the fixture `lab`)."""

    def __init__(self, tmp_path: Path) -> None:
        self.path = tmp_path
        self._runs: list[Running] = []

    def write(self, job: Mapping[str, Any]) -> Path:
        path = self.path / f"{job['metadata']['name']}.yaml"
        path.write_text(yaml.safe_dump(dict(job)))
        return path

    def start(
        self,
        job: Mapping[str, Any],
        *arguments: str,
        kills: tuple[str, ...] = (),
        env: Mapping[str, str] | None = None,
        limit: Callable[[], None] | None = None,
        figures: bool = False,
    ) -> Running:
        """Start `outlast run` for a job; `limit` is called in the new process (resource limits)."""
        number, mark = len(self._runs), secrets.token_hex(8)
        directory = Path(tempfile.mkdtemp(prefix="olt-", dir="/tmp"))
        report = self.path / f"report-{number}"
        command = [*OUTLAST, "run", str(self.write(job)), "--json", *arguments]
        command += [] if figures else ["--no-figures"]
        command += ["--report", str(report), "--run-dir", str(directory)]
        command += [word for kill in kills for word in ("--kill", kill)]
        process = subprocess.Popen(
            command,
            cwd=self.path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment({MARK: mark, **(env or {})}),
            preexec_fn=limit,
        )
        running = Running(process, mark, RunDirectory(directory), report)
        self._runs.append(running)
        return running

    def run(self, job: Mapping[str, Any], *arguments: str, bound_s: float = BOUND_S, **options: Any) -> Ended:
        return self.start(job, *arguments, **options).end(bound_s)

    def close(self) -> None:
        for running in self._runs:
            running.close()
            shutil.rmtree(running.directory.root, ignore_errors=True)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment, with the packages of this checkout first."""
    roots = (str(ROOT / source) for source in ("trainer", "operator", "benchmarks"))
    folders = [*roots, os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(f for f in folders if f), **(extra or {})}


def outlast(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run one short `outlast` command to its end."""
    return subprocess.run(
        [*OUTLAST, *words], cwd=cwd, env=environment(), capture_output=True, text=True, timeout=BOUND_S, check=False
    )


def ledger_of(directory: RunDirectory) -> list[LedgerRecord]:
    """All records of all workers, in order of time."""
    records = [r for path in sorted(directory.ledger.glob("worker-*.bin")) for r in read_ledger(path)]
    return sorted(records, key=lambda r: r.t)


def assert_sound(ended: Ended, *, updates: int, lost_at_most: int = 0, resumed_at: int = 0) -> None:
    """The run succeeded, and its report does not contradict itself or the promises."""
    assert ended.code == 0, f"{ended.message}\n{ended.err}"
    report, g = ended.report, ended.gradients
    workers = report["workers"] if report["consistency"] == "Sync" else 1
    assert report["final"]["version"] >= updates
    assert g["duplicates"] == 0
    assert 0 <= g["lost"] <= lost_at_most, g
    made = (report["final"]["version"] - resumed_at) * workers
    # Each shard reaches an Async job's goal on its own: the last gradients under way may be in some shards alone.
    under_way = 2 * report["workers"] if len(ended.status.views) > 1 and report["consistency"] != "Sync" else 0
    assert made - under_way <= g["applied"] <= made, g
    assert g["applied"] <= g["computed"], g
    assert g["acknowledged"] <= g["computed"], g
    assert g["buffered"] <= g["acknowledged"], g
    assert g["replayed"] <= g["buffered"], g
    assert g["acknowledged"] - g["lost"] - g["unapplied_at_end"] <= g["applied"], g
    assert len(report["final"]["digest"]) == 64
    for failure in report["failures"]:
        keys = ("t_killed_s", "t_detected_s", "t_promoted_s", "t_first_update_s")
        times = [failure[key] for key in keys if failure[key] is not None]
        assert times[0] == min(times), failure
        assert max(times) <= report["duration_s"], failure
    versions = [point["version"] for point in report["series"]]
    # A new head may lack what the old one had applied and nobody had acknowledged: at most what was under way.
    dips = [before - after for before, after in pairwise(versions)]
    assert lost_at_most or max(dips, default=0) <= 2 * report["workers"], versions


def _mark_of(process: psutil.Process) -> str | None:
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else process.environ().get(MARK)
    except psutil.Error:
        return None


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()) or process.name()
    except psutil.Error:
        return "?"

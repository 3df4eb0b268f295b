"""The thin parent behind `outlast run`: it starts the forkserver and the operator, kills on schedule, and reports.

Rules. (1) It decides nothing about the job: that is the operator's, a child that may die and is started again. (2) The
kernel ends everything with this process (PDEATHSIG from link to link), and what escaped that comes to this process as
its adopted orphan and is ended: no run leaves a process behind. (3) What it reports it has measured (monitor.py).
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from outlast.api.config import ServerAddress
from outlast.api.job import TrainingJob
from outlast.wire.control import ServerControl
from outlast_operator.local import prctl
from outlast_operator.local.directory import RunDirectory, read_json
from outlast_operator.local.display import Display, Scene
from outlast_operator.local.drill import Drill
from outlast_operator.local.forkserver_client import (
    ForkServerClient,
    ForkServerError,
    ProcessRecord,
    socket_path,
    start_forkserver,
    wait_ready,
)
from outlast_operator.local.kills import Cast
from outlast_operator.local.monitor import Heard, Moment, Monitor
from outlast_operator.local.run import Run, unplanned
from outlast_operator.local.runtime import RUN_DIRECTORY_VARIABLE
from outlast_operator.local.setup import Options, make_config
from outlast_operator.planner.status import JobStatus
from outlast_operator.planner.turn import server_names

log = logging.getLogger("outlast.runner")

TICK_S = 0.05
TERM_PATIENCE_S = 3.0
SETTLE_S = 2.0
OPERATOR_CRASHES = 5  # by its own error, within OPERATOR_CRASH_WINDOW_S: the run cannot go on
OPERATOR_CRASH_WINDOW_S = 20.0


class RunFailed(RuntimeError):
    """The run itself (not the training) could not go on."""


@dataclass(frozen=True)
class Result:
    """How a run ended. `run` is what the report is built from."""

    outcome: str  # Succeeded | Failed | Interrupted
    message: str
    run: Run
    directory: RunDirectory
    ignored: list[str] = field(default_factory=list)


class Runner:
    """One run, from its directory to its end. `execute` may be called once."""

    def __init__(self, job: TrainingJob, job_dir: Path, options: Options, display: Display) -> None:
        self.job, self.spec, self.options, self.display = job, job.spec, options, display
        self.directory = RunDirectory.create(options.run_dir)
        self.config = make_config(job, job_dir, self.directory, options)
        self.directory.write_config(self.config)
        self._events: queue.Queue[tuple[str, ProcessRecord | None]] = queue.Queue()
        self._records: dict[tuple[str, int], ProcessRecord] = {}
        self._status = JobStatus()
        self._said = 0  # events of the operator that were shown
        self._operator_crashes: list[float] = []
        self._operator_done = False
        self._operator_not_before = 0.0
        self._head_seen: dict[int, float] = {}
        self._forkserver: subprocess.Popen[bytes] | None = None
        self._client: ForkServerClient | None = None
        self._monitor: Monitor | None = None
        self._drill: Drill | None = None

    def execute(self) -> Result:
        """Run to the end, an error, or an interrupt. Nothing that was started lives when it returns or raises."""
        outcome, message, heard, tables = "Failed", "", Heard(), {}
        prctl.adopt_orphans()
        with _interruptible():
            try:
                self._start()
                while not self._operator_done:
                    self._tick()
                    time.sleep(TICK_S)
                status = self.directory.read_status()
                outcome, message = status.outcome or "Failed", status.message
            except KeyboardInterrupt:
                outcome, message = "Interrupted", "interrupted; stopping every process of the run"
                self.display.say(message, "yellow")
            except (RunFailed, ForkServerError) as error:
                message = str(error)
            finally:
                t_end = time.monotonic()
                with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C: no more patience
                    if outcome != "Succeeded":
                        self._stop_training()  # what is acknowledged after the tables were asked would pass for lost
                    tables = self._tables()
                    if outcome == "Interrupted":
                        self._leave()
                heard = self._stop_observing()
                self._end_everything()
                self.display.close()
        return Result(outcome, message, self._run(heard, tables, t_end), self.directory)

    # --- start ---

    def _start(self) -> None:
        self._forkserver = start_forkserver(self.directory.root, self.config.job)
        self.display.say(f"run directory {self.directory.root}", "dim")
        wait_ready(self.directory.root, self._forkserver)
        events, path = self._events, socket_path(self.directory.root)
        self._client = ForkServerClient(path, lambda kind, record: events.put((kind, record)))
        self._drill = Drill(self.options.kills, self.directory, self._client)
        self._start_operator()
        self._monitor = Monitor(self.directory, self.config, lambda: list(self._records.values()))

    def _start_operator(self) -> None:
        assert self._client is not None
        self._client.spawn(
            "operator",
            target="outlast_operator.local.runtime:main",
            env={RUN_DIRECTORY_VARIABLE: str(self.directory.root)},
            log=self.directory.log("operator"),
            meta={"role": "operator"},
        )

    # --- one tick ---

    def _tick(self) -> None:
        assert self._monitor is not None
        assert self._drill is not None
        self._take_events()
        self._status = self.directory.read_status_if_newer(self._status)
        moment = self._monitor.now()
        t_training = None if moment.t_first_update is None else time.monotonic() - moment.t_first_update
        accuracy = moment.evaluation.accuracy if moment.evaluation is not None else None
        for line in self._drill.step(t_training, moment.version, accuracy, self._cast()):
            self.display.say(line, "bold red")
        self._revive_operator()
        self._say_events()
        self.display.update(self._scene(moment))

    def _take_events(self) -> None:
        while True:
            try:
                kind, record = self._events.get_nowait()
            except queue.Empty:
                return
            if record is None:
                raise RunFailed(f"the forkserver is gone; see {self.directory.log('forkserver')}")
            known = self._records.get((record.name, record.pid))
            if known is None or known.running:
                self._records[record.name, record.pid] = record
            if kind == "exit" and record.name == "operator":
                self._operator_ended(record)

    def _operator_ended(self, record: ProcessRecord) -> None:
        if record.code == 0:
            self._operator_done = True
            return
        now = time.monotonic()
        if record.signal is None:
            self._operator_crashes = [t for t in self._operator_crashes if t > now - OPERATOR_CRASH_WINDOW_S] + [now]
            if len(self._operator_crashes) >= OPERATOR_CRASHES:
                raise RunFailed(f"the operator fails repeatedly: {_last_line(self.directory.log('operator'))}")
        self._operator_not_before = now + 0.2 * len(self._operator_crashes)

    def _operator_runs(self) -> bool:
        return any(r.name == "operator" and r.running for r in self._records.values())

    def _revive_operator(self) -> None:
        now = time.monotonic()
        if self._operator_done or self._operator_runs() or now < self._operator_not_before:
            return
        if not any(r.name == "operator" for r in self._records.values()):
            return  # its first start is still being reported
        if self.directory.holds().get("operator", 0.0) > now:
            return
        assert self._drill is not None
        self._drill.operator_restarted()
        self._start_operator()
        self._operator_not_before = now + 1.0  # until its start is reported

    def _cast(self) -> Cast:
        assert self._monitor is not None
        running = {r.name: r for r in self._records.values() if r.running}
        servers = {
            shard: [name for name in server_names(self.spec, shard) if name in running]
            for shard in range(self.spec.servers.shards)
        }
        chains = {shard: [m.name for m in view.members] for shard, view in self._status.views.items()}
        workers = sorted(n for n, r in running.items() if r.meta.get("role") == "worker")
        return Cast(chains, servers, workers, redis="redis" in running, operator="operator" in running)

    def _say_events(self) -> None:
        events = self.directory.events()
        for event in events[self._said :]:
            t_s = event["t"] - self.config.t_start
            style = "yellow" if event["type"] == "Warning" else "dim"
            self.display.say(f"{t_s:7.1f} s  {event['reason']}: {event['message']}", style)
        self._said = len(events)

    def _scene(self, moment: Moment) -> Scene:
        now = time.monotonic()
        for probe in moment.probes.values():
            if probe.serving and probe.is_head:
                self._head_seen[probe.shard] = now
        outages = {
            shard: now - seen
            for shard, seen in self._head_seen.items()
            if now - seen > 4 * TICK_S and moment.t_first_update is not None and self._status.goal is None
        }
        running = {r.name: r.meta.get("role") for r in self._records.values() if r.running}
        redis = None
        if self.config.redis_url is not None:
            redis = "redis" in running or not self.config.redis_started_here
        return Scene(
            job=self.job.name,
            spec=self.spec,
            t_s=now - self.config.t_start,
            moment=moment,
            status=self._status,
            outages=outages,
            redis=redis,
            workers=sum(role == "worker" for role in running.values()),
            operator="operator" in running,
        )

    # --- the end ---

    def _tables(self) -> dict[int, dict[str, Any]]:
        """The newest state of each shard, from servers that told it at their end or that can still be asked."""
        newest: dict[int, dict[str, Any]] = {}
        shard_of = {s.name: n for n, servers in enumerate(self.config.servers) for s in servers}
        kept = {path.stem: read_json(path) for path in (self.directory.root / "final").glob("*.json")}
        if self._monitor is not None:
            kept = {**self._monitor.heard.tables, **kept, **self._ask_tables()}
        for name, table in kept.items():
            best = newest.get(shard_of[name])
            if table and (best is None or _age(table) > _age(best)):
                newest[shard_of[name]] = table
        return newest

    def _ask_tables(self) -> dict[str, dict[str, Any]]:
        answers = {}
        for server in (s for servers in self.config.servers for s in servers):
            with contextlib.suppress(OSError, RuntimeError), contextlib.closing(self._control(server)) as control:
                if control.probe().initialised:
                    answers[server.name] = control.table()
        return answers

    def _control(self, server: ServerAddress) -> ServerControl:
        return ServerControl(server.address, self.config.job_uid, self.config.token, timeout_s=1.0)

    def _stop_training(self) -> None:
        """End the operator (it would replace processes that leave) and the workers: what they saw acknowledged is then
        final, and can be compared with what the servers hold."""
        self._end(lambda record: record.name == "operator", signal.SIGKILL)
        self._end(lambda record: record.meta.get("role") in ("worker", "evaluator"), signal.SIGKILL)
        self._settle()

    def _settle(self) -> None:
        """Wait, briefly, until the servers' versions stand still: what was under way has then arrived."""
        deadline, before = time.monotonic() + SETTLE_S, -1
        while self._monitor is not None and time.monotonic() < deadline:
            time.sleep(4 * TICK_S)
            version = self._monitor.now().version
            if version == before:
                return
            before = version

    def _leave(self) -> None:
        """The clean end of an interrupted run: perhaps a checkpoint, then TERM to all, with little patience."""
        if self.options.checkpoint_on_interrupt:
            self._checkpoint()
        for server in (s for servers in self.config.servers for s in servers):
            with contextlib.suppress(OSError, RuntimeError), contextlib.closing(self._control(server)) as control:
                control.leave()  # as SIGTERM, but no replacement comes
        self._end(lambda record: True, signal.SIGTERM)

    def _end(self, whom: Callable[[ProcessRecord], bool], number: signal.Signals) -> None:
        """Signal some processes and wait for their end, for `TERM_PATIENCE_S` at most."""
        client = self._client
        if client is None:
            return
        for record in client.list():
            if record.running and whom(record):
                client.signal(record.name, number, record.pid)
                client.signal(record.name, signal.SIGCONT, record.pid)
        deadline = time.monotonic() + TERM_PATIENCE_S
        while time.monotonic() < deadline and any(record.running and whom(record) for record in client.list()):
            time.sleep(TICK_S)

    def _checkpoint(self) -> None:
        for shard, view in self._status.views.items():
            if view.head is None:
                continue
            try:
                with contextlib.closing(self._control(ServerAddress(view.head.name, view.head.address))) as control:
                    answer = control.checkpoint_now()
                what = f"version {answer['version']} is saved" if "version" in answer else str(answer.get("error"))
                self.display.say(f"checkpoint of shard {shard}: {what}")
            except (OSError, RuntimeError) as error:
                self.display.say(f"no checkpoint of shard {shard}: {error}", "yellow")

    def _stop_observing(self) -> Heard:
        with contextlib.suppress(KeyboardInterrupt):
            if self._client is not None:
                self._records.update({(r.name, r.pid): r for r in self._client.list()})
        return self._monitor.stop() if self._monitor is not None else Heard()

    def _end_everything(self) -> None:
        if self._client is not None:
            self._client.shutdown()
            self._client.close()
        if self._forkserver is not None:
            try:
                self._forkserver.wait(10.0)
            except subprocess.TimeoutExpired:
                self._forkserver.kill()
                self._forkserver.wait()
        for orphan in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                orphan.kill()
        _reap_orphans()

    def _run(self, heard: Heard, tables: dict[int, dict[str, Any]], t_end: float) -> Run:
        status = self.directory.read_status()
        losses = self._drill.losses(self._records.values()) if self._drill is not None else []
        return Run(
            job=self.job.name,
            spec=self.spec,
            t_start=self.config.t_start,
            t_end=t_end,
            heard=heard,
            status=status,
            losses=[*losses, *unplanned(status, losses, list(self._records.values()))],
            tables=tables,
        )


def keep_checkpoints(result: Result, target: Path) -> Path | None:
    """Move the run's checkpoints out of its directory. Returns where they are, or None if there are none."""
    source = result.directory.root / "checkpoints"
    if not source.is_dir() or not any(source.iterdir()):
        return None
    if target.exists():
        shutil.rmtree(target)
    shutil.move(source, target)
    return target


def _age(table: dict[str, Any]) -> tuple[int, int]:
    return int(table.get("history", 0)), int(table.get("version", 0))


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
    return lines[-1] if lines else f"it logged nothing in {path}"


def _reap_orphans() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP end a run as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

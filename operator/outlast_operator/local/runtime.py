"""The runtime over local processes, and the operator child of `outlast run`: observe, plan, record, execute.

Rules. (1) The forkserver's list is the truth about processes; this process can be SIGKILLed at any line and, started
again, adopts what lives. (2) Nothing here waits for a server: watches listen in threads of their own, and what is sent
to servers goes through a small pool in which one message to one server is under way at a time. (3) An exit or a change
of a server's status wakes the loop at once; otherwise it looks at each heartbeat, or when the plan asked to be woken.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from outlast.api.config import ENVIRONMENT_VARIABLE, ProcessConfig
from outlast.api.job import read_spec
from outlast.api.view import Member
from outlast.buffer.types import redis_maxmemory
from outlast.pod import TARGETS
from outlast_operator.local.directory import RunConfig, RunDirectory, write_json
from outlast_operator.local.forkserver_client import ForkServerClient, ForkServerError, ProcessRecord, socket_path
from outlast_operator.local.redis import find_redis_server, redis_command
from outlast_operator.local.template import LocalTemplate
from outlast_operator.planner.actions import (
    Action,
    AssignSlot,
    Emit,
    ExpandClaims,
    KillProcess,
    ServerCall,
    StartProcess,
    StartRedis,
    TermProcess,
)
from outlast_operator.planner.observed import ObservedJob, Process, RedisState, Role
from outlast_operator.planner.status import JobStatus
from outlast_operator.runtime.orders import Leave, OneAtATime
from outlast_operator.runtime.reconcile import Waker, is_over, run_turn
from outlast_operator.runtime.watches import RedisWatch, ServerWatch

log = logging.getLogger("outlast.local")

RUN_DIRECTORY_VARIABLE = "OUTLAST_RUN_DIRECTORY"
# Redis is started before any worker has told the model's size; its limit then leaves room for snapshots of this size.
ASSUMED_SNAPSHOT_BYTES = 1 << 30
REAP_PATIENCE_S = 2.0
TABLE_PATIENCE_S = 1.0


def instance_of(record: ProcessRecord) -> str:
    return f"{record.pid}:{record.t_started:.6f}"


class LocalRuntime:
    """`Runtime` over a run directory and its forkserver."""

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        self.config: RunConfig = directory.config()
        self.spec = read_spec(self.config.spec)
        self.waker = Waker(time.monotonic)
        self.waker.heartbeat_s = self.spec.recovery.failover.heartbeat_seconds
        self._records: dict[str, ProcessRecord] = {}  # instance -> start, in order of start
        self._records_lock = threading.Lock()
        self._exited = threading.Condition(self._records_lock)
        self.forkserver_gone = False
        self._forkserver = ForkServerClient(socket_path(directory.root), self._on_event)
        for record in self._forkserver.list():
            self._remember(record)
        self._watches = self._watch_servers()
        self._redis = self._watch_redis()
        self._pool = ThreadPoolExecutor(max_workers=8, thread_name_prefix="to-server")
        self._calls = OneAtATime()
        self._told_to_leave: set[str] = set()  # instances: one SIGTERM is enough

    # --- listening ---

    def _on_event(self, kind: str, record: ProcessRecord | None) -> None:
        if record is None:
            self.forkserver_gone = True
        else:
            self._remember(record)
        self.waker.wake()

    def _remember(self, record: ProcessRecord) -> None:
        with self._exited:
            known = self._records.get(instance_of(record))
            if known is None or known.running:  # events and the first list may cross
                self._records[instance_of(record)] = record
            self._exited.notify_all()

    def _watch_servers(self) -> dict[str, ServerWatch]:
        silence_s = self.spec.recovery.failover.timeout_seconds
        goal = self.spec.training.stop_after.updates
        c = self.config
        return {
            s.name: ServerWatch(s.address, c.job_uid, c.token, silence_s, self.waker.wake, goal)
            for sh in c.servers
            for s in sh
        }

    def _watch_redis(self) -> RedisWatch | None:
        if self.config.redis_url is None:
            return None
        return RedisWatch(self.config.redis_url, self.spec.recovery.failover.heartbeat_seconds, self.waker.wake)

    # --- observe ---

    def observe(self) -> ObservedJob:
        status = self.directory.read_status()
        with self._records_lock:
            records = list(self._records.items())
        newest = {record.name: record for _, record in records if record.name != "operator"}
        shown = {instance_of(record) for record in newest.values()}
        return ObservedJob(
            status=status,
            processes={name: self._process(record) for name, record in newest.items()},
            probes={name: watch.probe for name, watch in self._watches.items() if watch.probe is not None},
            redis=self._redis.state if self._redis is not None else RedisState(),
            held=self.directory.holds(),
            storage="PerServer" if self.config.own_checkpoint_dirs else "Shared",
            dead=frozenset(instance for instance, record in records if not record.running and instance not in shown),
            t_operator_start=self.waker.t_listening,
            generation=1,
        )

    def _process(self, record: ProcessRecord) -> Process:
        role: Role = record.meta["role"]
        watch = self._watches.get(record.name)
        probe = watch.probe if watch is not None else None
        boot = probe.boot if probe is not None and probe.pid == record.pid else None
        running = "starting" if role == "server" and boot is None else "running"
        return Process(
            name=record.name,
            role=role,
            instance=instance_of(record),
            phase="exited" if not record.running else running,  # type: ignore[arg-type]
            boot=boot,
            address=watch.address if watch is not None else "",
            incarnation=int(record.meta.get("incarnation", 1)),
            exit_code=record.code,
            exit_signal=record.signal,
            proven_dead=not record.running,
            t_started=record.t_started,
            t_exited=record.t_exited,
            reason="" if record.running else self._last_words(record),
        )

    def _last_words(self, record: ProcessRecord) -> str:
        """Why it ended, as it said itself: what it reported, or the last line of its log after a crash."""
        reported = self.directory.error(record.name)
        return reported if reported or not record.code else self.directory.last_line(record.name)

    def write_status(self, status: JobStatus, expected_version: str | None) -> str:
        return self.directory.write_status(status, expected_version)

    # --- execute ---

    def execute(self, action: Action) -> None:
        try:
            self._execute(action)
        except (ForkServerError, OSError) as error:
            log.warning("%s: %s", type(action).__name__, error)

    def _execute(self, action: Action) -> None:
        match action:
            case StartProcess():
                self._start(action)
            case StartRedis():
                self._start_redis(action)
            case KillProcess():
                self._signal(action.name, action.instance, signal.SIGKILL, action.why)
            case TermProcess() if action.instance not in self._told_to_leave:
                for name in self._watches if action.name == "redis" else (action.name,):
                    self._keep_table(name)  # what was left unread stands in Redis alone
                self._dismiss(action.name)
                self._signal(action.name, action.instance, signal.SIGTERM, action.why)
                self._told_to_leave.add(action.instance)
            case ServerCall():
                self._send(action)
            case AssignSlot():
                self._assign(action)
            case ExpandClaims():
                log.warning("directories do not grow: %s", action)
            case Emit(type, reason, message):
                log.log(logging.WARNING if type == "Warning" else logging.INFO, "%s: %s", reason, message)
                event = {"t": time.monotonic(), "type": type, "reason": reason, "message": message}
                self.directory.add_event(event)

    def _running(self, name: str) -> ProcessRecord | None:
        with self._records_lock:
            return next((r for r in self._records.values() if r.name == name and r.running), None)

    def _make_room(self, name: str, replaces: str | None) -> bool:
        """End `replaces` if it still lives under this name. False: another process does."""
        living = self._running(name)
        if living is None:
            return True
        if instance_of(living) != replaces:
            log.info("not starting %s: pid %d runs under this name", name, living.pid)
            return False
        self._forkserver.signal(name, signal.SIGKILL, living.pid)
        with self._exited:
            return self._exited.wait_for(
                lambda: not self._records[instance_of(living)].running, timeout=REAP_PATIENCE_S
            )

    def _start(self, action: StartProcess) -> None:
        if action.role == "worker" and self._superseded(action):
            log.info("not starting %s: incarnation %d is not newer", action.name, action.incarnation)
            return
        if not self._make_room(action.name, action.replaces):
            return
        self.directory.forget_error(action.name)
        template = LocalTemplate.from_json(self.config.templates.get(action.role))
        config = self._process_config(action)
        if config.listen is not None and config.listen.startswith("unix:"):
            Path(config.listen.removeprefix("unix:")).unlink(missing_ok=True)  # its owner is dead
        argv = template.argv
        if argv is None and action.role == "worker" and self.config.exec_workers:
            argv = _worker_program(action.name, self.config.job)
        self._forkserver.spawn(
            action.name,
            target=f"{TARGETS[action.role]}:main",
            argv=argv,
            env={**template.env, ENVIRONMENT_VARIABLE: config.to_json(), "PYTHONPATH": self._python_path()},
            log=self.directory.log(action.name),
            cwd=Path(self.config.job_dir),
            meta={"role": action.role, "shard": action.shard, "slot": action.slot, "incarnation": action.incarnation},
        )

    def _superseded(self, action: StartProcess) -> bool:
        with self._records_lock:
            started = [r.meta for r in self._records.values() if r.meta.get("role") == "worker"]
        return any(m["slot"] == action.slot and m["incarnation"] >= action.incarnation for m in started)

    def _python_path(self) -> str:
        """The job's own folder first, so that its task and its script's neighbours can be imported."""
        return ":".join([self.config.job_dir, *[folder for folder in sys.path if folder]])

    def _process_config(self, action: StartProcess) -> ProcessConfig:
        c = self.config
        addresses = {s.name: s.address for shard in c.servers for s in shard}
        root = self.directory.root
        checkpoints = Path(c.checkpoint_dir or root / "checkpoints")
        return ProcessConfig(
            job=c.job,
            job_uid=c.job_uid,
            token=c.token,
            role=action.role,
            name=action.name,
            spec=c.spec,
            servers=c.servers,
            listen=addresses.get(action.name) if action.role == "server" else None,
            shard=action.shard,
            slot=action.slot,
            incarnation=action.incarnation,
            redis_url=c.redis_url,
            checkpoint_dir=str(checkpoints / action.name if c.own_checkpoint_dirs else checkpoints),
            own_checkpoint_dir=c.own_checkpoint_dirs,
            ledger_dir=str(self.directory.ledger),
            extras={
                "run_dir": str(root),
                "errors_dir": str(root / "errors"),
                "slots_file": str(self.directory.slots_file(action.name)),
                "path": [c.job_dir],
            },
        )

    def _start_redis(self, action: StartRedis) -> None:
        if self.config.redis_url is None or not self._make_room("redis", action.replaces):
            return
        path = Path(self.config.redis_url.removeprefix("unix://"))
        path.unlink(missing_ok=True)
        buffer = self.spec.recovery.buffer
        limit = redis_maxmemory(buffer.max_bytes, ASSUMED_SNAPSHOT_BYTES)
        argv = redis_command(find_redis_server(), self.directory.root / "redis", path, buffer.durability, limit)
        self._forkserver.spawn("redis", argv=argv, log=self.directory.log("redis"), meta={"role": "redis"})

    def _signal(self, name: str, instance: str, number: signal.Signals, why: str) -> None:
        living = self._running(name)
        if living is not None and instance_of(living) == instance:
            log.info("%s to %s (pid %d): %s", number.name, name, living.pid, why)
            self._forkserver.signal(name, number, living.pid)

    def _assign(self, action: AssignSlot) -> None:
        path = self.directory.slots_file(action.worker)
        slots: dict[str, Any] = self.directory.read_slots(action.worker)
        slots[str(action.slot)] = action.incarnation
        write_json(path, slots)

    def _send(self, order: ServerCall) -> None:
        watch = self._watches.get(order.to.name)
        if watch is not None and watch.address == order.to.address:
            self._calls.send(order, watch, self._pool)

    def _keep_table(self, name: str) -> None:
        """What a server holds at its end, kept for the report before it is told to leave."""
        watch = self._watches.get(name)
        path = self.directory.root / "final" / f"{name}.json"
        if watch is None or watch.probe is None or watch.probe.refused or path.exists():
            return
        if not watch.probe.finished and self.directory.read_status().outcome is None:
            return  # it leaves, and the job goes on without it
        control = watch.control

        def last_table() -> dict[str, Any]:
            control.finish()  # what it acknowledged after its table would pass for lost
            return control.table()

        asked = self._pool.submit(last_table)
        try:
            write_json(path, asked.result(timeout=TABLE_PATIENCE_S))
        except (OSError, RuntimeError, TimeoutError) as error:
            log.info("no final table from %s: %r", name, error)

    def _dismiss(self, name: str) -> None:
        """A server that leaves need not wait for a replacement."""
        watch = self._watches.get(name)
        if watch is not None and watch.probe is not None and not watch.probe.refused:
            self._send(Leave(Member(name, watch.probe.boot, watch.address)))

    def close(self) -> None:
        for watch in self._watches.values():
            watch.close()
        if self._redis is not None:
            self._redis.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._forkserver.close()


def _worker_program(name: str, job: str) -> list[str]:
    code = (
        f"from outlast_operator.local.titles import name_process; name_process({name!r}, {job!r}); "
        f"import sys; from {TARGETS['worker']} import main; sys.exit(main())"
    )
    return [sys.executable, "-c", code]


def main() -> int:
    """The operator child. Returns 0 when the job's outcome is recorded and every process has ended."""
    runtime = LocalRuntime(RunDirectory(Path(os.environ[RUN_DIRECTORY_VARIABLE])))
    spec, heartbeat_s = runtime.spec, runtime.spec.recovery.failover.heartbeat_seconds
    reason = ""
    while not runtime.forkserver_gone:
        observed, plan, changed = run_turn(runtime, spec, time.monotonic())
        if plan.reason != reason:
            log.info("plan: %s", plan.reason)
            reason = plan.reason
        if changed:
            continue
        if is_over(observed):
            runtime.close()
            return 0
        look_again = time.monotonic() + heartbeat_s
        runtime.waker.wait(min(look_again, plan.wake_at) if plan.wake_at is not None else look_again)
    return 1

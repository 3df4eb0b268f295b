"""The forkserver with real processes: spawn, exit events, adoption by a second client, and no orphan ever."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from outlast_operator.local import prctl
from outlast_operator.local.forkserver_client import (
    ForkServerClient,
    ForkServerError,
    ProcessRecord,
    socket_path,
    start_forkserver,
    wait_ready,
)

pytestmark = pytest.mark.timeout(120)

TARGETS = """
import os, subprocess, sys, time, threading
def sleep():
    time.sleep(600)
def code_seven():
    sys.exit(7)
def message():
    sys.exit("spec.training.task: no such task")
def crash():
    raise ValueError("a crash")
def environment():
    import torch
    print("GREETING", os.environ["GREETING"], "threads", threading.active_count(), torch.get_num_threads(), os.getcwd())
    print("descriptors", sorted(int(f) for f in os.listdir("/proc/self/fd"))[:8])
def nested():
    subprocess.Popen(["sleep", "600"])
    time.sleep(600)
"""


def wait_until(condition: Callable[[], object], timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)


class Fixture:
    def __init__(self, run_dir: Path) -> None:
        (run_dir / "forkserver_targets.py").write_text(TARGETS)
        self.run_dir = run_dir
        self.process = start_forkserver(run_dir, "my-job")
        wait_ready(run_dir, self.process)
        self.events: queue.Queue[tuple[str, ProcessRecord | None]] = queue.Queue()
        self.client = ForkServerClient(socket_path(run_dir), lambda kind, record: self.events.put((kind, record)))

    def spawn(self, name: str, function: str, **env: str) -> int:
        return self.client.spawn(
            name,
            target=f"forkserver_targets:{function}",
            env={"PYTHONPATH": str(self.run_dir), **env},
            log=self.run_dir / f"{name}.log",
            cwd=self.run_dir,
            meta={"slot": 3},
        )

    def next_exit(self, timeout_s: float = 15.0) -> ProcessRecord:
        while True:
            kind, record = self.events.get(timeout=timeout_s)
            if kind == "exit":
                assert record is not None
                return record

    def log(self, name: str) -> str:
        return (self.run_dir / f"{name}.log").read_text()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fixture]:
    fixture = Fixture(tmp_path_factory.mktemp("fs"))
    yield fixture
    fixture.client.shutdown()
    fixture.client.close()
    assert fixture.process.wait(10) == 0


def test_serves_with_one_thread(served: Fixture) -> None:
    assert len(prctl.thread_names(served.process.pid)) == 1


def test_fork_runs_the_target_with_its_environment_and_log(served: Fixture) -> None:
    pid = served.spawn("printer", "environment", GREETING="hello")
    record = served.next_exit()
    assert (record.name, record.pid, record.code, record.signal) == ("printer", pid, 0, None)
    assert record.t_exited is not None
    assert record.t_exited >= record.t_started
    assert f"GREETING hello threads 1 1 {served.run_dir}" in served.log("printer")
    assert "descriptors [0, 1, 2" in served.log("printer")


@pytest.mark.parametrize(
    ("function", "code", "text"),
    [
        ("code_seven", 7, ""),
        ("message", 1, "spec.training.task: no such task\n"),
        ("crash", 1, "ValueError: a crash\n"),
        ("absent", 1, "has no attribute 'absent'\n"),
    ],
)
def test_exit_codes_and_last_words_are_kept(served: Fixture, function: str, code: int, text: str) -> None:
    served.spawn(f"ending-{function}", function)
    record = served.next_exit()
    assert record.code == code
    assert served.log(f"ending-{function}").endswith(text)


def test_exec_runs_a_program_and_a_missing_one_says_so(served: Fixture) -> None:
    log = served.run_dir / "program.log"
    served.client.spawn("program", argv=["sh", "-c", "echo $GREETING; exit 4"], env={"GREETING": "hi"}, log=log)
    assert served.next_exit().code == 4
    assert log.read_text() == "hi\n"
    served.client.spawn("missing", argv=["no-such-program"], log=log)
    assert served.next_exit().code == 127
    assert "cannot run no-such-program" in log.read_text()


def test_a_name_runs_once(served: Fixture) -> None:
    pid = served.spawn("only", "sleep")
    with pytest.raises(ForkServerError, match=f"only already runs as pid {pid}"):
        served.spawn("only", "sleep")
    assert not served.client.signal("only", signal.SIGKILL, pid=pid + 1)
    assert served.client.signal("only", signal.SIGKILL, pid=pid)
    record = served.next_exit()
    assert (record.pid, record.code, record.signal) == (pid, None, signal.SIGKILL)
    assert not served.client.signal("only", signal.SIGKILL)


def test_a_second_client_adopts_what_lives_and_learns_what_died(served: Fixture) -> None:
    served.spawn("dies", "code_seven")
    served.next_exit()
    pid = served.spawn("lives", "sleep")
    second = ForkServerClient(socket_path(served.run_dir))
    records = {record.name: record for record in second.list()}
    assert records["dies"].code == 7
    assert not records["dies"].running
    assert records["lives"].pid == pid
    assert records["lives"].running
    assert records["lives"].meta == {"slot": 3}
    second.close()
    assert served.client.signal("lives", signal.SIGKILL), "a client that goes takes nobody with it"
    assert served.next_exit().name == "lives"


def test_what_a_dead_process_leaves_behind_is_killed(served: Fixture) -> None:
    pid = served.spawn("nested", "nested")
    wait_until(lambda: prctl.children(pid))
    (grandchild,) = prctl.children(pid)
    served.client.signal("nested", signal.SIGKILL)
    assert served.next_exit().name == "nested"
    wait_until(lambda: not psutil.pid_exists(grandchild))


def test_a_bad_request_hurts_nobody_else(served: Fixture) -> None:
    with pytest.raises(ForkServerError, match="unknown request"):
        served.client._request({"op": "dance"})
    assert served.client.list() is not None


def test_ps_and_top_show_which_process_of_which_job_it_is(served: Fixture) -> None:
    forked = served.spawn("server-0", "sleep")
    for pid, name in {forked: "server-0", served.process.pid: "forkserver"}.items():
        wait_until(lambda pid=pid, name=name: psutil.Process(pid).cmdline()[:1] == [f"outlast {name} (my-job)"])
        assert Path(f"/proc/{pid}/comm").read_text() == f"{name}\n"
        assert psutil.Process(pid).environ()["OMP_NUM_THREADS"] == "1", "the title spares the environment"


def test_sigkill_of_the_parent_leaves_no_orphan(tmp_path: Path) -> None:
    parent_source = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        from outlast_operator.local.forkserver_client import *
        run_dir = Path(sys.argv[1])
        wait_ready(run_dir, start_forkserver(run_dir, "my-job"))
        client = ForkServerClient(socket_path(run_dir))
        env = {"PYTHONPATH": str(run_dir)}
        client.spawn("child", target="forkserver_targets:sleep", env=env)
        client.spawn("program", argv=["sleep", "600"])
        print(*[record.pid for record in client.list()], flush=True)
        time.sleep(600)
        """
    )
    (tmp_path / "forkserver_targets.py").write_text(TARGETS)
    source = parent_source.replace("import *", "import ForkServerClient, socket_path, start_forkserver, wait_ready")
    with subprocess.Popen([sys.executable, "-c", source, str(tmp_path)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        (forkserver,) = prctl.children(parent.pid)
        assert len(pids) == 2
        assert all(psutil.pid_exists(pid) for pid in pids)
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    wait_until(lambda: not any(_alive(pid) for pid in [forkserver, *pids]))


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE  # init may reap late in a container
    except psutil.NoSuchProcess:
        return False

"""`outlast run` with real processes, from the command line to report.json."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

pytestmark = pytest.mark.timeout(180)


def job_file(folder: Path, strategy: str = "Chain", updates: int = 150, **spec: Any) -> Path:
    job = {
        "apiVersion": "outlast.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "tiny"},
        "spec": {
            "training": {
                "task": "outlast.tasks.synthetic",
                "args": {"parameters": 10000, "computeMs": 5},
                "stopAfter": {"updates": updates},
                "evaluate": {"everySeconds": 1},
            },
            "recovery": {"strategy": strategy, "staleness": {"policy": "Sum"}},
        }
        | spec,
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


def command(job: Path, *more: str) -> list[str]:
    report = ["--report", str(job.parent / "report")]
    return [sys.executable, "-m", "outlast_operator.cli.main", "run", str(job), *report, *more]


def outlast_run(job: Path, *more: str) -> dict[str, Any]:
    """Run to the end; returns the one line of JSON, with `exit`."""
    done = subprocess.run(command(job, "--json", *more), capture_output=True, text=True, timeout=150, cwd=job.parent)
    lines = done.stdout.splitlines()
    assert len(lines) == 1, f"--json prints one line, not:\n{done.stdout}\n{done.stderr}"
    answer: dict[str, Any] = json.loads(lines[0])
    return answer | {"exit": done.returncode}


def family(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def all_dead(processes: Sequence[psutil.Process], timeout_s: float = 10.0) -> bool:
    return not psutil.wait_procs(processes, timeout=timeout_s)[1]


def wait_for_version(run_dir: Path, process: subprocess.Popen[str], version: int, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while process.poll() is None and time.monotonic() < deadline:
        if sum(path.stat().st_size for path in run_dir.glob("ledger/*.bin")) > version * 2 * 21:
            return
        time.sleep(0.02)
    raise AssertionError("training did not begin")


def test_a_killed_head_costs_no_acknowledged_gradient(tmp_path: Path) -> None:
    result = outlast_run(job_file(tmp_path), "--kill", "head@update=50")
    assert (result["exit"], result["outcome"]) == (0, "Succeeded")
    gradients = result["gradients"]
    assert (gradients["applied"], gradients["lost"], gradients["duplicates"]) == (150, 0, 0)
    (failure,) = result["failures"]
    assert failure["target"] == "server-0"
    times = [failure[f"t_{name}_s"] for name in ("killed", "detected", "promoted", "first_update")]
    assert times == sorted(times)
    assert failure["epoch"] == 2
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["gradients"] == gradients
    assert [row for row in report["series"] if row["accuracy"] is not None]
    assert {row["process"] for row in report["resources"]} >= {"server-1", "worker-0", "operator"}
    assert (tmp_path / "report" / "report.html").exists()


def test_checkpoint_loses_what_came_after_the_checkpoint_and_says_so(tmp_path: Path) -> None:
    result = outlast_run(
        job_file(tmp_path, "Checkpoint", updates=200), "--kill", "head@update=130", "--transport", "tcp"
    )
    assert (result["exit"], result["outcome"]) == (0, "Succeeded")
    assert result["gradients"]["lost"] >= 20
    assert result["gradients"]["applied"] == 200


def test_a_killed_operator_is_started_again_and_adopts_what_lives(tmp_path: Path) -> None:
    result = outlast_run(job_file(tmp_path, updates=300), "--kill", "operator@update=50", "--kill", "tail@update=100")
    assert (result["exit"], result["outcome"]) == (0, "Succeeded")
    assert result["gradients"]["lost"] == 0
    operator, tail = result["failures"]
    assert operator["t_promoted_s"] > operator["t_detected_s"] >= operator["t_killed_s"]
    assert tail["t_first_update_s"] is not None


def test_ctrl_c_ends_everything_and_loses_nothing_acknowledged(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    job = job_file(tmp_path, updates=1_000_000)
    words = command(job, "--json", "--checkpoint-on-interrupt", "--run-dir", str(run_dir))
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        wait_for_version(run_dir, process, 20)
        processes = family(process.pid)
        assert len(processes) >= 7  # forkserver, operator, three servers, two workers
        os.kill(process.pid, signal.SIGINT)
        result = json.loads(process.communicate(timeout=60)[0])
    assert process.returncode == 130
    assert all_dead(processes, 0.0)
    assert result["outcome"] == "Interrupted"
    assert result["gradients"]["lost"] == 0
    assert result["final"]["version"] > 0
    assert any(Path(result["checkpoints"]).rglob("*.safetensors"))


def test_sigkill_of_the_runner_leaves_no_process(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    job = job_file(tmp_path, updates=1_000_000)
    with subprocess.Popen(command(job, "--quiet", "--run-dir", str(run_dir)), text=True, cwd=tmp_path) as process:
        wait_for_version(run_dir, process, 5)
        processes = family(process.pid)
        process.kill()
    assert all_dead(processes)


def test_a_job_that_cannot_work_fails_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("")
    training = {"task": "broken", "stopAfter": {"updates": 10}}
    result = outlast_run(job_file(tmp_path, training=training))
    assert (result["exit"], result["outcome"]) == (1, "Failed")
    assert "broken" in result["message"]
    assert Path(result["runDirectory"]).is_dir()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--kill", "boss@1s"], "'boss' is no target"),
        (["--kill", "server-3@1s"], "the job has server-0 to server-2"),
        (["--kill", "redis@1s"], "starts no Redis"),
    ],
)
def test_a_kill_that_cannot_be_is_bad_input(tmp_path: Path, more: list[str], words: str) -> None:
    result = outlast_run(job_file(tmp_path), *more)
    assert (result["exit"], result["outcome"]) == (2, "BadInput")
    assert words in result["message"]


def test_a_bad_file_is_bad_input(tmp_path: Path) -> None:
    result = outlast_run(tmp_path / "absent.yaml")
    assert (result["exit"], result["outcome"]) == (2, "BadInput")
    assert "no such file" in result["message"]

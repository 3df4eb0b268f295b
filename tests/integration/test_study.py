"""A tiny study from its plan to its records: real runs, real kills, an interruption. No test looks at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from outlast_bench.study.design import configurations, records
from outlast_bench.study.design.records import PlannedRun
from outlast_bench.study.run import execute

ROOT = Path(__file__).parents[2]
HANG_S = 580.0
TINY = "{parameters: 2000, computeMs: 10}"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def command(*words: str) -> tuple[list[str], dict[str, str]]:
    path = os.pathsep.join(str(ROOT / source) for source in ("trainer", "operator", "benchmarks"))
    line = [sys.executable, "-m", "outlast_operator.cli.main", "study", *words, "--json"]
    return line, {**os.environ, "PYTHONPATH": path}


def study(out: Path, *words: str) -> tuple[int, dict[str, Any], str]:
    """Run the command on the synthetic task; (exit code, its line of JSON, what it told)."""
    own = ["--task", "outlast.tasks.synthetic", "--args", TINY, "--seconds", "3", "--quick", "--seeds", "1"]
    line, env = command(*own, "--out", str(out), *words)
    done = subprocess.run(line, env=env, cwd=out.parent, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert done.stdout.count("\n") == 1, f"exit code {done.returncode}: {done.stdout}{done.stderr}"
    return done.returncode, json.loads(done.stdout), done.stderr


def test_a_study_of_ones_own_task_from_plan_to_page(tmp_path: Path) -> None:
    out = tmp_path / "study"
    code, planned, _ = study(out, "--plan")
    assert code == 0
    assert planned["estimate_s"] > 0
    assert not out.exists(), "--plan does nothing"

    code, made, told = study(out)
    assert code == 0, told
    found = records.read_study(out)
    assert found is not None
    (steep,) = found.experiments
    assert {run.configuration for run in steep.runs} == {"control", *configurations.RECOMMENDED}
    scale = records.read_calibrations(out)["steep"]
    assert scale.kill_update is not None
    for run in steep.runs:
        record, report = records.read_run(out, run), records.read_report(out, run)
        assert record is not None
        assert report is not None
        assert record.ok, record.error
        assert len(report["failures"]) == run.kills == len(record.kill_arguments)
        assert report["gradients"]["duplicates"] == 0
        assert not (run.folder(out) / "checkpoints").exists()
    assert made["runs"] == len(steep.runs)
    assert Path(out / "index.html").exists()

    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/**/run.json")}
    code, again, told = study(out)
    assert (code, again["runs"]) == (0, made["runs"])
    assert {path: path.stat().st_mtime_ns for path in out.glob("runs/**/run.json")} == before, "made again"

    code, refused, _ = study(out, "--optimizer", "{name: SGD, lr: 0.5}")
    assert code == 2
    assert "use another directory" in refused["error"]


def test_an_interrupted_study_leaves_whole_runs_and_no_process(tmp_path: Path) -> None:
    out = tmp_path / "study"
    own = ["--task", "outlast.tasks.synthetic", "--args", TINY, "--seconds", "600", "--quick", "--out", str(out)]
    line, env = command(*own)
    process = subprocess.Popen(line, env=env, cwd=tmp_path, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + HANG_S / 2
        while not list(out.glob("calibration/*/*/job.yaml")):
            assert time.monotonic() < deadline, "the calibration never began"
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG_S / 2) == 130
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert list(out.glob("calibration/*/*")) == []
    assert list(out.glob("runs/**/run.json")) == []
    deadline = time.monotonic() + HANG_S / 4
    while is_anybody_left(process.pid):  # the kernel ends orphans link by link, and init buries them
        assert time.monotonic() < deadline, "a process of the study outlives it"
        time.sleep(0.05)


def is_anybody_left(group: int) -> bool:
    """Whether a process of this process group exists."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_run_that_misses_its_kill_has_failed_and_says_so(tmp_path: Path) -> None:
    job = configurations.make_job(
        configurations.BY_NAME["chain"],
        task="outlast.tasks.synthetic",
        task_args={"parameters": 2000, "computeMs": 10},
        optimizer={"name": "SGD", "lr": 0.01},
        evaluate={"everySeconds": 0.5, "samples": 100},
        seed=0,
        stop_after={"seconds": 2.0},
    )
    folder = PlannedRun("steep", "chain", 1, 0).folder(tmp_path)
    outcome = execute.execute(job, ["head@update=1000000"], folder, lambda: None)
    assert outcome.error == "0 of 1 kills were carried out before its end"
    assert any(line.startswith("operator: ") for line in outcome.log_tail)
    assert (folder / "report.json").exists(), "what it measured is kept"


def test_a_run_that_cannot_start_has_failed_with_its_reason(tmp_path: Path) -> None:
    job = configurations.make_job(
        configurations.BY_NAME["checkpoint"],
        task="no.such.task",
        task_args={},
        optimizer={"name": "SGD", "lr": 0.01},
        evaluate={"everySeconds": 0.5, "samples": 100},
        seed=0,
        stop_after={"seconds": 2.0},
    )
    outcome = execute.execute(job, [], PlannedRun("steep", "checkpoint", 0, 0).folder(tmp_path), lambda: None)
    assert outcome.error.startswith("Failed: ")
    assert "no.such.task" in outcome.error

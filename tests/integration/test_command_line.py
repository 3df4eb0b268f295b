"""The edge of `outlast run`: one line of JSON, exit codes, and reasons that a newcomer can act upon."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.timeout(120)


def job_file(folder: Path, training: dict[str, Any] | None = None, **spec: Any) -> Path:
    synthetic = {"task": "outlast.tasks.synthetic", "args": {"parameters": 10000, "computeMs": 5}}
    job = {
        "apiVersion": "outlast.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "tiny"},
        "spec": {"training": {"stopAfter": {"updates": 150}} | (training or synthetic), **spec},
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


def outlast(*words: str, cwd: Path) -> tuple[int, dict[str, Any]]:
    """Run the command with --json; returns its exit code and the one line that it must print."""
    command = [sys.executable, "-m", "outlast_operator.cli.main", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, cwd=cwd)
    lines = done.stdout.splitlines()
    assert len(lines) == 1, f"--json prints one line, not:\n{done.stdout}\n{done.stderr}"
    return done.returncode, json.loads(lines[0])


def outlast_run(job: Path, *more: str) -> tuple[int, dict[str, Any]]:
    report = job.parent / "report"
    return outlast(
        "run", str(job), "--report", str(report), "--run-dir", str(job.parent / "run"), *more, cwd=job.parent
    )


def test_a_run_ends_with_a_report_that_can_be_drawn_again(tmp_path: Path) -> None:
    job = job_file(tmp_path, recovery={"strategy": "Chain"})
    code, answer = outlast_run(job, "--kill", "head@update=50", "--kill", "operator@update=60", "--transport", "tcp")
    assert (code, answer["outcome"], answer["gradients"]["lost"]) == (0, "Succeeded", 0)
    head, operator = answer["failures"]
    assert head["target"].startswith("server-")
    times = [head[f"t_{name}_s"] for name in ("killed", "detected", "promoted", "first_update")]
    assert times == sorted(times)
    assert operator["t_promoted_s"] >= operator["t_detected_s"] >= operator["t_killed_s"]
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert {key: report[key] for key in ("gradients", "failures")} == {
        key: answer[key] for key in ("gradients", "failures")
    }
    assert {row["process"] for row in report["resources"]} >= {"server-1", "worker-0", "operator"}
    for name in ("report.html", "report.png"):
        (tmp_path / "report" / name).unlink()
    subprocess.run([sys.executable, "-m", "outlast_operator.cli.main", "report", str(tmp_path / "report")], check=True)
    assert (tmp_path / "report" / "report.html").exists()
    assert any(Path(answer["checkpoints"]).rglob("*.safetensors"))


def test_a_job_that_cannot_work_fails_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("")
    code, answer = outlast_run(job_file(tmp_path, {"task": "broken"}))
    assert (code, answer["outcome"]) == (1, "Failed")
    assert "broken" in answer["message"]
    assert (tmp_path / "run" / "logs" / "worker-0.log").exists(), "the logs of a failed run are kept"


@pytest.mark.parametrize(
    ("kill", "words"),
    [
        ("boss@1s", "'boss' is not a target"),
        ("server-3@1s", "the job has server-0 to server-2"),
        ("redis@1s", "starts no Redis"),
    ],
)
def test_a_kill_that_cannot_be_is_bad_input(tmp_path: Path, kill: str, words: str) -> None:
    code, answer = outlast_run(job_file(tmp_path, recovery={"strategy": "Chain"}), "--kill", kill)
    assert (code, answer["outcome"]) == (2, "BadInput")
    assert words in answer["message"]
    assert not (tmp_path / "run").exists(), "nothing was started"


def test_a_file_that_is_not_there_is_bad_input(tmp_path: Path) -> None:
    code, answer = outlast_run(tmp_path / "absent.yaml")
    assert (code, answer["outcome"]) == (2, "BadInput")
    assert "no such file" in answer["message"]


def test_validate_says_everything_that_is_wrong(tmp_path: Path) -> None:
    job = job_file(tmp_path, recovery={"strategy": "Chian"}, workers={"replica": 2})
    code, answer = outlast("validate", str(job), cwd=tmp_path)
    assert (code, answer["valid"]) == (2, False)
    assert {error["path"] for error in answer["errors"]} == {"spec.recovery.strategy", "spec.workers.replica"}

"""What is recorded of the machine and the code, and told: of a checkout in every state, of cores that others use."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from study_builder import Made, make_report, write_run, write_study

from outlast_bench.study.analysis.load import load_study
from outlast_bench.study.analysis.summary import summarise
from outlast_bench.study.page.machines import machine as rows_of
from outlast_bench.study.page.machines import speeds
from outlast_bench.study.run import machine
from outlast_bench.study.run.machine import CoreTimes, boot_id, commit_of_code, core_times, shares


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with this module in its place, and documentation beside the code."""
    module = tmp_path / "benchmarks" / "outlast_bench" / "study" / "run" / "machine.py"
    for path in (module, tmp_path / "trainer" / "a.py", tmp_path / "docs" / "page.md"):
        path.parent.mkdir(parents=True)
        path.write_text("one")
    git(tmp_path, "init", "--quiet")
    commit(tmp_path)
    monkeypatch.setattr(machine, "__file__", str(module))
    return tmp_path


def git(top: Path, *words: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", "-C", str(top), *who, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit(top: Path) -> str:
    git(top, "add", ".")
    git(top, "commit", "--quiet", "-m", "x")
    return git(top, "rev-parse", "--short=12", "HEAD")


def test_the_code_is_the_last_commit_that_touched_it(checkout: Path) -> None:
    code = git(checkout, "rev-parse", "--short=12", "HEAD")
    assert commit_of_code() == code
    (checkout / "docs" / "page.md").write_text("two")
    assert commit_of_code() == code, "what is being written about it is no change of the code"
    assert commit(checkout) != code
    assert commit_of_code() == code
    (checkout / "trainer" / "a.py").write_text("two")
    assert commit_of_code() == f"{code}-changed"
    newer = commit(checkout)
    assert commit_of_code() == newer != code


def test_outside_a_checkout_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed into an environment that lies in somebody's own checkout: its commits say nothing of this code."""
    git(tmp_path, "init", "--quiet")
    module = tmp_path / "env" / "lib" / "python3" / "outlast_bench" / "study" / "run" / "machine.py"
    monkeypatch.setattr(machine, "__file__", str(module))
    assert commit_of_code() is None


def test_what_the_cores_did_between_two_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = tmp_path / "stat"
    monkeypatch.setattr(machine, "CORE_TIMES", stat)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2})
    stat.write_text(
        "cpu 9 9 9 9 9 9 9 9 9 9\ncpu0 0 0 0 0 0 0 0 0 0 0\ncpu1 7 7 7 7 7 7 7 7 7 7\ncpu2 5 0 0 5 0 0 0 0\n"
    )
    before = core_times()
    assert before == CoreTimes(busy=5, stolen=0, total=10)
    stat.write_text("cpu0 10 20 10 30 10 5 5 10 3 1\ncpu1 9 9 9 9 9 9 9 9 9 9\ncpu2 5 0 0 105 0 0 0 0\nintr 5\n")
    assert shares(before, core_times()) == (0.25, 0.05)


def test_where_there_is_no_proc_stat_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CORE_TIMES", "BOOT_ID"):
        monkeypatch.setattr(machine, name, tmp_path / "none")
    assert core_times() is None
    assert boot_id() is None
    assert shares(None, CoreTimes(1, 1, 2)) == (None, None)
    assert shares(CoreTimes(1, 0, 2), CoreTimes(1, 0, 2)) == (None, None), "no time has passed"


# --- on the page ---


def study(directory: Path) -> Path:
    configurations = ("control", "checkpoint", "stateless", "hybrid")
    return write_study(directory, seeds=(0, 1), kills=(1,), configurations=configurations)


def made_on(directory: Path, boot_of: Callable[[Path], str], **machine: str) -> None:
    """Give every run the machine that made it; empty: a record of an earlier version, which names none."""
    facts = {"cpu": "a cpu", "cores": 2, "memory_bytes": 1 << 30, "os": "Linux", "python": "3.11", "torch": "2.5"}
    for path in (directory / "runs").glob("*/*/*/*/run.json"):
        if boot := boot_of(path):
            more = {"machine": {**facts, "outlast": "0.1.0"} | machine, "boot_id": boot, "busy_share": 0.9}
            path.write_text(json.dumps(json.loads(path.read_text()) | more | {"stolen_share": 0.021}))


def test_every_machine_is_named_with_what_was_made_on_it(tmp_path: Path) -> None:
    study(tmp_path)
    write_run(tmp_path, "one-worker", "control", 0, 0, make_report(Made()))
    made_on(tmp_path, lambda path: "1b4e28ba-2fa1" if path.match("hybrid/*/seed-1/*") else "2c5f39cb-3ab2")
    rows = dict(rows_of(load_study(tmp_path)))
    named = {rows["Machine 1"], rows["Machine 2"]}
    assert named == {
        f"a cpu, 2 cores, 1.1 GB, Linux, Python 3.11, PyTorch 2.5, boot {boot}" for boot in ("1b4e28ba", "2c5f39cb")
    }
    assert {part.partition(" on ")[0] for part in rows["Runs of steep"].split(" and ")} >= {"7 runs", "1 run"}
    assert rows["Runs of one-worker"].startswith("1 run on ")
    assert rows["Seeds made on two machines"] == "seed 1 of steep"
    assert rows["Taken by other guests of the host"] == "2.1 % (2.1 to 2.1)"


def test_seeds_that_lie_on_one_machine_each_need_no_care_and_old_records_are_read(tmp_path: Path) -> None:
    study(tmp_path)
    made_on(tmp_path, lambda path: "1b4e28ba-2fa1" if path.match("seed-1/*") else "")
    rows = dict(rows_of(load_study(tmp_path)))
    assert "not recorded" in (rows["Machine 1"], rows["Machine 2"])
    assert "Seeds made on two machines" not in rows


def test_what_else_ran_beside_a_run_shows(tmp_path: Path) -> None:
    """Of 2 cores for 40 s, 75 % busy, 60 s were used; the report counts 50: a worker 30, a server in two lives 20."""
    study(tmp_path)
    made_on(tmp_path, lambda path: "1b4e28ba-2fa1")
    samples = {"worker-0": [5.0, 30.0], "server-0": [2.0, 12.0, 1.0, 8.0]}
    resources = [
        {"t_s": float(i), "process": name, "cpu_s": s, "rss_bytes": 1}
        for name, used in samples.items()
        for i, s in enumerate(used)
    ]
    for path in (tmp_path / "runs").glob("*/*/*/*/run.json"):
        busy = 0.95 if path.match("hybrid/*/seed-1/*") else 0.75
        path.write_text(json.dumps(json.loads(path.read_text()) | {"busy_share": busy, "wall_s": 40.0}))
        report = path.with_name("report.json")
        report.write_text(json.dumps(json.loads(report.read_text()) | {"resources": resources}))
    told = dict(rows_of(load_study(tmp_path)))["CPU beside a run (s)"]
    assert told == "12.0 (10.0 to 26.0)", "seven of 10, one of 26"


def test_the_speed_of_the_machine_is_told_for_each_experiment_that_tells_it(tmp_path: Path) -> None:
    summary = summarise(load_study(study(tmp_path)))
    assert speeds(summary) == [], "nothing here evaluates"
    for path in (tmp_path / "runs").glob("*/*/*/*/report.json"):
        report = json.loads(path.read_text())
        cost = 0.2 if path.match("hybrid/*/seed-1/*") else 0.1
        told = [s["t_s"] for s in report["series"] if s["accuracy"] is not None]
        rows = [{"t_s": t, "process": "evaluator", "cpu_s": cost * i, "rss_bytes": 1} for i, t in enumerate(told)]
        path.write_text(json.dumps(report | {"resources": rows}))
    (row,) = speeds(summarise(load_study(tmp_path)))
    assert row == ("CPU an evaluation in steep (ms)", "100 to 200 (8 runs)")

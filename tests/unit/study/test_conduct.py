"""Conducting a study without running anything: what is made, recorded, resumed and refused."""

from __future__ import annotations

import argparse
import io
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from outlast_bench import cli_study as command
from outlast_bench.study.analysis.load import load_study
from outlast_bench.study.design import experiments, records
from outlast_bench.study.design.experiments import Experiment, models
from outlast_bench.study.design.records import PlannedRun, StudyError
from outlast_bench.study.page.grids import counts
from outlast_bench.study.run import conduct, execute
from outlast_bench.study.run.conduct import Asked, Conductor, Made
from outlast_bench.study.run.execute import Outcome
from outlast_bench.study.run.machine import busy

sys.path.insert(0, str(Path(__file__).parents[3] / "docs"))
from render_study import pack, unpacked


class Runs:
    """Stands for `execute`: leaves a report that looks like a run's, and does as it is told with some of them."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.kills: list[list[str]] = []
        self.fails: Callable[[Path], bool] = lambda folder: False
        self.stop_after: int | None = None

    def __call__(self, job: Any, kills: Sequence[str], folder: Path, tick: Callable[[], None]) -> Outcome:
        if self.stop_after is not None and len(self.made) >= self.stop_after:
            raise KeyboardInterrupt
        tick()
        self.made.append(str(folder))
        self.kills.append(list(kills))
        curve = [{"t_s": float(t), "version": 100 * t, "accuracy": None, "loss": None} for t in range(31)]
        seen = [{"t_s": t + 0.5, "version": 100 * t, "accuracy": min(0.9, 0.1 * t), "loss": 1.0} for t in range(30)]
        records.write_json(
            folder / execute.REPORT,
            {"seed": job.spec.training.seed, "series": curve + seen, "final": {"accuracy": 0.81, "loss": 1.0}},
        )
        error = "Failed: a test wanted it" if self.fails(folder) else ""
        return Outcome(error, ["server-0: the end"] if error else [], "2026-01-01", 1.0, 0.1, 0.75, 0.02)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    made = Runs()
    monkeypatch.setattr(execute, "execute", made)
    return made


def conducted(out: Path, **changes: Any) -> tuple[Made, str]:
    asked = Asked(out, experiments.quick(), experiments.FASHION_MNIST, True, "outlast study --quick")
    console = Console(file=io.StringIO(), width=200)
    made = Conductor(replace(asked, **changes), console).conduct(0.0)
    assert isinstance(console.file, io.StringIO)
    return made, console.file.getvalue()


def test_calibrates_once_and_makes_every_run_with_the_same_kill(tmp_path: Path, runs: Runs) -> None:
    made, told = conducted(tmp_path)
    (steep,) = experiments.quick()
    assert len(runs.made) == 1 + len(steep.planned().runs)
    assert "calibration" in runs.made[0]
    scale = records.read_calibrations(tmp_path)["steep"]
    assert (scale.kill_update, scale.rate_per_s) == (500, 100.0)
    assert {tuple(kills) for kills in runs.kills if kills} == {("head@update=500+3750ms",), ("head@update=537+3750ms",)}
    assert (made.runs, made.failed) == (len(steep.planned().runs), [])
    assert "12/12" in told
    before = len(runs.made)
    conducted(tmp_path)
    assert len(runs.made) == before, "nothing is made twice"


def test_goes_on_where_it_was_interrupted_with_the_same_calibration(tmp_path: Path, runs: Runs) -> None:
    runs.stop_after = 5
    with pytest.raises(KeyboardInterrupt):
        conducted(tmp_path)
    runs.stop_after = None
    made, _ = conducted(tmp_path)
    assert made.runs == 12
    assert len(runs.made) == len(set(runs.made)) == 13


def test_a_kept_study_is_gone_on_with_from_a_copy(tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full one, kept when it was half made: nothing is calibrated or made twice, and nothing is missing."""
    here = conduct.this_machine()
    monkeypatch.setattr(conduct, "this_machine", lambda: here)
    full = [replace(experiment, seeds=1) for experiment in (*experiments.full(), *models())]
    runs.stop_after = 40
    with pytest.raises(KeyboardInterrupt):
        conducted(tmp_path / "first", experiments=full, quick=False)
    pack(tmp_path / "first", tmp_path / "kept.tar.xz")
    with unpacked(tmp_path / "kept.tar.xz") as kept:
        shutil.copytree(kept, tmp_path / "again")
    runs.stop_after = None
    made, _ = conducted(tmp_path / "again", experiments=full, quick=False)
    assert made.runs == sum(len(experiment.planned().runs) for experiment in full)
    places = [folder.removeprefix(str(tmp_path)).split("/", 2)[2] for folder in runs.made]
    assert len(places) == len(set(places))
    assert load_study(tmp_path / "again").missing == ()


def test_a_failed_run_is_recorded_told_and_made_again_only_when_asked(tmp_path: Path, runs: Runs) -> None:
    runs.fails = lambda folder: "hybrid" in str(folder)
    made, told = conducted(tmp_path)
    assert [str(record.planned) for record in made.failed] == [
        "steep · hybrid · 1 kill · seed 0",
        "steep · hybrid · 1 kill · seed 1",
    ]
    assert all(record.log_tail == ["server-0: the end"] for record in made.failed)
    assert told.count("failed: Failed: a test wanted it") == 2
    before = len(runs.made)
    runs.fails = lambda folder: False
    assert len(conducted(tmp_path)[0].failed) == 2
    assert len(runs.made) == before
    assert conducted(tmp_path, retry_failed=True)[0].failed == []
    assert len(runs.made) == before + 2
    again = records.read_run(tmp_path, made.failed[0].planned)
    assert again is not None
    assert again.ok
    assert again.earlier_errors == ["Failed: a test wanted it"], "a failure is not forgotten"


def two() -> list[Experiment]:
    (steep,) = experiments.quick()
    return [steep, replace(steep, name="other", seeds=1)]


def test_a_calibration_that_fails_once_is_made_with_another_seed(tmp_path: Path, runs: Runs) -> None:
    runs.fails = lambda folder: "calibration/steep/seed-1000" in str(folder)
    made, told = conducted(tmp_path)
    assert [Path(folder).name for folder in runs.made[:2]] == ["seed-1000", "seed-1100"]
    assert (made.runs, made.failed, made.uncalibrated) == (12, [], {})
    assert "failed, once more with another seed" in told
    assert records.read_calibrations(tmp_path)["steep"].runs[0]["seed"] == 1100


def test_an_experiment_that_cannot_be_calibrated_is_left_out_and_tried_again_later(tmp_path: Path, runs: Runs) -> None:
    runs.fails = lambda folder: "calibration/steep" in str(folder)
    made, _ = conducted(tmp_path, experiments=two())
    assert (made.runs, list(made.uncalibrated)) == (6, ["steep"])
    assert "a test wanted it\nserver-0: the end" in made.uncalibrated["steep"], "with the end of its logs"
    assert not [folder for folder in runs.made if "runs/steep" in folder]
    data = load_study(tmp_path)
    assert data.uncalibrated == records.read_uncalibrated(tmp_path) == made.uncalibrated
    assert ("experiments not calibrated", 1) in counts(data)
    runs.fails = lambda folder: False
    made, _ = conducted(tmp_path, experiments=two())
    assert (made.runs, made.uncalibrated, records.read_uncalibrated(tmp_path)) == (18, {}, {})


def test_what_failed_to_calibrate_in_another_invocation_is_not_forgotten(tmp_path: Path, runs: Runs) -> None:
    runs.fails = lambda folder: "calibration/steep" in str(folder)
    conducted(tmp_path, experiments=two()[:1])
    assert conducted(tmp_path, experiments=two()[1:])[0].uncalibrated == {}
    assert list(records.read_uncalibrated(tmp_path)) == ["steep"]


def test_what_was_left_out_is_told_and_is_no_success() -> None:
    console = Console(file=io.StringIO(), width=200)
    assert command._tell(Made(6, [], {"steep": "the control [failed]"}), console) == command.EXIT_FAILED
    assert isinstance(console.file, io.StringIO)
    assert "left out: steep could not be calibrated, the same command tries again: the control [failed]" in (
        console.file.getvalue()
    )
    assert command._tell(Made(6, []), console) == command.EXIT_OK


def test_more_seeds_add_to_what_is_there(tmp_path: Path, runs: Runs) -> None:
    (steep,) = experiments.quick()
    conducted(tmp_path, experiments=[replace(steep, seeds=1)])
    made, _ = conducted(tmp_path, experiments=[replace(steep, seeds=3)])
    assert made.runs == 18
    found = records.read_study(tmp_path)
    assert found is not None
    assert found.experiments[0].seeds == [0, 1, 2]
    assert len(runs.made) == 19


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quick": False}, "holds a quick study of outlast.tasks.fashion_mnist"),
        ({"task": "another.task"}, "holds a quick study of outlast.tasks.fashion_mnist"),
        ({"experiments": [replace(experiments.quick()[0], optimizer={"lr": 1.0})]}, "was begun with args"),
        ({"experiments": [replace(experiments.quick()[0], seconds=99.0)]}, "was begun with runs of 18 s, now"),
    ],
)
def test_a_directory_belongs_to_one_study(tmp_path: Path, runs: Runs, changes: dict[str, Any], words: str) -> None:
    conducted(tmp_path)
    with pytest.raises(StudyError, match=words):
        conducted(tmp_path, **changes)


def test_a_directory_belongs_to_one_machine(tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    conducted(tmp_path)
    other = replace(conduct.this_machine(), cores=96)
    monkeypatch.setattr(conduct, "this_machine", lambda: other)
    with pytest.raises(StudyError, match="this machine has 96"):
        conducted(tmp_path)


def test_a_directory_belongs_to_one_torch_and_each_run_names_what_made_it(
    tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code may change, and the study move to another machine of the kind, within one invocation and between two."""
    here = replace(conduct.this_machine(), commit="abc1234")
    monkeypatch.setattr(
        conduct, "this_machine", lambda: replace(here, commit="fff0000") if len(runs.made) > 4 else here
    )
    monkeypatch.setattr(conduct, "boot_id", lambda: "first" if len(runs.made) <= 9 else "second")
    conducted(tmp_path)
    made = list(records.read_runs(tmp_path))
    assert [sum(record.commit == commit for record in made) for commit in ("abc1234", "fff0000")] == [4, 8]
    assert [sum(record.boot_id == boot for record in made) for boot in ("first", "second")] == [8, 4]
    assert {record.machine and record.machine.cpu for record in made} == {here.cpu}
    assert {(record.busy_share, record.stolen_share) for record in made} == {(0.75, 0.02)}
    here = replace(here, torch="0.4.1")
    with pytest.raises(StudyError, match=r"here it is 0\.4\.1"):
        conducted(tmp_path)


@pytest.mark.parametrize(("load", "cores", "warns"), [(0.4, 2, False), (0.6, 2, True), (3.0, 16, False)])
def test_a_machine_that_others_use_is_told(load: float, cores: int, warns: bool) -> None:
    assert bool(busy(load, cores)) is warns


def test_a_report_without_accuracy_is_told_by_its_loss() -> None:
    assert conduct._final({"accuracy": float("nan"), "loss": 0.25}) == "loss 0.2500"
    assert conduct._final({"accuracy": None, "loss": None}) == "loss unknown"


# --- the command line ---


def asked(*words: str) -> Asked:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command._asked(parser.parse_args([*words, "--out", "x"]))


def test_only_chooses_experiments() -> None:
    both = asked()
    assert both.backlog
    assert {e.name for e in both.experiments} >= {"steep", "paper-times"}
    one = asked("--only", "steep", "--seeds", "2")
    assert [(e.name, e.seeds) for e in one.experiments] == [("steep", 2)]
    assert not one.backlog
    assert asked("--only", "backlog").experiments == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "steap"], "--only steap: there is no such experiment here; use steep"),
        (["--args", "{a: 1}"], "name it with --task"),
        (["--task", "x", "--args", "[1]"], "not an object"),
        (["--task", "x", "--optimizer", "{"], "no YAML"),
        (["--task", "x", "--only", "backlog"], "no such experiment"),
    ],
)
def test_says_what_does_not_go_together(words: list[str], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        asked(*words)


def test_a_task_of_ones_own_is_studied_with_our_strategies() -> None:
    own = asked("--task", "my.module", "--optimizer", "{name: Adam, lr: 0.001}", "--seconds", "90", "--quick")
    (steep,) = own.experiments
    assert (steep.task, steep.optimizer["name"], steep.seconds) == ("my.module", "Adam", 90.0)
    assert not own.backlog


def test_runs_are_named_for_people() -> None:
    assert str(PlannedRun("steep", "chain", 2, 0)) == "steep · chain · 2 kills · seed 0"


def test_a_plan_needs_no_directory(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    assert command.run(parser.parse_args(["--plan", "--quick"])) == command.EXIT_OK
    assert "steep" in capsys.readouterr().out
    assert command.run(parser.parse_args(["--quick"])) == command.EXIT_BAD_INPUT
    assert "--out DIR" in capsys.readouterr().err

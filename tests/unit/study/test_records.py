"""The files of a study: they come back as they were written, whole or not at all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from outlast_bench.study.design import experiments, records
from outlast_bench.study.design.records import Calibration, Machine, PlannedRun, RunRecord, Study, StudyError

MACHINE = Machine("a cpu", 2, 1 << 30, "Linux", "3.11.7", "2.5.0", "0.1.0", None)
PLANNED = PlannedRun("steep", "chain", 1, 4)
RUN = RunRecord(
    **PLANNED.to_json(),
    task="outlast.tasks.synthetic",
    status=records.FAILED,
    kill_arguments=["head@update=3+1s"],
    command="outlast run …",
    started="2026-01-01T00:00:00+00:00",
    wall_s=12.5,
    error="it hung",
    log_tail=["operator: the end"],
    load_before=0.5,
)


def study() -> Study:
    return Study(True, "a.task", "outlast study", "2026-01-01", MACHINE, [e.planned() for e in experiments.full()])


def test_a_study_comes_back_as_it_was_written(tmp_path: Path) -> None:
    assert records.read_study(tmp_path) is None
    records.write_study(tmp_path, study())
    assert records.read_study(tmp_path) == study()


def test_calibrations_come_back_as_they_were_written(tmp_path: Path) -> None:
    assert records.read_calibrations(tmp_path) == {}
    scales = {
        "steep": Calibration(30.0, 2.5, 5.0, 300, runs=[{"seed": 1}]),
        "x": Calibration(1.0, 1.0, 2.0, kill_s=9.0),
    }
    records.write_calibrations(tmp_path, scales)
    assert records.read_calibrations(tmp_path) == scales


def test_a_run_lies_where_the_contract_says_and_comes_back(tmp_path: Path) -> None:
    assert records.read_run(tmp_path, PLANNED) is None
    records.write_run(tmp_path, RUN)
    assert (tmp_path / "runs/steep/chain/kills-1/seed-4/run.json").exists()
    assert records.read_run(tmp_path, PLANNED) == RUN
    assert list(records.read_runs(tmp_path)) == [RUN]
    assert records.read_report(tmp_path, PLANNED) is None


def test_a_failed_run_stands_beside_the_others(tmp_path: Path) -> None:
    good = replace(RUN, seed=0, status=records.OK, error="")
    for run in (RUN, good):
        records.write_run(tmp_path, run)
    assert [run.ok for run in records.read_runs(tmp_path)] == [True, False]


def test_a_run_names_its_machine_and_one_of_an_earlier_version_none(tmp_path: Path) -> None:
    known = replace(RUN, machine=MACHINE, boot_id="1b4e28ba", busy_share=0.9, stolen_share=0.01)
    records.write_run(tmp_path, known)
    assert records.read_run(tmp_path, PLANNED) == known
    old = {name: value for name, value in RUN.to_json().items() if name not in ("machine", "boot_id", "busy_share")}
    assert RunRecord.from_json(old) == RUN


def test_nothing_but_the_file_is_left_behind(tmp_path: Path) -> None:
    records.write_json(tmp_path / "a" / "b.json", {"x": 1})
    records.write_json(tmp_path / "a" / "b.json", {"x": 2})
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.json"]
    assert records.read_json(tmp_path / "a" / "b.json") == {"x": 2}


def test_a_later_versions_file_is_refused_and_its_fields_are_not(tmp_path: Path) -> None:
    raw = {**RUN.to_json(), "unheard_of": 1}
    assert RunRecord.from_json(raw) == RUN
    records.write_json(PLANNED.folder(tmp_path) / "run.json", {**raw, "schema": 2})
    with pytest.raises(StudyError, match="schema 2"):
        records.read_run(tmp_path, PLANNED)


def test_what_is_no_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(StudyError, match=r"study\.json: not JSON"):
        records.read_study(tmp_path)


def test_experiments_of_two_invocations_are_kept_together() -> None:
    steep, paper = (e.planned() for e in experiments.full()[:2])
    few = replace(steep, runs=steep.runs[:3])
    found = records.merged([few, paper], [steep])
    assert {e.name: len(e.runs) for e in found} == {"steep": len(steep.runs), "paper-times": len(paper.runs)}
    assert records.merged([steep], [few])[0].seeds == steep.seeds, "what was planned once stays planned"
    json.dumps([e.to_json() for e in found])

"""The files of a study: where they lie, and their contents as types. Pure but for reading and writing; no torch.

    DIR/study.json          what was asked, on which machine, which runs were planned      (Study)
    DIR/calibration.json    when and for how long servers are away, one entry an experiment (Calibration); and of which
                            experiments that could not be found out, and why
    DIR/runs/EXPERIMENT/CONFIGURATION/kills-K/seed-S/
        job.yaml            the job as it ran
        report.json         what `outlast run` reported (docs/reference/report.md)
        run.json            whether it succeeded, and the command that makes it again       (RunRecord)

Rules. (1) A file appears whole or not at all: written beside its place and renamed. (2) `run.json` is written last: a
run without one was interrupted and is made again. (3) A run that failed has a `run.json` as well, with its reason.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

SCHEMA = 1
OK = "ok"
FAILED = "failed"


class StudyError(RuntimeError):
    """A study cannot be made, read or gone on with. The message says why, and what to do about it."""


class _Record:
    """Turns a dataclass into JSON and back; unknown fields (of a later version) are left out."""

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
        return cls(**{name: value for name, value in raw.items() if name in known})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload, no-any-return]


@dataclass(frozen=True)
class Machine(_Record):
    """What everything was measured on."""

    cpu: str
    cores: int
    memory_bytes: int
    os: str
    python: str
    torch: str
    outlast: str
    commit: str | None = None


@dataclass(frozen=True, order=True)
class PlannedRun(_Record):
    """One run: what is compared is equal in `experiment` and `seed`."""

    experiment: str
    configuration: str
    kills: int
    seed: int

    def folder(self, study: Path) -> Path:
        return study / "runs" / self.experiment / self.configuration / f"kills-{self.kills}" / f"seed-{self.seed}"

    def __str__(self) -> str:
        kills = "no kill" if self.kills == 0 else "1 kill" if self.kills == 1 else f"{self.kills} kills"
        return f"{self.experiment} · {self.configuration} · {kills} · seed {self.seed}"


@dataclass(frozen=True)
class PlannedExperiment(_Record):
    """What was planned of one experiment. `kill_accuracy`: where the first kill falls; None: at a time of its own."""

    name: str
    title: str
    task: str
    task_args: dict[str, Any]
    optimizer: dict[str, Any]
    kill_accuracy: float | None
    target_accuracy: float | None
    runs: list[PlannedRun]
    workers: int = 2

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        return super().from_json({**raw, "runs": [PlannedRun.from_json(run) for run in raw["runs"]]})

    @property
    def configurations(self) -> list[str]:
        return list(dict.fromkeys(run.configuration for run in self.runs))

    @property
    def seeds(self) -> list[int]:
        return sorted({run.seed for run in self.runs})

    @property
    def kills(self) -> list[int]:
        return sorted({run.kills for run in self.runs})


@dataclass(frozen=True)
class Study(_Record):
    """study.json. `started` in ISO 8601; `experiments` of every invocation that had this directory."""

    quick: bool
    task: str
    command: str
    started: str
    machine: Machine
    experiments: list[PlannedExperiment]
    schema: int = SCHEMA

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        _check_schema(raw, "study.json")
        experiments = [PlannedExperiment.from_json(e) for e in raw["experiments"]]
        return super().from_json({**raw, "machine": Machine.from_json(raw["machine"]), "experiments": experiments})

    def experiment(self, name: str) -> PlannedExperiment | None:
        return next((e for e in self.experiments if e.name == name), None)


@dataclass(frozen=True)
class Calibration(_Record):
    """One experiment's scale on this machine: the same numbers for all its configurations and seeds.

    The first kill falls at version `kill_update`, or, where that is None, `kill_s` seconds after the first update; the
    second one `second_kill_after_s` after the first. The replacement is held back for `outage_s`.
    """

    seconds: float  # how long every run trains (stopAfter.seconds)
    outage_s: float
    second_kill_after_s: float
    kill_update: int | None = None
    kill_s: float | None = None
    rate_per_s: float | None = None  # of the control: gradients applied
    outage_gradients: float | None = None  # what the control computes in outage_s
    control_to_kill_s: float | None = None  # from the first update to kill_update
    control_to_target_s: float | None = None  # to target_accuracy; None: not reached
    kill_rule: str = ""  # in words: what kill_update follows from
    runs: list[dict[str, Any]] = field(default_factory=list)  # what each calibration run came to


@dataclass(frozen=True)
class RunRecord(_Record):
    """run.json. `started` in ISO 8601; `wall_s` of the whole run with its start and end."""

    experiment: str
    configuration: str
    kills: int
    seed: int
    task: str
    status: str  # "ok" | "failed"
    kill_arguments: list[str]
    command: str
    started: str
    wall_s: float
    error: str = ""
    label: str = ""  # of the configuration, for legends
    model: str = ""  # what is trained, in words, where an experiment is about that
    log_tail: list[str] = field(default_factory=list)
    load_before: float | None = None  # the machine's load average as it began: others' work shows in it
    commit: str | None = None  # of the code that made it
    machine: Machine | None = None  # None in records of an earlier version
    boot_id: str | None = None  # which of several machines of one kind, since its start
    busy_share: float | None = None  # of the cores' time during the run: this run's own and all others'
    stolen_share: float | None = None  # the same that other guests of the host took
    earlier_errors: list[str] = field(default_factory=list)  # of the attempts before this one
    schema: int = SCHEMA

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        machine = raw.get("machine")
        return super().from_json({**raw, "machine": None if machine is None else Machine.from_json(machine)})

    @property
    def ok(self) -> bool:
        return self.status == OK

    @property
    def planned(self) -> PlannedRun:
        return PlannedRun(self.experiment, self.configuration, self.kills, self.seed)


# --- reading and writing ---


def json_text(raw: Any, allow_nan: bool = True) -> str:
    return json.dumps(raw, indent=1, allow_nan=allow_nan) + "\n"


def write_json(path: Path, raw: Any, allow_nan: bool = True) -> None:
    """Write a file whole or not at all; makes the folders above it. `allow_nan` False: ValueError for what is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "w") as file:
        file.write(json_text(raw, allow_nan))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_json(path: Path) -> Any:
    """The content; None when there is no such file. Raises `StudyError` for one that is no JSON."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise StudyError(f"{path}: not JSON ({error}); remove the file, and what it held is made again") from error


def write_study(directory: Path, study: Study) -> None:
    write_json(directory / "study.json", study.to_json())


def read_study(directory: Path) -> Study | None:
    raw = read_json(directory / "study.json")
    return None if raw is None else Study.from_json(raw)


def write_calibrations(
    directory: Path, calibrations: Mapping[str, Calibration], failed: Mapping[str, str] | None = None
) -> None:
    """`failed`: experiment -> why it could not be calibrated."""
    entries = {name: calibration.to_json() for name, calibration in calibrations.items()}
    raw = {"schema": SCHEMA, "experiments": entries, "failed": dict(failed or {})}
    write_json(directory / "calibration.json", raw)


def read_calibrations(directory: Path) -> dict[str, Calibration]:
    """Experiment -> its calibration; empty before the first one."""
    raw = read_json(directory / "calibration.json")
    if raw is None:
        return {}
    _check_schema(raw, "calibration.json")
    return {name: Calibration.from_json(entry) for name, entry in raw["experiments"].items()}


def read_uncalibrated(directory: Path) -> dict[str, str]:
    """Experiment -> why it could not be calibrated when that was last tried."""
    raw = read_json(directory / "calibration.json") or {}
    return {str(name): str(why) for name, why in (raw.get("failed") or {}).items()}


def write_run(directory: Path, record: RunRecord) -> None:
    write_json(record.planned.folder(directory) / "run.json", record.to_json())


def read_run(directory: Path, planned: PlannedRun) -> RunRecord | None:
    """None for a run that was never made, or was interrupted."""
    raw = read_json(planned.folder(directory) / "run.json")
    if raw is None:
        return None
    _check_schema(raw, "run.json")
    return RunRecord.from_json(raw)


def read_report(directory: Path, planned: PlannedRun) -> dict[str, Any] | None:
    """report.json of a run; a failed one may have none."""
    report: dict[str, Any] | None = read_json(planned.folder(directory) / "report.json")
    return report


def read_runs(directory: Path) -> Iterator[RunRecord]:
    """Every run that is over, failed ones too, in the order of their folders."""
    for path in sorted((directory / "runs").glob("*/*/kills-*/seed-*/run.json")):
        raw = read_json(path)
        _check_schema(raw, str(path))
        yield RunRecord.from_json(raw)


def merged(before: Sequence[PlannedExperiment], now: Sequence[PlannedExperiment]) -> list[PlannedExperiment]:
    """What two invocations planned: of an experiment in both, every run of either, in the words of the later."""
    found = {e.name: e for e in before}
    for new in now:
        old = found.get(new.name)
        runs = [*new.runs, *(run for run in (old.runs if old else []) if run not in set(new.runs))]
        found[new.name] = PlannedExperiment.from_json({**new.to_json(), "runs": [run.to_json() for run in runs]})
    return list(found.values())


def _check_schema(raw: Mapping[str, Any], what: str) -> None:
    if raw.get("schema") != SCHEMA:
        raise StudyError(f"{what} has schema {raw.get('schema')!r}, this version reads {SCHEMA}; use another --out")

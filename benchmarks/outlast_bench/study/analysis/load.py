"""What a study's directory holds, read as it is: whole, interrupted, or with runs that failed.

Rules. (1) Nothing that was made is left out: a failed run is a `StudyRun` with its reason and no report. (2) A file
that cannot be read makes its run a failed one, or is named in `problems`; it never ends the reading. (3) What was
planned and not made yet is `missing`, not failed. (4) Nothing is reckoned in reading; a run's curves are when they are
first asked for, and once.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from outlast_bench.study.analysis.run_curves import RunCurves, run_curves
from outlast_bench.study.backlog import records as backlog_records
from outlast_bench.study.backlog.records import BacklogRecord
from outlast_bench.study.design.configurations import BY_NAME, CONTROL_NAME
from outlast_bench.study.design.experiments import ONE_WORKER, PAPER_TIMES, STEEP
from outlast_bench.study.design.records import (
    FAILED,
    OK,
    Calibration,
    Machine,
    PlannedExperiment,
    PlannedRun,
    Study,
    StudyError,
)
from outlast_operator.reporting.curves import number
from outlast_operator.reporting.words import sentence

USUAL_ORDER = (STEEP, PAPER_TIMES, ONE_WORKER)
TARGET_ACCURACY = 0.80
TARGET_SHARE = 0.95  # of the control's final accuracy, for a task of which nobody said what to reach
WORKER_HOURLY = 2.50  # what spec.cost.hourly.worker is where a job says nothing
DIVERGED = re.compile(r"gradient.* not finite|non-?finite gradient", re.IGNORECASE)  # the trainer's words
OUTAGE_S = 0.0  # ordered, where no calibration tells


@dataclass(frozen=True)
class StudyRun:
    """One run of a study. `report` is empty when there is none; `hourly_worker` is the price the report's cost used."""

    experiment: str
    configuration: str
    kills: int
    seed: int
    status: str = OK
    error: str = ""
    command: str = ""
    label: str = ""
    model: str = ""
    hourly_worker: float = WORKER_HOURLY
    commit: str = ""  # of the code that made it; empty: not recorded
    machine: Machine | None = None  # None: not recorded
    boot_id: str = ""
    busy_share: float | None = None  # of the cores' time during the run
    stolen_share: float | None = None
    wall_s: float | None = None  # of the whole process, its start and end included
    earlier_errors: tuple[str, ...] = ()  # of the attempts before this one
    planned_s: float | None = None  # stopAfter.seconds, from the first update on; None: the job does not say
    report: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def ok(self) -> bool:
        return self.status == OK

    @cached_property
    def curves(self) -> RunCurves:
        return run_curves(self.report, self.planned_s)

    @property
    def diverged(self) -> bool:
        """Whether it failed because a gradient was not finite: that is what its training came to, and no accident."""
        return not self.ok and DIVERGED.search(self.error) is not None


@dataclass(frozen=True)
class StudyData:
    directory: Path
    about: Study | None  # study.json
    calibrations: dict[str, Calibration]
    runs: tuple[StudyRun, ...]
    backlog: tuple[BacklogRecord, ...]
    missing: tuple[PlannedRun, ...] = ()
    problems: tuple[str, ...] = ()  # files that could not be read
    uncalibrated: dict[str, str] = field(default_factory=dict)  # experiment -> why none of its runs could be made

    @property
    def experiments(self) -> list[str]:
        """Those with runs: the usual ones first, then by name."""
        found = {run.experiment for run in self.runs}
        return [e for e in USUAL_ORDER if e in found] + sorted(found.difference(USUAL_ORDER))

    def configurations(self, experiment: str) -> list[str]:
        """In the order in which a study lists them; what is not known there comes last, by name."""
        found = {run.configuration for run in self.runs if run.experiment == experiment}
        return [name for name in BY_NAME if name in found] + sorted(found.difference(BY_NAME))

    def of(self, experiment: str, configuration: str | None = None, kills: int | None = None) -> list[StudyRun]:
        """The runs of an experiment, of one configuration and number of kills where given; by seed."""
        found = (run for run in self.runs if run.experiment == experiment)
        chosen = [r for r in found if configuration in (None, r.configuration) and kills in (None, r.kills)]
        return sorted(chosen, key=lambda r: (r.configuration, r.kills, r.seed))

    def planned(self, experiment: str) -> PlannedExperiment | None:
        return self.about.experiment(experiment) if self.about is not None else None

    @property
    def commits(self) -> dict[str, int]:
        """Commit -> how many runs and backlogs its code made, as far as it was recorded."""
        made = [*(run.commit for run in self.runs), *(record.commit for record in self.backlog)]
        return dict(Counter(commit for commit in made if commit))

    @property
    def retried(self) -> list[StudyRun]:
        """Runs that had failed before, whatever came of them."""
        return [run for run in self.runs if run.earlier_errors]

    def title(self, experiment: str) -> str:
        planned = self.planned(experiment)
        return sentence(planned.title if planned is not None and planned.title else experiment)

    def target(self, experiment: str) -> float:
        """The accuracy whose time is measured; where none was planned, most of what the controls came to."""
        planned = self.planned(experiment)
        if planned is not None and planned.target_accuracy:
            return planned.target_accuracy
        finals = [
            number((r.report.get("final") or {}).get("accuracy"))
            for r in self.of(experiment, kills=0)
            if r.ok and is_control(r.configuration)
        ]
        known = [accuracy for accuracy in finals if accuracy is not None]
        return math.floor(100 * TARGET_SHARE * min(known)) / 100 if known else TARGET_ACCURACY

    def outage_s(self, experiment: str) -> float:
        """How long an outage was ordered to be, in seconds."""
        calibration = self.calibrations.get(experiment)
        return calibration.outage_s if calibration is not None else OUTAGE_S

    def label(self, configuration: str) -> str:
        """For legends: the configuration's title, or what its runs say, or its name."""
        if configuration in BY_NAME:
            return BY_NAME[configuration].title
        said = (run.label for run in self.runs if run.configuration == configuration and run.label)
        return next(said, configuration)

    def control(self, run: StudyRun) -> StudyRun | None:
        """The run without failure of the same experiment, model and seed; None where none succeeded."""
        same = (r for r in self.runs if r.ok and r.experiment == run.experiment and r.seed == run.seed and not r.kills)
        return next((r for r in same if is_control(r.configuration) and r.model == run.model), None)

    def siblings(self, run: StudyRun) -> list[StudyRun]:
        """Those of the same configuration, model and seed with other numbers of kills that succeeded."""
        same = [r for r in self.of(run.experiment, run.configuration) if r.seed == run.seed and r.model == run.model]
        return [r for r in same if r.ok and r.kills != run.kills]


def is_control(configuration: str) -> bool:
    """`control`, and the controls of several models in one experiment (`control-batchnorm`)."""
    return CONTROL_NAME in configuration.split("-")


def load_study(directory: Path) -> StudyData:
    """Read DIR. Raises `StudyError` when it holds no study at all."""
    if not any((directory / name).exists() for name in ("study.json", "runs", "backlog")):
        raise StudyError(
            f"{directory}: no study.json, runs/ or backlog/ in it; give what `outlast study --out` was given"
        )
    problems: list[str] = []
    about = _typed(directory / "study.json", Study.from_json, problems)
    calibrations, uncalibrated = _typed(directory / "calibration.json", _calibrations, problems) or ({}, {})
    runs = tuple(_runs(directory / "runs", problems))
    made = {PlannedRun(r.experiment, r.configuration, r.kills, r.seed) for r in runs}
    planned = [run for experiment in (about.experiments if about is not None else []) for run in experiment.runs]
    backlog = tuple(_backlog(directory / "backlog", problems))
    missing = tuple(sorted(set(planned) - made))
    return StudyData(directory, about, calibrations, runs, backlog, missing, tuple(problems), uncalibrated)


def _calibrations(raw: dict[str, Any]) -> tuple[dict[str, Calibration], dict[str, str]]:
    """Those that were found, and why others were not."""
    failed = {str(name): str(why) for name, why in (raw.get("failed") or {}).items()}
    return {name: Calibration.from_json(entry) for name, entry in raw["experiments"].items()}, failed


def _typed(path: Path, read: Callable[[dict[str, Any]], Any], problems: list[str]) -> Any:
    raw = _read(path, problems)
    try:
        return read(raw) if raw else None
    except (KeyError, TypeError, AttributeError, StudyError) as error:
        problems.append(f"{path.name}: {type(error).__name__}: {error}")
        return None


def _read(path: Path, problems: list[str]) -> dict[str, Any]:
    """A JSON object; {} when the file is not there, or is unreadable, which is noted."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        problems.append(f"{path.name}: {error}")
        return {}
    if not isinstance(found, dict):
        problems.append(f"{path.name}: a JSON object is expected, this is a {type(found).__name__}")
        return {}
    return found


def _runs(root: Path, problems: list[str]) -> Iterator[StudyRun]:
    """Every finished run RUNS/EXPERIMENT/CONFIGURATION/kills-K/seed-S, in order of name."""
    for path in sorted(root.glob("*/*/kills-*/seed-*/run.json")):
        experiment, configuration, kills, seed = path.parent.relative_to(root).parts
        numbers = (kills.removeprefix("kills-"), seed.removeprefix("seed-"))
        if all(number.isdigit() for number in numbers):
            yield _run(path.parent, experiment, configuration, int(numbers[0]), int(numbers[1]))
        else:
            problems.append(f"{path.relative_to(root)}: its folders are not of the form kills-K/seed-S; left out")


def _run(directory: Path, experiment: str, configuration: str, kills: int, seed: int) -> StudyRun:
    unread: list[str] = []
    record, report = _read(directory / "run.json", unread), _read(directory / "report.json", unread)
    status, error = str(record.get("status", FAILED)), str(record.get("error") or "")
    if unread:
        status, error = FAILED, "; ".join(unread)
    elif status == OK and not report:
        status, error = FAILED, "no report.json, though run.json says ok"
    job = _job(directory / "job.yaml")
    hourly = _in_job(job, "cost", "hourly", "worker")
    return StudyRun(
        experiment=experiment,
        configuration=configuration,
        kills=kills,
        seed=seed,
        status=status,
        error=error,
        command=str(record.get("command") or ""),
        label=str(record.get("label") or ""),
        model=str(record.get("model") or ""),
        commit=str(record.get("commit") or ""),
        machine=_machine(record.get("machine")),
        boot_id=str(record.get("boot_id") or ""),
        busy_share=number(record.get("busy_share")),
        stolen_share=number(record.get("stolen_share")),
        wall_s=number(record.get("wall_s")),
        earlier_errors=tuple(str(e) for e in record.get("earlier_errors") or ()),
        hourly_worker=WORKER_HOURLY if hourly is None else hourly,
        planned_s=_in_job(job, "training", "stopAfter", "seconds"),
        report=report if status == OK else {},
    )


def _machine(raw: Any) -> Machine | None:
    """What a run was made on; None where its record does not say it, or not as a machine."""
    try:
        return Machine.from_json(raw) if raw else None
    except (TypeError, AttributeError):
        return None


def _job(path: Path) -> Any:
    """The job as it ran; None where it cannot be read."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return None


def _in_job(job: Any, *keys: str) -> float | None:
    """A number of the job's spec; None where the job does not say it, or there is none."""
    try:
        found = job["spec"]
        for key in keys:
            found = found[key]
        return float(found)
    except (KeyError, TypeError, ValueError):
        return None


def _backlog(root: Path, problems: list[str]) -> Iterator[BacklogRecord]:
    for path in sorted(root.glob("workers-*/outage-*/seed-*.json")):
        try:
            yield backlog_records.read(path)
        except (OSError, ValueError) as error:
            problems.append(f"{path.relative_to(root)}: {error}")

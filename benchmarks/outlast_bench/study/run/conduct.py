"""Conducts a study from its plan to its page: calibrations first, then every run in the schedule's order.

Rules. (1) What is asked is written (study.json) before anything runs, what was measured before it is used. (2) A
directory belongs to one study on one machine: what does not fit it is refused. (3) A run that fails does not end the
study; an experiment of which a calibration failed twice is left out and recorded, for its runs would mean nothing: the
others go on, and a later invocation tries again.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from outlast_bench.study.design import configurations, records
from outlast_bench.study.design.experiments import Experiment, order, to_make
from outlast_bench.study.design.records import Calibration, PlannedRun, RunRecord, Study, StudyError
from outlast_bench.study.run import calibrate, execute
from outlast_bench.study.run.machine import boot_id, this_machine
from outlast_bench.study.run.progress import Progress, rough

CALIBRATION_SEED = 1000  # none that is compared
SECOND_TRY = 100  # added to the seed: what the same one would repeat (a divergence, say) another one may not


@dataclass(frozen=True)
class Asked:
    """What the command line asked for."""

    out: Path
    experiments: Sequence[Experiment]
    task: str
    quick: bool
    command: str
    retry_failed: bool = False
    backlog: bool = False
    seeds: int | None = None


@dataclass(frozen=True)
class Made:
    """What a study came to."""

    runs: int
    failed: list[RunRecord]
    uncalibrated: dict[str, str] = field(default_factory=dict)  # experiment -> why it was left out


class Conductor:
    """One invocation of `outlast study`."""

    def __init__(self, asked: Asked, console: Console) -> None:
        self.asked, self.console = asked, console
        self.by_name = {experiment.name: experiment for experiment in asked.experiments}
        self.study = self._study()
        self.scales = records.read_calibrations(asked.out)
        self.uncalibrated: dict[str, str] = {}  # of this invocation
        for experiment in asked.experiments:
            self._check_length(experiment)

    def _check_length(self, experiment: Experiment) -> None:
        scale = self.scales.get(experiment.name)
        if scale is not None and not experiment.seconds <= scale.seconds <= experiment.longest_s:
            raise StudyError(
                f"--out {self.asked.out}: {experiment.name} was begun with runs of {scale.seconds:g} s, "
                f"now they are to be {experiment.seconds:g} s; use another directory"
            )

    def _study(self) -> Study:
        asked, machine = self.asked, this_machine()
        planned = [experiment.planned() for experiment in asked.experiments]
        now = datetime.now(UTC).isoformat(timespec="seconds")
        before = records.read_study(asked.out)
        if before is None:
            return Study(asked.quick, asked.task, asked.command, now, machine, planned)
        if (before.quick, before.task) != (asked.quick, asked.task):
            kind = "a quick study" if before.quick else "a full study"
            raise StudyError(f"--out {asked.out}: holds {kind} of {before.task}; use another directory for this one")
        if (before.machine.cpu, before.machine.cores) != (machine.cpu, machine.cores):
            raise StudyError(
                f"--out {asked.out}: was begun on {before.machine.cores} cores of {before.machine.cpu}, this machine "
                f"has {machine.cores} of {machine.cpu}; times of two machines cannot be compared, use another directory"
            )
        if before.machine.torch != machine.torch:
            raise StudyError(
                f"--out {asked.out}: was begun with torch {before.machine.torch}, here it is {machine.torch}; install "
                "that one, or use another directory"
            )
        for old, new in ((before.experiment(e.name), e) for e in planned):
            if old is not None and (old.task_args, old.optimizer) != (new.task_args, new.optimizer):
                raise StudyError(
                    f"--out {asked.out}: {new.name} was begun with args {old.task_args} and optimizer {old.optimizer}, "
                    f"now they are {new.task_args} and {new.optimizer}; use another directory"
                )
        return replace(before, experiments=records.merged(before.experiments, planned))

    # --- what is to be done ---

    def pending(self) -> list[PlannedRun]:
        wanted = [e for e in self.asked.experiments if e.name not in self.uncalibrated]
        mine = [self._record_of(experiment) for experiment in wanted]
        return to_make(order(mine), lambda run: records.read_run(self.asked.out, run), self.asked.retry_failed)

    def _record_of(self, experiment: Experiment) -> records.PlannedExperiment:
        found = self.study.experiment(experiment.name)
        assert found is not None
        wanted = set(experiment.planned().runs)
        return replace(found, runs=[run for run in found.runs if run in wanted])

    def _calibrations_s(self, experiment: Experiment) -> float:
        if not experiment.scaled or experiment.name in self.scales:
            return 0.0
        return experiment.calibration_runs * (experiment.seconds + experiment.overhead_s)

    def seconds(self, run: PlannedRun) -> float:
        scale = self.scales.get(run.experiment)
        return scale.seconds if scale is not None else self.by_name[run.experiment].seconds

    def estimate(self, backlog_s: float) -> tuple[Table, float]:
        """(a table of what each experiment still takes, all of it in seconds)."""
        table = Table(title=f"What is to be done in {self.asked.out}", title_justify="left", title_style="bold")
        for column in ("experiment", "runs", "already made", "seconds each", "takes"):
            table.add_column(column, justify="left" if column == "experiment" else "right")
        pending, total = self.pending(), 0.0
        for experiment in self.asked.experiments:
            mine = [run for run in pending if run.experiment == experiment.name]
            takes = sum(self.seconds(run) + experiment.overhead_s for run in mine) + self._calibrations_s(experiment)
            total += takes
            planned = len(experiment.planned().runs)
            each = f"{self.seconds(mine[0]):.0f} + {experiment.overhead_s:.0f}" if mine else "-"
            table.add_row(experiment.name, str(planned), str(planned - len(mine)), each, rough(takes))
        if self.asked.backlog:
            table.add_row("backlog", "-", "-", "-", rough(backlog_s))
            total += backlog_s
        table.add_row("together", str(len(pending)), "", "", rough(total), style="bold")
        return table, total

    # --- doing it ---

    def conduct(self, backlog_s: float) -> Made:
        """Calibrate and run everything that is pending. Raises `StudyError`, or KeyboardInterrupt at a run's edge."""
        records.write_study(self.asked.out, self.study)
        with Progress(self.console) as progress:
            self._calibrate(progress, backlog_s)
            pending = self.pending()
            progress.plan([(self.seconds(run), self.by_name[run.experiment].overhead_s) for run in pending], backlog_s)
            for run in pending:
                progress.begin(str(run))
                record = self._make(run, progress)
                records.write_run(self.asked.out, record)
                progress.done(self._result(record), failed=not record.ok)
        mine = {run for experiment in self.asked.experiments for run in experiment.planned().runs}
        made = [record for record in records.read_runs(self.asked.out) if record.planned in mine]
        return Made(len(made), [record for record in made if not record.ok], self.uncalibrated)

    def _make(self, run: PlannedRun, progress: Progress) -> RunRecord:
        experiment, scale = self.by_name[run.experiment], self.scales[run.experiment]
        configuration = configurations.BY_NAME[run.configuration]
        folder = run.folder(self.asked.out)
        kills = calibrate.kill_arguments(scale, run.kills, run.seed)
        before, machine = records.read_run(self.asked.out, run), this_machine()  # the code may change between two runs
        job = self._job(experiment, run.configuration, run.seed, {"seconds": scale.seconds})
        outcome = execute.execute(job, kills, folder, progress.tick)
        return RunRecord(
            **run.to_json(),
            task=experiment.task,
            status=records.FAILED if outcome.error else records.OK,
            kill_arguments=kills,
            command=execute.shown(folder, kills),
            started=outcome.started,
            wall_s=outcome.wall_s,
            error=outcome.error,
            label=configuration.title,
            model=experiment.model,
            log_tail=outcome.log_tail,
            load_before=outcome.load_before,
            commit=machine.commit,
            machine=machine,
            boot_id=boot_id(),
            busy_share=outcome.busy_share,
            stolen_share=outcome.stolen_share,
            earlier_errors=[] if before is None else [*before.earlier_errors, before.error],
        )

    def _job(self, experiment: Experiment, name: str, seed: int, stop_after: dict[str, Any]) -> Any:
        return configurations.make_job(
            configurations.BY_NAME[name],
            task=experiment.task,
            task_args=experiment.task_args,
            optimizer=experiment.optimizer,
            evaluate=experiment.evaluate,
            seed=seed,
            stop_after=stop_after,
            workers=experiment.workers,
        )

    def _result(self, record: RunRecord) -> str:
        if not record.ok:
            return f"failed: {record.error}"
        report = records.read_report(self.asked.out, record.planned) or {"final": {}}
        return _final(report["final"])

    # --- calibration ---

    def _calibrate(self, progress: Progress, backlog_s: float) -> None:
        wanted = [e for e in self.asked.experiments if e.name not in self.scales]
        after_s = sum(self.seconds(run) + self.by_name[run.experiment].overhead_s for run in self.pending()) + backlog_s
        progress.plan(
            [(e.seconds, e.overhead_s) for e in wanted if e.scaled for _ in range(e.calibration_runs)], after_s
        )
        for experiment in wanted:
            count = experiment.calibration_runs if experiment.scaled else 0
            try:
                found = [self._control_or_another(experiment, CALIBRATION_SEED + n, progress) for n in range(count)]
                self.scales[experiment.name] = calibrate.calibration(experiment, found)
            except StudyError as error:
                self.uncalibrated[experiment.name] = str(error)
            before = records.read_uncalibrated(self.asked.out)
            failed = {**before, **self.uncalibrated}
            failed = {name: why for name, why in failed.items() if name not in self.scales}
            records.write_calibrations(self.asked.out, self.scales, failed)
        for experiment in self.asked.experiments:
            if experiment.name in self.scales:
                self.console.print(_scale(experiment, self.scales[experiment.name]), highlight=False)

    def _control_or_another(self, experiment: Experiment, seed: int, progress: Progress) -> calibrate.ControlRun:
        """With that seed, or else with another: where a kill falls is no result, so none is chosen by this."""
        try:
            return self._control(experiment, seed, progress)
        except StudyError as error:
            progress.retry(f"failed, once more with another seed: {error}")
            return self._control(experiment, seed + SECOND_TRY, progress)

    def _control(self, experiment: Experiment, seed: int, progress: Progress) -> calibrate.ControlRun:
        progress.begin(f"{experiment.name} · calibration · seed {seed}")
        folder = self.asked.out / "calibration" / experiment.name / f"seed-{seed}"
        job = self._job(experiment, configurations.CONTROL_NAME, seed, calibrate.stop_after(experiment))
        outcome = execute.execute(job, [], folder, progress.tick)
        if outcome.error:
            tail = "\n".join(outcome.log_tail)
            raise StudyError(f"{experiment.name}: the control's calibration run failed: {outcome.error}\n{tail}")
        report = records.read_json(folder / execute.REPORT)
        control = calibrate.read_control(report, experiment.kill_accuracy, experiment.target_accuracy)
        progress.done(f"{control.rate_per_s:.0f} gradients/s, {_final(report['final'])}")
        return control


def _final(final: dict[str, Any]) -> str:
    accuracy, loss = final.get("accuracy"), final.get("loss")
    if accuracy is not None and math.isfinite(accuracy):
        return f"accuracy {accuracy:.4f}"
    return "loss unknown" if loss is None else f"loss {loss:.4f}"


def _scale(experiment: Experiment, scale: Calibration) -> str:
    when = f"{scale.kill_s:g} s" if scale.kill_update is None else f"update {scale.kill_update:,}"
    text = (
        f"{experiment.name}: {scale.seconds:g} s a run, killed at {when} ({scale.kill_rule}), away {scale.outage_s:g} s"
    )
    if scale.outage_gradients is not None:
        text += f" = {scale.outage_gradients:.0f} gradients at {scale.rate_per_s:.0f}/s"
    if experiment.target_accuracy is not None and experiment.scaled:
        reached = scale.control_to_target_s
        after = "not reached by the control" if reached is None else f"reached by the control after {reached:.1f} s"
        text += f"; {experiment.target_accuracy:g} {after}"
    return text


def as_typed(words: Sequence[str]) -> str:
    return shlex.join(["outlast", "study", *words])

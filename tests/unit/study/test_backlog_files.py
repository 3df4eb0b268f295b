"""What the backlog experiment asks for, keeps and makes of it: its schedule, its files, its means."""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from study_builder import write_backlog

from outlast_bench.study.analysis.backlog import cells
from outlast_bench.study.analysis.load import load_study
from outlast_bench.study.analysis.summary import summarise
from outlast_bench.study.backlog import experiment as backlog
from outlast_bench.study.backlog.policies import LR
from outlast_bench.study.backlog.records import (
    Applied,
    BacklogRecord,
    Evaluations,
    Start,
    path_of,
    read,
    write,
)
from outlast_bench.study.backlog.unit import Unit
from outlast_bench.study.page import tables

TASK = "outlast.tasks.synthetic"
ARGS = {"parameters": 12, "tensors": 2, "computeMs": 0.0}


def unit(**changes: object) -> Unit:
    small = Unit(2, 0, (5, 40), 20, 4, 1, True, TASK, tuple(ARGS.items()))
    return replace(small, **changes)  # type: ignore[arg-type]


def evaluations(accuracy: float, loss: float | None = 1.0) -> Evaluations:
    return Evaluations((accuracy - 0.02, accuracy + 0.02), (loss, loss))


def record(
    seed: int = 0, start: float = 0.5, control: float = 0.7, policy: float = 0.6, loss: float | None = 1.0
) -> BacklogRecord:
    applied = Applied(evaluations(policy, loss), False, None, 0.1)
    return BacklogRecord(
        2, 100, seed, TASK, {}, LR, 32, 2000, (0, 50), True, 1.5,
        Start(150, 2.3, evaluations(start, 1.7)), evaluations(control, 0.7), {"Sum": applied}, "2.0",
    )  # fmt: skip


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = write(tmp_path, record())
    assert path == path_of(tmp_path, 2, 100, 0)
    assert load_study(tmp_path).backlog == (record(),)
    path.write_text('{"schema": 1}')
    with pytest.raises(ValueError, match=r"seed-0\.json is no record .*delete it"):
        read(path)


def test_progress_kept_is_a_ratio_of_sums() -> None:
    seeds = [record(0, 0.5, 0.7, 0.6), record(1, 0.5, 0.5, 0.55)]
    (cell,) = cells(seeds)
    assert cell.kept is not None
    assert cell.kept.mean == pytest.approx(0.15 / 0.2)
    (cell,) = cells([record(0, 0.5, 0.4)])
    assert cell.kept is None


def test_the_table_has_both_measures(tmp_path: Path) -> None:
    write_backlog(tmp_path, workers=(2,), outages=(375,), by_loss={"Mean": 0.5})
    found = tables.backlog(summarise(load_study(tmp_path)))
    rows = [dict(zip(found.columns, row, strict=True)) for row in found.rows]
    assert {row["by"]: row["mean"] for row in rows if row["policy"] == "Mean"} == {"accuracy": "0.050", "loss": "0.500"}


@pytest.mark.parametrize(
    ("loss", "kept"),
    [(1.2, 0.5), (1.7, 0.0), (2.3, -0.6), (2.4e9, -0.6), (None, -0.6)],
    ids=["half", "nothing", "as untrained", "ruined", "not finite"],
)
def test_progress_kept_in_loss_cannot_fall_below_the_untrained_weights(loss: float | None, kept: float) -> None:
    (cell,) = cells([record(loss=loss)], "loss")
    assert cell.kept is not None
    assert cell.kept.mean == pytest.approx(kept)


def test_the_full_study_asks_for_every_outage_and_number_of_workers() -> None:
    wanted = backlog.units(quick=False)
    asked = {(u.workers, n, u.seed) for u in wanted for n in u.outages}
    assert {(w, n) for w, n, _ in asked} == {(w, n) for w in (1, 2, 8) for n in (10, 100, 375, 1000, 3000, 10_000)}
    assert {seed for _, n, seed in asked if n == 375} == set(range(5))
    assert {(w, s) for w, n, s in asked if n == 3000} == {(w, s) for w, n, s in asked if n == 10_000}


def made(unit: Unit, outage: int) -> BacklogRecord:
    """A record of it, as if it had been computed."""
    policies = {policy.name: record().policies["Sum"] for policy in unit.policies}
    return replace(
        record(unit.seed), workers=unit.workers, outage=outage, task=unit.task, args=dict(unit.args),
        samples=unit.samples, after=unit.after, start=replace(record().start, version=unit.start_version),
        policies=policies,
    )  # fmt: skip


def test_what_is_there_is_not_computed_again(tmp_path: Path) -> None:
    wanted = backlog.units(quick=True, seeds=2)
    whole_s = backlog.estimate_s(tmp_path, True, 2)
    write(tmp_path, made(wanted[0], 100))
    left = backlog.missing(tmp_path, wanted)
    assert [(u.seed, u.outages) for u in left] == [(0, (375,)), (1, (100, 375))]
    assert 0 < backlog.estimate_s(tmp_path, True, 2) < whole_s
    for one in wanted:
        for n in (100, 375):
            write(tmp_path, made(one, n))
    assert backlog.missing(tmp_path, wanted) == []
    assert backlog.estimate_s(tmp_path, True, 2) == 0


@pytest.mark.parametrize(
    "other", [{"samples": 2000}, {"after": (0, 100)}, {"start": replace(record().start, version=1)}, {"schema": 1}]
)
def test_what_was_made_otherwise_is_made_again(tmp_path: Path, other: dict[str, object]) -> None:
    (one,) = backlog.units(quick=True, seeds=1)
    write(tmp_path, replace(made(one, 100), **other))  # type: ignore[arg-type]
    assert backlog.missing(tmp_path, [one]) == [one]


class Interrupted(Console):
    """Ctrl-C as soon as something is told."""

    def print(self, *_: object, **__: object) -> None:
        raise KeyboardInterrupt


@pytest.mark.timeout(120)
def test_an_interrupted_backlog_ends_at_once_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "commit_of_code", lambda: "abc1234")
    short, endless = unit(outages=(5,), policies=()), unit(seed=1, outages=(10**9,), policies=())
    with pytest.raises(KeyboardInterrupt):
        backlog.compute(tmp_path, [short, endless], Interrupted())
    deadline = time.monotonic() + 30.0
    while left := multiprocessing.active_children():  # one may just be reaped by the pool's own thread
        assert time.monotonic() < deadline, left
        left[0].join(0.1)
    first = path_of(tmp_path, 2, 5, 0)
    before = first.stat().st_mtime_ns
    assert backlog.missing(tmp_path, [short, endless]) == [endless]
    rest = replace(endless, outages=(5,))
    backlog.compute(tmp_path, backlog.missing(tmp_path, [short, rest]), Console(quiet=True))
    assert {path.name for path in first.parent.iterdir()} == {"seed-0.json", "seed-1.json"}
    assert first.stat().st_mtime_ns == before
    assert [found.commit for found in load_study(tmp_path).backlog] == ["abc1234"] * 2

"""Which strategy: the table that answers the question, the sentences that read it, and when a time says something."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from study_builder import Made, make_report, write_about, write_run, write_study

from outlast_bench.study.analysis import target
from outlast_bench.study.analysis.cost import load_prices
from outlast_bench.study.analysis.load import load_study
from outlast_bench.study.analysis.summary import Summary, summarise
from outlast_bench.study.page.choice import Choice, ranked, which
from outlast_bench.study.page.story_costs import costs
from outlast_bench.study.page.story_results import results
from outlast_bench.study.page.tables import all_tables

OURS = ("control", "checkpoint", "chain", "stateless", "hybrid")


def summary_of(directory: Path, **settings: object) -> Summary:
    return summarise(load_study(write_study(directory, configurations=OURS, **settings)))  # type: ignore[arg-type]


def chosen(summary: Summary) -> Choice:
    found = which(summary, load_prices(), "steep")
    assert found is not None
    return found


def column(choice: Choice, name: str) -> list[str]:
    at = next(i for i, title in enumerate(choice.grid.columns) if title.startswith(name))
    return [line.cells[at - 1][0] for line in choice.grid.lines]


def test_the_four_stand_side_by_side_after_one_and_two_kills(tmp_path: Path) -> None:
    """Two workers at 0.90, a server 0.20, a Redis 0.20."""
    choice = chosen(summary_of(tmp_path))
    assert [line.label for line in choice.grid.lines] == 2 * ["Checkpoint", "Chain", "Stateless", "Hybrid"]
    assert column(choice, "kills") == 4 * ["1"] + 4 * ["2"]
    assert column(choice, "money an hour, small GPUs on-demand") == 2 * ["1.00", "1.20", "1.10", "1.30"]
    assert column(choice, "needs")[:4] == [
        "1 server a shard", "3 servers a shard", "1 server a shard, Redis", "3 servers a shard, Redis",
    ]  # fmt: skip
    assert column(choice, "goodput without a kill")[:4] == ["1.00", "0.95", "1.00", "0.90"]
    assert column(choice, "without an update")[:4] == ["3.00", "0.05", "3.00", "0.05"]
    later = column(choice, "0.80 later than the control by (s) (the control: 13.")
    assert float(later[0]) == pytest.approx(3.0, abs=0.11)
    assert float(later[2].replace("−", "-")) == pytest.approx(0.0, abs=0.11)
    assert [line.cells[-1] for line in choice.grid.lines] == 8 * [("5", "")]


def test_a_strategy_that_costs_seconds_without_a_kill_is_read_out(tmp_path: Path) -> None:
    """Stateless loses nothing here, Checkpoint its outages, Chain and Hybrid a part of every second."""
    one, money, two, more, steady = chosen(summary_of(tmp_path)).sentences
    assert re.match(r"After one kill Stateless ends highest: .0\.0 points \(.*, n = 5\) against the control\.", one)
    assert "Behind it: Checkpoint by 0.5 points (0.5 to 0.5, n = 5), Chain by" in one
    assert "not told" not in one
    assert two.startswith("After two kills Stateless ends highest")
    told = "An hour of Stateless, which alone ends that high after {}, is 1.10 times what an hour of Checkpoint costs."
    assert [money, more] == [told.format("one kill"), told.format("two kills")]
    assert steady == (
        "While nothing fails, the parameters come to hold, of the control's gradients: "
        "Checkpoint 1.00, Stateless 1.00, Chain 0.95 and Hybrid 0.90."
    )


def two_strategies(directory: Path, rates: Mapping[str, tuple[float, ...]]) -> Summary:
    """One kill; each seed at a rate of its own."""
    for seed in range(len(rates["Checkpoint"])):
        write_run(directory, "steep", "control", 0, seed, make_report(Made(seed=seed)))
        for strategy, each in rates.items():
            made = Made(strategy, kills=[4.0], rate=each[seed], seed=seed)
            write_run(directory, "steep", strategy.lower(), 1, seed, make_report(made))
    write_about(directory, "steep", [])
    return summarise(load_study(directory))


def test_what_the_seeds_do_not_tell_apart_is_not_called_better(tmp_path: Path) -> None:
    """Stateless is ahead in two seeds, behind in two."""
    rates = {"Checkpoint": (100.0,) * 5, "Stateless": (60.0, 80.0, 120.0, 140.0, 100.0)}
    choice = chosen(two_strategies(tmp_path, rates))
    first, money, steady = choice.sentences
    assert first.startswith("After one kill Checkpoint ends highest")
    assert "Behind it, but not told from it by these seeds: Stateless by" in first
    assert "Behind it:" not in first
    assert money.startswith(
        "Of those not told apart after one kill Checkpoint costs least an hour (the cheapest of all); it needs"
    )
    assert steady == "What a strategy costs while nothing fails is not in this study: it has no such runs."
    assert not [title for title in choice.grid.columns if title.startswith("goodput")]


def test_too_few_seeds_for_an_interval_tell_none_apart_and_recommend_none(tmp_path: Path) -> None:
    rates = {"Checkpoint": (60.0, 70.0), "Stateless": (120.0, 140.0)}
    first, steady = chosen(two_strategies(tmp_path, rates)).sentences
    assert first.startswith("After one kill Stateless ends highest")
    assert first.endswith("Too few seeds to be told from it: Checkpoint.")
    assert "Behind" not in first
    assert "an hour" not in steady


def test_who_ends_highest_is_decided_by_the_seeds_that_all_have(tmp_path: Path) -> None:
    """Stateless is ahead in the seeds of both; the one it lacks would have put Checkpoint first."""
    summary = two_strategies(tmp_path, {"Checkpoint": (60.0, 60.0, 400.0), "Stateless": (70.0, 70.0, 70.0)})
    shutil.rmtree(tmp_path / "runs" / "steep" / "stateless" / "kills-1" / "seed-2")
    found = ranked(summary, [g for g in summarise(load_study(tmp_path)).groups if g.kills])
    assert found is not None
    assert found.best.label == "Stateless"


def test_failed_and_missing_runs_are_counted_in_the_table(tmp_path: Path) -> None:
    broken = [("hybrid", 1, seed) for seed in range(2)]
    choice = chosen(summary_of(tmp_path, seeds=(0, 1), kills=(1,), failed=broken))
    hybrid = choice.grid.lines[-1]
    assert (hybrid.label, hybrid.failed, hybrid.cells[-1]) == ("Hybrid", True, ("0", "(of 2)"))


def test_without_a_kill_there_is_nothing_to_choose(tmp_path: Path) -> None:
    assert which(summary_of(tmp_path, kills=(0,)), load_prices(), "steep") is None


# --- time to the target ---


def killed_at(directory: Path, *kills: float) -> Summary:
    """At the paper's own times, a seed a kill; the control passes 0.80 after 13.7 s."""
    for seed, at in enumerate(kills):
        write_run(directory, "paper-times", "control", 0, seed, make_report(Made(seed=seed)))
        for name in ("checkpoint", "stateless"):
            made = Made(name.capitalize(), kills=[at], seed=seed)
            write_run(directory, "paper-times", name, 1, seed, make_report(made))
    write_about(directory, "paper-times", [])
    return summarise(load_study(directory))


@pytest.mark.parametrize(
    ("kills", "told"), [((15.0, 15.0, 4.0), False), ((15.0, 4.0, 4.0), True), ((15.0, 4.0), True), ((4.0,), True)]
)
def test_a_time_is_told_unless_the_control_was_there_before_the_kill(
    tmp_path: Path, kills: tuple[float, ...], told: bool
) -> None:
    """In most seeds."""
    summary = killed_at(tmp_path, *kills)
    assert target.is_told(summary, "paper-times", 1) is told
    assert target.is_told(summary, "paper-times", 0), "without a kill it says what it says anywhere"
    assert bool(target.why_not(summary, "paper-times")) is not told
    (grid,) = results(summary, "paper-times")
    assert any(title.startswith("time to") for title in grid.columns) is told
    (cost,) = costs(summary, "paper-times", load_prices())
    assert any(title.startswith("cents to") for title in cost.columns) is told
    tables = {table.name: table for table in all_tables(summary, load_prices())}
    measured = [row for row in tables["paper-times-measures"].rows if row[1] == "1" and row[2].startswith("time to")]
    paid = [row for row in tables["paper-times-cost"].rows if row[1] == "1" and row[5].startswith("to reach")]
    assert (bool(measured), bool(paid)) == (told, told)


def test_how_much_later_than_the_control_is_paired_by_seed(tmp_path: Path) -> None:
    """1,366 updates: 13.7 s at 100 a second, 18.2 s at 75; and an outage of 3 s."""
    summary = two_strategies(tmp_path, {"Checkpoint": (100.0, 75.0)})
    group = summary.group("steep", "checkpoint", 1)
    assert group is not None
    found = target.later_than_control(summary, group)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((3.0, 7.6), abs=0.2)


def test_a_run_that_never_got_there_is_a_lower_bound(tmp_path: Path) -> None:
    """The runs end after 15 s; with its outage Checkpoint would need 16.7 s."""
    summary = summary_of(tmp_path, seconds=15.0)
    group = summary.group("steep", "checkpoint", 1)
    assert group is not None
    found = target.later_than_control(summary, group)
    assert found is not None
    assert (found.censored, found.mean) == (5, pytest.approx(1.3, abs=0.2))
    (times,) = [i for i, title in enumerate(chosen(summary).grid.columns) if title.startswith("0.80 later")]
    assert chosen(summary).grid.lines[0].cells[times - 1][0].startswith("≥ +1.")

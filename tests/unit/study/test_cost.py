"""What machines cost: the price table is checked, the arithmetic is known, the claim is decided and not assumed."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from study_builder import Made, make_report, saturating

from outlast_bench.study.analysis.cost import (
    Claim,
    PricesError,
    compare_costs,
    cost_rows,
    hourly_of,
    load_prices,
    parse_prices,
)
from outlast_bench.study.analysis.load import StudyRun
from outlast_bench.study.analysis.measures import RunMeasures, measure
from outlast_bench.study.analysis.statistics import Estimate

PRICES: dict[str, Any] = {
    "currency": "EUR",
    "terms": {"on-demand": "by the second"},
    "instances": {
        "gpu": {"what": "a GPU", "hourly": {"on-demand": 2.0}, "source": "a list", "as_of": "May"},
        "cpu": {"what": "a CPU", "hourly": {"on-demand": 0.5}, "source": "a list", "as_of": "May"},
    },
    "setups": {"usual": {"worker": "gpu", "server": "cpu", "redis": "cpu"}},
}


def measured(strategy: str, seed: int = 0, **changes: Any) -> RunMeasures:
    made = Made(strategy, accuracy=saturating, seed=seed, evaluate_every_s=0.1, **changes)
    return measure(StudyRun("steep", strategy, len(made.kills), seed, report=make_report(made)), None, [], 3.0)


def test_the_table_that_comes_along_can_be_used_and_names_its_sources() -> None:
    prices = load_prices()
    assert set(prices.terms) == {"fixed-term", "on-demand", "spot"}
    for instance in prices.instances.values():
        assert instance.source
        assert instance.as_of
        assert instance.hourly["spot"] < instance.hourly["on-demand"]
        assert instance.hourly["fixed-term"] < instance.hourly["on-demand"]


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [("Checkpoint", 4.5), ("Chain", 5.5), ("Stateless", 5.0), ("Hybrid", 6.0)],
)
def test_every_machine_of_a_run_is_paid_for(strategy: str, expected: float) -> None:
    """Two workers at 2, servers at 0.5, and a Redis at 0.5 where there is one."""
    assert hourly_of(measured(strategy), parse_prices(PRICES), "usual", "on-demand") == pytest.approx(expected)


def test_what_it_costs_to_reach_the_target() -> None:
    found = cost_rows([measured("Checkpoint", seed) for seed in range(3)], parse_prices(PRICES), failed=1)[0]
    assert found.to_target is not None
    assert found.to_target.mean == pytest.approx(4.5 / 3600 * 13.7, rel=0.01)  # 0.80 after 1,370 updates
    assert (found.to_target.n, found.to_target.failed, found.to_target.censored) == (3, 1, 0)
    assert found.whole is not None
    assert found.whole.mean == pytest.approx(4.5 / 3600 * 30, rel=0.01)


def test_idle_and_recomputed_seconds_are_paid_at_the_workers_price() -> None:
    found = cost_rows([measured("Checkpoint", kills=[9.5])], parse_prices(PRICES))[0]
    assert found.of_idle is not None
    assert found.of_recomputed is not None
    assert found.of_idle.mean == pytest.approx(6.0 * 2.0 / 3600, rel=0.01)
    assert found.of_recomputed.mean == pytest.approx(1.0 * 2.0 / 3600, rel=0.01)


def test_a_run_that_never_got_there_counts_with_its_whole_time_and_is_named() -> None:
    found = cost_rows([measured("Checkpoint", seconds=5.0)], parse_prices(PRICES))[0]
    assert found.to_target is not None
    assert found.to_target.censored == 1
    assert found.to_target.mean == pytest.approx(4.5 / 3600 * 5, rel=0.01)


def claims(stateless_rate: float, seconds: float = 30.0) -> Any:
    pairs = [
        (
            measured("Stateless", seed, kills=[4.0], rate=stateless_rate + seed, seconds=seconds),
            measured("Checkpoint", seed, kills=[4.0], rate=100.0 + seed, seconds=seconds),
        )
        for seed in range(5)
    ]
    return compare_costs([a for a, _ in pairs], [b for _, b in pairs], parse_prices(PRICES))[0]


def test_the_claim_holds_where_the_saved_outage_outweighs_the_redis() -> None:
    """Stateless needs 13.7 s, Checkpoint 16.7 s at 0.9 of its hourly price."""
    claim = claims(100.0)
    assert claim.hourly_ratio == pytest.approx(5.0 / 4.5)
    assert claim.ratio.mean == pytest.approx(13.7 / 16.7 * 5.0 / 4.5, rel=0.02)
    assert claim.ratio.n == 5
    assert claim.holds is True


def test_the_claim_does_not_hold_where_the_log_slows_training_down() -> None:
    claim = claims(60.0)
    assert claim.ratio.mean > 1.2
    assert claim.holds is False


def test_the_claim_holds_where_checkpointing_alone_never_got_there() -> None:
    """It would have cost more still: 15 s and more, where stateless needed 13.7."""
    claim = claims(115.0, seconds=15.0)
    assert claim.censored == (0, 5)
    assert claim.ratio.high < 1.0
    assert claim.holds is True


@pytest.mark.parametrize(
    ("low", "high", "censored", "holds"),
    [
        (0.8, 0.9, (0, 1), True),
        (0.8, 0.9, (1, 0), None),  # it may have cost more than checkpointing in the end
        (1.1, 1.2, (1, 0), False),
        (1.1, 1.2, (0, 1), None),
        (1.1, 1.2, (1, 1), None),
        (0.9, 1.1, (0, 0), None),
    ],
)
def test_who_never_got_there_decides_only_in_one_direction(
    low: float, high: float, censored: tuple[int, int], holds: bool | None
) -> None:
    around = Estimate((low + high) / 2, low, high, 5, "interval")
    assert Claim("usual", "spot", 1.0, around, censored).holds is holds


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("setups",), {}, "setups is missing"),
        (("setups", "usual", "redis"), "nothing", "setups.usual.redis is 'nothing'"),
        (("instances", "gpu", "hourly", "on-demand"), -1, "instances.gpu.hourly.on-demand is -1"),
        (("instances", "gpu", "hourly", "on-demand"), "free", "instances.gpu.hourly.on-demand is 'free'"),
        (("instances", "gpu", "source"), "", "instances.gpu.source is missing"),
    ],
)
def test_a_wrong_table_is_refused_with_the_place(path: tuple[str, ...], value: Any, named: str) -> None:
    raw = deepcopy(PRICES)
    inner = raw
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(PricesError, match=named):
        parse_prices(raw)


def test_a_table_of_the_users_own_is_read_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(PRICES))
    assert load_prices(file).currency == "EUR"
    with pytest.raises(PricesError, match=r"none\.yaml"):
        load_prices(tmp_path / "none.yaml")

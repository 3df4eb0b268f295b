"""What runs would have cost on rented machines, and whether stateless costs no more than checkpointing.

Rules. (1) Prices are input (prices.yaml, or the user's own file); seconds are measured. (2) Every machine of a run is
paid for all of its wall time from the first update on, whatever it did: a worker, each server, and the Redis that
Stateless and Hybrid need. (3) To reach an accuracy costs what the machines cost until it was reached; a run that never
reached it has cost at least its whole time, and is counted as such.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from outlast.api.strategy import traits_of
from outlast_bench.study.analysis.measures import RunMeasures
from outlast_bench.study.analysis.statistics import Estimate, estimate, ratio
from outlast_bench.study.design.records import StudyError

ROLES = ("worker", "server", "redis")
USUAL_TERM = "on-demand"


class PricesError(StudyError):
    """The price table cannot be used. The message names the value, what is expected, and how to correct it."""


@dataclass(frozen=True)
class Instance:
    name: str
    what: str
    hourly: Mapping[str, float]  # by term
    source: str
    as_of: str


@dataclass(frozen=True)
class PriceTable:
    currency: str
    terms: Mapping[str, str]
    instances: Mapping[str, Instance]
    setups: Mapping[str, Mapping[str, str]]  # setup -> role -> instance

    def hourly(self, setup: str, term: str, role: str) -> float:
        return self.instances[self.setups[setup][role]].hourly[term]


def load_prices(path: Path | None = None) -> PriceTable:
    """Read a price table; None: the one that comes with this package. Raises `PricesError`."""
    name = str(path) if path is not None else "prices.yaml"
    try:
        text = (
            path.read_text(encoding="utf-8")
            if path is not None
            else resources.files("outlast_bench.study.analysis").joinpath("prices.yaml").read_text("utf-8")
        )
        raw = yaml.safe_load(text)
    except (OSError, yaml.YAMLError) as error:
        raise PricesError(
            f"{name}: cannot be read as YAML ({error}); give a file like the study's own prices.yaml"
        ) from error
    return parse_prices(raw, name)


def parse_prices(raw: Any, name: str = "prices") -> PriceTable:
    """Check a price table as read from YAML. Raises `PricesError` for the first thing that is wrong."""
    for key in ("terms", "instances", "setups"):
        if not isinstance(raw, dict) or not isinstance(raw.get(key), dict) or not raw[key]:
            raise PricesError(
                f"{name}: {key} is missing or empty; it must be an object, as in the study's own prices.yaml"
            )
    terms = {str(term): str(text or "") for term, text in raw["terms"].items()}
    instances = {
        str(key): _instance(f"{name}: instances.{key}", str(key), value, terms)
        for key, value in raw["instances"].items()
    }
    setups: dict[str, dict[str, str]] = {}
    for key, roles in raw["setups"].items():
        for role in ROLES:
            wanted = roles.get(role) if isinstance(roles, dict) else None
            if wanted not in instances:
                raise PricesError(
                    f"{name}: setups.{key}.{role} is {wanted!r}; it must name one of {', '.join(sorted(instances))}"
                )
        setups[str(key)] = {role: str(roles[role]) for role in ROLES}
    return PriceTable(str(raw.get("currency") or "USD"), terms, instances, setups)


def _instance(at: str, name: str, value: Any, terms: Mapping[str, str]) -> Instance:
    hourly = value.get("hourly") if isinstance(value, dict) else None
    prices: dict[str, float] = {}
    for term in terms:
        price = hourly.get(term) if isinstance(hourly, dict) else None
        if isinstance(price, bool) or not isinstance(price, (int, float)) or not 0 <= price < float("inf"):
            raise PricesError(f"{at}.hourly.{term} is {price!r}; it must be a price of 0 or more an hour")
        prices[term] = float(price)
    for key in ("source", "as_of"):
        if not str(value.get(key) or "").strip():
            raise PricesError(f"{at}.{key} is missing; say in words where the price comes from and from when it is")
    return Instance(name, str(value.get("what") or name), prices, str(value["source"]), str(value["as_of"]))


def hourly_of(run: RunMeasures, prices: PriceTable, setup: str, term: str) -> float:
    """All machines of a run for an hour."""
    report = run.run.report
    workers, servers = int(report.get("workers") or 0), int(report.get("servers") or 0)
    traits = traits_of(report)
    redis = prices.hourly(setup, term, "redis") if traits is not None and traits.buffered else 0.0
    return workers * prices.hourly(setup, term, "worker") + servers * prices.hourly(setup, term, "server") + redis


def cost_to_target(run: RunMeasures, hourly: float) -> tuple[float, bool]:
    """(cost, whether the target was reached); for a run that did not reach it: of its whole time."""
    reached = run.time_to_target_s is not None
    seconds = run.time_to_target_s if run.time_to_target_s is not None else run.trained_s
    return hourly * seconds / 3600.0, reached


@dataclass(frozen=True)
class CostRow:
    """One configuration at one price. Money in `currency`; `of_idle` and `of_recomputed`: workers paid for nothing."""

    setup: str
    term: str
    hourly: float
    to_target: Estimate | None
    whole: Estimate | None
    of_idle: Estimate | None
    of_recomputed: Estimate | None


def cost_rows(runs: Sequence[RunMeasures], prices: PriceTable, failed: int = 0) -> list[CostRow]:
    """For the runs of one group (configuration and number of kills), every setup and term."""
    rows = []
    for setup in prices.setups:
        for term in prices.terms if runs else ():
            hourly = hourly_of(runs[0], prices, setup, term)
            costs = [cost_to_target(run, hourly) for run in runs if run.evaluated]
            second = prices.hourly(setup, term, "worker") / 3600.0
            rows.append(
                CostRow(
                    setup,
                    term,
                    hourly,
                    estimate([c for c, _ in costs], failed, sum(not reached for _, reached in costs)),
                    estimate([hourly * run.trained_s / 3600.0 for run in runs], failed),
                    estimate([run.idle_s * second for run in runs], failed),
                    estimate([run.recomputed_s * second for run in runs], failed),
                )
            )
    return rows


def usual(prices: PriceTable) -> tuple[str, str]:
    """(setup, term) of what is said once: the first set of machines; on demand, where the table has that."""
    return next(iter(prices.setups)), USUAL_TERM if USUAL_TERM in prices.terms else next(iter(prices.terms))


@dataclass(frozen=True)
class Claim:
    """Stateless against checkpointing at one price: the ratio of what it costs to reach the target."""

    setup: str
    term: str
    hourly_ratio: float
    ratio: Estimate | None
    censored: tuple[int, int]  # runs of stateless, and of checkpointing, that did not reach the target

    @property
    def holds(self) -> bool | None:
        """No more (True), more (False), or not decided: the interval has 1 inside, or who never got there might tell.

        A run that never got there would have cost more than what is reckoned: of stateless, the ratio is that or more,
        of checkpointing that or less. What lies on the far side of 1 anyway is decided.
        """
        if self.ratio is None or self.ratio.n < 2:
            return None
        if self.ratio.high <= 1.0:
            return None if self.censored[0] else True
        return False if self.ratio.low > 1.0 and not self.censored[1] else None


def compare_costs(
    stateless: Sequence[RunMeasures], checkpoint: Sequence[RunMeasures], prices: PriceTable
) -> list[Claim]:
    """Paired by seed, the runs of a seed (with one kill, with two) taken together; [] without a pair."""
    others = {(m.run.kills, m.run.seed): m for m in checkpoint}
    pairs = [(m, others[m.run.kills, m.run.seed]) for m in stateless if (m.run.kills, m.run.seed) in others]
    pairs = [(a, b) for a, b in pairs if a.evaluated and b.evaluated]
    return [_compare(pairs, prices, setup, term) for setup in prices.setups for term in prices.terms] if pairs else []


def _compare(pairs: Sequence[tuple[RunMeasures, RunMeasures]], prices: PriceTable, setup: str, term: str) -> Claim:
    above, below = (hourly_of(pairs[0][side], prices, setup, term) for side in (0, 1))
    sums: dict[int, list[float]] = {}
    late, late_too = 0, 0
    for one, other in pairs:
        (a, there), (b, there_too) = cost_to_target(one, above), cost_to_target(other, below)
        both = sums.setdefault(one.run.seed, [0.0, 0.0])
        both[0] += a
        both[1] += b
        late, late_too = late + (not there), late_too + (not there_too)
    found = ratio([a for a, _ in sums.values()], [b for _, b in sums.values()])
    return Claim(setup, term, above / below if below > 0 else float("inf"), found, (late, late_too))

"""The ordering the paper reports, decided from the first kills: who falls, who does not, who rises. Pure.

Rules. (1) The first kill of a run with one kill and of the same seed's run with two is the same event: each seed counts
once, with the mean of both. (2) The mean over seeds decides; where its interval does not exclude the contrary, the
row's mark stands in brackets. (3) A run that failed or is not made yet leaves its row open. (4) To fall is to fall by
more than an evaluation may be off.
"""

from __future__ import annotations

from dataclasses import dataclass

from outlast_bench.study.analysis.cells import NOTHING, points, seeds_in
from outlast_bench.study.analysis.measures import RunMeasures
from outlast_bench.study.analysis.statistics import Estimate, estimate, paired
from outlast_bench.study.analysis.summary import NOISE, Group, Summary, Value, drop
from outlast_bench.study.verdicts.verdict import Bound, Row, Verdict, all_of


def risen(run: RunMeasures) -> float | None:
    """Accuracy gained from the first kill to the end of its drain."""
    return run.outages[0].gained if run.outages else None


def fallen(run: RunMeasures) -> float | None:
    """Change of accuracy at the first kill: below 0, it fell."""
    dropped = drop(0)(run)
    return None if dropped is None else -dropped


def lost_a_kill(run: RunMeasures) -> float | None:
    """Gradients, of all kills of the run."""
    lost = run.gradients.get("lost")
    return None if lost is None or not run.outages else lost / len(run.outages)


@dataclass(frozen=True)
class Expected:
    """What the paper reports of some configurations: where `value` lies."""

    names: tuple[str, ...]
    words: str
    value: Value
    bound: Bound


ORDERING = (
    Expected(("paper-sync-checkpoint", "paper-async-checkpoint", "checkpoint"), "falls", fallen, Bound(-NOISE, -1)),
    Expected(("paper-sync-chain", "paper-async-chain", "chain", "hybrid"), "does not fall", fallen, Bound(-NOISE)),
    Expected(("paper-stateless", "stateless"), "rises through its outage", risen, Bound(0.0)),
)


@dataclass(frozen=True)
class FirstKills:
    """The groups with one and with two kills of a configuration, as far as they are planned or made."""

    groups: tuple[Group, ...]
    by_seed: dict[int, float]  # each the mean of its runs
    found: Estimate | None  # over seeds
    runs: int  # that went into it

    @property
    def wanted(self) -> int:
        """How many seeds must have been measured to decide; more than there are where a run failed or is not made."""
        seeds = {run.run.seed for g in self.groups for run in g.runs}
        return len(seeds) + sum(g.failed + g.missing for g in self.groups)


def first_kills(summary: Summary, experiment: str, name: str, value: Value) -> FirstKills | None:
    """`value` at the first kill, each seed's runs with one and with two kills taken together; None without any."""
    groups = tuple(g for kills in (1, 2) if (g := summary.attempted(experiment, name, kills)) is not None)
    if not groups:
        return None
    by_seed: dict[int, list[float]] = {}
    for group in groups:
        for seed, measured in group.values(value).items():
            by_seed.setdefault(seed, []).append(measured)
    means = {seed: sum(v) / len(v) for seed, v in by_seed.items()}
    found = estimate(list(means.values()), sum(g.failed for g in groups))
    return FirstKills(groups, means, found, sum(len(v) for v in by_seed.values()))


def ordering(summary: Summary, experiment: str) -> Verdict:
    """Checkpointing falls at a kill, chain and stateless do not, stateless has risen when its outage is over."""
    found = [_first_kill(summary, experiment, name, expected) for expected in ORDERING for name in expected.names]
    rows = tuple(row for row in found if row is not None)
    return Verdict(
        "Checkpointing falls after a kill, chain and stateless do not; stateless rises through its outage.",
        all_of(rows),
        ("change of accuracy (points)", "gradients lost a kill", "seeds"),
        (*rows, *_none_yet(summary, experiment)),
    )


def _first_kill(summary: Summary, experiment: str, name: str, expected: Expected) -> Row | None:
    kills = first_kills(summary, experiment, name, expected.value)
    if kills is None:
        return None
    lost = first_kills(summary, experiment, name, lost_a_kill)
    count = NOTHING if lost is None or lost.found is None else (f"{lost.found.mean:,.0f}", "")
    cells = (points(kills.found), count, seeds_in(kills.found, kills.groups, kills.runs))
    return expected.bound.row(f"{kills.groups[0].label} {expected.words}", cells, kills.found, kills.wanted)


def _none_yet(summary: Summary, experiment: str) -> list[Row]:
    """What the paper's accident (no checkpoint by the time of the kill) does, and nothing else: beside the verdict."""
    names = ("paper-async-checkpoint-none-yet", "paper-async-checkpoint")
    both = [first_kills(summary, experiment, name, fallen) for name in names]
    early, usual = both
    accident = paired(*({} if kills is None else kills.by_seed for kills in both))
    if accident is None or early is None or usual is None:
        return []
    label = early.groups[0].label
    seeds = seeds_in(early.found, early.groups, early.runs)
    return [
        Row(label, (points(early.found), NOTHING, seeds), decides=False),
        Row(
            f"{label}, less {usual.groups[0].label}", (points(accident), NOTHING, (str(accident.n), "")), decides=False
        ),
    ]

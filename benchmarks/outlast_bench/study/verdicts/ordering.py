"""The ordering the paper reports, decided from the first kills: who falls, who does not, who rises. Pure.

Rules. (1) The first kill of a run with one kill and of the same seed's run with two is the same event: each seed counts
once, with the mean of both. (2) The mean over seeds decides; where its interval does not exclude the contrary, the
row's words say so. (3) A run that failed or is not made yet leaves its row open.
"""

from __future__ import annotations

from dataclasses import dataclass

from outlast_bench.study.analysis.measures import RunMeasures
from outlast_bench.study.analysis.statistics import Estimate, estimate, paired
from outlast_bench.study.analysis.summary import NOISE, Group, Summary, Value, drop
from outlast_bench.study.design.configurations import BY_NAME
from outlast_bench.study.verdicts.verdict import Bound, Row, Verdict, all_of, points, wanted


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

    @property
    def lacking(self) -> str:
        """`; 2 of 10 runs failed`: the runs that are not in the estimate, or nothing."""
        planned = sum(wanted(g) for g in self.groups)
        parts = (
            (sum(g.failed for g in self.groups), "runs failed"),
            (sum(g.missing for g in self.groups), "not made yet"),
            (sum(g.n for g in self.groups) - self.runs, "not measured"),
        )
        return "".join(f"; {count} of {planned} {what}" for count, what in parts if count > 0)


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
    question = "Checkpointing falls after a kill, chain and stateless do not; stateless rises through its outage."
    found = [_first_kill(summary, experiment, name, expected) for expected in ORDERING for name in expected.names]
    rows = [row for row in found if row is not None]
    if not rows:
        return Verdict(question, None, "There are no runs with one kill in this study.")
    as_told = [row for row in rows if row.met]
    return Verdict(
        question,
        all_of(rows),
        f"{len(as_told)} of {len(rows)} configurations do what the paper reports, by their means; of "
        f"{sum(row.sure for row in as_told)} of them what surrounds the mean excludes the contrary.",
        "change of accuracy from the first kill to the next update, each seed's runs with one and two kills averaged; "
        f"stateless: to the end of its drain. To fall is to fall by more than {100 * NOISE:g} points, which an "
        "evaluation may be off. Lost: gradients a kill, as counted; what a synchronous run falls back it computes "
        "again, and counts none",
        tuple(rows),
        tuple(_none_yet(summary, experiment)),
    )


def _first_kill(summary: Summary, experiment: str, name: str, expected: Expected) -> Row | None:
    kills = first_kills(summary, experiment, name, expected.value)
    if kills is None:
        return None
    lost = first_kills(summary, experiment, name, lost_a_kill)
    count = "" if lost is None or lost.found is None else f"; lost {lost.found.mean:,.0f}"
    figure = points(kills.found) + count + kills.lacking + by_construction(name)
    return expected.bound.row(f"{kills.groups[0].label} {expected.words}", figure, kills.found, kills.wanted)


def by_construction(name: str) -> str:
    """What a chain that replicates in batches loses however well it recovers, as a sentence; else nothing."""
    chain = BY_NAME[name].recovery.get("chain", {}) if name in BY_NAME else {}
    every = chain.get("replicateEveryUpdates", 1)
    return "" if every == 1 else f"; replicated every {every} updates, it loses up to {every} of them by construction"


def _none_yet(summary: Summary, experiment: str) -> list[str]:
    """What the paper's accident (no checkpoint by the time of the kill) does, and nothing else."""
    names = ("paper-async-checkpoint-none-yet", "paper-async-checkpoint")
    both = [first_kills(summary, experiment, name, fallen) for name in names]
    accident = paired(*({} if kills is None else kills.by_seed for kills in both))
    if accident is None:
        return []
    early, usual = (points(None if kills is None else kills.found) for kills in both)
    return [
        "Killed before its first checkpoint, as the paper's runs in fact were, async checkpointing changes by "
        f"{early}, otherwise by {usual}: the accident alone makes {points(accident)}."
    ]

"""The ordering the paper reports, decided from the first kills: who falls, who does not, who rises. Pure.

Rules. (1) The first kill of a run with one kill and of the same seed's run with two is the same event: each seed counts
once, with the mean of both. (2) The mean over seeds decides; where its interval does not exclude the contrary, the
row's words say so. (3) A run that failed or is not made yet leaves its row open.
"""

from __future__ import annotations

from dataclasses import dataclass

from outlast_operator.study.configurations import BY_NAME
from outlast_operator.study.measures import RunMeasures
from outlast_operator.study.statistics import Estimate, estimate
from outlast_operator.study.summary import Group, Summary, Value, drop
from outlast_operator.study.verdicts import NOISE, Row, Verdict, all_of, points, wanted


def risen(run: RunMeasures) -> float | None:
    """Accuracy gained from the first kill to the end of its drain."""
    return run.outages[0].gained if run.outages else None


def fallen(run: RunMeasures) -> float | None:
    """Change of accuracy at the first kill: below 0, it fell."""
    dropped = drop(0)(run)
    return None if dropped is None else -dropped


@dataclass(frozen=True)
class Expected:
    """What the paper reports of some configurations: `value` above the bound (`sign` 1) or below it (-1)."""

    names: tuple[str, ...]
    words: str
    value: Value
    bound: float
    sign: int

    def met(self, mean: float) -> bool:
        return self.sign * (mean - self.bound) > 0.0

    def doubt(self, found: Estimate) -> str:
        """That the interval holds the bound, in words, or nothing."""
        if found.n < 2 or not found.low <= self.bound <= found.high:
            return ""
        return f"; the {found.kind} does not exclude the contrary"


ORDERING = (
    Expected(("paper-sync-checkpoint", "paper-async-checkpoint", "checkpoint"), "falls", fallen, 0.0, -1),
    Expected(("paper-sync-chain", "paper-async-chain", "chain", "hybrid"), "does not fall", fallen, -NOISE, 1),
    Expected(("paper-stateless", "stateless"), "rises through its outage", risen, 0.0, 1),
)


@dataclass(frozen=True)
class FirstKills:
    """The groups with one and with two kills of a configuration, as far as they are planned or made."""

    groups: tuple[Group, ...]
    found: Estimate | None  # over seeds
    runs: int  # that went into it

    @property
    def decides(self) -> bool:
        """Whether all that was planned is there, and every seed was measured, and there is more than one."""
        seeds = {run.run.seed for g in self.groups for run in g.runs}
        complete = not any(g.failed or g.missing for g in self.groups)
        return complete and self.found is not None and self.found.n == len(seeds) > 1

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
    found = estimate([sum(v) / len(v) for v in by_seed.values()], sum(g.failed for g in groups))
    return FirstKills(groups, found, sum(len(v) for v in by_seed.values()))


def ordering(summary: Summary, experiment: str) -> Verdict:
    """Checkpointing falls at a kill, chain and stateless do not, stateless has risen when its outage is over."""
    question = "Checkpointing falls after a kill, chain and stateless do not; stateless rises through its outage."
    rows, sure = [], 0
    for expected in ORDERING:
        for name in expected.names:
            kills = first_kills(summary, experiment, name, expected.value)
            if kills is None:
                continue
            found = kills.found
            met = expected.met(found.mean) if found is not None and kills.decides else None
            doubt = "" if found is None else expected.doubt(found)
            sure += met is True and not doubt
            label = f"{kills.groups[0].label} {expected.words}"
            rows.append(Row(label, points(found) + doubt + kills.lacking + by_construction(name), met))
    if not rows:
        return Verdict(question, None, "There are no runs with one kill in this study.")
    as_told = sum(bool(row.met) for row in rows)
    return Verdict(
        question,
        all_of(rows),
        f"{as_told} of {len(rows)} configurations do what the paper reports, by their means; of {sure} of them what "
        "surrounds the mean excludes the contrary.",
        "change of accuracy from the first kill to the next update, each seed's runs with one and two kills averaged; "
        f"stateless: to the end of its drain. Not to fall is to fall by less than {100 * NOISE:g} points, which an "
        "evaluation may be off",
        tuple(rows),
        tuple(_none_yet(summary, experiment)),
    )


def by_construction(name: str) -> str:
    """What a chain that replicates in batches loses however well it recovers, as a sentence; else nothing."""
    chain = BY_NAME[name].recovery.get("chain", {}) if name in BY_NAME else {}
    every = chain.get("replicateEveryUpdates", 1)
    return "" if every == 1 else f". Replicated every {every} updates, it loses up to {every} of them by construction"


def _none_yet(summary: Summary, experiment: str) -> list[str]:
    """What the paper's accident (no checkpoint by the time of the kill) does."""
    extra = first_kills(summary, experiment, "paper-async-checkpoint-none-yet", fallen)
    usual = first_kills(summary, experiment, "paper-async-checkpoint", fallen)
    a = None if extra is None else extra.found
    b = None if usual is None else usual.found
    if a is None or b is None:
        return []
    text = (
        f"Killed before its first checkpoint, as the paper's runs in fact were, it changes by {points(a)}, "
        f"not by {points(b)}"
    )
    most = a.mean < 0 and a.mean < 2 * min(b.mean, 0.0)
    return [f"{text}: most of the fall in the paper's figures is that accident." if most else f"{text}."]

"""`outlast bench lost`: in Async nothing acknowledged is lost, and nothing is applied twice.

Every run has its own seed, and the head (the only server of Checkpoint and Stateless) is killed at an update drawn
from it; in every fourth run somebody else as well (the tail, a worker, the operator). Both ends are counted: what
workers saw acknowledged stands in their ledgers, what the surviving servers hold in their tables of applied steps.

Checkpoint promises less: it may lose what it applied since the checkpoint it restores. How much that was is reckoned
from the ledgers, too: the gradients computed when its death was noticed, less the version of that checkpoint.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from outlast.api.strategy import BUFFERED, CHAINED, STRATEGIES
from outlast.process.ledger import Fact, LedgerRecord
from outlast_bench.promises.common import BenchError, Outcome, Progress, Ran, Settings, make_job, run_job, table
from outlast_operator.reporting.data import steps_of

NAME = "lost"
HELP = "nothing lost, nothing twice: kills at random updates, counted at both ends"
MUST = (
    "lost 0 and duplicates 0 in every run of Chain (ack: Tail), Stateless and Hybrid; Checkpoint loses at most the "
    "updates since the checkpoint it restores, and applies nothing twice"
)
RUNS = 20  # a strategy

SECOND_VICTIM_EVERY = 4
DEADLINE_S = 180.0
_CHECKPOINT = re.compile(r"v(\d+)$")


@dataclass
class Tally:
    """What was counted over a strategy's runs."""

    runs: int = 0
    kills: int = 0
    acknowledged: int = 0
    applied: int = 0
    replayed: int = 0
    duplicates: int = 0
    lost: list[int] = field(default_factory=list)
    at_risk: list[int] = field(default_factory=list)  # Checkpoint: updates since the checkpoint, at the kills of a run

    def add(self, gradients: dict[str, int], kills: int) -> None:
        self.runs += 1
        self.kills += kills
        self.acknowledged += gradients["acknowledged"]
        self.applied += gradients["applied"]
        self.replayed += gradients["replayed"]
        self.duplicates += gradients["duplicates"]
        self.lost.append(gradients["lost"])

    def figures(self) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "runs": self.runs,
            "kills": self.kills,
            "acknowledged": self.acknowledged,
            "applied": self.applied,
            "through_the_buffer": self.replayed,
            "lost": sum(self.lost),
            "lost_worst_run": max(self.lost, default=0),
            "duplicates": self.duplicates,
        }
        if self.at_risk:
            shown["since_checkpoint"] = sum(self.at_risk)
        return shown


def schedule(strategy: str, seed: int, run: int, updates: int) -> list[str]:
    """The kills of one run, the same for the same seed."""
    chooser = random.Random(f"{seed}/{strategy}/{run}")
    kills = [f"head@update={chooser.randint(updates // 20, updates * 3 // 5)}"]
    if run % SECOND_VICTIM_EVERY == SECOND_VICTIM_EVERY - 1:
        others = ["worker-0", "worker-1", "operator", *(["tail"] if strategy in CHAINED else [])]
        kills.append(f"{chooser.choice(others)}@update={chooser.randint(updates // 20, updates * 3 // 5)}")
    return kills


def measure(settings: Settings) -> Outcome:
    runs = settings.count(RUNS)
    updates = 150 if settings.short else 400
    problems: list[str] = []
    tallies = {strategy: Tally() for strategy in STRATEGIES}
    with Progress(settings.console, runs * len(STRATEGIES), "lost") as progress:
        for run in range(runs):
            for strategy in STRATEGIES:
                _one(settings, progress, strategy, run, updates, tallies[strategy], problems)
    shown = table(
        "Async: counted in workers' ledgers and in the surviving servers' tables",
        "strategy", "runs", "kills", "acknowledged", "in the model", "through Redis", "lost", "duplicates",
        "since checkpoint",
    )  # fmt: skip
    for strategy, tally in tallies.items():
        f = tally.figures()
        shown.add_row(
            strategy, str(f["runs"]), str(f["kills"]), str(f["acknowledged"]), str(f["applied"]),
            str(f["through_the_buffer"]), str(f["lost"]), str(f["duplicates"]), str(f.get("since_checkpoint", "")),
        )  # fmt: skip
    settings.console.print(shown)
    return Outcome({"updates": updates, **{s: t.figures() for s, t in tallies.items()}}, problems)


def _one(
    settings: Settings, progress: Progress, strategy: str, run: int, updates: int, tally: Tally, problems: list[str]
) -> None:
    kills = schedule(strategy, settings.seed, run, updates)
    label = f"{strategy}, seed {settings.seed + run}, {' '.join(kills)}"
    progress.step(label)
    job = make_job(
        "bench-lost",
        strategy,
        args={"parameters": 50_000, "computeMs": 4.0},
        seed=settings.seed + run,
        updates=updates,
        recovery={"checkpoint": {"everyUpdates": 50}},
    )
    try:
        ran = run_job(job, kills, progress, label=label, deadline_s=DEADLINE_S)
    except BenchError as error:
        problems.append(str(error))
        return
    gradients = ran.gradients
    tally.add(gradients, len(kills))
    allowed = 0
    if strategy not in CHAINED + BUFFERED:
        allowed = _at_risk(ran)
        tally.at_risk.append(allowed)
    if gradients["lost"] > allowed or gradients["duplicates"] > 0 or gradients["acknowledged"] == 0:
        problems.append(f"{ran.keep()}: {gradients}, at most {allowed} may be lost")
    else:
        ran.discard()


def _at_risk(ran: Ran) -> int:
    """Updates since the checkpoints that a run restored: the most that it may lose."""
    restores = [f for f in ran.result.run.status.failovers if f.kind == "server" and f.restore is not None]
    ledger = ran.result.run.heard.ledger
    return sum(since_checkpoint(ledger, line.t_detected, line.restore or "") for line in restores)


def since_checkpoint(ledger: Sequence[LedgerRecord], t_dead: float, checkpoint: str) -> int:
    """No more than this was applied after `checkpoint`: gradients computed by then, less its version."""
    version = _CHECKPOINT.search(checkpoint)
    computed = steps_of((r for r in ledger if r.t <= t_dead), Fact.COMPUTED).count
    return max(0, computed - (int(version[1]) if version is not None else 0))

"""How much of the control's progress the default backlog policy keeps, in whole runs and simulated. Pure.

Accuracy decides; the loss of the same evaluations is a second opinion and stands beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

from outlast_bench.study.analysis.backlog import IDLE, PAPERS_RULE, Cell, cells
from outlast_bench.study.analysis.cells import NOTHING, cell, seeds_in
from outlast_bench.study.analysis.summary import Summary
from outlast_bench.study.verdicts.verdict import Bound, Row, Verdict, all_of

KEPT_ENOUGH = 0.7
DEFAULT_POLICY = "LocalSteps"  # chosen beforehand: the best of what is reported would be the luckiest
PAPERS_OUTAGE = 375  # gradients: 15 s at the paper's 25 a second
WORKERS = 2  # the paper's
PRODUCT_POLICIES = (
    "Sum", PAPERS_RULE, "SumClipped", "Mean", "InverseStaleness", "DelayCompensation", "DelayCompensationCopies",
    "LocalSteps", "LocalStepsUnscaled",
)  # fmt: skip


def backlog_kept(summary: Summary, experiment: str) -> Verdict:
    """Simulated (the product's arithmetic on real gradients, a drain that takes no time) and in whole runs."""
    live = _whole_runs(summary, experiment)
    by_accuracy = best_policies(cells(summary.data.backlog), WORKERS)
    by_loss = best_policies(cells(summary.data.backlog, "loss"), WORKERS)
    rows = (*_simulated(by_accuracy, by_loss), *live)
    simulated = any(cell.policy == DEFAULT_POLICY for cell in by_accuracy)
    return Verdict(
        f"With the default backlog policy a Stateless worker keeps {KEPT_ENOUGH:g} or more of the control's progress "
        "through an outage as long as the paper's.",
        all_of([row for row in rows if row.decides]) if simulated else None,
        ("kept, in accuracy", "kept, in loss", "seeds"),
        rows,
    )


def _whole_runs(summary: Summary, experiment: str) -> list[Row]:
    live = []
    for name in ("stateless", "paper-stateless", "hybrid"):
        group = summary.attempted(experiment, name, 1)
        if group is not None:
            label = f"{group.label} in whole runs with one kill, drain included"
            figures = (cell(group.kept, 2), NOTHING, seeds_in(group.kept, [group]))
            if name == "stateless":
                live.append(Bound(KEPT_ENOUGH).row(label, figures, group.kept, group.wanted))
            else:
                live.append(Row(label, figures, decides=False))
    return live


def _simulated(by_accuracy: Sequence[Cell], by_loss: Sequence[Cell]) -> list[Row]:
    rows = []
    losses = {found.policy: found.kept for found in by_loss}
    for found in by_accuracy:
        label = f"{found.label}, simulated"
        figures = (cell(found.kept, 2), cell(losses.get(found.policy), 2), (str(found.n), ""))
        if found.policy == DEFAULT_POLICY:
            rows.append(Bound(KEPT_ENOUGH).row(label, figures, found.kept, found.n))
        else:
            rows.append(Row(label, figures, decides=False))
    return rows


def best_policies(found: Sequence[Cell], workers: int, outage: int = PAPERS_OUTAGE) -> list[Cell]:
    """The product's policies after the outage nearest to the paper's and not twice as long or short, the best first."""
    mine = [c for c in found if c.workers == workers and outage / 2 <= c.outage <= outage * 2]
    if not mine:
        return []
    nearest = min({c.outage for c in mine}, key=lambda n: abs(n - outage))
    known = [c for c in mine if c.outage == nearest and c.kept is not None and c.policy in PRODUCT_POLICIES]
    return sorted((c for c in known if c.policy != IDLE), key=lambda c: -(c.kept.mean if c.kept is not None else 0.0))

"""How much of the control's progress the default backlog policy keeps, in whole runs and simulated. Pure.

Accuracy decides; the loss of the same evaluations is a second opinion, and the verdict says whether both agree on what
matters: whether the default keeps enough, and which policy comes first.
"""

from __future__ import annotations

from collections.abc import Sequence

from outlast_bench.study.analysis.backlog import IDLE, LABELS, PAPERS_RULE, Cell, cells
from outlast_bench.study.analysis.summary import Summary
from outlast_bench.study.verdicts.verdict import Bound, Row, Verdict, all_of, lacking, share, wanted

KEPT_ENOUGH = 0.7
DEFAULT_POLICY = "LocalSteps"  # chosen beforehand: the best of what is reported would be the luckiest
PAPERS_OUTAGE = 375  # gradients: 15 s at the paper's 25 a second
WORKERS = 2  # the paper's
PRODUCT_POLICIES = (
    "Sum", PAPERS_RULE, "SumClipped", "Mean", "InverseStaleness", "DelayCompensation", "DelayCompensationCopies",
    "LocalSteps", "LocalStepsUnscaled",
)  # fmt: skip


def backlog_kept(summary: Summary, experiment: str) -> Verdict:
    question = (
        "With the default backlog policy a Stateless worker keeps 0.7 or more of the control's progress through an "
        "outage as long as the paper's."
    )
    live = _whole_runs(summary, experiment)
    by_accuracy = best_policies(cells(summary.data.backlog), WORKERS)
    default = _of(by_accuracy, DEFAULT_POLICY)
    if default is None or default.kept is None:
        missing = "The default's backlog after such an outage, with two workers, is not in this study."
        return Verdict(question, None, missing, "progress kept", tuple(live))
    by_loss = best_policies(cells(summary.data.backlog, "loss"), WORKERS)
    paper = _of(by_accuracy, PAPERS_RULE)
    answer = (
        f"Simulated (the product's arithmetic on real gradients, a drain that takes no time), after an outage of "
        f"{default.outage:,} gradients with two workers, {default.label} keeps {share(default.kept)}, the paper's own "
        f"rule {share(None if paper is None else paper.kept)}. What whole runs keep stands beside it and decides as "
        "well."
    )
    rows = [*_simulated(by_accuracy, by_loss), *live]
    notes = (second_opinion(by_accuracy, by_loss),)
    holds = all_of([row for row in rows if row.decides])
    return Verdict(question, holds, answer, "progress kept, in accuracy; by loss", tuple(rows), notes)


def _whole_runs(summary: Summary, experiment: str) -> list[Row]:
    live = []
    for name in ("stateless", "paper-stateless", "hybrid"):
        group = summary.attempted(experiment, name, 1)
        if group is not None:
            label = f"{group.label} in whole runs with one kill, drain included"
            figure = share(group.kept) + lacking(group, group.kept)
            if name == "stateless":
                live.append(Bound(KEPT_ENOUGH).row(label, figure, group.kept, wanted(group)))
            else:
                live.append(Row(label, figure, decides=False))
    return live


def _simulated(by_accuracy: Sequence[Cell], by_loss: Sequence[Cell]) -> list[Row]:
    rows = []
    for cell in by_accuracy:
        assert cell.kept is not None
        other = _of(by_loss, cell.policy)
        label = f"{cell.label}, simulated"
        figure = f"{share(cell.kept)}; by loss {share(None if other is None else other.kept)}"
        if cell.policy == DEFAULT_POLICY:
            rows.append(Bound(KEPT_ENOUGH).row(label, figure, cell.kept, cell.n))
        else:
            rows.append(Row(label, figure, decides=False))
    return rows


def second_opinion(by_accuracy: Sequence[Cell], by_loss: Sequence[Cell]) -> str:
    """Whether loss says what accuracy says; both best first, of which accuracy holds the default."""
    one, other = _of(by_accuracy, DEFAULT_POLICY), _of(by_loss, DEFAULT_POLICY)
    if one is None or one.kept is None or other is None or other.kept is None:
        return "By loss the control gained too little to compare."
    enough = [found.kept.mean >= KEPT_ENOUGH for found in (one, other) if found.kept is not None]
    says = f"By loss {other.label} keeps {share(other.kept)}: "
    says += "accuracy and loss agree" if enough[0] == enough[1] else "accuracy and loss do not agree"
    says += f" on whether that is {KEPT_ENOUGH:g} or more"
    first = [LABELS.get(found[0].policy, found[0].policy) for found in (by_accuracy, by_loss)]
    if first[0] == first[1]:
        return f"{says}, and both put {first[0]} first."
    return f"{says}; accuracy puts {first[0]} first, loss {first[1]}."


def best_policies(found: Sequence[Cell], workers: int, outage: int = PAPERS_OUTAGE) -> list[Cell]:
    """The product's policies after the outage nearest to the paper's and not twice as long or short, the best first."""
    mine = [c for c in found if c.workers == workers and outage / 2 <= c.outage <= outage * 2]
    if not mine:
        return []
    nearest = min({c.outage for c in mine}, key=lambda n: abs(n - outage))
    known = [c for c in mine if c.outage == nearest and c.kept is not None and c.policy in PRODUCT_POLICIES]
    return sorted((c for c in known if c.policy != IDLE), key=lambda c: -(c.kept.mean if c.kept is not None else 0.0))


def _of(found: Sequence[Cell], policy: str) -> Cell | None:
    return next((cell for cell in found if cell.policy == policy), None)

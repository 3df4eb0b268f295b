"""What docs/how-to/choose-a-strategy.md says of the kept study: a marked part of it, made from the study's records.

Rule. Every measured number of that page stands in the marked part; what is written by hand around it holds whatever the
numbers are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

from outlast_bench.study.analysis.backlog import Cell, cells
from outlast_bench.study.analysis.summary import Summary, kills_in_words
from outlast_bench.study.backlog.records import BacklogRecord
from outlast_bench.study.design.experiments import BACKLOG, STEEP
from outlast_bench.study.page import story, story_backlog
from outlast_bench.study.page.markdown import relative, table
from outlast_bench.study.verdicts.backlog import DEFAULT_POLICY, WORKERS, best_policies
from outlast_bench.study.verdicts.verdict import lacking, share
from outlast_operator.reporting import words

BEGIN = "<!-- study:begin -->"
END = "<!-- study:end -->"
FIGURE = "backlog-lines.png"
TOLD_LEAD = 0.01  # accuracy; less is not worth a sentence


def rewritten(text: str, block: str) -> str:
    """`text` with `block` between its marks. Raises `ValueError` where they are not there, each once and in order."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ValueError(f"the marks {BEGIN} and {END} must stand once each, in this order")
    return f"{before}{BEGIN}\n{block}{END}{after}"


def block(summary: Summary, page: Path) -> str:
    """What stands between the marks; the figure is linked relative to where `page` lies."""
    lines: list[str] = []
    by_accuracy = best_policies(cells(summary.data.backlog), WORKERS)
    if by_accuracy:
        lines += _simulated(summary, by_accuracy)
        figure = relative(summary.data.directory / "figures" / FIGURE, page)
        lines += [story_backlog.in_words(summary.data.backlog), ""]
        lines += [f"![Accuracy gained by each policy, over the length of the outage]({figure})", ""]
    kept = _whole_runs(summary)
    lines += [kept, ""] if kept else []
    return "\n".join(lines) if lines else "The kept study has nothing to say here.\n"


def _simulated(summary: Summary, by_accuracy: Sequence[Cell]) -> Iterator[str]:
    outage = by_accuracy[0].outage
    records = [r for r in summary.data.backlog if (r.workers, r.outage) == (WORKERS, outage)]
    start = fmean(r.start.evaluations.level("accuracy", r.start.guess_loss) for r in records)
    after = records[0].after
    yield (
        f"Measured for an outage of {outage:,} gradients of `{records[0].task}`, from an accuracy of {start:.2f}, with "
        f"{WORKERS} workers (the product's own arithmetic on real gradients, in one process; "
        f"{words.count(len(records), 'seed')}, each judged by the mean of {len(after)} evaluations over the "
        f"{max(after)} gradients that follow, for a single one is off by points; "
        f"`{story.command_of(summary.data, BACKLOG)}` makes it again):"
    )
    yield ""
    by_loss = {(c.policy, c.workers, c.outage): c for c in cells(summary.data.backlog, "loss")}
    gains = [c.control_gained for c in (by_accuracy[0], by_loss[_place(by_accuracy[0])])]
    accuracy, loss = (0.0 if gained is None else gained.mean for gained in gains)
    rows = [("no outage", f"1 ({100 * accuracy:.0f} points)", f"1 ({loss:.2f})", "")]
    for cell in by_accuracy:
        ruined = f"{cell.diverged} of {cell.n}" if cell.diverged else ""
        rows.append((cell.label, share(cell.kept), share(by_loss[_place(cell)].kept), ruined))
    yield from table(("", "of the gain without an outage, in accuracy", "in loss", "ruined"), rows)
    yield ""
    lead = _lead(records)
    if lead >= TOLD_LEAD:
        yield (
            "Averaged weights of local steps are calmer than those of asynchronous training: right after the drain "
            f"they score {100 * lead:.0f} points above what the next updates come to. Of the evaluations that count "
            f"one in {len(after)} is of that moment."
        )
        yield ""


def _place(cell: Cell) -> tuple[str, int, int]:
    return cell.policy, cell.workers, cell.outage


def _lead(records: Sequence[BacklogRecord]) -> float:
    """Accuracy of the default policy's weights as the drain left them, less the mean of what followed."""
    found = [r.policies[DEFAULT_POLICY].evaluations.accuracies for r in records if DEFAULT_POLICY in r.policies]
    return fmean(a[0] - fmean(a[1:]) for a in found) if found and all(len(a) > 1 for a in found) else 0.0


def _whole_runs(summary: Summary) -> str:
    """Empty without runs."""
    parts = []
    for name in ("stateless", "hybrid"):
        for kills in (1, 2):
            group = summary.group(STEEP, name, kills)
            if group is not None and group.kept is not None:
                kept = f"{share(group.kept)}{lacking(group, group.kept)}"
                parts.append(f"{group.label} after {kills_in_words(kills)} {kept}")
    if not parts:
        return ""
    return (
        "In whole runs, drain included, these shares of the control's progress through the outages were kept: "
        f"{', '.join(parts)} ([the study](../explanation/study.md))."
    )

"""The words of a study's page: what was asked and answered, how it was done, what to make of it. Pure.

Rules. (1) Every number comes from the data or the plan; where one is missing the sentence is left out. (2) The page and
the documentation tell the same story: both are set from this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from outlast_operator import report_words as words
from outlast_operator.study.cost import PriceTable, cost_rows
from outlast_operator.study.load import StudyData, is_control
from outlast_operator.study.statistics import Estimate
from outlast_operator.study.summary import Group, Summary, final_accuracy, goodput, gradients, late_accuracy, outage_s
from outlast_operator.study.verdict_ordering import fallen
from outlast_operator.study.verdicts import Verdict

Cell = tuple[str, str]  # the mean, and in brackets what surrounds it


@dataclass(frozen=True)
class Line:
    """A configuration's line in the table of results; empty where not measured."""

    label: str
    kills: int
    cells: tuple[Cell, ...]
    failed: int


RESULT_COLUMNS = (
    "final accuracy (%)", "against the control (points)", "change at the kill (points)", "progress kept",
    "time to target (s)", "goodput", "without an update (s)", "lost", "n",
)  # fmt: skip


def headline(found: Sequence[Verdict]) -> str:
    """How many of the lines hold."""
    held = sum(v.holds is True for v in found)
    unknown = sum(v.holds is None for v in found)
    rest = f"; {unknown} cannot be told from this study" if unknown else ""
    return f"{held} of {len(found)} expectations hold{rest}"


def counts(data: StudyData) -> str:
    """How much was run, and what is not there."""
    ok = sum(run.ok for run in data.runs)
    bad = len(data.runs) - ok
    parts = [words.count(ok, "run")]
    if bad:
        parts.append(f"{words.count(bad, 'failed run')}, shown as failed and in no mean")
    if data.retried:
        parts.append(f"{words.count(len(data.retried), 'run')} made again after a failure")
    if data.uncalibrated:
        parts.append(f"{words.count(len(data.uncalibrated), 'experiment')} left out, which could not be calibrated")
    if data.missing:
        parts.append(f"{words.count(len(data.missing), 'planned run')} not made yet")
    if data.backlog:
        parts.append(words.count(len(data.backlog), "backlog"))
    kind = "A quick study (few seeds, one kill: ranges instead of intervals): " if is_quick(data) else ""
    return f"{kind}{', '.join(parts)}."


def is_quick(data: StudyData) -> bool:
    return data.about is not None and data.about.quick


def set_up(data: StudyData, experiment: str) -> list[str]:
    """How an experiment was run, from its plan and calibration."""
    planned, scale = data.planned(experiment), data.calibrations.get(experiment)
    found = []
    if planned is not None:
        rest = {k: v for k, v in planned.optimizer.items() if k != "name"}
        optimizer = ", ".join([str(planned.optimizer.get("name", "SGD")), *(f"{k} {v}" for k, v in rest.items())])
        seeds = words.listing([str(seed) for seed in planned.seeds])
        how_many = words.count(planned.workers, "worker")
        found.append(f"{planned.task}, {optimizer}, {how_many}; seed{'s' if len(planned.seeds) > 1 else ''} {seeds}.")
    if scale is None:
        return found
    if scale.kill_update is None:
        at = f"after {scale.kill_s:g} s"
    else:
        rule = f" ({scale.kill_rule})" if scale.kill_rule else ""
        at = f"at update {scale.kill_update:,}{rule} and up to 99 updates later, by the seed"
    text = f"The first kill falls {at}; the server is held back for {scale.outage_s:.1f} s"
    if scale.outage_gradients:
        text += f" ({scale.outage_gradients:,.0f} gradients of the control)"
    if any(r.kills > 1 for r in data.of(experiment)):
        text += f"; the second comes {scale.second_kill_after_s:.1f} s after the first"
    found.append(f"{text}. Every run trains for {scale.seconds:g} s.")
    if scale.control_to_target_s is not None:
        found.append(
            f"In calibration the control passed {data.target(experiment):.2f} after {scale.control_to_target_s:.1f} s."
        )
    return found


def results(summary: Summary, experiment: str) -> Iterator[Line]:
    """A line a configuration and number of kills."""
    for group in (g for g in summary.groups if g.experiment == experiment):
        control = is_control(group.configuration)
        lost = group.estimate(gradients("lost"))
        cells = (
            cell(group.estimate(final_accuracy), 1, 100.0),
            NOTHING if control else cell(summary.against_control(group, late_accuracy), 1, 100.0, signed=True),
            cell(group.estimate(fallen), 1, 100.0, signed=True),
            cell(group.kept, 2, of=group.n),
            cell(group.time_to_target, 1),
            NOTHING if control else cell(group.estimate(goodput), 2),
            cell(group.estimate(outage_s), 2),
            NOTHING if lost is None else (f"{lost.mean:,.0f}", ""),
            (str(group.n), ""),
        )
        yield Line(group.label, group.kills, cells, group.failed)


NOTHING: Cell = ("", "")


def cell(found: Estimate | None, digits: int, scale: float = 1.0, signed: bool = False, of: int = 0) -> Cell:
    """(`+1.2`, `(+0.4 to +2.0)`), with `≥` where some runs did not get there; empty for what was not measured.

    `of`: how many runs should be in it; where some could not be measured, it says of how many it is.
    """
    if found is None:
        return NOTHING
    form = f"{{:{'+' if signed else ''},.{digits}f}}"
    mean, low, high = (_typed(form.format(scale * v)) for v in (found.mean, found.low, found.high))
    around = [f"{low} to {high}"] if found.n > 1 else []
    around += [f"{found.n} of {of} runs"] if found.n < of else []
    return ("≥ " if found.censored else "") + mean, f"({'; '.join(around)})" if around else ""


def _typed(number: str) -> str:
    return number.replace("-", "−").replace("inf", "∞")


def command_of(data: StudyData, experiment: str) -> str:
    """What makes a figure again: its runs, and from them the picture."""
    about = data.about
    quick = " --quick" if is_quick(data) else ""
    task = f" --task {about.task}" if about is not None and " --task" in about.command else ""
    return f"outlast study{quick}{task} --only {experiment} --out DIR, then outlast study --render DIR"


def prices_in_words(prices: PriceTable) -> list[tuple[str, str, str, str]]:
    """(machine, what it is, its hourly prices, where they come from)."""
    return [
        (
            i.name,
            i.what,
            ", ".join(f"{term} {price:.2f}" for term, price in i.hourly.items()),
            f"{i.source}; {i.as_of}",
        )
        for i in prices.instances.values()
    ]


def cost_lines(summary: Summary, experiment: str, prices: PriceTable, groups: Sequence[Group]) -> list[tuple[str, ...]]:
    """(configuration, kills, cost to reach the target in cents for each term) at the first set of machines."""
    setup = next(iter(prices.setups))
    rows = []
    for group in groups:
        by_term = {row.term: row for row in cost_rows(group.runs, prices, group.failed) if row.setup == setup}
        found = [by_term[term].to_target if term in by_term else None for term in prices.terms]
        rows.append((group.label, str(group.kills), *(" ".join(cell(f, 2, 100.0)).strip() for f in found)))
    return rows

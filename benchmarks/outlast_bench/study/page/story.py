"""The words of a study's page: what was asked and answered, how it was done, what to make of it. Pure.

Rules. (1) Every number comes from the data or the plan; where one is missing the sentence is left out. (2) The page and
the documentation tell the same story: both are set from this.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from outlast_bench.study.analysis.cost import PriceTable
from outlast_bench.study.analysis.load import StudyData
from outlast_bench.study.verdicts.verdict import Verdict
from outlast_operator.reporting import words


def headline(found: Sequence[Verdict]) -> str:
    """How many of the lines hold, and how many are open, in the verdicts' own words."""
    held = sum(v.holds is True for v in found)
    unknown = Counter(v.word for v in found if v.holds is None)
    rest = "".join(f"; {count} {word}" for word, count in unknown.items())
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
        text += f" ({scale.outage_gradients:,.0f} gradients of the control in calibration)"
    if any(r.kills > 1 for r in data.of(experiment)):
        text += f"; the second comes {scale.second_kill_after_s:.1f} s after the first"
    found.append(f"{text}. Every run trains for {scale.seconds:g} s.")
    if scale.control_to_target_s is not None:
        found.append(
            f"In calibration the control passed {data.target(experiment):.2f} after {scale.control_to_target_s:.1f} s."
        )
    return found


def command_of(data: StudyData, experiment: str) -> str:
    """What makes a figure again: its runs, and from them the picture."""
    about = data.about
    quick = " --quick" if is_quick(data) else ""
    task = f" --task {about.task}" if about is not None and " --task" in about.command else ""
    return f"outlast study{quick}{task} --only {experiment} --out DIR && outlast study --render DIR"


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

"""Which figures a study has: for each experiment those of the paper, then ours, then the backlog's."""

from __future__ import annotations

from collections.abc import Iterator

from outlast_bench.study.analysis.cost import PriceTable
from outlast_bench.study.analysis.summary import Summary
from outlast_bench.study.design.experiments import ONE_WORKER
from outlast_bench.study.figures import (
    backlog,
    backlog_lines,
    close_up,
    cost,
    curves,
    gradients,
    models,
    points,
    resources,
)
from outlast_bench.study.figures.style import Drawn

MODELS = "models-"


def most_kills(summary: Summary, experiment: str) -> int:
    """Of the runs that succeeded; 0 without any."""
    return max((g.kills for g in summary.of(experiment)), default=0)


def of_experiment(summary: Summary, experiment: str, prices: PriceTable) -> Iterator[Drawn]:
    """In the order of the page. What its runs do not allow is left out."""
    most = most_kills(summary, experiment)
    model = experiment.startswith(MODELS)
    small = model or experiment == ONE_WORKER
    drawn = [
        *(curves.accuracy(summary, experiment, kills) for kills in range(1, most + 1)),
        None if small else close_up.close_up(summary, experiment),
        None if small else close_up.close_up(summary, experiment, kills=2, index=1),
        points.against_control(summary, experiment),
        points.kept(summary, experiment),
        points.time_to_target(summary, experiment),
        None if model else points.goodputs(summary, experiment),
        None if small else gradients.gradients(summary, experiment, most),
        None if small else gradients.fates(summary, experiment, most),
        None if small else resources.cpu(summary, experiment, most),
        None if small else resources.memory(summary, experiment, most),
        None if small else cost.worker_seconds(summary, experiment, most),
        None if small else cost.accuracy_against_cost(summary, experiment, most, prices),
    ]
    yield from (figure for figure in drawn if figure is not None)


def of_models(summary: Summary) -> Iterator[Drawn]:
    """Over several experiments: what normalisation changes."""
    figure = models.normalisation(summary)
    if figure is not None:
        yield figure


def of_backlog(summary: Summary) -> Iterator[Drawn]:
    records = summary.data.backlog
    drawn = (
        backlog.heat_map(records),
        backlog.heat_map(records, "loss"),
        backlog_lines.lines(records),
    )
    yield from (figure for figure in drawn if figure is not None)

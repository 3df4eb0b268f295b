"""Which figures a study has: for each experiment those of the paper, then ours, then the backlog's."""

from __future__ import annotations

from collections.abc import Iterator

from outlast_operator.study import (
    figures_backlog,
    figures_backlog_lines,
    figures_close_up,
    figures_cost,
    figures_curves,
    figures_gradients,
    figures_models,
    figures_points,
    figures_resources,
)
from outlast_operator.study.cost import PriceTable
from outlast_operator.study.experiments import ONE_WORKER
from outlast_operator.study.figure_style import Drawn
from outlast_operator.study.summary import Summary

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
        *(figures_curves.accuracy(summary, experiment, kills) for kills in range(1, most + 1)),
        None if small else figures_close_up.close_up(summary, experiment),
        None if small else figures_close_up.close_up(summary, experiment, kills=2, index=1),
        figures_points.against_control(summary, experiment),
        figures_points.kept(summary, experiment),
        figures_points.time_to_target(summary, experiment),
        None if model else figures_points.goodputs(summary, experiment),
        None if small else figures_gradients.gradients(summary, experiment, most),
        None if small else figures_gradients.fates(summary, experiment, most),
        None if small else figures_resources.cpu(summary, experiment, most),
        None if small else figures_resources.memory(summary, experiment, most),
        None if small else figures_cost.worker_seconds(summary, experiment, most),
        None if small else figures_cost.accuracy_against_cost(summary, experiment, most, prices),
    ]
    yield from (figure for figure in drawn if figure is not None)


def of_models(summary: Summary) -> Iterator[Drawn]:
    """Over several experiments: what normalisation changes."""
    figure = figures_models.normalisation(summary)
    if figure is not None:
        yield figure


def of_backlog(summary: Summary) -> Iterator[Drawn]:
    records = summary.data.backlog
    drawn = (
        figures_backlog.heat_map(records),
        figures_backlog.heat_map(records, "loss"),
        figures_backlog_lines.lines(records),
    )
    yield from (figure for figure in drawn if figure is not None)

"""Which figures a study has: for each experiment those of the paper, then ours, then the backlog's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from outlast_bench.study.analysis.cost import PriceTable
from outlast_bench.study.analysis.summary import Summary, target_is_told
from outlast_bench.study.design.experiments import ONE_WORKER
from outlast_bench.study.figures import backlog, cost, curves, models, overview, points, resources
from outlast_bench.study.figures.style import Drawn

MODELS = "models-"


def of_experiment(summary: Summary, experiment: str, prices: PriceTable) -> Iterator[Drawn]:
    """In the order of the page. What its runs do not allow is left out."""
    most = max((g.kills for g in summary.of(experiment)), default=0)
    model = experiment.startswith(MODELS)
    small = model or experiment == ONE_WORKER
    drawn = [
        *(curves.accuracy(summary, experiment, kills) for kills in range(1, most + 1)),
        None if small else curves.close_up(summary, experiment),
        None if small else curves.close_up(summary, experiment, kills=2, index=1),
        points.against_control(summary, experiment),
        points.kept(summary, experiment),
        points.time_to_target(summary, experiment) if target_is_told(summary, experiment, most) else None,
        None if model else points.goodputs(summary, experiment),
        None if small else resources.gradients(summary, experiment, most),
        None if small else resources.fates(summary, experiment, most),
        None if small else resources.cpu(summary, experiment, most),
        None if small else resources.memory(summary, experiment, most),
        None if small else cost.worker_seconds(summary, experiment, most),
        None if small else cost.accuracy_against_cost(summary, experiment, most, prices),
    ]
    yield from (figure for figure in drawn if figure is not None)


def of_study(summary: Summary, main: str, prices: PriceTable) -> Iterator[tuple[str, Iterable[Drawn]]]:
    """(part of the page, its figures), each drawn when it is asked for. `main`: what the verdicts are about."""
    records = summary.data.backlog
    yield "which", _drawn(overview.which(summary, main, prices))
    yield "backlog", _drawn(backlog.heat_map(records), backlog.heat_map(records, "loss"), backlog.lines(records))
    yield "models", _drawn(models.normalisation(summary))
    for experiment in summary.experiments:
        yield experiment, of_experiment(summary, experiment, prices)


def _drawn(*found: Drawn | None) -> list[Drawn]:
    return [figure for figure in found if figure is not None]

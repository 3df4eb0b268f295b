"""Models with and without normalisation: compared seed by seed, a divergence counted and not dropped."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from study_builder import several_models, write_run, write_study

from outlast.worker.errors import TrainingError
from outlast.worker.optimizer import Optimizer
from outlast_bench.study.analysis.load import StudyRun, load_study
from outlast_bench.study.analysis.summary import summarise
from outlast_bench.study.verdicts.models import decided, normalisation
from outlast_bench.study.verdicts.verdict import Row, Verdict

PLAIN = "models-net-plain"


def verdict(directory: Path) -> Verdict:
    found = normalisation(summarise(load_study(directory)))
    assert found is not None
    return found


def deciding(found: Verdict) -> list[Row]:
    return [row for row in found.rows if row.decides]


def words_of_a_divergence() -> str:
    """As `outlast run` tells it, in the trainer's words: were these changed, a divergence would pass for a crash."""
    worker = SimpleNamespace(_step=7, config=SimpleNamespace(slot=1))
    with pytest.raises(TrainingError) as caught:
        Optimizer._checked(cast(Any, worker), math.nan)
    return f"Failed: worker-1: {caught.value}"


def test_models_with_and_without_normalisation_are_compared(tmp_path: Path) -> None:
    found = verdict(several_models(tmp_path))
    assert found.holds is True  # the plain one keeps nothing
    assert len(deciding(found)) == 1  # checkpointing applies no backlog
    assert "; difference " in found.rows[0].figure
    write_study(tmp_path / "other", seeds=(0,), kills=(1,), configurations=("control", "stateless"))
    assert normalisation(summarise(load_study(tmp_path / "other"))) is None


def test_models_of_which_runs_failed_are_not_compared_by_the_rest(tmp_path: Path) -> None:
    several_models(tmp_path)
    write_run(tmp_path, PLAIN, "stateless", 1, 3, None, model=PLAIN)
    found = verdict(tmp_path)
    assert found.holds is None
    assert "1 of 4 runs failed" in found.rows[0].figure


def test_a_run_that_diverged_keeps_less_and_is_named(tmp_path: Path) -> None:
    several_models(tmp_path)
    write_run(tmp_path, PLAIN, "stateless", 1, 2, None, model=PLAIN, error=words_of_a_divergence())
    (tmp_path / f"runs/{PLAIN}/stateless/kills-1/seed-2/report.json").unlink()
    found = verdict(tmp_path)
    assert found.holds is True
    assert "1 of 3 runs failed (1 diverged); what diverged counts as keeping less" in found.rows[0].figure
    assert re.search(r"; differences in the seeds that both have [−\d.]+ to [−\d.]+, n = 2$", found.rows[0].figure)


def test_the_difference_is_that_of_the_two_shares_beside_it(tmp_path: Path) -> None:
    """And not the mean of three ratios: a seed whose control gained little would decide that."""
    several_models(tmp_path)
    path = tmp_path / "runs/models-net/control/kills-0/seed-2/report.json"
    report = json.loads(path.read_text())
    for sample in report["series"]:  # it gained a sixth of what the others did
        if sample["accuracy"] is not None:
            sample["accuracy"] = 0.45 + sample["accuracy"] / 6
    path.write_text(json.dumps(report))
    (row,) = deciding(verdict(tmp_path))
    told = re.findall(r"(?:with|without|difference) (-?[\d.]+)", row.figure.replace("−", "-"))
    with_, without, difference = (float(number) for number in told)
    assert difference == pytest.approx(with_ - without, abs=0.011)


def test_how_far_each_model_ends_from_its_own_control_stands_beside_the_verdict(tmp_path: Path) -> None:
    several_models(tmp_path)
    write_run(tmp_path, PLAIN, "stateless", 1, 2, None, model=PLAIN, error=words_of_a_divergence())
    (tmp_path / f"runs/{PLAIN}/stateless/kills-1/seed-2/report.json").unlink()
    ends = [row for row in verdict(tmp_path).rows if not row.decides]
    assert [row.label for row in ends] == ["net, Checkpoint, at the end", "net, Stateless, at the end"]
    assert all(row.met is None for row in ends)
    with_, without = ends[1].figure.split(", without ")
    assert re.fullmatch(r"with [−+][\d.]+ points \([−+][\d.]+ to [−+][\d.]+, n = 3\)", with_)
    assert without.endswith("n = 2); 1 of 3 runs failed (1 diverged)")


@pytest.mark.parametrize(
    ("error", "diverged"),
    [
        ("Failed: worker-0: the gradient of step 3 (slot 0) is not finite (norm nan); lower the rate", True),
        ("Failed: server-0 exited with 1 six times in a row", False),
        ("Failed: spec.training.optimizer.lr: nan is not a finite number", False),
        ("", False),
    ],
)
def test_a_divergence_is_told_by_the_recorded_error(error: str, diverged: bool) -> None:
    assert StudyRun("e", "stateless", 1, 0, status="failed", error=error).diverged is diverged
    assert StudyRun("e", "stateless", 1, 0, status="ok", error=error).diverged is False


@pytest.mark.parametrize(
    ("differences", "less"),
    [
        ([0.2, 0.1, 0.3], True),  # also where the two ranges overlap
        ([-0.2, -0.1, -0.3], False),
        ([0.2, -0.1, 0.3], None),
        ([math.inf, 0.1, 0.3], True),  # the plain one diverged once
        ([math.inf, -0.1, 0.3], None),
        ([-math.inf, -0.1, -0.3], False),
        ([math.inf, 0.0, 0.3], None),  # both diverged once
        ([0.2], None),
        ([], None),
        ([0.3, 0.4, 0.3, 0.4, -0.01], True),  # of five seeds the interval decides
    ],
)
def test_pairs_decide(differences: list[float], less: bool | None) -> None:
    assert decided(dict(enumerate(differences))) is less

"""Every example is a valid job, and names a task and arguments that exist."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from outlast.api.job import TrainingJob
from outlast.tasks import base, fashion_mnist, language, resnet, synthetic

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
JOBS = sorted(EXAMPLES.glob("*.yaml"))
ARGUMENTS = {
    "outlast.tasks.fashion_mnist": fashion_mnist.DEFAULTS,
    "outlast.tasks.language": language.DEFAULTS,
    "outlast.tasks.resnet": resnet.DEFAULTS,
    "outlast.tasks.synthetic": synthetic.DEFAULTS,
}


def test_there_are_examples() -> None:
    assert len(JOBS) >= 9


@pytest.mark.parametrize("path", JOBS, ids=lambda p: p.stem)
def test_example_is_a_valid_job(path: Path) -> None:
    job = TrainingJob.load(path)
    assert job.name == path.stem
    assert not job.warnings
    training = job.spec.training
    if training.script:
        source = (EXAMPLES / training.script).read_text()
        calls = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call)]
        made = [c for c in calls if ast.unparse(c.func) == "outlast.Optimizer"]
        assert len(made) == 1
        assert f"lr={training.optimizer.lr}" in ast.unparse(made[0])  # else the run would stop at the disagreement
        assert f"torch.optim.{training.optimizer.name}" in ast.unparse(made[0])
    else:
        assert training.task in ARGUMENTS
        base.read_args(training.args, ARGUMENTS[training.task], training.task)


@pytest.mark.parametrize("strategy", ["Checkpoint", "Chain", "Stateless", "Hybrid"])
def test_every_strategy_has_its_example(strategy: str) -> None:
    job = TrainingJob.load(EXAMPLES / f"fashion-mnist-{strategy.lower()}.yaml")
    assert job.spec.recovery.strategy == strategy
    assert job.spec.training.consistency == "Async"
    assert job.spec.training.stop_after.updates == 8000
    assert job.spec.workers.replicas == 2
    assert job.spec.servers.replicas == (3 if strategy in ("Chain", "Hybrid") else 1)

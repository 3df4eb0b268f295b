"""`training.script`: the example in a job and by itself, and scripts that cannot train."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from jobs import BOUND_S, ROOT, Lab, assert_sound, environment

pytestmark = pytest.mark.timeout(120)

EXAMPLES = ROOT / "examples"
SCRIPT = (EXAMPLES / "train_script.py").read_text()
README = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


def script_job(lab: Lab, source: str, updates: int = 200) -> dict[str, Any]:
    """The example's job with another script and fewer updates."""
    job: dict[str, Any] = yaml.safe_load((EXAMPLES / "script.yaml").read_text())
    (lab.path / "train_script.py").write_text(source)
    job["spec"]["training"]["stopAfter"] = {"updates": updates}
    return job


def losses(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"loss (\d+\.\d+)", text)]


def test_the_example_trains_through_the_death_of_its_head(lab: Lab) -> None:
    ended = lab.run(script_job(lab, SCRIPT, updates=600), kills=("head@update=250", "worker-1@update=400"))
    assert_sound(ended, updates=600)
    said = losses(ended.log("worker-0"))
    assert len(said) >= 2
    assert said[-1] < said[0]


def test_the_script_in_the_readme_trains_in_a_job(lab: Lab) -> None:
    (source,) = README
    assert_sound(lab.run(script_job(lab, source, updates=100)), updates=100)


def test_the_example_runs_alone(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "train_script.py")],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=True,
    )
    said = losses(done.stdout)
    assert len(said) == 20
    assert said[-1] < said[0] / 2


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (
            "torch.optim.SGD, lr=0.1",
            "torch.optim.Adam, lr=0.003",
            ("spec.training.optimizer asks for SGD(lr=0.1", "the code builds Adam(lr=0.003", "make the two agree"),
        ),
        ("outlast.Optimizer(model, ", "(lambda m, c, lr: exit_early())(model, ", ("made no outlast.Optimizer",)),
    ],
    ids=["disagrees", "none"],
)
def test_a_script_that_cannot_train_ends_the_job_with_the_reason(
    lab: Lab, before: str, after: str, words: tuple[str, ...]
) -> None:
    source = SCRIPT.replace(before, after)
    assert source != SCRIPT
    if "exit_early" in after:
        source = "print('nothing to see')\n"
    ended = lab.run(script_job(lab, source))
    assert ended.code == 1
    for word in words:
        assert word in ended.message, ended.message
    assert ended.duration_s < 90.0


def test_a_script_that_ends_early_ends_the_job_with_all_it_sent(lab: Lab) -> None:
    ended = lab.run(script_job(lab, SCRIPT.replace("range(2000)", "range(60)"), updates=10_000))
    assert_sound(ended, updates=100)
    assert ended.gradients["applied"] == ended.gradients["computed"] == 120
    assert ended.gradients["unapplied_at_end"] == 0

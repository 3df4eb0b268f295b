"""What the backlog experiment leaves behind: one file for each (workers, outage, seed), and how to read them.

    DIR/backlog/workers-W/outage-N/seed-S.json

Rules. (1) A record holds single evaluations, not their means, and what makes it again (`backlog_unit.unit_of`).
(2) The level of weights is the mean of several evaluations, over the ordinary updates that follow (`after`).
(3) Progress kept = what a policy gained, over what the control gained with as many gradients computed; in accuracy, or
in loss, of which less is gain. Over several seeds it is the ratio of the sums: a short outage gains so little that
single ratios mean nothing. (4) A loss above that of the untrained weights counts as theirs: a ruined seed has lost all
it could lose, and how far a number that grows without bound got decides no mean. Free of torch.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from outlast_bench.study.design.records import write_json

SCHEMA = 2
FOLDER = "backlog"

Measure = Literal["accuracy", "loss"]
MEASURES: tuple[Measure, ...] = ("accuracy", "loss")


@dataclass(frozen=True)
class Evaluations:
    """Of weights, and of what the ordinary updates after them made of them. A loss that is not finite is None."""

    accuracies: tuple[float, ...]
    losses: tuple[float | None, ...]

    def level(self, measure: Measure, guess_loss: float) -> float:
        """The mean; of losses negative, so that more is better in both."""
        if measure == "accuracy":
            return sum(self.accuracies) / len(self.accuracies)
        losses = [guess_loss if loss is None else min(loss, guess_loss) for loss in self.losses]
        return -sum(losses) / len(losses)


@dataclass(frozen=True)
class Start:
    """When the server is lost, and what the control's weights were then. `guess_loss`: of the untrained weights."""

    version: int
    guess_loss: float
    evaluations: Evaluations


@dataclass(frozen=True)
class Applied:
    """What became of one policy; the first evaluation is of the weights as the drain left them.

    `weight`: the whole gradients that the backlog counted as, None for local steps. `moved`: L2 norm of how far the
    weights moved. `diverged`: after the drain not finite, or worse than the untrained weights.
    """

    evaluations: Evaluations
    diverged: bool
    weight: float | None
    moved: float | None


@dataclass(frozen=True)
class BacklogRecord:
    """One outage of `outage` gradients among `workers` workers, and what each policy made of it.

    `control`: no outage, after as many gradients as were computed in it.
    """

    workers: int
    outage: int
    seed: int
    task: str
    args: dict[str, Any]  # of the task
    lr: float
    group: int  # gradients in one update, at most
    samples: int  # test images
    after: tuple[int, ...]  # at how many gradients more everything is evaluated
    quick: bool
    wall_s: float  # of all records of these workers and this seed
    start: Start
    control: Evaluations
    policies: dict[str, Applied]
    torch: str  # its version: another may round otherwise
    commit: str | None = None  # of the code that made it
    schema: int = SCHEMA

    def gained(self, policy: str, measure: Measure) -> float:
        return self._gain(self.policies[policy].evaluations, measure)

    def control_gained(self, measure: Measure) -> float:
        return self._gain(self.control, measure)

    def _gain(self, evaluations: Evaluations, measure: Measure) -> float:
        guess = self.start.guess_loss
        return evaluations.level(measure, guess) - self.start.evaluations.level(measure, guess)


def path_of(out: Path, workers: int, outage: int, seed: int) -> Path:
    return out / FOLDER / f"workers-{workers}" / f"outage-{outage}" / f"seed-{seed}.json"


def write(out: Path, record: BacklogRecord) -> Path:
    """Whole or absent."""
    path = path_of(out, record.workers, record.outage, record.seed)
    write_json(path, asdict(record), allow_nan=False)
    return path


def read(path: Path) -> BacklogRecord:
    """Raises `ValueError` that names the file if it is no record of this schema."""
    try:
        raw: dict[str, Any] = json.loads(path.read_text())
        if raw["schema"] != SCHEMA:
            raise ValueError(f"schema {raw['schema']}, expected {SCHEMA}")
        return BacklogRecord(**{**raw, **_typed(raw)})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is no record of the backlog experiment ({error}); delete it to make it anew"
        ) from error


def _typed(raw: dict[str, Any]) -> dict[str, Any]:
    """The fields that are more than JSON knows."""
    start = raw["start"]
    return {
        "after": tuple(raw["after"]),
        "start": Start(**{**start, "evaluations": _evaluations(start["evaluations"])}),
        "control": _evaluations(raw["control"]),
        "policies": {
            name: Applied(**{**applied, "evaluations": _evaluations(applied["evaluations"])})
            for name, applied in raw["policies"].items()
        },
    }


def _evaluations(raw: dict[str, Any]) -> Evaluations:
    return Evaluations(tuple(raw["accuracies"]), tuple(raw["losses"]))

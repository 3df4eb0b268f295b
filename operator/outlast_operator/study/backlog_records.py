"""What the backlog experiment leaves behind: one file for each (workers, outage, seed), and how to read them.

    DIR/backlog/workers-W/outage-N/seed-S.json

Progress kept = what a policy gained, over what the control gained with as many gradients computed. Over several seeds
it is the ratio of the sums: a short outage gains so little that single ratios mean nothing. Free of torch.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from outlast_operator.study.records import write_json

SCHEMA = 1
FOLDER = "backlog"


@dataclass(frozen=True)
class Start:
    """The weights when the server is lost. `guess_loss`: the loss of the untrained weights."""

    version: int
    accuracy: float
    loss: float
    guess_loss: float


@dataclass(frozen=True)
class Control:
    """No outage: after as many gradients as were computed in it, and after as many more as follow the drain."""

    accuracy_at_equal_time: float
    loss_at_equal_time: float
    accuracy_later: float
    loss_later: float


@dataclass(frozen=True)
class Applied:
    """What became of one policy. A loss that is not finite is None.

    `weight`: the whole gradients that the backlog counted as, None for local steps. `moved`: L2 norm of how far the
    weights moved. `diverged`: not finite, or worse than the untrained weights. Later: after more gradients as ever.
    """

    accuracy_after_drain: float
    loss_after_drain: float | None
    accuracy_later: float | None
    loss_later: float | None
    diverged: bool
    weight: float | None
    moved: float | None


@dataclass(frozen=True)
class BacklogRecord:
    """One outage of `outage` gradients among `workers` workers, and what each policy made of it."""

    workers: int
    outage: int
    seed: int
    task: str
    lr: float
    group: int  # gradients in one update, at most
    samples: int  # test images
    later: int  # gradients computed after the drain
    quick: bool
    wall_s: float  # of all records of these workers and this seed
    start: Start
    control: Control
    policies: dict[str, Applied]
    commit: str | None = None  # of the code that made it
    schema: int = SCHEMA

    def gained(self, policy: str) -> float:
        return self.policies[policy].accuracy_after_drain - self.start.accuracy

    @property
    def control_gained(self) -> float:
        return self.control.accuracy_at_equal_time - self.start.accuracy


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
        policies = {name: Applied(**applied) for name, applied in raw["policies"].items()}
        whole = {**raw, "start": Start(**raw["start"]), "control": Control(**raw["control"]), "policies": policies}
        return BacklogRecord(**whole)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is no record of the backlog experiment ({error}); delete it to make it anew"
        ) from error


def load_all(out: Path) -> list[BacklogRecord]:
    """All records of a study, by workers, outage and seed."""
    found = [read(path) for path in (out / FOLDER).glob("workers-*/outage-*/seed-*.json")]
    return sorted(found, key=lambda r: (r.workers, r.outage, r.seed))

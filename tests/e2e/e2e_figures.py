"""What the end-to-end tests measured: name, figure, what it must be, whether it holds. To build/e2e.json and a table.

A time that misses its bound fails `make e2e-full`; elsewhere, on machines that do other things too, only five times the
bound does: that is a hang. What is no time (gradients lost, say) must always hold.

A session of some tests only keeps the figures that others of the same commit, with no file changed, have left.
"""

from __future__ import annotations

import json
import math
import operator
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

PATIENCE = 5.0
FULL = os.environ.get("OUTLAST_E2E_FULL", "") not in ("", "0")
KILLS = 20 if FULL else 3
CHANGED = "-changed"

_COMPARE: dict[str, Callable[[float, float], bool]] = {"<=": operator.le, ">=": operator.ge, "==": operator.eq}


@dataclass
class Figure:
    figure: float
    must: str
    holds: bool
    samples: list[float] = field(default_factory=list)
    commit: str = ""  # of what was tested; `-changed` where files differ from it
    full: bool = FULL


class Figures:
    """One session's figures, in the order in which they were taken."""

    def __init__(self) -> None:
        self.taken: dict[str, Figure] = {}

    def time(self, name: str, seconds: float | Sequence[float], at_most: float) -> None:
        """A time, or the 95th percentile of several. Fails the test where it misses (see above)."""
        samples = [seconds] if isinstance(seconds, int | float) else list(seconds)
        value = percentile(samples, 95)
        self._take(name, value, "<=", at_most, " s", samples)
        bound = at_most if FULL else at_most * PATIENCE
        assert value <= bound, f"{name}: {value:.3f} s of {_listed(samples)}, but at most {bound:g} s"

    def idle(self, name: str, share: float, at_most: float) -> None:
        """A share of time, 0 to 1: forgiven as times are."""
        self._take(name, share, "<=", at_most, "", [])
        bound = at_most if FULL else at_most * PATIENCE
        assert share <= bound, f"{name}: {share:.3f}, but at most {bound:g}"

    def number(self, name: str, value: float, relation: str, bound: float) -> None:
        """A count or a share, with its relation (<=, >=, ==) to a bound. Fails the test unless it holds."""
        self._take(name, value, relation, bound, "", [])
        assert _COMPARE[relation](value, bound), f"{name}: {value:g}, but it must be {relation} {bound:g}"

    def _take(self, name: str, value: float, relation: str, bound: float, unit: str, samples: list[float]) -> None:
        holds = _COMPARE[relation](value, bound)
        self.taken[name] = Figure(round(value, 4), f"{relation} {bound:g}{unit}", holds, [round(s, 4) for s in samples])

    def write(self, path: Path) -> None:
        commit = _commit(Path(__file__).parent)
        taken = {name: asdict(replace(f, commit=commit)) for name, f in self.taken.items()}
        exact = commit and not commit.endswith(CHANGED)
        kept = {} if not exact or not path.exists() else json.loads(path.read_text())
        kept = {name: f for name, f in kept.items() if (f.get("commit"), f.get("full")) == (commit, FULL)}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(kept | taken, indent=1) + "\n")

    def table(self) -> list[str]:
        width = max(map(len, self.taken), default=0)
        return [
            f"{name:<{width}}  {f.figure:>9g}  {f.must:<10}  {'holds' if f.holds else 'MISSES'}"
            + (f"  (n={len(f.samples)}, median {percentile(f.samples, 50):.3g})" if len(f.samples) > 1 else "")
            for name, f in self.taken.items()
        ]


def _commit(here: Path) -> str:
    """Of the checkout that holds `here`; empty where there is none."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + (CHANGED if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def percentile(samples: Sequence[float], percent: float) -> float:
    """The smallest sample that `percent` % of them do not exceed (nearest rank)."""
    if not samples:
        raise ValueError("no sample was taken, so there is no percentile of them; the measurement did not run")
    ordered = sorted(samples)
    return float(ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)])


def _listed(samples: Sequence[float]) -> str:
    return ", ".join(f"{s:.3g}" for s in samples)

"""Outlast: PyTorch training that outlasts its parameter servers.

`import outlast` is cheap and needs no torch: `outlast.Optimizer`, the drop-in for a torch optimizer, and the exceptions
that a script may catch are loaded when they are first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outlast.worker.errors import TrainingError, TrainingFinished
    from outlast.worker.optimizer import Optimizer

__version__ = "0.1.0"
__all__ = ["Optimizer", "TrainingError", "TrainingFinished", "__version__"]

_LAZY = {
    "Optimizer": "outlast.worker.optimizer",
    "TrainingError": "outlast.worker.errors",
    "TrainingFinished": "outlast.worker.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])

"""Which cases a run has: `make e2e` and the like every one, `make test` one of each kind, to end within its time."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import Any

import pytest
from e2e_figures import FULL

_EVERY = FULL or os.environ.get("OUTLAST_E2E_EVERY", "") not in ("", "0")
every = pytest.mark.skipif(not _EVERY, reason="for make e2e: make test has another case of its kind")


def kept(values: Sequence[Any], always: Collection[str]) -> list[Any]:
    """Parameters of a test; `make test` has those whose id, or whose word, is in `always`."""
    names = [str(getattr(value, "id", value)) for value in values]
    assert set(always) <= set(names), f"{sorted(set(always) - set(names))} are no cases"
    marks = [() if name in always else every for name in names]
    return [pytest.param(v, id=n, marks=m) for v, n, m in zip(values, names, marks, strict=True)]

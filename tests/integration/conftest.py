"""Fixtures of the integration tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs import Lab


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """Where a test runs its jobs; everything that they started is ended with it."""
    made = Lab(tmp_path)
    yield made
    made.close()

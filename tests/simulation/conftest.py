"""Options of the simulation: `pytest tests/simulation --seeds 500 --seed 1234`."""

from __future__ import annotations

import pytest

DEFAULT_SEEDS = 6


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("simulation")
    group.addoption("--seeds", type=int, default=DEFAULT_SEEDS, help="how many seeds of every scenario")
    group.addoption("--seed", type=int, default=0, help="the first seed")


@pytest.fixture
def seeds(request: pytest.FixtureRequest) -> range:
    # Unknown to pytest when it was not started for this directory: then the defaults.
    first = int(request.config.getoption("seed", 0))
    return range(first, first + int(request.config.getoption("seeds", DEFAULT_SEEDS)))

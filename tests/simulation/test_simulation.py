"""Every scenario, under faults drawn from its seeds. A failure names its seed and shows the last events."""

from __future__ import annotations

import pytest
from scenarios import SCENARIOS, simulate
from world import Scenario, World


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_promises_are_kept(scenario: Scenario, seeds: range) -> None:
    for seed in seeds:
        simulate(scenario, seed)


@pytest.mark.parametrize("scenario", SCENARIOS[::6], ids=lambda scenario: scenario.name)
def test_a_seed_is_a_run(scenario: Scenario) -> None:
    first, second = World(scenario, 7).run(), World(scenario, 7).run()
    assert first.clock.count == second.clock.count
    assert first.tell(400) == second.tell(400)

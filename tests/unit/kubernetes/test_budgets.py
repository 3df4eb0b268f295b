"""A job's disruption budgets: made, put back, deleted; and nothing else depends on them."""

from __future__ import annotations

import pytest
from fake_api import AtOnce, FakeApi
from plan_world import make_spec

from outlast_operator.kubernetes.cluster.api import ApiError
from outlast_operator.kubernetes.job.budgets import LOOK_S, PLURAL, Budgets
from outlast_operator.kubernetes.manifests.names import JobRef

JOB = JobRef("mnist", "team", "uid-1")
CHAIN = make_spec("Chain", servers__shards=2)


class World:
    def __init__(self) -> None:
        self.api, self.now = FakeApi(), 100.0
        self.budgets = Budgets(self.api, JOB, AtOnce(), lambda: self.now)  # type: ignore[arg-type]

    @property
    def names(self) -> list[str]:
        return self.api.names(PLURAL)


def test_budgets_are_made_once_put_back_and_deleted_with_the_job() -> None:
    world = World()
    world.budgets.keep(CHAIN, ended=False)
    assert world.names == ["mnist-shard-0", "mnist-shard-1"]
    del world.api.objects["team", PLURAL, "mnist-shard-0"]
    world.api.objects["team", PLURAL, "mnist-shard-1"]["spec"]["minAvailable"] = 0
    world.budgets.keep(CHAIN, ended=False)
    assert world.names == ["mnist-shard-1"], "it looks now and then"
    world.now += LOOK_S
    world.budgets.keep(CHAIN, ended=False)
    assert world.names == ["mnist-shard-0", "mnist-shard-1"]
    assert world.api.objects["team", PLURAL, "mnist-shard-1"]["spec"]["minAvailable"] == 2
    world.budgets.keep(CHAIN, ended=True)
    assert world.names == []


def test_a_budget_of_another_job_is_left_alone() -> None:
    world = World()
    other = Budgets(world.api, JobRef("mnist", "team", "uid-2"), AtOnce(), lambda: 0.0)  # type: ignore[arg-type]
    other.keep(CHAIN, ended=False)
    world.budgets.keep(CHAIN, ended=True)
    assert world.names == ["mnist-shard-0", "mnist-shard-1"]


def test_without_the_right_the_job_goes_on_and_it_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.api.refuse = lambda plural, body: ApiError(403, "Forbidden", "cannot create resource")
    world.budgets.keep(CHAIN, ended=False)
    assert world.names == []
    assert "disruption budgets: 403" in caplog.text
    world.api.refuse = lambda plural, body: None
    world.now += LOOK_S
    world.budgets.keep(CHAIN, ended=False)
    assert len(world.names) == 2

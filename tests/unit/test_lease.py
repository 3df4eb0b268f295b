"""Who leads: the Lease is taken when it is free, renewed while held, and taken over when its holder is silent."""

from __future__ import annotations

import pytest
from fake_api import FakeApi

from outlast_operator.kubernetes.lease import DURATION_S, Leadership


def member(api: FakeApi, name: str) -> Leadership:
    return Leadership(api, "n", "outlast-operator", name, lambda leading: None)  # type: ignore[arg-type]


def tries(candidate: Leadership, now: float) -> bool:
    leads = candidate._try(now)
    candidate._set(leads)
    return leads


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


def holder(api: FakeApi) -> str:
    return str(api.objects["n", "leases", "outlast-operator"]["spec"]["holderIdentity"])


def test_one_leads_and_the_other_waits(api: FakeApi) -> None:
    one, other = member(api, "one"), member(api, "other")
    assert tries(one, 0.0)
    assert not tries(other, 0.1)
    for step in range(1, 20):
        now = step * 2.0
        assert tries(one, now)
        assert not tries(other, now + 0.1)
    assert holder(api) == "one"


def test_a_silent_holder_is_followed_after_its_time(api: FakeApi) -> None:
    one, other = member(api, "one"), member(api, "other")
    assert tries(one, 0.0)
    assert not tries(other, 100.0), "its own clock has only begun to look"
    assert not tries(other, 100.0 + DURATION_S - 0.1)
    assert tries(other, 100.0 + DURATION_S)
    assert not tries(one, 101.0 + DURATION_S), "who was away too long learns it at the next renewal"
    assert holder(api) == "other"
    assert api.objects["n", "leases", "outlast-operator"]["spec"]["leaseTransitions"] == 1


def test_the_same_pod_goes_on_at_once(api: FakeApi) -> None:
    assert tries(member(api, "one"), 0.0)
    assert tries(member(api, "one"), 0.5)


def test_a_lease_that_was_given_back_is_free(api: FakeApi) -> None:
    one, other = member(api, "one"), member(api, "other")
    assert tries(one, 0.0)
    one._give_back()
    assert tries(other, 0.1)


def test_a_lease_that_somebody_deleted_is_made_anew(api: FakeApi) -> None:
    one = member(api, "one")
    assert tries(one, 0.0)
    del api.objects["n", "leases", "outlast-operator"]
    assert tries(one, 2.0)
    assert tries(one, 4.0)

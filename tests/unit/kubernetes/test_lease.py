"""Who leads: the Lease is taken when it is free, renewed while held, and taken over when its holder is silent."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from fake_api import FakeApi

from outlast_operator.kubernetes.cluster.api import LEASES, Api, ApiError
from outlast_operator.kubernetes.cluster.lease import CALL_S, DEADLINE_S, DURATION_S, Leadership


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


def test_who_gives_the_lease_back_acts_no_more() -> None:
    """What its loops are in the middle of would go on beside the next leader."""
    api, now = FakeApi(), 0.0
    one = Leadership(api, "n", "outlast-operator", "one", lambda leading: None, lambda: now)  # type: ignore[arg-type]
    one._thread.start()
    while not one.holds:
        one._turn()
    one.stop()
    assert holder(api) == ""
    assert not one.holds


def test_a_lease_that_somebody_deleted_is_made_anew(api: FakeApi) -> None:
    one = member(api, "one")
    assert tries(one, 0.0)
    del api.objects["n", "leases", "outlast-operator"]
    assert tries(one, 2.0)
    assert tries(one, 4.0)


class Slow(FakeApi):
    """Its answers take `delay_s`, and are errors while it is `down`."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.delay_s, self.down = 0.0, 0.0, False

    def replace(self, *args: Any, **kwargs: Any) -> Any:
        self._pass()
        return super().replace(*args, **kwargs)

    def get(self, *args: Any) -> Any:
        self._pass()
        return super().get(*args)

    def _pass(self) -> None:
        self.now += self.delay_s
        if self.down:
            raise ApiError(0, "Unreachable", "read timed out")


@pytest.fixture
def slow() -> Slow:
    return Slow()


def leader(api: Slow, told: list[bool]) -> Leadership:
    made = Leadership(api, "n", "outlast-operator", "one", told.append, lambda: api.now)  # type: ignore[arg-type]
    made._turn()
    assert made.holds
    return made


def test_who_cannot_renew_leads_no_more_before_anybody_else_may(slow: Slow) -> None:
    told: list[bool] = []
    one = leader(slow, told)
    slow.down = True
    slow.now = DEADLINE_S - 0.1
    one.check()
    assert one.holds
    slow.now = DEADLINE_S
    assert not one.holds, "asked before each act, it needs no watchdog"
    one.check()
    assert told == [True, False]
    assert DEADLINE_S < DURATION_S


def test_a_renewal_that_comes_too_late_is_none(slow: Slow) -> None:
    told: list[bool] = []
    one = leader(slow, told)
    slow.now, slow.delay_s = 2.0, DEADLINE_S
    one._turn()
    assert not one.holds
    assert told == [True, False]


def test_an_error_alone_is_no_loss(slow: Slow) -> None:
    told: list[bool] = []
    one = leader(slow, told)
    slow.now, slow.down = 2.0, True
    one._turn()
    one.check()
    assert one.holds
    slow.down = False
    one._turn()
    assert told == [True]


def test_requests_about_the_lease_have_a_limit_of_their_own() -> None:
    limits: list[Any] = []

    def request(method: str, url: str, timeout: Any, **_: Any) -> Any:
        limits.append(timeout)
        return SimpleNamespace(status=200, data=b"{}")

    configuration = SimpleNamespace(host="https://h", auth_settings=dict)
    rest = SimpleNamespace(pool_manager=SimpleNamespace(request=request))
    api = Api(SimpleNamespace(configuration=configuration, rest_client=rest))  # type: ignore[arg-type]
    api.within(CALL_S).get(LEASES, "n", "leases", "x")
    assert limits[0].total == CALL_S
    assert api.requests["GET", "leases"] == 1, "they are counted with the others"

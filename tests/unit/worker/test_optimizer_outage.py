"""`outlast.Optimizer` in an outage: which steps it takes itself, when it sends them, and what it holds back."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import outlast
from outlast.api.config import ProcessConfig, ServerAddress
from outlast.api.job import read_spec
from outlast.chain.events import DataPlan, Kind
from outlast.model.flat import FlatModel
from outlast.worker.client import Client
from outlast.worker.errors import Superseded, TrainingError
from outlast.worker.optimizer import Optimizer, joined

SLOTS = 4


class FakeInbox:
    """One shard's weights, of version 3."""

    versions, histories, torn = (3,), (0,), False

    def __init__(self) -> None:
        self.data, self.clocks = DataPlan(slots=SLOTS), dict[int, int]()
        self.arrivals = self.has = 0

    @property
    def arrivals_by_shard(self) -> list[int]:
        return [self.arrivals]

    def arrived_since(self, seen: list[int]) -> bool:
        return self.arrivals > seen[0]

    def applied(self, step: int) -> bool:
        return self.has >= step


class FakeClient:
    """A client whose servers are there or not, as the test says. Everything sent stays in `sent`."""

    made: FakeClient

    def __init__(self, config: Any, spec: Any, manifest: Any, optimizer: Any, initial: torch.Tensor) -> None:
        FakeClient.made = self
        self.down = False
        self.session = SimpleNamespace(outage=lambda: self.down, unanswered=0, buffer_down=False, finished=False)
        self.outbox = SimpleNamespace(fenced=False, failure=None, session=self.session)
        self.inbox = FakeInbox()
        self.stopped = self.resync = False
        self.samples = list
        self.weights = initial.clone()
        self.sent: list[tuple[Kind, int, int, list[float], float]] = []
        self.facts: list[tuple[str, int]] = []
        self.asked = -1  # joining asks, too

    def start(self) -> None: ...

    def highest_step(self, slot: int) -> int:
        return 0

    def request(self, versions: Any = None) -> None:
        self.asked += 1
        if not self.down:
            self.inbox.arrivals += 1

    def take_resync(self) -> bool:
        return False

    def copy_weights(self, out: torch.Tensor) -> None:
        out.copy_(self.weights)

    def take(self, timeout_s: float | None = None) -> Any:
        return SimpleNamespace(tensor=torch.zeros_like(self.weights))

    def record(self, fact: Any, first: int, last: int) -> None:
        self.facts.append((fact.name, first))

    def submit(self, first: int, last: int, lease: Any, kind: Kind, scale: float) -> Any:
        self.sent.append((kind, first, last, [round(v, 5) for v in lease.tensor.tolist()], scale))
        return SimpleNamespace(outcome=None, last=last)

    def wait_until(self, ready: Any, timeout_s: float | None = None) -> bool:
        return bool(ready())


class Worker:
    """One parameter that begins at 1; `step(g)` steps along the gradient g."""

    def __init__(self, every_s: float = 1e6, cls: type[torch.optim.Optimizer] = torch.optim.SGD) -> None:
        spec = {
            "training": {"task": "a.b", "stopAfter": {"updates": 9}, "optimizer": {"name": cls.__name__, "lr": 0.01}},
            "workers": {"replicas": SLOTS},
            "recovery": {"strategy": "Hybrid", "staleness": {"outage": {"sendEverySeconds": every_s}}},
        }
        servers = ((ServerAddress("server-0", "tcp:h:1"),),)
        config = ProcessConfig("job", "uid", "token", "worker", "worker-0", spec, servers)
        self.p = nn.Parameter(torch.tensor([1.0]))
        self.optimizer = Optimizer([self.p], cls, config, lr=0.01)
        self.client = FakeClient.made

    def step(self, gradient: float) -> None:
        self.p.grad = torch.tensor([gradient])
        self.optimizer.step()

    @property
    def weight(self) -> float:
        return round(float(self.p.detach()), 5)


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("outlast.worker.remote_optimizer.Client", FakeClient)
    yield
    joined.clear()


def test_in_an_outage_nothing_is_sent_and_all_is_stepped_at_the_rate_of_all_workers() -> None:
    worker = Worker()
    worker.client.down = True
    worker.step(1.0)
    worker.step(1.0)
    assert worker.client.sent == []
    assert worker.weight == 1.0 - 2 * 0.01 * SLOTS


def come_back(worker: Worker, weights: float) -> None:
    """Servers answer again, with these weights."""
    worker.client.down = False
    worker.client.weights.fill_(weights)
    worker.client.inbox.arrivals += 1


def just_reached_again(every_s: float = 1e6) -> Worker:
    """A worker that has taken one step in an outage, and one after it: servers answer, with 0.5 for weights."""
    worker = Worker(every_s)
    worker.client.down = True
    worker.step(1.0)
    come_back(worker, 0.5)
    worker.step(1.0)
    return worker


def test_servers_that_are_back_get_the_difference_and_are_followed_once_they_have_applied_it() -> None:
    worker = just_reached_again()
    assert worker.client.sent == [(Kind.DELTA, 1, 2, [0.08], 1 / SLOTS)]
    worker.step(1.0)
    worker.client.inbox.has = 1  # what came before: the backlog is being applied
    worker.step(1.0)
    assert len(worker.client.sent) == 1, "computed on weights of its own: no gradient that passes for fresh"
    assert worker.weight == 1.0 - 4 * 0.01 * SLOTS, "nor are weights taken that lack all that was moved"
    assert worker.client.asked == 3, "clocks come with weights"
    worker.client.inbox.has = 2
    worker.step(1.0)
    assert worker.client.sent[1:] == [(Kind.DELTA, 3, 5, [0.12], 1 / SLOTS)]
    assert worker.weight == 0.5, "the servers' weights, for the next gradient"
    worker.step(2.0)
    assert worker.client.sent[2] == (Kind.UPDATE, 6, 6, [2.0], 1.0)


def test_of_steps_sent_while_servers_catch_up_none_is_waited_for() -> None:
    """Else a worker that sends after every step would never come to an end."""
    worker = just_reached_again(every_s=1e-9)
    worker.step(1.0)
    worker.client.inbox.has = 2  # all from before they came back, not the third
    worker.step(1.0)
    assert [sent[:3] for sent in worker.client.sent] == [(Kind.DELTA, n, n) for n in (1, 2, 3, 4)]
    assert worker.weight == 0.5


def test_servers_lost_again_while_they_catch_up_are_waited_for_anew() -> None:
    worker = just_reached_again()
    worker.client.down = True
    worker.step(1.0)
    worker.client.inbox.has = 2
    come_back(worker, 0.6)
    worker.step(1.0)
    assert [sent[:3] for sent in worker.client.sent] == [(Kind.DELTA, 1, 2), (Kind.DELTA, 3, 4)]
    worker.step(1.0)
    assert worker.weight == 1.0 - 5 * 0.01 * SLOTS, "they have the first difference, not the second"
    worker.client.inbox.has = 4
    worker.step(1.0)
    assert worker.weight == 0.6


def test_what_was_moved_is_sent_every_few_seconds_one_at_a_time() -> None:
    worker = Worker(every_s=1e-9)
    worker.client.down = True
    worker.step(1.0)
    worker.client.session.unanswered = 2  # Redis is slow, or away
    worker.step(1.0)
    worker.step(1.0)
    worker.client.session.unanswered = 0
    worker.step(1.0)
    assert [(first, last, moved) for _, first, last, moved, _ in worker.client.sent] == [
        (1, 1, [0.04]),
        (2, 4, [0.12]),
    ]
    worker.client.down = False
    worker.step(1.0)
    assert worker.client.sent[2][:4] == (Kind.DELTA, 5, 5, [0.04])


def test_told_to_end_in_an_outage_it_hands_its_steps_over() -> None:
    worker = Worker()
    assert not worker.optimizer.hand_over(), "nothing is here alone"
    worker.client.down = True
    worker.step(1.0)
    assert worker.optimizer.hand_over()
    with pytest.raises(Superseded) as ended:
        worker.step(1.0)
    assert ended.value.code == 143
    assert worker.client.sent == [(Kind.DELTA, 1, 2, [0.08], 1 / SLOTS)]


def test_a_local_gradient_that_is_not_finite_costs_the_steps_since_the_last_sent_alone() -> None:
    worker = Worker(every_s=1e-9)
    worker.client.down = True
    worker.step(1.0)  # sent
    worker.client.session.unanswered = 2
    worker.step(1.0)
    worker.step(math.inf)
    assert worker.weight == 0.96
    worker.client.session.unanswered = 0
    worker.step(1.0)
    assert [sent[1:4] for sent in worker.client.sent] == [(1, 1, [0.04]), (4, 4, [0.04])]


def test_a_gradient_that_is_not_finite_at_weights_of_the_servers_ends_the_job() -> None:
    worker = Worker()
    worker.client.down = True
    with pytest.raises(TrainingError, match="not finite"):
        worker.step(math.nan)


def test_adams_rate_stays() -> None:
    worker = Worker(cls=torch.optim.Adam)
    worker.client.down = True
    worker.step(1.0)
    assert worker.weight == 0.99


def test_the_exceptions_that_a_script_may_catch_are_public() -> None:
    assert outlast.TrainingError is TrainingError
    assert issubclass(outlast.TrainingFinished, SystemExit)
    assert outlast.TrainingFinished("done").code == 0


@pytest.mark.parametrize(("consistency", "appends"), [("Async", True), ("Sync", False)])
def test_a_hybrid_worker_has_an_appender_only_where_gradients_are_buffered(consistency: str, appends: bool) -> None:
    training = {"task": "a.b", "stopAfter": {"updates": 1}, "consistency": consistency}
    spec = read_spec({"training": training, "recovery": {"strategy": "Hybrid"}})
    servers = ((ServerAddress("server-0", "tcp:nowhere:1"),),)
    url = "redis://nowhere:1" if appends else None
    config = ProcessConfig("job", "uid", "token", "worker", "worker-0", spec.to_json(), servers, redis_url=url)
    flat = FlatModel([[("w", nn.Parameter(torch.zeros(4)))]], [])
    client = Client(config, spec, flat.manifest, {}, torch.zeros(4))
    assert (client.appender is not None) == appends

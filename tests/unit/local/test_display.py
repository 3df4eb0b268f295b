"""What a user is shown: the chain as it is, an outage in plain words, and how far the job has come."""

from __future__ import annotations

import io
import json
import math
import time
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from outlast.api.job import read_spec
from outlast.api.server_status import Evaluation, ServerStatus
from outlast.api.view import Member, View
from outlast_operator.local.display import Link, Scene, chain, outage_text, render, summary
from outlast_operator.local.monitor import Moment, current_version
from outlast_operator.planner.observed import Probe
from outlast_operator.planner.status import Failover, JobStatus, Progress

MEMBERS = tuple(Member(f"server-{i}", f"boot{i}", f"unix:/{i}") for i in range(3))
STATUS = JobStatus(state="Running", views={0: View(0, 4, 1, MEMBERS[1:], joining=MEMBERS[:1])})
PROBES = {
    "server-1": Probe("server-1", "boot1", role="head", serving=True, initialised=True, version=120),
    "server-2": Probe("server-2", "another", role="empty", initialised=True, version=119),
}


def scene(strategy: str = "Chain", **changes: Any) -> Scene:
    training = {"task": "outlast.tasks.synthetic", "stopAfter": {"updates": 400, "accuracy": 0.9}}
    spec = read_spec({"training": training, "recovery": {"strategy": strategy}})
    moment = Moment(time.monotonic(), 120, Evaluation(100, 0.72, 0.5), PROBES, 33.3, 130)
    return replace(Scene("job", spec, 12.0, moment, STATUS, {}, workers=2), **changes)


def test_a_chain_is_shown_with_what_each_member_says_it_is() -> None:
    expected = [Link("server-1", "head"), Link("server-2", "gone"), Link("server-0", "joining")]
    assert chain(0, STATUS, PROBES) == expected
    assert chain(1, STATUS, PROBES) == []


def test_percent_is_that_of_the_nearest_goal() -> None:
    assert scene().percent == pytest.approx(80.0)
    nothing = replace(scene().moment, version=0, evaluation=None)
    assert scene(moment=nothing).percent == 0.0


@pytest.mark.parametrize(
    ("strategy", "redis", "words"),
    [
        ("Chain", None, "workers wait"),
        ("Hybrid", True, "workers keep computing, their gradients go to Redis"),
        ("Hybrid", False, "workers wait"),
    ],
)
def test_an_outage_says_what_it_means(strategy: str, redis: bool | None, words: str) -> None:
    text = outage_text(0, 2.14, scene(strategy).spec, redis)
    assert text == f"shard 0 has no head for 2.1 s: {words}"


def test_the_summary_is_one_line() -> None:
    line = summary(scene(outages={0: 1.0}))
    assert "\n" not in line
    assert "version 120, accuracy 0.720, 33.3 gradients/s" in line
    assert "[0: server-1 head > server-2 gone > server-0 joining]" in line
    assert "shard 0 has no head for 1.0 s" in line


@pytest.mark.parametrize(
    ("accuracy", "loss", "words"),
    [
        (0.72, 0.5, "accuracy 0.720, 33.3"),
        (math.nan, 0.5, "version 120, loss 0.5000, 33.3"),
        (0.1, math.inf, "accuracy 0.100, 33.3"),
        (math.nan, math.nan, "version 120, loss not finite: training has diverged, 33.3"),
    ],
)
def test_a_task_may_know_no_accuracy_and_a_loss_may_diverge(accuracy: float, loss: float, words: str) -> None:
    found = {"version": 100, "accuracy": accuracy, "loss": loss}
    status = ServerStatus.from_json({"name": "server-1", "boot": "boot1", "evaluation": found})
    moment = replace(scene().moment, evaluation=status.evaluation)
    assert words in summary(scene(moment=moment))
    assert 0.0 <= (scene(moment=moment).percent or 0.0) <= 100.0
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(render(scene(moment=moment)))
    assert ("diverged" in console.export_text()) == (not math.isfinite(loss))
    measured = Progress(version=120, accuracy=moment.evaluation.accuracy, loss=moment.evaluation.loss)
    json.dumps(replace(STATUS, progress=measured).to_json(), allow_nan=False)  # as the API server wants it


def test_the_live_view_shows_chain_outage_operator_and_failovers() -> None:
    failover = Failover("server-0", "Killed", 5.0, t_first_update=5.25)
    status = replace(STATUS, failovers=(failover,))
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(render(scene("Hybrid", status=status, outages={0: 1.0}, redis=False, operator=False)))
    text = console.export_text()
    for words in (
        "● server-1 head ─▶ ✗ server-2 gone ┄▶ ● server-0 joining   epoch 4, 1 rollback",
        "shard 0 has no head for 1.0 s",
        "down: training continues, failovers wait",
        "1; last: server-0 killed, next update 0.25 s after detection",
        "✗ down",
        "2 of 2, 33.3 gradients/s",
    ):
        assert words in text


def test_the_version_is_the_one_that_all_shards_have_reached() -> None:
    other = Probe("server-3", "b", shard=1, role="single", initialised=True, version=118)
    assert current_version(PROBES.values()) == 120
    assert current_version([*PROBES.values(), other]) == 118
    assert current_version([]) == 0

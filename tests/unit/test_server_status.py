"""A server's status on the wire: what stands there, and what a reader makes of another release's document."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from typing import Any

import pytest

from outlast.api.server_status import CheckpointRef, Evaluation, ServerStatus, ViewTimes

WIRE: dict[str, Any] = {
    "name": "server-0", "boot": "b", "shard": 1, "address": "unix:/s", "pid": 7, "t": 12.5, "role": "head", "epoch": 3,
    "history": 1, "serving": True, "initialised": True, "why_not_ready": "", "restoring": None, "restore_error": None,
    "config_error": None, "leaving": False, "left": False, "finished": False, "caught_up": ["b2"], "broken": ["b3"],
    "views": {"3": {"installed_t": 10.0, "first_update_t": None}}, "version": 40, "former_version": 2, "slots": 2,
    "clocks": {"0": 20, "1": 20}, "absent": {"1": 11.5}, "connected": [0], "applied": 40, "applied_total": 40,
    "applied_t": 12.0, "replayed": 4, "duplicates": 1, "staleness": [3, 40], "parameters": 10, "pushed_bytes": 60,
    "pulled_bytes": 80, "checkpoints": [{"name": "c", "history": 1, "version": 30, "epoch": 3, "crc": 9}],
    "last_states": ["last-00001-b0"], "backlog": 5, "buffer_bytes": 50, "buffer_run": "r", "log_end_t": 12.4,
    "evaluation": {"version": 30, "accuracy": 0.5, "loss": 1.0, "samples": 9, "t": 12.0}, "redis_answered_t": 12.4,
    "redis_silent_t": None,
}  # fmt: skip


def test_the_document_says_all_of_it_and_nothing_else() -> None:
    status = ServerStatus.from_json(WIRE)
    assert json.loads(json.dumps(status.to_json())) == WIRE
    assert set(WIRE) == {f.name for f in fields(ServerStatus)} - {"tells_silence"}
    assert (status.views, status.absent) == ({3: ViewTimes(10.0)}, {1: 11.5})
    assert (status.connected, status.checkpoints) == ((0,), (CheckpointRef("c", 1, 30, 3, 9),))
    assert status.evaluation == Evaluation(30, 0.5, 1.0, 9, 12.0)


def test_what_a_newer_server_says_beside_it_is_passed_over() -> None:
    newer = json.loads(json.dumps(WIRE))
    for part in (newer, newer["views"]["3"], newer["checkpoints"][0], newer["evaluation"]):
        part["fromTheFuture"] = 1
    assert ServerStatus.from_json(newer) == ServerStatus.from_json(WIRE)


@pytest.mark.parametrize(
    ("document", "run", "tells_silence"),
    [
        pytest.param({}, None, False, id="an older image tells neither"),
        pytest.param({"buffer_run": "", "redis_silent_t": None}, "", True, id="nothing is held, Redis answers"),
        pytest.param({"buffer_run": "r", "redis_silent_t": 3.0}, "r", True, id="both"),
    ],
)
def test_what_a_server_does_not_tell_is_told_from_nothing(
    document: dict[str, object], run: str | None, tells_silence: bool
) -> None:
    status = ServerStatus.from_json({"name": "server-0", "boot": "b", **document})
    assert (status.buffer_run, status.tells_silence, status.connected) == (run, tells_silence, None)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_evaluation_holds_no_value_that_json_lacks(value: float) -> None:
    found = Evaluation(1, value, value)
    assert (found.accuracy, found.loss) == (None, None)
    assert Evaluation(1, 0.0, 2.0).accuracy == 0.0


def test_progress_alone_is_not_notable() -> None:
    status = ServerStatus.from_json(WIRE)
    progress = {"version": 41, "applied": 41, "applied_t": 13.0, "clocks": {0: 21, 1: 20}, "t": 13.0, "backlog": 0}
    assert replace(status, **progress).notable() == status.notable()
    news: list[dict[str, Any]] = [{"connected": (0, 1)}, {"history": 2}, {"last_states": ()}, {"views": {}}]
    assert all(replace(status, **change).notable() != status.notable() for change in news)

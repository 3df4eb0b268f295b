"""`--kill TARGET@WHEN[+DOWN][:SIGNAL]`: what it means, what is wrong with it, and when it is due."""

from __future__ import annotations

import signal

import pytest

from outlast_operator.local.kills import (
    Cast,
    Kill,
    KillError,
    KillSchedule,
    Trigger,
    check_kill,
    check_order,
    parse_kill,
    resolve,
)

CAST = Cast(
    chains={0: ("server-1", "server-2", "server-0"), 1: ("server-4", "server-5")},
    servers={0: ("server-0", "server-1", "server-2"), 1: ("server-3", "server-4", "server-5")},
    workers=("worker-0", "worker-1"),
    redis=True,
    operator=True,
)


@pytest.mark.parametrize(
    ("text", "target", "shard", "trigger", "down_s", "number"),
    [
        ("head@15s", "head", 0, Trigger("time", 15.0), None, signal.SIGKILL),
        ("tail/1@1.5s", "tail", 1, Trigger("time", 1.5), None, signal.SIGKILL),
        ("server-1@update=500", "server-1", 0, Trigger("update", 500), None, signal.SIGKILL),
        ("servers@accuracy=0.5+15s", "servers", 0, Trigger("accuracy", 0.5), 15.0, signal.SIGKILL),
        ("worker-0@2m:STOP", "worker-0", 0, Trigger("time", 120.0), None, signal.SIGSTOP),
        ("workers@200ms+1m:TERM", "workers", 0, Trigger("time", 0.2), 60.0, signal.SIGTERM),
        ("redis@accuracy=.75:KILL", "redis", 0, Trigger("accuracy", 0.75), None, signal.SIGKILL),
        ("operator@update=1+500ms", "operator", 0, Trigger("update", 1), 0.5, signal.SIGKILL),
        ("head@after=30s+15s", "head", 0, Trigger("after", 30.0), 15.0, signal.SIGKILL),
        ("worker-007@0s", "worker-7", 0, Trigger("time", 0.0), None, signal.SIGKILL),
    ],
)
def test_parses(
    text: str, target: str, shard: int, trigger: Trigger, down_s: float | None, number: signal.Signals
) -> None:
    assert parse_kill(text) == Kill(text, target, trigger, shard, down_s, number)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("head", "there is no WHEN; write TARGET@WHEN"),
        ("head@", "there is no WHEN"),
        ("@15s", "'' is not a target"),
        ("boss@15s", "'boss' is not a target; use head, tail, server-N"),
        ("worker@15s", "'worker' is not a target"),
        ("server--1@15s", "'server--1' is not a target"),
        ("workers/1@15s", "'workers/1' is not a target"),
        ("head@15", "'15' is not a WHEN; use a time with its unit"),
        ("head@soon", "'soon' is not a WHEN"),
        ("head@step=5", "'step=5' is not a WHEN; use a time (15s), update=N, accuracy=X or after=15s"),
        ("head@update=0", "update=0 is not a whole number above 0"),
        ("head@update=1.5", "update=1.5 is not a whole number above 0"),
        ("head@accuracy=90", "accuracy=90 is not a fraction between 0 and 1"),
        ("head@accuracy=0", "accuracy=0 is not a fraction"),
        ("head@after=5", "'5' is not a WHEN; use a time with its unit"),
        ("head@15s+", "'' is not a DOWN; use a time with its unit"),
        ("head@15s+ever", "'ever' is not a DOWN"),
        ("head@15s:HUP", "'HUP' is not a signal to kill with; use KILL, TERM, STOP"),
        ("head@15s:", "'' is not a signal to kill with"),
        ("head@15s:KILL+5s", "'KILL+5s' is not a signal to kill with"),
    ],
)
def test_says_what_is_wrong(text: str, words: str) -> None:
    with pytest.raises(KillError) as error:
        parse_kill(text)
    assert str(error.value).startswith(f"--kill {text}: ")
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("server-3@1s", "there is no server-3; the job has server-0 to server-2"),
        ("worker-1@1s", "there is no worker-1; the job has worker-0"),
        ("head/1@1s", "there is no shard 1; the job has shard 0"),
        ("redis@1s", "this run starts no Redis"),
    ],
)
def test_refuses_what_the_job_has_not(text: str, words: str) -> None:
    with pytest.raises(KillError, match=words):
        check_kill(parse_kill(text), shards=1, replicas=3, workers=1, redis=False)


@pytest.mark.parametrize("text", ["server-2@1s", "worker-0@1s", "servers@1s", "operator@1s", "redis@1s"])
def test_accepts_what_the_job_has(text: str) -> None:
    check_kill(parse_kill(text), shards=1, replicas=3, workers=1, redis=True)


@pytest.mark.parametrize(
    ("target", "names"),
    [
        ("head", ("server-1",)),
        ("tail", ("server-0",)),
        ("head/1", ("server-4",)),
        ("server-3", ("server-3",)),
        ("servers", ("server-0", "server-1", "server-2")),
        ("servers/1", ("server-3", "server-4", "server-5")),
        ("worker-1", ("worker-1",)),
        ("worker-5", ()),
        ("workers", ("worker-0", "worker-1")),
        ("redis", ("redis",)),
        ("operator", ("operator",)),
    ],
)
def test_resolves_at_the_moment_of_the_kill(target: str, names: tuple[str, ...]) -> None:
    assert resolve(parse_kill(f"{target}@1s"), CAST) == names


def test_a_head_that_is_dead_already_is_nobody() -> None:
    gone = Cast(chains={0: ("server-1",)}, servers={0: ("server-0",)})
    assert resolve(parse_kill("head@1s"), gone) == ()


def test_schedule_keeps_what_found_nobody_and_forgets_what_was_done() -> None:
    kills = [parse_kill(text) for text in ("head@2s", "head@2s", "redis@update=100", "worker-0@accuracy=0.5")]
    schedule = KillSchedule(kills)
    assert schedule.due(None, 0, None) == []
    assert [n for n, _ in schedule.due(2.0, 99, None)] == [0, 1]
    schedule.done(0, 2.0)
    assert [n for n, _ in schedule.due(2.5, 100, 0.49)] == [1, 2]
    schedule.done(1, 2.5)
    schedule.done(2, 2.5)
    assert [n for n, _ in schedule.due(None, 0, 0.5)] == [3]
    assert schedule.pending == [kills[3]]


def test_time_counts_from_the_first_update() -> None:
    schedule = KillSchedule([parse_kill("head@0s")])
    assert schedule.due(None, 0, None) == []
    assert len(schedule.due(0.0, 1, None)) == 1


def test_after_counts_from_when_the_kill_before_it_was_carried_out() -> None:
    schedule = KillSchedule([parse_kill("head@update=100"), parse_kill("head@after=5s")])
    assert [n for n, _ in schedule.due(20.0, 100, None)] == [0], "the second waits for the first, not for the clock"
    schedule.done(0, 21.0)
    assert schedule.due(25.9, 100, None) == []
    assert [n for n, _ in schedule.due(26.0, 0, None)] == [1]


def test_the_first_kill_follows_none() -> None:
    with pytest.raises(KillError, match="no kill comes before it"):
        check_order([parse_kill("head@after=5s"), parse_kill("head@1s")])
    check_order([parse_kill("head@1s"), parse_kill("head@after=5s")])


def test_a_stopped_process_is_continued_rather_than_replaced() -> None:
    assert not parse_kill("worker-0@1s+5s:STOP").holds_replacement
    assert parse_kill("worker-0@1s+5s").holds_replacement
    assert not parse_kill("worker-0@1s").holds_replacement

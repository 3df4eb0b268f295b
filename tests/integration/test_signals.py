"""Signals to servers and to the run itself: a planned loss costs nothing, a pause is fenced, Ctrl-C ends cleanly."""

from __future__ import annotations

import os
import signal

import psutil
import pytest
from jobs import BOUND_S, Ended, Lab, Running, assert_sound, ledger_of, make_job

from outlast.chain.applied import Applied
from outlast.process.ledger import Fact
from outlast_operator.reporting.data import steps_of

pytestmark = pytest.mark.timeout(120)

ENDLESS = 1_000_000  # updates: such a job ends by a signal alone


# --- servers ---


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize(
    ("strategy", "consistency"),
    [("Checkpoint", "Async"), ("Checkpoint", "Sync"), ("Chain", "Async"), ("Hybrid", "Async"), ("Stateless", "Async")],
)
def test_sigterm_to_the_head_hands_over_and_loses_nothing(
    lab: Lab, strategy: str, consistency: str, shards: int
) -> None:
    """Checkpoints are far apart: an update that only a checkpoint could bring back would be lost."""
    job = make_job(
        strategy, consistency, updates=200, servers={"shards": shards},
        recovery={"checkpoint": {"everyUpdates": 1000}},
    )  # fmt: skip
    ended = lab.run(job, kills=("head@update=60:TERM",))
    assert_handed_over(ended, updates=200)


def test_sigterm_to_all_servers_of_a_chain_leaves_its_head_until_another_has_the_state(lab: Lab) -> None:
    job = make_job("Chain", updates=400, servers={"shards": 2}, recovery={"checkpoint": {"everyUpdates": 1000}})
    ended = lab.run(job, kills=("servers@update=100:TERM",))
    assert_handed_over(ended, updates=400)


def assert_handed_over(ended: Ended, updates: int) -> None:
    """Every loss was planned, no shard went back, and no acknowledged gradient is missing."""
    assert_sound(ended, updates=updates)
    assert ended.report["failures"]
    for failure in ended.report["failures"]:
        assert failure["signal"] == "TERM"
        assert failure["t_first_update_s"] is not None
    assert {f.cause for f in ended.status.failovers} == {"Planned"}
    assert {view.history for view in ended.status.views.values()} == {0}, "a planned loss was answered by a rollback"
    assert ended.gradients["lost"] == 0


def test_a_head_that_was_paused_acknowledges_nothing_when_it_goes_on(lab: Lab) -> None:
    run = lab.start(make_job("Chain", updates=2500, compute_ms=2.0))
    run.wait_version(100)
    old = run.head()
    record = run.kill(old, signal.SIGSTOP)
    run.wait_until(lambda: run.head() not in ("", old), "another head")
    run.wait_until(lambda: run.version() > 0 and _epoch(run) >= 2, "the new head's view")
    before = run.version()
    run.wait_version(before + 50)
    if psutil.pid_exists(record.pid) and run.running(old) == record:
        os.kill(record.pid, signal.SIGCONT)
    ended = run.end()
    assert_sound(ended, updates=2500)
    (failure,) = [f for f in ended.report["failures"] if f["target"] == old]
    timeout_s = 1.5
    assert failure["t_first_update_s"] - failure["t_detected_s"] < timeout_s
    assert ended.status.views[0].epoch >= 2


def test_a_drilled_pause_is_continued_and_fenced(lab: Lab) -> None:
    """SIGSTOP, and SIGCONT while the others train on: every acknowledgement is in the surviving table."""
    ended = lab.run(make_job("Hybrid", updates=1500, compute_ms=2.0), kills=("head@update=100+2500ms:STOP",))
    assert_sound(ended, updates=1500)
    held = Applied.from_json(ended.table["applied"])
    promised = steps_of(ledger_of(ended.directory), Fact.ACKNOWLEDGED, Fact.BUFFERED)
    refused = ended.gradients["unapplied_at_end"]
    assert promised.difference(held).count <= refused
    assert ended.report["failures"][0]["signal"] == "STOP"


# --- the run ---


def _epoch(run: Running) -> int:
    status = run.probe(run.head())
    return 0 if status is None else status.epoch


def _starting(run: Running) -> bool:
    """Its fork server is there; until it is, an interrupt ends a command that has nothing to report."""
    return bool(psutil.Process(run.process.pid).children())


def _forking(run: Running) -> bool:
    return any(r.meta.get("role") == "server" for r in run.records())


def _training(run: Running) -> bool:
    return run.version() >= 20


MOMENTS = {"before the processes": _starting, "while they start": _forking, "while it trains": _training}


def assert_interrupted(ended: Ended) -> None:
    """`Running.end` has made sure that no process is left."""
    assert ended.code == 130, ended.err
    assert ended.summary["outcome"] == "Interrupted"
    assert "Traceback" not in ended.err
    if ended.report["final"]["version"]:
        assert ended.gradients["lost"] == 0
        assert ended.gradients["duplicates"] == 0


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_ends_the_run_cleanly(lab: Lab, moment: str) -> None:
    run = lab.start(make_job("Hybrid", updates=ENDLESS))
    run.wait_until(lambda: MOMENTS[moment](run), moment)
    run.process.send_signal(signal.SIGINT)
    ended = run.end(20.0)
    assert_interrupted(ended)
    if moment == "while it trains":
        assert ended.report["final"]["version"] >= 20


@pytest.mark.parametrize("strategy", ["Chain", "Stateless"])
def test_ctrl_c_writes_a_checkpoint_if_asked(lab: Lab, strategy: str) -> None:
    checkpoint = {"everyUpdates": 10_000, "everySeconds": None}
    job = make_job(strategy, updates=ENDLESS, recovery={"checkpoint": checkpoint})
    run = lab.start(job, "--checkpoint-on-interrupt")
    run.wait_version(60)
    run.process.send_signal(signal.SIGINT)
    ended = run.end(30.0)
    assert_interrupted(ended)
    newest = ended.checkpoints[-1]
    assert (newest / "MANIFEST.json").exists()
    assert int(newest.name.rsplit("-v", 1)[1]) >= 60


def test_ctrl_c_twice_and_with_the_head_paused_still_ends(lab: Lab) -> None:
    run = lab.start(make_job("Chain", updates=ENDLESS), "--checkpoint-on-interrupt")
    run.wait_version(20)
    run.kill(run.head(), signal.SIGSTOP)
    run.process.send_signal(signal.SIGINT)
    run.wait_until(lambda: not run.operator_runs(), "the first Ctrl-C is being answered")
    if run.process.poll() is None:
        run.process.send_signal(signal.SIGINT)
    ended = run.end(30.0)
    assert ended.code == 130
    assert ended.summary["outcome"] == "Interrupted"


def test_sigterm_ends_a_run_as_ctrl_c_does(lab: Lab) -> None:
    run = lab.start(make_job("Checkpoint", updates=ENDLESS))
    run.wait_version(20)
    run.process.send_signal(signal.SIGTERM)
    assert_interrupted(run.end(30.0))


def test_sigkill_of_the_run_leaves_no_process(lab: Lab) -> None:
    run = lab.start(make_job("Hybrid", updates=ENDLESS))
    run.wait_version(10)
    family = run.living()
    assert len(family) >= 8, "the command, forkserver, operator, three servers, Redis, two workers"
    run.process.kill()
    assert psutil.wait_procs(family, timeout=BOUND_S)[1] == []

"""Every strategy with every consistency that it allows, through kills of everybody: nothing lost, nothing twice."""

from __future__ import annotations

from typing import Any

import pytest
from jobs import Lab, assert_sound, make_job

from outlast.api.strategy import TABLE
from outlast.process.ledger import Fact, read_ledger

pytestmark = pytest.mark.timeout(120)

UPDATES = 240
CHECKPOINT_EVERY = 50


@pytest.mark.parametrize(("strategy", "consistency"), TABLE)
def test_kills_of_everybody_lose_nothing(lab: Lab, strategy: str, consistency: str) -> None:
    kills = ["operator@update=40", "head@update=70", "worker-0@update=120"]
    if TABLE[strategy, consistency].buffered:
        kills.append("redis@update=170")
    ended = lab.run(make_job(strategy, consistency, updates=UPDATES), kills=tuple(kills))
    # A checkpoint is written while training goes on, so the newest complete one may be the one before.
    lost = 2 * CHECKPOINT_EVERY + 4 if strategy == "Checkpoint" else 0
    assert_sound(ended, updates=UPDATES, lost_at_most=lost)
    targets = [failure["target"].rstrip("-012") for failure in ended.report["failures"]]
    words = (ended.report["failures"], ended.events(), ended.log("worker-0")[-2000:], ended.log("worker-1")[-2000:])
    assert targets == ["operator", "server", "worker", "redis"][: len(kills)], words
    for failure in ended.report["failures"]:
        assert failure["t_detected_s"] is not None, failure
        assert failure["t_first_update_s"] is not None, failure
    if strategy == "Checkpoint":
        assert "RolledBack" in ended.events()
        assert ended.gradients["computed"] > ended.gradients["applied"]
    else:
        assert "RolledBack" not in ended.events()


def test_the_report_is_whole(lab: Lab) -> None:
    """Over TCP, with an evaluator, kills at the tail and of the operator at once, and the figures."""
    job = make_job(updates=300, training={"evaluate": {"everySeconds": 0.2}})
    kills = ("operator@update=80", "tail@update=80", "server-0@update=160")
    run = lab.start(job, "--transport", "tcp", kills=kills, figures=True)
    ended = run.end()
    assert_sound(ended, updates=300)
    assert len(ended.report["failures"]) == 3
    head = next(f for f in ended.report["failures"] if f["target"] == "server-0")
    times = [head[f"t_{name}_s"] for name in ("killed", "detected", "promoted", "first_update")]
    assert times == sorted(times)
    assert ended.report["final"]["accuracy"] is not None
    assert [row for row in ended.report["series"] if row["accuracy"] is not None]
    processes = {row["process"] for row in ended.report["resources"]}
    assert processes >= {"server-1", "worker-0", "evaluator", "operator"}
    # what the killed head took in after it was last asked, some 50 ms before, nobody has seen
    assert ended.report["bytes"]["pushed"] >= 250 * 16_000
    assert ended.summary["gradients"] == ended.gradients
    for name in ("report.html", "report.png"):
        assert (ended.report_dir / name).stat().st_size > 1000


def test_sync_ends_bit_identical_through_kills(lab: Lab) -> None:
    """Whatever the strategy: same seed, same shards, same updates, same weights."""

    def job(strategy: str) -> dict[str, Any]:
        servers = {"shards": 2, "replicas": 1 if strategy == "Checkpoint" else 2}
        return make_job(strategy, "Sync", updates=80, compute_ms=3.0, servers=servers, name=strategy.lower())

    kills = ("head@update=20", "worker-1@update=40")
    chain, restored = lab.start(job("Chain"), kills=kills), lab.start(job("Checkpoint"), kills=kills)
    plain = lab.run(job("Hybrid"))
    assert_sound(plain, updates=80)
    assert plain.report["failures"] == []
    for killed, lost in ((chain.end(), 0), (restored.end(), 200)):
        assert_sound(killed, updates=80, lost_at_most=lost)
        assert len(killed.report["failures"]) == 2
        assert killed.report["final"]["digest"] == plain.report["final"]["digest"]


@pytest.mark.parametrize("strategy", ["Stateless", "Hybrid"])
def test_local_steps_go_on_through_an_outage(lab: Lab, strategy: str) -> None:
    """The default: one pseudo-gradient a worker, which counts as one update however many steps it is made of."""
    job = make_job(strategy, updates=240, recovery={"staleness": {"outage": {"mode": None}}})
    ended = lab.run(job, kills=("servers@update=120+1s",))
    g = ended.gradients
    assert ended.code == 0, ended.err
    assert ended.report["final"]["version"] == 240
    assert (g["duplicates"], g["lost"] if strategy == "Stateless" else 0) == (0, 0)
    assert g["applied"] > 240 + 100, "a second of two workers' local steps is in it"
    assert len(list(ended.report["failures"])) == 1


@pytest.mark.parametrize(("signal", "every_s"), [("KILL", 0.3), ("TERM", 600)], ids=["dies", "is told to end"])
def test_local_steps_survive_their_worker(lab: Lab, signal: str, every_s: float) -> None:
    """Redis has those sent every 0.3 s, or handed over at SIGTERM; then the worker ends, still without a server."""
    outage = {"mode": "LocalSteps", "sendEverySeconds": every_s}
    job = make_job("Stateless", updates=240, recovery={"staleness": {"outage": outage}})
    ended = lab.run(job, kills=("servers@update=120+4s", f"worker-0@after=2s:{signal}"))
    assert ended.code == 0, ended.err
    (servers, worker) = sorted(ended.report["failures"], key=lambda failure: str(failure["target"]))
    assert worker["t_killed_s"] < servers["t_first_update_s"], "in the outage"
    dead = list(read_ledger(ended.directory.ledger / "worker-0-1.bin"))
    local = sum(r.fact is Fact.LOCAL for r in dead)
    buffered = [r for r in dead if r.fact is Fact.BUFFERED and r.last > r.first]
    kept = sum(r.last - r.first + 1 for r in buffered)
    if signal == "KILL":
        assert len(buffered) >= 2, "differences of weights, one after the other"
        assert 0.5 * local < kept < local, "all but the last moments' steps"
    else:
        assert kept == local > 50, "all of them"
    assert (ended.gradients["lost"], ended.gradients["duplicates"]) == (0, 0)
    assert ended.gradients["applied"] >= 240 - 8 + kept, "what was acknowledged is there"


@pytest.mark.parametrize("strategy", ["Chain", "Stateless", "Hybrid"])
def test_the_loss_of_every_server_at_once(lab: Lab, strategy: str) -> None:
    """Chain falls back to its newest checkpoint and counts what that cost; the buffered strategies replay."""
    job = make_job(strategy, updates=240)
    ended = lab.run(job, kills=("servers@update=120+1s",))
    lost = 0 if strategy == "Stateless" else 2 * CHECKPOINT_EVERY + 4
    assert_sound(ended, updates=240, lost_at_most=lost)
    (failure,) = ended.report["failures"]
    assert failure["t_first_update_s"] - failure["t_killed_s"] >= 1.0
    if strategy != "Chain":
        assert ended.gradients["buffered"] > 20, "workers computed on through the outage"
        assert failure["gradients_per_s"]["during"] > 0

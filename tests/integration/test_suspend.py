"""A job that is told to pause while Redis holds what no server has applied: nothing that was acknowledged is lost."""

from __future__ import annotations

from dataclasses import replace

import pytest
from jobs import Lab, Running, ledger_of, make_job

from outlast.chain.applied import Applied
from outlast.chain.events import Identity
from outlast.checkpoint.store import CheckpointStore
from outlast.process.ledger import Fact

pytestmark = pytest.mark.timeout(120)

DOWN_S = 4.0
BACKLOG = 200  # gradients in Redis at the time of the suspension, at least


def buffered(running: Running) -> set[Identity]:
    """What workers saw acknowledged by Redis."""
    facts = ledger_of(running.directory)
    return {Identity(r.slot, r.first, r.last) for r in facts if r.fact is Fact.BUFFERED}


def suspend(running: Running) -> None:
    """As if a user did: the operator finds the job's spec changed (a local one reads it when it starts)."""
    config = running.config()
    running.directory.write_config(replace(config, spec={**config.spec, "suspend": True}))
    running.kill("operator")


@pytest.mark.parametrize("strategy", ["Stateless", "Hybrid"])
def test_suspending_without_a_server_loses_nothing_that_redis_acknowledged(lab: Lab, strategy: str) -> None:
    job = make_job(strategy, updates=1_000_000, compute_ms=2.0)
    running = lab.start(job, kills=(f"servers@update=60+{DOWN_S:g}s",))
    running.wait_until(lambda: running.version() > 0, "training")
    running.wait_until(lambda: not running.running("server-0"), "the loss of all servers")
    before = len(buffered(running))
    running.wait_until(lambda: len(buffered(running)) > before + BACKLOG, "a backlog in Redis")
    suspend(running)
    running.wait_until(lambda: running.status().state == "Suspended", "a suspended job")
    assert not [r.name for r in running.records() if r.running and r.name != "operator"]
    applied = newest_applied(running)
    lost = [identity for identity in buffered(running) if not applied.contains(identity)]
    assert lost == []


def newest_applied(running: Running) -> Applied:
    """What the newest complete checkpoint holds."""
    store = CheckpointStore(running.directory.root / "checkpoints", running.config().job_uid)
    (meta,) = store.metas(store.list_complete()[0].name)
    return Applied.from_json(meta["replica"]["applied"])

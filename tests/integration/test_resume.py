"""A new run goes on from another's checkpoints: same model and optimizer, other numbers of workers and shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from jobs import Ended, Lab, assert_sound, make_job, merged

from outlast.checkpoint.restore import find
from outlast.checkpoint.store import CheckpointError, CheckpointStore

pytestmark = pytest.mark.timeout(120)

FIRST, SECOND = 120, 200  # updates


def job_of(
    strategy: str, consistency: str, updates: int, restore_from: Path | str | None = None, **more: Any
) -> dict[str, Any]:
    checkpoint = {"everyUpdates": 40, "restoreFrom": None if restore_from is None else str(restore_from)}
    changes: dict[str, Any] = {
        "training": {"optimizer": {"name": "SGD", "lr": 0.01, "momentum": 0.9}},
        "recovery": {"checkpoint": checkpoint},
    }
    return make_job(strategy, consistency, updates=updates, name=f"until-{updates}", **merged(changes, more))


def weights_of(ended: Ended) -> torch.Tensor:
    """The whole flat vector of the newest checkpoint."""
    store = CheckpointStore(ended.checkpoints[-1].parent)
    name = store.list_complete()[0].name
    (parameters,) = {meta["initial"]["manifest"]["numel"] for meta in store.metas(name)}
    tensors, _ = store.read_range(name, 0, parameters)
    return tensors["vector"]


@pytest.mark.parametrize("strategy", ["Chain", "Stateless"])
def test_another_run_goes_on_with_other_numbers_of_workers_and_shards(lab: Lab, strategy: str) -> None:
    first = lab.run(job_of(strategy, "Async", FIRST), kills=("worker-0@update=40",))
    assert_sound(first, updates=FIRST)
    source = first.report_dir / "checkpoints"
    more = {"servers": {"shards": 3, "replicas": 2 if strategy == "Chain" else 1}, "workers": {"replicas": 3}}
    second = lab.run(job_of(strategy, "Async", SECOND, source, **more), kills=("head/1@update=160",))
    assert_sound(second, updates=SECOND, resumed_at=FIRST)
    assert second.gradients["computed"] < SECOND - FIRST + 40, "it went on; it did not begin anew"
    assert second.report["final"]["version"] >= SECOND
    steps = {slot: pairs for slot, pairs in second.table["applied"].items() if slot in ("0", "1")}
    for slot, intervals in first.table["applied"].items():
        assert steps[slot][-1] > intervals[-1], "slots go on with the steps after their last"


def test_sync_resumed_with_other_shards_ends_as_the_run_without_a_break(lab: Lab) -> None:
    """Weights and momentum are cut and joined; a model of another size is refused."""
    unbroken = lab.start({**job_of("Chain", "Sync", SECOND), "metadata": {"name": "unbroken"}})
    first = lab.run(job_of("Checkpoint", "Sync", FIRST, servers={"shards": 3, "replicas": 1}))
    whole = unbroken.end()
    larger = job_of("Checkpoint", "Sync", SECOND, first.report_dir, training={"args": {"parameters": 5000}})
    refused = lab.start({**larger, "metadata": {"name": "larger"}})
    second = lab.run(job_of("Chain", "Sync", SECOND, first.report_dir, servers={"shards": 2, "replicas": 2}))
    for ended in (whole, first):
        assert_sound(ended, updates=FIRST)
    assert_sound(second, updates=SECOND, resumed_at=FIRST)
    # Vectorised kernels round the last elements of a shard another way, so not to the last bit.
    torch.testing.assert_close(weights_of(second), weights_of(whole), rtol=0.0, atol=1e-6)
    message = refused.end().message
    assert refused.process.returncode == 1
    for words in ("4000 elements", "5000", "same model"):
        assert words in message


def test_nothing_to_restore_from_ends_the_job(lab: Lab) -> None:
    ended = lab.run(job_of("Checkpoint", "Async", FIRST, "nowhere"))
    assert ended.code == 1
    assert "restoreFrom nowhere" in ended.message
    assert "is no directory" in ended.message
    assert ended.duration_s < 90.0


@pytest.mark.parametrize(
    ("where", "words"), [(".", "holds no complete checkpoint"), ("s3://bucket/job", "only directories")]
)
def test_what_holds_no_checkpoint_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=words):
        find(where)

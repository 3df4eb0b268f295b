"""How the end-to-end tests read what pods wrote: a ledger outlasts its pod, and a set's parts lie on several claims."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from outlast.checkpoint.own import OwnParts
from outlast.process.ledger import Fact, LedgerWriter

UID, SHARDS = "4711", 2


def load(name: str) -> ModuleType:
    path = Path(__file__).resolve().parents[1] / "e2e" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


e2e_nodes = load("e2e_nodes")


@pytest.fixture
def kubelets(tmp_path: Path) -> dict[str, Path]:
    found = {f"node-{n}": tmp_path / f"node-{n}" for n in (1, 2)}
    for path in found.values():
        (path / "pods").mkdir(parents=True)
    return found


@pytest.fixture
def nodes(kubelets: dict[str, Path]) -> Iterator[object]:
    made = e2e_nodes.Nodes(lambda: kubelets)
    yield made
    made.close()


def write(kubelet: Path, claim: str, shard: int, version: int, epoch: int = 1) -> None:
    store = OwnParts(kubelet / "local-path" / claim, UID)
    store.write_part(shard, SHARDS, 0, epoch, version, {"vector": torch.zeros(4)}, {"range": [0, 4], "seq": version})


def test_a_set_is_complete_whose_parts_lie_on_several_claims(
    nodes: e2e_nodes.Nodes, kubelets: dict[str, Path], tmp_path: Path
) -> None:
    write(kubelets["node-1"], "server-0", shard=0, version=100)
    write(kubelets["node-1"], "server-0", shard=0, version=200)
    write(kubelets["node-2"], "server-1", shard=0, version=200)
    write(kubelets["node-2"], "server-2", shard=1, version=100, epoch=2)
    sets = nodes.checkpoints(UID, tmp_path / "all").list_complete()
    assert [found.name for found in sets] == ["ckpt-h0000-v00000100"], "shard 1 has no part of version 200"
    assert [part.epoch for part, _ in sets[0].parts] == [1, 2]


def test_a_ledger_is_read_after_its_pod_and_while_its_node_is_off(
    nodes: e2e_nodes.Nodes, kubelets: dict[str, Path]
) -> None:
    ledgers, node = e2e_nodes.Ledgers(nodes, "job"), kubelets["node-1"]
    volume = node / "pods" / "uid-1" / "volumes" / "kubernetes.io~empty-dir" / "ledger-job"
    volume.mkdir(parents=True)
    worker = LedgerWriter(str(volume), slot=0, incarnation=1)
    worker.write(Fact.ACKNOWLEDGED, 1, 1)
    assert [r.first for r in ledgers.read()] == [1]
    worker.write(Fact.ACKNOWLEDGED, 2, 2)
    shutil.rmtree(node / "pods" / "uid-1")  # as a kubelet does
    worker.write(Fact.ACKNOWLEDGED, 3, 3)
    worker.close()
    assert [r.first for r in ledgers.read()] == [1, 2, 3]
    node.rename(node.with_name("off"))
    assert [r.first for r in ledgers.read()] == [1, 2, 3]
    node.with_name("off").rename(node)
    assert [r.first for r in ledgers.read()] == [1, 2, 3]
    ledgers.forget()
    assert not (node / e2e_nodes.KEPT / "job").exists()


def test_a_node_that_has_power_again_is_found_again(kubelets: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks while it is off is told of the others alone."""
    now = [0.0]
    monkeypatch.setattr(e2e_nodes.time, "monotonic", lambda: now.__setitem__(0, now[0] + 2) or now[0])
    nodes = e2e_nodes.Nodes(lambda: {name: path for name, path in kubelets.items() if path.exists()})
    try:
        node = kubelets["node-1"]
        node.rename(node.with_name("off"))
        assert set(nodes.kubelets()) == {"node-2"}
        node.with_name("off").rename(node)
        assert set(nodes.kubelets()) == {"node-1", "node-2"}
    finally:
        nodes.close()

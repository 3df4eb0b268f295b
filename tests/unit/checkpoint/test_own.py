"""A directory of one server: which parts it holds, which it deletes, and what it copies from its fellows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from outlast.api.config import ProcessConfig, ServerAddress
from outlast.api.server_status import CheckpointRef, ServerStatus
from outlast.checkpoint.own import OwnParts
from outlast.checkpoint.part import PartCorrupt
from outlast.checkpoint.restore import find
from outlast.checkpoint.store import CheckpointError, CheckpointStore
from outlast.server.checkpoint_peers import CHUNK_BYTES, CheckpointPeers, send_part
from outlast.wire.connection import Connection
from outlast.wire.frames import Header, Op
from outlast.wire.listener import Listener

SHARDS = 2


def write(store: CheckpointStore, version: int, epoch: int = 1, history: int = 0, numel: int = 100) -> str:
    meta = {"range": [0, numel], "seq": version}
    tensors = {"vector": torch.full((numel,), float(version * 10 + epoch))}
    return store.write_part(0, SHARDS, history, epoch, version, tensors, meta)


def versions(store: OwnParts) -> list[int]:
    return [part.version for part in store.held(0)]


def file_of(store: OwnParts, part: CheckpointRef) -> Path:
    return store.path_of(part, 0, SHARDS)


@pytest.fixture
def store(tmp_path: Path) -> OwnParts:
    return OwnParts(tmp_path / "own", "uid")


def test_parts_count_without_the_other_shards(store: OwnParts) -> None:
    for history, epoch, version in ((0, 1, 100), (0, 2, 90), (1, 3, 50)):
        write(store, version, epoch, history)
    assert [(p.history, p.epoch, p.version) for p in store.held(0)] == [(1, 3, 50), (0, 2, 90), (0, 1, 100)]
    assert store.held(1) == []


def test_of_two_parts_of_a_set_the_higher_epochs_is_told_and_read(store: OwnParts) -> None:
    write(store, 100, epoch=3)
    name = write(store, 100, epoch=2)
    assert [part.epoch for part in store.held(0)] == [3]
    tensors, _ = store.read_part(name, 0)
    assert float(tensors["vector"][0]) == 1003.0


def test_a_damaged_part_is_passed_over(store: OwnParts, caplog: pytest.LogCaptureFixture) -> None:
    write(store, 100)
    name = write(store, 200)
    path = file_of(store, store.held(0)[0])
    path.write_bytes(path.read_bytes()[:-1])
    assert versions(OwnParts(store.directory.parent, "uid")) == [100]
    assert versions(store) == [100]
    assert caplog.text.count("ckpt-h0000-v00000200") == 2, "once for each that looked"
    with pytest.raises(CheckpointError, match="holds no part of shard 0"):
        store.read_part(name, 0)


@pytest.mark.parametrize(
    ("elsewhere", "left"),
    [
        pytest.param([100, 200, 300, 400, 500], [500, 400], id="all are complete"),
        pytest.param([100, 200], [500, 400, 300, 200, 100], id="the other shard's volume is slow: its newest two stay"),
        pytest.param([200, 300], [500, 400, 300, 200], id="what is older than the kept goes"),
        pytest.param([], [500, 400, 300, 200, 100], id="nothing is complete"),
    ],
)
def test_pruning_keeps_what_is_complete_together_with_the_other_shards(
    store: OwnParts, elsewhere: list[int], left: list[int]
) -> None:
    names = {version: write(store, version) for version in (100, 200, 300, 400, 500)}
    store.prune_own(2, 1, 0, [{names[version] for version in elsewhere}])
    assert versions(store) == left


def test_pruning_leaves_higher_epochs_alone_and_removes_old_remains(store: OwnParts) -> None:
    write(store, 100, epoch=5)
    (store.directory / "ckpt-h0000-v00000050").mkdir()
    for version in (300, 400):
        write(store, version, epoch=6)
    store.prune_own(1, 4, 0, [{p.name for p in store.held(0)}])
    assert versions(store) == [400, 300, 100]
    store.prune_own(1, 6, 0, [{p.name for p in store.held(0)}])
    assert [p.name for p in store.directory.iterdir()] == ["ckpt-h0000-v00000400"]


# --- copies ---


class Fellow:
    """Another server, as far as its checkpoints go: a real listener over a store."""

    def __init__(self, address: str, store: OwnParts) -> None:
        self.store = store
        self.listener = Listener(address, "uid", "token", lambda: {"boot": "b"}, self._serve, lambda: 1 << 20)
        self.listener.start()

    def _serve(self, connection: Connection, hello: dict[str, Any]) -> None:
        while True:
            header, meta = connection.receive()
            if header.op == Op.PROBE:
                status = ServerStatus("server-1", "b", checkpoints=tuple(self.store.held(0)))
                connection.send(Header(Op.STATUS), status.to_json())
            else:
                send_part(connection, self.store, meta, 0, SHARDS)


@pytest.fixture
def fellow(tmp_path: Path) -> Iterator[Fellow]:
    found = Fellow(f"unix:{tmp_path}/b.sock", OwnParts(tmp_path / "fellow", "uid"))
    yield found
    found.listener.close()


def peers(tmp_path: Path) -> CheckpointPeers:
    servers = tuple(ServerAddress(n, f"unix:{tmp_path}/{n}.sock") for n in ("a", "b"))
    config = ProcessConfig("job", "uid", "token", "server", "a", {}, (servers, (ServerAddress("c", "unix:/none"),)))
    return CheckpointPeers(config, 2.0)


def test_an_empty_directory_is_filled_with_what_the_fellow_keeps(
    tmp_path: Path, store: OwnParts, fellow: Fellow
) -> None:
    for version in (100, 200, 300):
        write(fellow.store, version, epoch=2, numel=CHUNK_BYTES)  # several chunks
    write(store, 300, epoch=1)
    assert peers(tmp_path).fill(store, keep=2)
    assert store.held(0) == fellow.store.held(0)[:2]
    assert file_of(store, store.held(0)[0]).read_bytes() == file_of(fellow.store, store.held(0)[0]).read_bytes()


def test_nobody_to_copy_from_is_tried_again(tmp_path: Path, store: OwnParts) -> None:
    assert not peers(tmp_path).fill(store, keep=2)


def test_a_part_that_its_holder_lost_is_tried_again(
    tmp_path: Path, store: OwnParts, fellow: Fellow, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(fellow.store, 100)
    told = fellow.store.held(0)
    monkeypatch.setattr(fellow.store, "held", lambda shard: told)
    file_of(fellow.store, told[0]).unlink()
    assert not peers(tmp_path).fill(store, keep=2)
    assert store.held(0) == []


@pytest.mark.parametrize("cut", [0, 1, 50])
def test_a_copy_is_whole_or_absent(store: OwnParts, tmp_path: Path, cut: int) -> None:
    source = OwnParts(tmp_path / "source", "uid")
    write(source, 100)
    (part,) = source.held(0)
    data = file_of(source, part).read_bytes()
    altered = data[:-cut] if cut else bytes([data[0] ^ 1]) + data[1:]
    with pytest.raises(PartCorrupt):
        store.adopt(part, 0, SHARDS, iter([memoryview(altered)]))
    assert list((store.directory / part.name).iterdir()) == []
    store.adopt(part, 0, SHARDS, iter([memoryview(data[:10]), memoryview(data[10:])]))
    assert store.held(0) == [part]


# --- restoreFrom: what servers with a directory each have left ---


def leave(directory: Path, uid: str, shard: int, version: int, value: float, epoch: int = 1) -> Path:
    """A server's part, in a directory of its own. Returns the file."""
    store, numel = OwnParts(directory, uid), 100
    meta = {"range": [shard * numel, (shard + 1) * numel], "seq": version}
    name = store.write_part(shard, SHARDS, 0, epoch, version, {"flat": torch.full((numel,), value)}, meta)
    return max((store.directory / name).glob(f"part-{shard:05d}-*"), key=lambda path: path.stat().st_mtime_ns)


@pytest.mark.parametrize("place", ["{}", "checkpoints/{}"])
def test_parts_in_several_directories_are_read_as_one_set(tmp_path: Path, place: str) -> None:
    first, second = (tmp_path / place.format(f"server-{n}") for n in range(2))
    for version in (100, 200):
        leave(first, "uid", 0, version, 1.0)
        leave(second, "uid", 1, version, 2.0)
    leave(first, "uid", 0, 300, 9.0)  # the other shard has not written it
    leave(second, "another", 1, 300, 9.0)  # another job's
    store, name = find(str(tmp_path))
    assert name == "ckpt-h0000-v00000200"
    tensors, metas = store.read_range(name, 50, 150)
    assert tensors["flat"].tolist() == [1.0] * 50 + [2.0] * 50
    assert [meta["job_uid"] for meta in store.metas(name)] == ["uid", "uid"]
    assert [meta["range"] for meta in metas] == [[0, 100], [100, 200]]


def test_parts_that_were_copied_into_one_directory_are_read_too(tmp_path: Path) -> None:
    leave(tmp_path / "a", "uid", 0, 100, 1.0)
    moved = leave(tmp_path / "b", "uid", 1, 100, 2.0)
    moved.rename(tmp_path / "a" / "uid" / moved.parent.name / moved.name)
    store, name = find(str(tmp_path / "a" / "uid"))
    assert store.read_range(name, 0, 200)[0]["flat"].tolist() == [1.0] * 100 + [2.0] * 100


def test_of_the_copies_of_a_part_a_whole_one_is_read_and_the_highest_epochs(tmp_path: Path) -> None:
    """Every member of a chain writes; a fenced one may have written on."""
    leave(tmp_path / "server-0", "uid", 0, 100, 7.0, epoch=1)
    damaged = leave(tmp_path / "server-1", "uid", 0, 100, 1.0, epoch=2)
    leave(tmp_path / "server-2", "uid", 0, 100, 1.0, epoch=2)
    leave(tmp_path / "server-3", "uid", 1, 100, 2.0)
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    store, name = find(str(tmp_path))
    assert store.read_range(name, 0, 200)[0]["flat"].tolist() == [1.0] * 100 + [2.0] * 100


def test_a_shard_without_a_part_makes_no_set(tmp_path: Path) -> None:
    leave(tmp_path / "server-0", "uid", 0, 100, 1.0)
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        find(str(tmp_path))

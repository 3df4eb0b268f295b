"""Checkpoints are whole or absent: cut short, altered, killed while writing, disk full, pruned, cut anew."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from outlast.checkpoint import part as checkpoint_file
from outlast.checkpoint.store import Checkpoint, CheckpointError, CheckpointStore

REPOSITORY = Path(__file__).parents[3]


def state(value: float, numel: int = 500) -> dict[str, torch.Tensor]:
    return {
        "flat": torch.full((numel,), value),
        "momentum": torch.full((numel,), -value),
        "step": torch.tensor(int(value)),
    }


def write(
    store: CheckpointStore, version: int, shard: int = 0, shards: int = 1, history: int = 0, epoch: int = 1
) -> str:
    meta = {"seq": version, "range": [shard * 500, shard * 500 + 500], "applied": {"0": [[1, version]]}}
    return store.write_part(shard, shards, history, epoch, version, state(version), meta)


def names(store: CheckpointStore, shard: int | None = 0) -> list[str]:
    return [c.name for c in store.list_complete(shard)]


def part_of(store: CheckpointStore, name: str, shard: int = 0) -> Path:
    return next((store.directory / name).glob(f"part-{shard:05d}-*.safetensors"))


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path, "uid")


def test_what_is_written_is_read(store: CheckpointStore) -> None:
    tensors = {
        "flat": torch.randn(1001),
        "bf16": torch.randn(7, 3).bfloat16(),
        "count": torch.tensor(12),
        "flags": torch.tensor([True, False]),
        "none": torch.zeros(0, 4),
        "strided": torch.randn(6, 4).t(),
    }
    meta = {
        "seq": 9,
        "applied": {"0": [[1, 9]]},
        "plan": {"base": 0},
        "optimizer": {"name": "Adam", "betas": [0.9, 0.999]},
    }
    name = store.write_part(0, 1, 2, 5, 100, tensors, meta)
    assert name == "ckpt-h0002-v00000100"
    (found,) = store.list_complete(0)
    assert (found.name, found.history, found.epoch, found.version) == (name, 2, 5, 100)
    into = {"flat": torch.zeros(1001)}
    loaded, read_meta = store.read_part(name, 0, into)
    assert {k: v for k, v in read_meta.items() if k != "job_uid"} == meta
    assert loaded["flat"] is into["flat"]
    assert loaded.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert loaded[key].dtype == tensor.dtype
        assert torch.equal(loaded[key], tensor)
    by_others = load_file(part_of(store, name))
    assert all(torch.equal(by_others[k], tensors[k]) for k in tensors)


def test_newest_first_by_history_epoch_version(store: CheckpointStore) -> None:
    write(store, 900, epoch=1)  # a fenced server went on for long
    write(store, 300, epoch=2)
    write(store, 100, epoch=3, history=1)
    write(store, 200, epoch=3, history=1)
    assert [(c.history, c.epoch, c.version) for c in store.list_complete(0)] == [
        (1, 3, 200),
        (1, 3, 100),
        (0, 2, 300),
        (0, 1, 900),
    ]


def test_the_last_part_completes_the_set(store: CheckpointStore) -> None:
    for shard in (2, 0):
        name = write(store, 100, shard, shards=3)
        assert names(store) == []
    write(store, 100, 1, shards=3)
    assert names(store) == [name]
    manifest = store.directory / name / "MANIFEST.json"
    before = manifest.stat().st_mtime_ns
    write(store, 100, 1, shards=3)
    assert manifest.stat().st_mtime_ns == before, "completing it again changes nothing"


def test_a_fenced_servers_part_does_not_count(store: CheckpointStore) -> None:
    """Both wrote version 100: whoever came last, the higher epoch is what a restore reads."""
    for order in ((1, 2), (2, 1)):
        for epoch in order:
            store.write_part(0, 1, 0, epoch, 100, state(epoch), {"epoch": epoch})
        (found,) = CheckpointStore(store.directory.parent, "uid").list_complete(0)
        assert found.epoch == 2
        assert store.read_part(found.name, 0)[1]["epoch"] == 2
        shutil.rmtree(store.directory)


@pytest.mark.parametrize("which", ["part", "manifest"])
def test_cut_short_anywhere(store: CheckpointStore, which: str, caplog: pytest.LogCaptureFixture) -> None:
    write(store, 100)
    name = write(store, 200)
    path = part_of(store, name) if which == "part" else store.directory / name / "MANIFEST.json"
    whole = path.read_bytes()
    # The manifest's last byte is a line's end: without it nothing is missing.
    length = len(whole) - (which == "manifest")
    positions = {*range(0, min(200, length), 7), *range(0, length, max(1, length // 150)), length - 1}
    for position in sorted(positions):
        path.write_bytes(whole[:position])
        fresh = CheckpointStore(store.directory.parent, "uid")
        caplog.clear()
        for _ in range(3):
            assert names(fresh) == ["ckpt-h0000-v00000100"], position
        warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
        assert len(warnings) == 1, "one warning, not one a look"
        assert name in warnings[0].getMessage()
    path.write_bytes(whole)
    assert names(CheckpointStore(store.directory.parent, "uid"))[0] == name


@pytest.mark.parametrize("which", ["part", "manifest"])
def test_any_flipped_bit(store: CheckpointStore, which: str) -> None:
    write(store, 100)
    name = write(store, 200)
    path = part_of(store, name) if which == "part" else store.directory / name / "MANIFEST.json"
    whole = path.read_bytes()
    rng = random.Random(1)
    for _ in range(400):
        bit = rng.randrange(8 * (len(whole) - 1))  # but for the manifest's line end, every bit counts
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        fresh = CheckpointStore(store.directory.parent, "uid")
        assert names(fresh) == ["ckpt-h0000-v00000100"], bit
        if which == "part":
            with pytest.raises(CheckpointError, match="the checkpoint before it"):
                fresh.read_part(name, 0)


def test_a_part_that_is_gone_and_files_that_are_none(store: CheckpointStore) -> None:
    write(store, 100)
    name = write(store, 200)
    part_of(store, name).unlink()
    (store.directory / "ckpt-h0000-v00000300").mkdir()
    (store.directory / "ckpt-h0000-v00000400").write_text("a file")
    (store.directory / "notes.txt").write_text("mine")
    assert names(store) == ["ckpt-h0000-v00000100"]


def test_another_shards_damage_is_its_own_to_find(store: CheckpointStore) -> None:
    for shard in (0, 1):
        name = write(store, 100, shard, shards=2)
    path = part_of(store, name, 1)
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    assert names(store, 0) == [name]
    assert names(store, 1) == []
    assert names(store, None) == []
    assert names(store, 5) == [], "another number of shards reads every part"


KILLED = """
import sys, torch
from outlast.checkpoint.store import CheckpointStore
store = CheckpointStore(sys.argv[1], "uid")
version = int(sys.argv[2])
print("ready", flush=True)
while True:
    version += 1
    tensors = {"flat": torch.full((200_000,), float(version)), "step": torch.tensor(version)}
    store.write_part(0, 1, 0, 1, version, tensors, {"seq": version})
    print(version, flush=True)
    store.prune(3, 1)
"""


def test_killed_while_writing(tmp_path: Path) -> None:
    """kill -9 at random moments: what a writer called written is there, what is listed is whole."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "trainer")}
    rng = random.Random(7)
    version = 0
    for _ in range(4):
        command = [sys.executable, "-c", KILLED, str(tmp_path), str(version)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        writer.stdout.readline()  # one is written; it is at another one now
        time.sleep(rng.uniform(0, 0.05))
        writer.send_signal(signal.SIGKILL)
        told = [int(line) for line in writer.stdout.read().split()]
        writer.wait()
        writer.stdout.close()
        store = CheckpointStore(tmp_path, "uid")
        complete = store.list_complete(0)
        assert complete
        newest = complete[0].version
        assert newest >= max(told, default=version + 1)
        for checkpoint in complete:
            tensors, meta = store.read_part(checkpoint.name, 0)
            assert (tensors["flat"] == checkpoint.version).all()
            assert meta["seq"] == checkpoint.version
        store.prune(3, 1)  # the writer may have been killed before its own
        assert store.list_complete(0) == complete[:3]
        version = newest
    last = CheckpointStore(tmp_path, "uid")
    write(last, version + 10, epoch=2)
    assert not list(tmp_path.rglob("*.tmp")), "the next epoch's writer removes what was left half-written"


@pytest.mark.parametrize("step", ["os.fsync", "os.replace", "checkpoint_file.fsync_directory"])
@pytest.mark.parametrize("nth", [0, 1])
def test_a_failure_at_each_step(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, step: str, nth: int) -> None:
    write(store, 100)
    owner = checkpoint_file if step.startswith("checkpoint_file") else os
    real = getattr(owner, step.split(".")[1])
    calls = 0

    def fail(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth + 1:
            raise OSError(errno.EIO, "Input/output error")
        return real(*args)

    monkeypatch.setattr(owner, step.split(".")[1], fail)
    with pytest.raises(CheckpointError, match="Input/output error"):
        write(store, 200)
    monkeypatch.undo()
    assert not list(store.directory.rglob("*.tmp"))
    fresh = CheckpointStore(store.directory.parent, "uid")
    assert names(fresh)[-1] == "ckpt-h0000-v00000100"
    write(fresh, 200)
    assert names(fresh) == ["ckpt-h0000-v00000200", "ckpt-h0000-v00000100"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mount = tmp_path / "disk"
    mount.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "t", mount], check=False).returncode
    ):
        pytest.skip("mounting a small tmpfs needs root")
    yield mount
    subprocess.run(["umount", mount], check=True)


def test_disk_full(small_disk: Path) -> None:
    store = CheckpointStore(small_disk, "uid")
    name = store.write_part(0, 1, 0, 1, 100, {"flat": torch.ones(150_000)}, {})
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"No space left.*older checkpoints are untouched.*volume"):
            store.write_part(0, 1, 0, 1, 200, {"flat": torch.ones(150_000)}, {})
        assert os.listdir(store.directory) == [name], "nothing half-written remains"
    assert names(CheckpointStore(small_disk, "uid")) == [name]
    assert (store.read_part(name, 0)[0]["flat"] == 1).all()


def test_file_size_limit(store: CheckpointStore) -> None:
    write(store, 100)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="File too large"):
            store.write_part(0, 1, 0, 1, 200, {"flat": torch.ones(150_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(store.directory) == ["ckpt-h0000-v00000100"]
    assert names(store) == ["ckpt-h0000-v00000100"]


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="check the volume"):
        write(CheckpointStore(tmp_path / "file", "uid"), 100)


def test_prune_keeps_the_newest(store: CheckpointStore) -> None:
    for version in range(100, 600, 100):
        write(store, version)
    assert store.prune(2, 1) == [f"ckpt-h0000-v{v:08d}" for v in (100, 200, 300)]
    assert sorted(os.listdir(store.directory)) == ["ckpt-h0000-v00000400", "ckpt-h0000-v00000500"]
    assert store.prune(2, 1) == []
    store.prune(0, 1)
    assert names(store) == ["ckpt-h0000-v00000500"], "never the only one"


def test_prune_never_trades_a_good_set_for_a_bad_one(store: CheckpointStore) -> None:
    write(store, 100)
    path = part_of(store, write(store, 200))
    path.write_bytes(path.read_bytes()[:-1])
    assert store.prune(1, 1) == []
    assert names(store) == ["ckpt-h0000-v00000100"]


def test_prune_leaves_higher_epochs_alone(store: CheckpointStore) -> None:
    """A fenced server that went on and on does not delete its successor's."""
    write(store, 300, epoch=2)
    for version in (700, 800, 900):
        write(store, version, epoch=1)
    store.prune(1, 1)
    assert names(store) == ["ckpt-h0000-v00000300"]
    write(store, 400, epoch=2)
    write(store, 200, epoch=3, history=1)
    store.prune(1, 1)
    assert len(names(store)) == 3
    store.prune(1, 3)
    assert names(store) == ["ckpt-h0001-v00000200"]


def test_prune_removes_old_incomplete_sets_and_no_young_ones(store: CheckpointStore) -> None:
    write(store, 100, 0, shards=2)  # the other shard's server died
    for version in (200, 300):
        for shard in (0, 1):
            write(store, version, shard, shards=2)
    write(store, 400, 1, shards=2)  # the other part is on its way
    assert store.prune(1, 1) == ["ckpt-h0000-v00000100", "ckpt-h0000-v00000200"]
    write(store, 400, 0, shards=2)
    assert names(store) == ["ckpt-h0000-v00000400", "ckpt-h0000-v00000300"]


def test_half_written_files(store: CheckpointStore) -> None:
    name = write(store, 100)
    directory = store.directory / name
    superseded = [directory / f".{kind}-00000-e00000001-abc.tmp" for kind in ("part", "manifest")]
    another_shards = directory / ".part-00001-e00000001-abc.tmp"
    old = directory / ".part-00001-e00000009-abc.tmp"
    for path in (*superseded, another_shards, old):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    write(store, 200, epoch=2)
    assert not any(path.exists() for path in superseded)
    assert not old.exists()
    assert another_shards.exists(), "it may be written at this moment"


def test_another_number_of_shards(store: CheckpointStore) -> None:
    bounds = [0, 400, 1000, 1300]
    whole = torch.randn(1300)
    for shard, (low, high) in enumerate(itertools.pairwise(bounds)):
        tensors = {"flat": whole[low:high], "momentum": whole[low:high] * 2, "steps": torch.tensor(77)}
        name = store.write_part(shard, 3, 0, 1, 100, tensors, {"range": [low, high], "shard": shard})
    for low, high, used in (
        (0, 1300, [0, 1, 2]),
        (0, 650, [0, 1]),
        (650, 1300, [1, 2]),
        (400, 1000, [1]),
        (401, 402, [1]),
    ):
        tensors, metas = store.read_range(name, low, high)
        assert torch.equal(tensors["flat"], whole[low:high])
        assert torch.equal(tensors["momentum"], whole[low:high] * 2)
        assert tensors["steps"].item() == 77
        assert [m["shard"] for m in metas] == used
    with pytest.raises(CheckpointError, match="smaller model"):
        store.read_range(name, 1000, 1301)
    with pytest.raises(CheckpointError, match="use read_range"):
        store.read_part(name, 3)


def test_a_checkpoint_that_is_not_there(store: CheckpointStore) -> None:
    name = write(store, 100)
    for wrong in ("ckpt-h0000-v00000999", "../../etc", ""):
        with pytest.raises(CheckpointError, match=f"there are {name}"):
            store.read_part(wrong, 0)


def test_jobs_share_a_volume(tmp_path: Path) -> None:
    one, other = CheckpointStore(tmp_path, "one"), CheckpointStore(tmp_path, "other")
    write(one, 100)
    assert names(other) == []
    assert other.prune(1, 9) == []
    assert names(CheckpointStore(tmp_path / "one")) == names(one)


def test_a_dtype_that_has_no_name(store: CheckpointStore) -> None:
    with pytest.raises(ValueError, match="complex128"):
        store.write_part(0, 1, 0, 1, 1, {"x": torch.zeros(2, dtype=torch.complex128)}, {})


def test_what_a_set_is_called(store: CheckpointStore) -> None:
    write(store, 100, epoch=4)
    (found,) = store.list_complete(0)
    assert isinstance(found, Checkpoint)
    assert (found.name, found.order) == ("ckpt-h0000-v00000100", (0, 4, 100))
    assert re.fullmatch(r"part-00000-of-00001-e00000004-[0-9a-f]{8}\.safetensors", str(found.parts[0][0]))

"""Where FashionMNIST is found, how it is cached, and what is said when it is not there."""

from __future__ import annotations

import gzip
import logging
import struct
from pathlib import Path

import numpy as np
import pytest

from outlast.tasks import TaskError, fashion_mnist_data
from outlast.tasks.fashion_mnist_data import load, parse_idx

COUNT = 12


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_split(folder: Path, seed: int = 0, packed: bool = True) -> np.ndarray:
    """A training split of 12 random images in `folder`; returns the images."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (COUNT, 28, 28), dtype=np.uint8)
    for name, array in zip(fashion_mnist_data.FILES["train"], (images, np.arange(COUNT, dtype=np.uint8)), strict=True):
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / name).write_bytes(idx(array))
    return images


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No data on this machine, no network, and a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("OUTLAST_DATA", raising=False)
    monkeypatch.setattr(fashion_mnist_data, "DEBIAN_DIR", tmp_path / "debian")
    monkeypatch.setattr(fashion_mnist_data, "_download", lambda split: None)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "unpacked"])
@pytest.mark.parametrize("layout", ["", "FashionMNIST/raw"], ids=["debian", "torchvision"])
def test_both_layouts_are_read(tmp_path: Path, layout: str, packed: bool) -> None:
    images = write_split(tmp_path / "mine" / layout, packed=packed)
    split = load("train", str(tmp_path / "mine"))
    assert np.array_equal(split.images.numpy(), images)
    assert split.labels.tolist() == list(range(COUNT))


def test_what_is_named_goes_before_what_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = {name: write_split(tmp_path / name, seed) for seed, name in enumerate(("argument", "variable", "debian"))}
    assert np.array_equal(load("train").images.numpy(), places["debian"])
    monkeypatch.setenv("OUTLAST_DATA", str(tmp_path / "variable"))
    assert np.array_equal(load("train").images.numpy(), places["variable"])
    assert np.array_equal(load("train", str(tmp_path / "argument")).images.numpy(), places["argument"])


def test_a_named_folder_without_data_is_an_error_even_if_there_is_data_elsewhere(tmp_path: Path) -> None:
    write_split(tmp_path / "debian")
    with pytest.raises(TaskError, match=r"training\.args\.dataDir .*holds no FashionMNIST.*correct it"):
        load("train", str(tmp_path / "empty"))


def test_no_data_anywhere_says_what_to_do() -> None:
    with pytest.raises(TaskError) as refused:
        load("train")
    for words in ("not on this machine", "dataset-fashion-mnist", "training.args.dataDir", "OUTLAST_DATA"):
        assert words in str(refused.value)


def test_the_second_load_reads_the_cache_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_split(tmp_path / "debian")
    load("train")
    assert len(list((tmp_path / "cache" / "outlast").glob("*.npy"))) == 2
    assert not list((tmp_path / "cache" / "outlast").glob("*.tmp"))
    monkeypatch.setattr(fashion_mnist_data, "parse_idx", lambda source: pytest.fail("parsed again"))
    assert np.array_equal(load("train").images.numpy(), images)


def test_a_change_of_the_source_is_noticed(tmp_path: Path) -> None:
    write_split(tmp_path / "debian", packed=False)
    load("train")
    (tmp_path / "debian" / fashion_mnist_data.FILES["train"][0]).unlink()
    images = write_split(tmp_path / "debian", seed=1, packed=True)
    assert np.array_equal(load("train").images.numpy(), images)


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"short"], ids=["empty", "cut", "foreign"])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    images = write_split(tmp_path / "debian")
    load("train")
    for path in (tmp_path / "cache" / "outlast").glob("*.npy"):
        path.write_bytes(damage)
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(load("train").images.numpy(), images)
    assert "making it again" in caplog.text
    assert np.array_equal(load("train").images.numpy(), images)


def test_without_a_cache_the_data_is_still_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_split(tmp_path / "debian")
    monkeypatch.setattr(fashion_mnist_data, "cache_dir", lambda: None)
    assert np.array_equal(load("train").images.numpy(), images)


def test_a_full_disk_costs_the_cache_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    images = write_split(tmp_path / "debian")

    def full(file: object, array: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    assert np.array_equal(load("train").images.numpy(), images)
    assert "No space left" in caplog.text
    assert not list((tmp_path / "cache" / "outlast").iterdir())


def test_writes_to_the_data_stay_private(tmp_path: Path) -> None:
    images = write_split(tmp_path / "debian")
    load("train").images.zero_()
    assert np.array_equal(load("train").images.numpy(), images)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\x08",
        idx(np.zeros((2, 3), np.uint8))[:-1],
        b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0",
        gzip.compress(b"x" * 99)[:20],
    ],
    ids=["empty", "no-header", "cut", "floats", "not-packed"],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_what_is_no_idx_file_is_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"images{suffix}"
    path.write_bytes(content)
    with pytest.raises(TaskError, match=r"is no whole idx file of bytes.*fetch it again"):
        parse_idx(path)


def test_images_without_their_labels_are_refused(tmp_path: Path) -> None:
    write_split(tmp_path / "debian", packed=False)
    (tmp_path / "debian" / fashion_mnist_data.FILES["train"][1]).write_bytes(idx(np.zeros(5, np.uint8)))
    with pytest.raises(TaskError, match="not images and their labels"):
        load("train")

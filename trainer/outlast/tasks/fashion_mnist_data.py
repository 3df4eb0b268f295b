"""FashionMNIST without a download where it can be had without one.

The four idx files are looked for in `args.dataDir`, `$OUTLAST_DATA`, where Debian's package `dataset-fashion-mnist`
puts them, and in the user's cache; last of all torchvision downloads them. What is found is parsed once and kept as
`.npy` in the cache, written under a temporary name and renamed: later loads map that file (copy on write), so that
they take milliseconds and all processes of a machine share one copy in the page cache.
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from outlast.tasks.base import TaskError

log = logging.getLogger("outlast.tasks.fashion_mnist_data")

DEBIAN_DIR = Path("/usr/share/datasets/fashion-mnist")
DATA_VARIABLE = "OUTLAST_DATA"
LAYOUTS = ("", "FashionMNIST/raw", "fashion-mnist", "raw")  # below a data folder: Debian's, torchvision's, others'
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
IDX_UBYTE = 0x08
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Split:
    """`images` uint8 `[n, 28, 28]`, `labels` int64 `[n]`. Read-only by agreement: writes stay private to a process."""

    images: Tensor
    labels: Tensor


def load(split: str, data_dir: str | None = None, download: bool = True) -> Split:
    """`split` is "train" or "test". Raises `TaskError` that says where it looked and what to do."""
    sources = _find(split, data_dir) or (_download(split) if download else None)
    if sources is None:
        raise TaskError(_not_found())
    images, labels = (_cached(source) for source in sources)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise TaskError(
            f"{sources[0]} holds {list(images.shape)} and {sources[1].name} {list(labels.shape)}: these are not images "
            "and their labels; fetch the files again"
        )
    return Split(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)))


def cache_dir() -> Path | None:
    """The first folder of ours that can be written: the user's cache, or one below /tmp. None: there is none."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    for folder in (Path(home) / "outlast", Path(tempfile.gettempdir()) / f"outlast-{os.getuid()}"):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            continue
        # Below /tmp anybody may have made that name before us: what lies there would be somebody else's data.
        if folder.stat().st_uid == os.getuid() and os.access(folder, os.W_OK | os.X_OK):
            return folder
    return None


def _find(split: str, data_dir: str | None) -> tuple[Path, Path] | None:
    chosen = (("training.args.dataDir", data_dir), (DATA_VARIABLE, os.environ.get(DATA_VARIABLE)))
    for name, folder in chosen:
        if folder:
            found = _in_folder(Path(folder), split)
            if found is None:
                raise TaskError(
                    f"{name} {folder!r} holds no FashionMNIST: expected {FILES[split][0]}[.gz] and "
                    f"{FILES[split][1]}[.gz] there or in {folder}/FashionMNIST/raw; correct it, or "
                    "leave it out to search or download"
                )
            return found
    cache = cache_dir()
    folders = [DEBIAN_DIR, *([cache] if cache else [])]
    return next((found for folder in folders if (found := _in_folder(folder, split))), None)


def _in_folder(folder: Path, split: str) -> tuple[Path, Path] | None:
    for layout in LAYOUTS:
        base = folder / layout
        found = [p for name in FILES[split] for p in (base / name, base / f"{name}.gz") if p.is_file()]
        names = {p.name.removesuffix(".gz"): p for p in reversed(found)}  # unpacked wins over packed
        if len(names) == 2:
            return names[FILES[split][0]], names[FILES[split][1]]
    return None


def _download(split: str) -> tuple[Path, Path] | None:
    cache = cache_dir()
    if cache is None:
        return None
    try:
        from torchvision.datasets import FashionMNIST

        log.info("no FashionMNIST on this machine: torchvision downloads it to %s", cache)
        FashionMNIST(str(cache), train=split == "train", download=True)
    except Exception as error:
        raise TaskError(_not_found(f"; the download failed: {type(error).__name__}: {error}")) from error
    return _in_folder(cache, split)


def _not_found(why: str = "") -> str:
    return (
        f"FashionMNIST is not on this machine (looked in ${DATA_VARIABLE}, {DEBIAN_DIR}, {cache_dir()}){why}; install "
        "the package dataset-fashion-mnist (Debian, Ubuntu), or copy the four idx files somewhere and name the folder "
        f"in training.args.dataDir or ${DATA_VARIABLE}"
    )


def _cached(source: Path) -> Bytes:
    """The array in `source`, through the cache. A damaged cache file is made anew."""
    cache = cache_dir()
    if cache is None:
        return parse_idx(source)
    stat = source.stat()
    key = hashlib.sha256(f"{source.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:12]
    path = cache / f"{source.name.removesuffix('.gz')}-{key}.npy"
    try:
        return _map(path)
    except FileNotFoundError:
        pass
    except (OSError, EOFError, ValueError) as error:
        log.warning("%s is damaged (%s); making it again", path, error)
    array = parse_idx(source)
    try:
        _write(path, array)
        return _map(path)
    except (OSError, EOFError, ValueError) as error:
        log.warning("cannot keep %s (%s): every process parses the data for itself", path, error)
        return array


def _map(path: Path) -> Bytes:
    # Mode "c": a private mapping. "r" would make torch warn, "r+" would let one process change another's data.
    array: Bytes = np.load(path, mmap_mode="c", allow_pickle=False)
    if array.dtype != np.uint8:
        raise ValueError(f"holds {array.dtype}, not uint8")
    return array


def _write(path: Path, array: Bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            np.save(file, array)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def parse_idx(source: Path) -> Bytes:
    """The array in an idx file of unsigned bytes, packed or not. Raises `TaskError` if it is none, or is cut short."""
    opener: Any = gzip.open if source.suffix == ".gz" else open
    try:
        with opener(source, "rb") as file:
            data: bytes = file.read()
        zeros, kind, rank = struct.unpack_from(">HBB", data)
        shape = struct.unpack_from(f">{rank}I", data, 4)
        body = np.frombuffer(data, np.uint8, offset=4 + 4 * rank)
        if zeros != 0 or kind != IDX_UBYTE or body.size != int(np.prod(shape)):
            raise ValueError(f"its header says {list(shape)}, it holds {body.size} bytes")
    except (OSError, EOFError, ValueError, struct.error) as error:
        raise TaskError(f"{source} is no whole idx file of bytes ({error}); fetch it again") from error
    return body.reshape(shape).copy()
